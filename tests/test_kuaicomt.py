"""The kuaicomt source: from the five published files to a raw log and a dataset; and what it says of broken files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from benchmarks.kuaicomt import write_log
from reeltalk.data.dataset import Split
from reeltalk.data.prepare import PrepareSettings, prepare
from reeltalk.data.raw import RAW_TABLES, RawLog
from reeltalk.data.sources.kuaicomt import COMMENT_LOG, COMMENTS, ITEM_LOG, ITEMS, Settings, read
from reeltalk.errors import DataError

NOON = 1_696_132_800_000  # 2023-10-01 12:00 in Shanghai
HOUR = 3_600_000


def impression(user: int, item: int, time: float = NOON, **flags: Any) -> dict[str, Any]:
    zero = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_collect", "is_hate", "long_view")
    record = {"user_id": user, "video_id": item, "p_hourmin": 1200, "time_ms": float(time), **dict.fromkeys(zero, 0)}
    seen = {"play_time_ms": 5822.0, "duration_ms": 19960.0, "profile_stay_time": 0, "comment_stay_time": 0}
    return {**record, **seen, **flags}


def comment_event(
    user: int, comment: int, item: int, *, time: int = NOON // 1000, like: int = 1, reply: int = 0
) -> Any:
    record = {"user_id": user, "comment_id": comment, "time_stamp": time, "photo_id": item}
    return {**record, "is_like": like, "is_reply": reply}


def item(key: int, upload: str | None = "2023-07-06", caption: str | None = "花#猫") -> dict[str, Any]:
    record = {"video_id": key, "author_id": 1, "video_type": "NORMAL", "upload_dt": upload, "caption": caption}
    return {**record, "duration": 36200.0, "category": "x"}


def comment(key: int, of_item: int, text: str | None = "乱了") -> dict[str, Any]:
    record = {"comment_id": key, "comment_content": text, "video_id": of_item, "comment_like_cnt": 112}
    return {**record, "comment_reply_out": 6, "show_comment_cnt_td": 645}


@pytest.fixture
def files() -> dict[str, pl.DataFrame]:
    """Two users, three items, three comments."""
    return {
        ITEM_LOG: pl.DataFrame(
            [
                impression(7, 11),
                impression(7, 12, NOON + 1, is_like=1, is_forward=1),
                impression(8, 12, NOON + 2, is_collect=1, is_forward=1, is_click=1),
                impression(8, 13, NOON + 3, is_forward=1, long_view=1),
                impression(8, 11, NOON - 90 * 24 * HOUR, is_hate=1),
            ]
        ),
        COMMENT_LOG: pl.DataFrame(
            [
                comment_event(7, 21, 11),
                comment_event(7, 22, 11, like=0, reply=1),
                comment_event(8, 23, 12, like=1, reply=1),
                comment_event(8, 23, 12, like=0),
            ]
        ),
        ITEMS: pl.DataFrame([item(11), item(12, "2023-10-02", None), item(13, None, "")]),
        COMMENTS: pl.DataFrame([comment(21, 11), comment(22, 11, None), comment(23, 12)]),
    }


def write(folder: Path, files: dict[str, pl.DataFrame]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, frame in files.items():
        frame.write_csv(folder / name)
    return folder


def load(folder: Path) -> RawLog:
    return read(folder, settings=Settings())


def rows(frame: pl.LazyFrame, name: str) -> list[tuple[Any, ...]]:
    return frame.select(list(RAW_TABLES[name])).collect(engine="streaming").rows()


def fault(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(folder)
    return str(caught.value)


def test_events_that_count_are_apart_from_impressions(tmp_path: Path, files: dict[str, pl.DataFrame]) -> None:
    log = load(write(tmp_path, files))
    assert rows(log.item_events, "item_events") == [
        ("7", "12", NOON + 1, "like"),
        ("8", "12", NOON + 2, "collect"),
        ("8", "13", NOON + 3, "share"),
    ]
    assert rows(log.comment_events, "comment_events") == [
        ("7", "21", NOON, "like"),
        ("7", "22", NOON, "reply"),
        ("8", "23", NOON, "like"),
    ]
    assert log.impressions is not None
    impressions = log.impressions.collect()
    assert impressions["item_key"].to_list() == ["11", "12", "12", "13", "11"]
    assert impressions["is_forward"].to_list() == [False, True, True, True, False]
    assert impressions["play_time_ms"].to_list() == [5822.0] * 5
    assert set(impressions.columns) == {"user_key", "item_key", "time", *files[ITEM_LOG].columns[2:]} - {"time_ms"}
    assert read(tmp_path, settings=Settings(impressions=False)).impressions is None


def test_items_exist_since_their_upload_day_in_shanghai_or_their_first_event(
    tmp_path: Path, files: dict[str, pl.DataFrame]
) -> None:
    """Item 12 was seen the day before its upload, item 11's comment was liked after; item 13's upload is unknown."""
    files[COMMENT_LOG] = pl.concat(
        [files[COMMENT_LOG], pl.DataFrame([comment_event(7, 23, 12, time=NOON // 1000 - 9)])]
    )
    log = load(write(tmp_path, files))
    july = int(datetime(2023, 7, 5, 16, tzinfo=UTC).timestamp() * 1000)
    first_seen = NOON - 90 * 24 * HOUR
    assert first_seen < july
    assert rows(log.items, "items") == [("11", "花#猫", first_seen), ("12", "", NOON - 9_000), ("13", "", None)]
    files[ITEM_LOG] = files[ITEM_LOG].head(4)
    assert rows(load(write(tmp_path, files)).items, "items")[0] == ("11", "花#猫", july)


def test_texts_of_any_kind_and_columns_in_any_order(tmp_path: Path, files: dict[str, pl.DataFrame]) -> None:
    texts = ["😂👍🏽", 'a "quoted", line\nand another', "", "好" * 100_000, None]
    files[COMMENTS] = pl.DataFrame([comment(index, 11, text) for index, text in enumerate(texts, start=21)])
    files = {name: frame.select(reversed(frame.columns)).with_columns(extra=1) for name, frame in files.items()}
    log = load(write(tmp_path, files))
    assert [row[2] for row in rows(log.comments, "comments")] == [text or "" for text in texts]
    assert rows(log.comments, "comments")[0] == ("21", "11", texts[0], None, None, None)


def test_whole_files_of_the_published_schema_become_a_dataset(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    write_log(raw, impressions=40_000, comments=8_000, seed=1)
    dataset = prepare("kuaicomt", raw=raw, out=tmp_path / "out", settings=PrepareSettings())
    log = pl.read_csv(raw / ITEM_LOG)
    liked = log.filter((pl.col("is_like") + pl.col("is_collect") + pl.col("is_forward")) > 0)
    dropped = dataset.manifest.facts["dropped"]
    assert len(dataset.item_events) + dropped["item_events_repeated"] == len(liked)
    assert dataset.manifest.facts["num_impressions"] == len(log)
    assert dataset.num_comments == 8_000
    assert len(dataset.comment_events) == 8_000 // 16
    kept = pl.read_parquet(tmp_path / "out" / "impressions.parquet")
    assert kept["is_like"].sum() == log["is_like"].sum()
    assert kept["time"].to_list() == log["time_ms"].cast(pl.Int64).to_list()
    texts = pl.read_csv(raw / COMMENTS).select(pl.col("comment_id").cast(pl.String), pl.col("comment_content"))
    joined = dataset.comments.join(texts, left_on="comment_key", right_on="comment_id")
    assert joined.height == 8_000
    assert (joined["text"] == joined["comment_content"].fill_null("")).all()
    # no item is a candidate before its upload day, nor an event earlier than its item
    created = dict(dataset.items.select("item_id", "created").iter_rows())
    assert all(time >= created[item_id] for item_id, time in dataset.item_events.select("item_id", "time").iter_rows())
    for time, negatives in dataset.candidates("item", Split.TEST).select("time", "negatives").iter_rows():
        assert max(created[negative] for negative in negatives) <= time


def test_duplicate_and_unknown_ids_are_told_or_dropped(tmp_path: Path, files: dict[str, pl.DataFrame]) -> None:
    files[ITEMS] = pl.concat([files[ITEMS], pl.DataFrame([item(11, caption="another")])]).filter(
        pl.col("video_id") != 13
    )
    files[COMMENTS] = pl.concat([files[COMMENTS], files[COMMENTS].tail(1)])
    files[COMMENT_LOG] = pl.concat([files[COMMENT_LOG], pl.DataFrame([comment_event(7, 99, 11)])])
    write(tmp_path / "raw", files)
    with pytest.raises(DataError) as caught:
        prepare("kuaicomt", raw=tmp_path / "raw", out=tmp_path / "out", settings=PrepareSettings())
    told = str(caught.value)
    assert f"{ITEMS}: 1 item_keys stand in several rows that differ ('11' in rows 1, 3)" in told
    assert f"{ITEM_LOG}: 1 rows name an unknown item_key (row 4: '13')" in told
    assert f"{COMMENT_LOG}: 1 rows name an unknown comment_key" in told
    assert COMMENTS not in told
    assert not (tmp_path / "out").exists()


def test_missing_files_and_columns_are_all_told(tmp_path: Path, files: dict[str, pl.DataFrame]) -> None:
    write(tmp_path, {name: frame for name, frame in files.items() if name != COMMENTS})
    assert f"{COMMENTS} is missing" in fault(tmp_path)
    files[ITEM_LOG] = files[ITEM_LOG].rename({"is_like": "islike"}).drop("long_view")
    files[COMMENT_LOG] = files[COMMENT_LOG].drop("photo_id", "time_stamp")
    told = fault(write(tmp_path, files))
    assert f"{ITEM_LOG} lacks column 'is_like'; did you mean 'islike'?" in told
    assert f"{COMMENT_LOG} lacks column 'photo_id'" in told
    assert f"{COMMENT_LOG} lacks column 'time_stamp'" in told
    assert "long_view" not in told.split("choices")[0]
    (tmp_path / ITEMS).write_text("")
    assert f"{ITEMS}: " in fault(tmp_path)


@pytest.mark.parametrize(
    ("name", "column", "values", "told"),
    [
        (
            ITEM_LOG,
            "user_id",
            ["7", "abc", "8", "", "8"],
            "user_id is 'abc' in row 2 (and so in 1 more rows), expected a",
        ),
        (
            ITEM_LOG,
            "video_id",
            ["11", "12.5", "12", "13", "11"],
            "video_id is '12.5' in row 2, expected a whole number",
        ),
        (ITEM_LOG, "is_like", ["0", "0", "2", "0", "0"], "is_like is '2' in row 3, expected 0 or 1"),
        (ITEM_LOG, "play_time_ms", ["1", "", "x", "1", "1"], "play_time_ms is 'x' in row 3, expected a number"),
        (ITEM_LOG, "time_ms", ["1696141175"] * 5, "row 1 (and so in 4 more rows)"),
        (ITEM_LOG, "time_ms", ["1696141175"] * 5, "it looks like seconds: multiply by 1000"),
        (ITEM_LOG, "time_ms", [str(NOON)] * 4 + ["nan"], "time_ms is 'nan' in row 5"),
        (ITEM_LOG, "time_ms", [str(NOON)] * 4 + ["900000000000"], "time_ms is '900000000000' in row 5, expected milli"),
        (COMMENT_LOG, "time_stamp", [str(NOON)] * 4, "it looks like milliseconds: divide by 1000"),
        (COMMENT_LOG, "comment_id", ["21", "22", None, "23"], "comment_id is empty in row 3"),
        (ITEMS, "upload_dt", ["2023-07-06", "06/07/2023", ""], "upload_dt is '06/07/2023' in row 2, expected a date"),
        (ITEMS, "upload_dt", ["2023-07-06", "1970-01-01", ""], "upload_dt is '1970-01-01' in row 2"),
    ],
)
def test_unfit_fields_are_named(
    tmp_path: Path, files: dict[str, pl.DataFrame], name: str, column: str, values: list[Any], told: str
) -> None:
    files[name] = files[name].with_columns(pl.Series(column, values))
    found = fault(write(tmp_path, files))
    assert told in found
    assert found.splitlines()[1].startswith(f"  - {name}: {column} ")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("24,a,b,11,1,1,1\n", "line 5 has 7 fields, the header 6"),
        ('24,"never closed,11,1,1,1\n25,x,11,1,1,1\n', "the record after line 4 is not CSV"),
        (b"24,\xff\xfe,11,1,1,1\n", "not UTF-8 after line"),
    ],
)
def test_files_that_are_no_csv_name_the_line(
    tmp_path: Path, files: dict[str, pl.DataFrame], line: str | bytes, told: str
) -> None:
    write(tmp_path, files)
    with (tmp_path / COMMENTS).open("ab") as stream:
        stream.write(line if isinstance(line, bytes) else line.encode())
    found = fault(tmp_path)
    assert f"{COMMENTS}: " in found
    assert told in found
