"""The amazon source: three releases, one raw log; and what it says of broken files."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from reeltalk.data.prepare import PrepareSettings, prepare
from reeltalk.data.raw import RAW_TABLES
from reeltalk.data.sources.amazon import Settings, read
from reeltalk.errors import DataError

SECONDS = 1_400_000_000
DAY = 86_400


def review_2018(user: str, item: str, time: int = SECONDS, text: str = "good", **more: Any) -> dict[str, Any]:
    return {"reviewerID": user, "asin": item, "reviewText": text, "summary": "S", "unixReviewTime": time, **more}


def review_2023(user: str, item: str, time: int = SECONDS * 1000, text: str = "good", **more: Any) -> dict[str, Any]:
    record = {"user_id": user, "asin": f"{item}-red", "parent_asin": item, "text": text, "title": "S"}
    return {**record, "timestamp": time, **more}


def write(path: Path, records: list[Any]) -> Path:
    text = "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def settings(**given: Any) -> Settings:
    return Settings.model_validate({"metadata": [], **given})


def rows(frame: pl.LazyFrame, *columns: str) -> list[tuple[Any, ...]]:
    return sorted(frame.select(columns).collect(engine="streaming").rows())


def fault(tmp_path: Path, **given: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(tmp_path, settings=settings(**given))
    return str(caught.value)


@pytest.mark.parametrize("name", ["reviews.json", "reviews.json.gz", "reviews.jsonl"])
@pytest.mark.parametrize("review", [review_2018, review_2023])
def test_every_release_gives_the_same_raw_log(tmp_path: Path, review: Any, name: str) -> None:
    unit = 1 if review is review_2018 else 1000
    write(tmp_path / name, [review("u1", "B1"), "", review("u2", "B2", (SECONDS + DAY) * unit, "fine", vote="1,024")])
    log = read(tmp_path, settings=settings())
    first, second = SECONDS * 1000, (SECONDS + DAY) * 1000
    assert rows(log.item_events, *RAW_TABLES["item_events"]) == [
        ("u1", "B1", first, "review"),
        ("u2", "B2", second, "review"),
    ]
    assert rows(log.comments, *RAW_TABLES["comments"]) == [
        (f"u1:B1:{first}", "B1", "S\ngood", first, "u1", None),
        (f"u2:B2:{second}", "B2", "S\nfine", second, "u2", None),
    ]
    assert rows(log.items, "item_key", "title", "created") == [("B1", "", None), ("B2", "", None)]
    assert log.comment_events.collect().is_empty()


def test_titles_come_from_metadata_of_each_form_without_markup(tmp_path: Path) -> None:
    write(tmp_path / "reviews_Toys_5.json.gz", [review_2018("u", key) for key in "ABCDE"])
    loose = ["{'asin': 'A', 'title': 'Kid\\'s \"Drum\"', 'salesRank': {'Toys': 5}}", "{'asin': 'E', 'price': 5.99}"]
    strict = [
        {"asin": "B", "title": "<span class='x'>Salt &amp; Pepper</span>\n &#34;Set&#34; I <3 it", "also_buy": ["A"]},
        {"asin": "C", "title": None},
        {"asin": "C", "title": "<script>var a = '<b>';\nreturn 1 < 2;</script> Cup"},
        {"asin": "unreviewed", "title": "never seen"},
    ]
    write(tmp_path / "meta_Toys.json.gz", loose)
    write(tmp_path / "meta_Home.json", strict)
    write(tmp_path / "meta_new.jsonl", [{"parent_asin": "D", "title": "Kettle 😀", "details": {"a": 1}}])
    log = read(tmp_path, settings=Settings())
    assert rows(log.items, "item_key", "title") == [
        ("A", 'Kid\'s "Drum"'),
        ("B", 'Salt & Pepper "Set" I <3 it'),
        ("C", "Cup"),
        ("D", "Kettle 😀"),
        ("E", ""),
    ]


def test_loose_reviews_equal_strict_ones(tmp_path: Path) -> None:
    records = [review_2018(f"u{index % 7}", f"B{index}", SECONDS + index, f"it's {index}") for index in range(50)]
    write(tmp_path / "strict.json", records)
    write(tmp_path / "loose.json.gz", [repr(record) for record in records])
    strict, loose = (read(tmp_path, settings=settings(reviews=[name])) for name in ("strict.json", "loose*"))
    for name in ("items", "item_events", "comments"):
        columns = list(RAW_TABLES[name])
        assert rows(getattr(loose, name), *columns) == rows(getattr(strict, name), *columns)


def test_texts_of_any_kind(tmp_path: Path) -> None:
    long = "好" * 100_000
    texts = {"a": "", "b": "😀👍🏽", "c": long, "d": "5 &lt; 6<br />yes", "e": "a\\nb\u2028c"}
    records = [review_2018(user, "B", text=text, summary="") for user, text in texts.items()]
    write(tmp_path / "r.json", [*records, {"reviewerID": "f", "asin": "B", "unixReviewTime": SECONDS, "summary": None}])
    log = read(tmp_path, settings=settings())
    expected = {**texts, "d": "5 < 6 yes", "f": ""}
    assert dict(rows(log.comments, "user_key", "text")) == expected


def test_a_review_told_twice_is_one_event(tmp_path: Path) -> None:
    same = review_2018("u", "B")
    other = review_2018("u", "B", text="no, bad")
    write(tmp_path / "a.json", [same, review_2018("v", "B"), other, same])
    write(tmp_path / "b.json", [same, other, review_2018("u", "C")])
    log = read(tmp_path, settings=settings())
    time = SECONDS * 1000
    events = [("u", "B", time), ("u", "C", time), ("v", "B", time)]
    assert rows(log.item_events, "user_key", "item_key", "time") == events
    comments = log.comments.select("comment_key", "text").unique().collect()
    assert sorted(comments.rows()) == [
        (f"u:B:{time}", "S\ngood"),
        (f"u:B:{time}:2", "S\nno, bad"),
        (f"u:C:{time}", "S\ngood"),
        (f"v:B:{time}", "S\ngood"),
    ]


def test_items_can_be_created_by_their_first_review(tmp_path: Path) -> None:
    write(tmp_path / "r.json", [review_2018("u", "B", SECONDS + 5), review_2018("v", "B"), review_2018("v", "C")])
    log = read(tmp_path, settings=settings(item_created="first_review"))
    assert rows(log.items, "item_key", "created") == [("B", SECONDS * 1000), ("C", SECONDS * 1000)]


def test_prepare_leaves_one_out_and_counts_repeats(tmp_path: Path) -> None:
    records = [
        review_2018(f"u{user}", f"B{(user + 3 * step) % 20}", SECONDS + user * 10 + step * DAY)
        for user in range(10)
        for step in range(5)
    ]
    raw = tmp_path / "raw"
    raw.mkdir()
    write(raw / "Toys_5.json.gz", [*records, records[7]])
    write(raw / "meta_Toys.json.gz", [{"asin": f"B{item}", "title": f"toy {item}"} for item in range(20)])
    chosen = PrepareSettings(split="leave_one_out", num_item_negatives=5)
    dataset = prepare("amazon", raw=raw, out=tmp_path / "out", settings=chosen)
    assert (dataset.num_users, dataset.num_items, dataset.num_comments) == (10, 20, 50)
    assert len(dataset.item_events) == 50
    assert dataset.manifest.facts["dropped"]["comments_repeated"] == 1
    assert set(dataset.items["title"]) == {f"toy {item}" for item in range(20)}
    assert dataset.comments["user_id"].min() == 1
    assert dataset.comment_records.is_empty()


def test_every_kind_of_unfit_line_is_told_at_once(tmp_path: Path) -> None:
    write(
        tmp_path / "a.json",
        [
            review_2018("u", "B"),
            "",
            {"asin": "B", "unixReviewTime": SECONDS, "reviewText": "x"},
            review_2018("u", ""),
            review_2018("u", "B", time=SECONDS * 1000),
            {**review_2018("u", "B"), "unixReviewTime": "yesterday"},
            review_2018("u", "B", time=-5),
            review_2018("u", "B", time=900_000_000),
            review_2018("", "B"),
        ],
    )
    write(tmp_path / "b.jsonl.gz", [review_2023("u", "B"), review_2023("u", "B", time=SECONDS)])
    told = fault(tmp_path)
    for part in (
        "a.json: reviewerID is missing in line 3 (and so in 1 more lines)",
        "a.json: asin is '' in line 4,",
        f"a.json: unixReviewTime is {SECONDS * 1000} in line 5, it looks like milliseconds",
        "a.json: unixReviewTime is 'yesterday' in line 6, expected a whole number",
        "a.json: unixReviewTime is -5 in line 7, no time of a review",
        "a.json: unixReviewTime is 900000000 in line 8, before 2000",
        f"b.jsonl.gz: timestamp is {SECONDS} in line 2, it looks like seconds",
    ):
        assert part in told
    assert len(told.splitlines()) == 8


def test_reviews_before_2000_can_be_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a.json", [review_2018("u", "B", time=900_000_000), review_2018("u", "C")])
    assert "source.before_2000=drop" in fault(tmp_path)
    log = read(tmp_path, settings=settings(before_2000="drop"))
    assert (
        rows(log.item_events, "item_key") == rows(log.comments, "item_key") == rows(log.items, "item_key") == [("C",)]
    )
    write(tmp_path / "a.json", [review_2018("u", "B", time=5), review_2018("u", "C")])
    assert "unixReviewTime is 5 in line 1" in fault(tmp_path, before_2000="drop")


@pytest.mark.parametrize("form", [json.dumps, repr])
def test_damaged_gz_names_file_and_line(tmp_path: Path, form: Any) -> None:
    records = [form(review_2018(f"u{index}", f"B{index * 7919 % 10007}")) for index in range(5_000)]
    path = write(tmp_path / "a.json.gz", records)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    told = fault(tmp_path)
    assert "a.json.gz: the gz data is cut off or damaged after line" in told
    line = int(told.split("after line ")[1].split()[0])
    assert 1_000 < line < 4_000
    path.write_bytes(b"\x1f\x8b" + b"nothing of the kind")
    assert "a.json.gz" in fault(tmp_path)


def test_lines_that_are_no_json_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.json", [review_2018("u", "B"), '{"reviewerID": "u", "asin"', review_2018("u", "C")])
    write(tmp_path / "b.json", [repr(review_2018("u", "B")), "{'asin': f(x)}"])
    write(tmp_path / "c.json", [review_2018("u", "B"), "[1, 2]"])
    write(tmp_path / "e.json", [review_2018("u", "B"), json.dumps(review_2018("u", "B", overall=float("nan")))])
    (tmp_path / "f.json").write_bytes(codecs.BOM_UTF8 + json.dumps(review_2018("u", "B")).encode())
    write(tmp_path / "g.json", [review_2018("u", "B"), "[" * 100_000])
    (tmp_path / "d.json").write_bytes(json.dumps(review_2018("u", "B")).encode() + b'\n{"asin": "\xff"}\n')
    told = fault(tmp_path)
    for part in (
        "a.json: line 2 is no JSON",
        "b.json: line 2 is no JSON",
        "c.json: line 2 is no JSON",
        "d.json: line 2",
        "e.json: line 2 is no JSON object (NaN is no number in JSON; write null)",
        "f.json: line 1 is no JSON object (it begins with a byte order mark)",
        "g.json: line 2 is no JSON object (it is nested too deeply)",
    ):
        assert part in told


def test_broken_metadata_is_told_before_anything_is_written(tmp_path: Path) -> None:
    write(tmp_path / "r.json", [review_2018("u", "B")])
    write(tmp_path / "meta_a.json", [{"asin": "B", "title": "x"}, {"title": "y"}])
    whole = write(tmp_path / "meta_b.json.gz", [{"asin": f"B{index * 7919}"} for index in range(5_000)])
    whole.write_bytes(whole.read_bytes()[:-100])
    told = fault(tmp_path, metadata=None)
    assert "meta_a.json: asin is missing in line 2" in told
    assert "meta_b.json.gz: the gz data is cut off or damaged after line" in told


def test_wrong_or_missing_files_are_named(tmp_path: Path) -> None:
    assert "holds no file of reviews" in fault(tmp_path)
    write(tmp_path / "categories.json", [{"name": "Toys"}])
    (tmp_path / "empty.json").touch()
    told = fault(tmp_path)
    assert "categories.json holds no reviews: its first record has name" in told
    assert "empty.json holds no reviews: it is empty" in told
    assert "source.metadata=[] if there is none" in fault(tmp_path, metadata=None)
    assert "source.reviews: no file 'x*.json'" in fault(tmp_path, reviews=["x*.json"])
    told = fault(tmp_path, reviews=["", "/etc/x"])
    assert "'' is no file name" in told
    assert "'/etc/x' is no file name or pattern within" in told
