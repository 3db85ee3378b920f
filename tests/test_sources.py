"""Each source on small files of its own, and what is said when the files are wrong."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from reeltalk.data.dataset import Dataset
from reeltalk.data.prepare import PrepareSettings, prepare
from reeltalk.data.raw import DAY, ORDER_START
from reeltalk.data.sources import SOURCES, read_source, source_settings
from reeltalk.errors import ArtifactError, ConfigError, DataError

START = 1_600_000_000  # seconds
ORDERED: dict[str, Any] = {"split": "leave_one_out"}

ITEMS = "item_key,title,created\na,First,1600000000000\nb,,\n"
ITEM_EVENTS = (
    "user_key,item_key,time,behaviour\nu,a,1600000001000,like\nu,b,1600000002000,like\nw,b,1600000003000,share\n"
)
COMMENTS = "comment_key,item_key,text,created,user_key,parent_key\nc,a,hello,1600000000500,w,\nd,a,,1600000000600,,c\n"
COMMENT_EVENTS = "user_key,comment_key,time,behaviour\nu,c,1600000005000,like\n"


def write_tables(folder: Path, **tables: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"items": ITEMS, "item_events": ITEM_EVENTS, "comments": COMMENTS, "comment_events": COMMENT_EVENTS}
    for name, text in (contents | tables).items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def prepared(source: str, raw: Path, settings: dict[str, Any] | None = None) -> Dataset:
    return prepare(
        source, raw=raw, out=raw.parent / "dataset", settings=PrepareSettings.model_validate(settings or ORDERED)
    )


def told(source: str, raw: Path, settings: dict[str, Any] | None = None) -> str:
    """What the error says; nothing may be left behind."""
    with pytest.raises(DataError) as found:
        prepared(source, raw, settings)
    left = [path.name for path in raw.parent.iterdir() if path != raw]
    assert left == []
    return str(found.value)


def test_tables_as_csv_gz_and_parquet_are_the_same(tmp_path: Path) -> None:
    plain = prepared("tables", write_tables(tmp_path / "csv" / "raw"))
    assert plain.items.rows() == [(1, "b", "", 0), (2, "a", "First", 1_600_000_000_000)]
    assert plain.comments.select("comment_key", "user_id", "parent_id", "text").rows() == [
        ("c", 2, 0, "hello"),
        ("d", 0, 1, ""),
    ]
    zipped, parquet = tmp_path / "gz" / "raw", tmp_path / "parquet" / "raw"
    for folder in (zipped, parquet):
        folder.mkdir(parents=True)
    for path in (tmp_path / "csv" / "raw").iterdir():
        (zipped / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        pl.read_csv(path).write_parquet(parquet / f"{path.stem}.parquet")
    assert prepared("tables", zipped).manifest.digest == plain.manifest.digest
    assert prepared("tables", parquet).manifest.digest == plain.manifest.digest


def test_tables_take_whole_number_keys_and_dates(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    pl.DataFrame({"item_key": [7, 8], "title": ["x", "y"]}).write_parquet(raw / "items.parquet")
    times = (pl.Series([START, START + 60]) * 1_000_000).cast(pl.Datetime("us"))
    events = pl.DataFrame({"user_key": [1, 1], "item_key": [8, 7], "time": times, "behaviour": ["like", "like"]})
    events.write_parquet(raw / "item_events.parquet")
    dataset = prepared("tables", raw)
    assert dataset.items["item_key"].to_list() == ["7", "8"]
    assert dataset.item_events["time"].to_list() == [START * 1000, (START + 60) * 1000]


def test_a_quoted_empty_field_is_empty(tmp_path: Path) -> None:
    tables = {
        "items.csv": '"item_key","title","created"\n"a","A",""\n"b","",""\n',
        "item_events.csv": '"user_key","item_key","time","behaviour"\n"u","a","1700000000000","like"\n',
        "comments.csv": '"comment_key","item_key","text","created","user_key","parent_key"\n"c","a","hm","","",""\n',
    }
    (tmp_path / "raw").mkdir()
    for name, content in tables.items():
        (tmp_path / "raw" / name).write_text(content)
    dataset = prepared("tables", tmp_path / "raw")
    assert dataset.items["created"].to_list() == [0, 0] and dataset.items["title"].to_list() == ["A", ""]
    assert dataset.comments.select("created", "user_id", "parent_id").row(0) == (0, 0, 0)


def test_impressions_are_kept_with_ids_and_flags(tmp_path: Path) -> None:
    shown = "is_click,user_key,item_key,time\n1,u,a,1600000001000\n0,z,b,1600000001500\n1,u,b,1600000000100\n"
    dataset = prepared("tables", write_tables(tmp_path / "raw", impressions=shown))
    assert dataset.users["user_key"].to_list() == ["u", "w", "z"]  # z saw something and did nothing
    assert dataset.table("impressions").columns == ["user_id", "item_id", "time", "is_click"]
    assert dataset.table("impressions").select("user_id", "item_id").rows() == [(1, 2), (3, 1), (1, 1)]
    assert dataset.manifest.facts["num_impressions"] == 3
    assert dataset.item_events["user_id"].unique().to_list() == [1, 2]


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"items": ITEMS.replace("title", "titel")}, ["items.csv", "lacks column 'title'", "did you mean 'titel'"]),
        ({"item_events": ITEM_EVENTS.replace("1600000002000", "soon")}, ["item_events.csv", "time", "row 2: 'soon'"]),
        (
            {"item_events": ITEM_EVENTS.replace("1600000003000", "1600000003")},
            ["item_events.csv", "time is before 2000", "row 3: 1600000003", "seconds"],
        ),
        (
            {"comments": COMMENTS.replace("1600000000600", "1600000000600000")},
            ["comments.csv", "created is after 2100", "row 2: 1600000000600000", "microseconds"],
        ),
        ({"item_events": ITEM_EVENTS.replace("w,b", ",b")}, ["item_events.csv", "user_key is null", "row 3"]),
        ({"items": ITEMS + "a,Other,\n"}, ["items.csv", "'a' in rows 1, 3", "differ"]),
        ({"comments": COMMENTS + "c,b,else,,,\n"}, ["comments.csv", "'c' in rows 1, 3"]),
        (
            {"item_events": ITEM_EVENTS + "u,zz,1600000004000,like\n"},
            ["item_events.csv", "1 rows name an unknown item_key (row 4: 'zz')", "unknown_ids=drop"],
        ),
        ({"comment_events": COMMENT_EVENTS + "u,no,1600000006000,like\n"}, ["unknown comment_key (row 2: 'no')"]),
        ({"comments": COMMENTS + "e,zz,hm,,,\n"}, ["comments.csv", "unknown item_key (row 3: 'zz')"]),
        ({"item_events": "user_key,item_key,time,behaviour\n"}, ["no event that counts"]),
        (
            {"item_events": ITEM_EVENTS.replace("w,b,1600000003000", "w,zz,5"), "items": ITEMS + "a,Other,\n"},
            ["unknown item_key", "differ", "time is before 2000"],
        ),
    ],
)
def test_tables_that_break_the_schema(tables: dict[str, str], expected: list[str], tmp_path: Path) -> None:
    message = told("tables", write_tables(tmp_path / "raw", **tables))
    assert all(part in message for part in expected), message


def test_unknown_ids_can_be_dropped(tmp_path: Path) -> None:
    raw = write_tables(
        tmp_path / "raw",
        item_events=ITEM_EVENTS + "u,zz,1600000004000,like\n",
        comments=COMMENTS + "e,zz,hm,,,\n",
        comment_events=COMMENT_EVENTS + "u,no,1600000006000,like\nu,e,1600000007000,like\n",
    )
    dataset = prepared("tables", raw, {"unknown_ids": "drop", **ORDERED})
    facts = dataset.manifest.facts
    assert (facts["num_item_events"], facts["num_comments"], facts["num_comment_events"]) == (3, 2, 1)
    assert facts["dropped"]["item_events_with_unknown_item_key"] == 1
    assert facts["dropped"]["comments_with_unknown_item_key"] == 1
    assert facts["dropped"]["comment_events_with_unknown_comment_key"] == 1
    assert facts["dropped"]["comment_events_of_dropped"] == 1  # of the comment whose item is unknown


def test_impressions_may_not_bring_columns_of_the_names_that_ids_get(tmp_path: Path) -> None:
    impressions = "user_key,item_key,time,user_id,row\nu,a,1600000001000,2,1\n"
    message = told("tables", write_tables(tmp_path / "raw", impressions=impressions))
    assert "impressions.csv: columns named row, user_id are reeltalk's own" in message


def test_windows_that_no_log_has(tmp_path: Path) -> None:
    for name in ("valid_days", "test_days", "active_days"):
        with pytest.raises(ValueError, match="less than or equal to 36525"):
            PrepareSettings.model_validate({name: float("inf")})
    settings = {"test_from": "0001-01-01", "split": "time"}
    with pytest.raises(ConfigError, match=r"< 0000-12-31 00:00:00 < 0001-01-01 00:00:00 <="):
        prepared("tables", write_tables(tmp_path / "raw"), settings)


def test_rows_repeated_word_for_word_count_once(tmp_path: Path) -> None:
    raw = write_tables(tmp_path / "raw", items=ITEMS + "b,,\n", comments=COMMENTS + COMMENTS.split("\n", 1)[1])
    dataset = prepared("tables", raw)
    assert (dataset.num_items, dataset.num_comments) == (2, 2)
    assert dataset.manifest.facts["dropped"]["comments_repeated"] == 2


def test_any_text_is_kept_as_it_is(tmp_path: Path) -> None:
    texts = ["x" * 100_000, "😀 👩‍👩‍👧 naïve", "", 'a "quoted", line\nand another']
    raw = write_tables(tmp_path / "raw")
    for name in ("comments", "comment_events"):
        (raw / f"{name}.csv").unlink()
    comments = pl.DataFrame({"comment_key": list("wxyz"), "item_key": "a", "text": texts})
    comments.write_csv(raw / "comments.csv")
    assert prepared("tables", raw).comments["text"].to_list() == texts


def test_broken_files_and_folders(tmp_path: Path) -> None:
    raw = write_tables(tmp_path / "cut" / "raw")
    whole = gzip.compress((raw / "comments.csv").read_bytes() * 50)
    (raw / "comments.csv").unlink()
    (raw / "comments.csv.gz").write_bytes(whole[:-30])
    assert "comments.csv.gz cannot be read" in told("tables", raw)
    (raw / "items.parquet").write_bytes(b"PAR1 and then nothing")
    assert "are both there" in told("tables", raw)
    (raw / "items.csv").unlink()
    assert "items.parquet cannot be read" in told("tables", raw)
    empty = tmp_path / "empty" / "raw"
    empty.mkdir(parents=True)
    assert "holds no items" in told("tables", empty)
    for source in sorted(SOURCES.keys() - {"simulator"}):
        assert str(empty) in told(source, empty)
    assert "does not exist" in told("tables", tmp_path / "empty" / "raw" / "nowhere")


def test_files_that_are_no_csv_name_the_line(tmp_path: Path) -> None:
    raw = write_tables(tmp_path / "raw")
    (raw / "items.csv").write_bytes(ITEMS.encode() + b"c,f\xfcr,\n")
    assert "items.csv cannot be read: not UTF-8 after line" in told("tables", raw)
    (raw / "items.csv").write_text(ITEMS + 'c,"open,\n')
    assert "items.csv cannot be read: the record after line 3 is not CSV" in told("tables", raw)
    (raw / "items.csv").write_text("item_key,created,title\na,,one, two\n")
    assert "items.csv cannot be read: line 2 has 4 fields, the header 3" in told("tables", raw)
    (raw / "items.csv").write_text("item_key,title,created,title\na,one,,two\n")
    assert "items.csv has column 'title' more than once; keep one" in told("tables", raw)


def test_settings_and_sources_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'threads'"):
        source_settings("thread", {})
    with pytest.raises(ConfigError, match=r"source.clok is unknown; did you mean 'clock'"):
        source_settings("tables", {"clok": "order"})
    with pytest.raises(ConfigError, match="leave out --raw"):
        read_source("simulator", raw=tmp_path, settings=source_settings("simulator", {}))
    with pytest.raises(DataError, match="needs --raw"):
        read_source("tables", raw=None, settings=source_settings("tables", {}))
    raw = write_tables(tmp_path / "raw")
    with pytest.raises(ConfigError, match="only orders events"):
        prepared("tables", raw, {"source": {"clock": "order"}, "split": "time"})
    assert not (tmp_path / "dataset").exists()


def full_disk_as_python_says_it(*args: object, **kwargs: object) -> None:
    raise OSError(28, "No space left on device")


def full_disk_as_polars_says_it(*args: object, **kwargs: object) -> None:
    raise pl.exceptions.ComputeError("parquet: underlying IO error: No space left on device (os error 28)")


@pytest.mark.parametrize("fail", [full_disk_as_python_says_it, full_disk_as_polars_says_it])
@pytest.mark.parametrize("method", ["LazyFrame.sink_parquet", "DataFrame.write_parquet"])
def test_a_full_disk_is_told_and_leaves_nothing(
    fail: Callable[..., None], method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_tables(tmp_path / "raw")
    monkeypatch.setattr(f"polars.{method}", fail)
    with pytest.raises(ArtifactError, match=r"dataset cannot be written: .*No space left.*free some space"):
        prepared("tables", raw)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_an_interrupt_leaves_nothing_and_the_old_folder_whole(
    toy_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare("tables", raw=toy_tables, out=tmp_path / "dataset")

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("reeltalk.data.prepare.item_candidates", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare("tables", raw=toy_tables, out=tmp_path / "dataset", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
    assert Dataset.load(tmp_path / "dataset").manifest == first.manifest


def write_threads(folder: Path, **changes: object) -> Path:
    """Ann opens 1 and Ben opens 2; in 1 Ben posts, Ann answers him, Ben answers Ann and a post of unknown author."""
    folder.mkdir()
    threads = pl.DataFrame(
        {
            "thread_id": [1, 2],
            "forum": ["x", None],
            "title": ["One", "Two"],
            "body": ["more", ""],
            "author": [10, 20],
            "created": [START] * 2,
        }
    )
    columns: dict[str, object] = {
        "comment_id": [1, 2, 3, 4, 5, 6, 7],
        "thread_id": [1, 1, 1, 1, 1, 1, 2],
        "parent_id": [None, 1, 2, 99, 3, 4, None],
        "author": [20, 10, 20, None, 20, 20, 10],
        "created": [START + 10 * i for i in range(1, 8)],
        "text": ["a", "b", "c", "d", "e", "f", "g"],
    }
    threads.write_parquet(folder / "threads.parquet")
    pl.DataFrame(columns | changes).write_parquet(folder / "comments.parquet")
    return folder


def test_threads(tmp_path: Path) -> None:
    dataset = prepared("threads", write_threads(tmp_path / "raw"))
    assert dataset.items["title"].to_list() == ["x: One\nmore", "Two"]
    assert dataset.users["user_key"].to_list() == ["10", "20"]
    assert dataset.comments["parent_id"].to_list() == [0, 1, 2, 0, 3, 4, 0]
    assert dataset.comments["user_id"].to_list() == [2, 1, 2, 0, 2, 2, 1]
    # only first posts in someone else's thread: 20 in thread 1, 10 in thread 2
    assert dataset.item_events.select("user_id", "item_id", "time").rows() == [
        (1, 2, (START + 70) * 1000),
        (2, 1, (START + 10) * 1000),
    ]
    events = dataset.comment_events.join(dataset.comment_records, on="record_id").select(
        "user_id", "comment_id", "time"
    )
    # 20's answer to their own post (3) is none; the answer to a post without author (4) is one
    assert events.rows() == [(1, 1, (START + 20) * 1000), (2, 2, (START + 30) * 1000), (2, 4, (START + 60) * 1000)]
    assert set(dataset.comment_events["behaviour"]) == {"reply"}


def test_threads_repeated_posts_count_once(tmp_path: Path) -> None:
    raw = write_threads(tmp_path / "raw")
    comments = pl.read_parquet(raw / "comments.parquet")
    pl.concat([comments, comments[:4]]).write_parquet(raw / "comments.parquet")
    facts = prepared("threads", raw).manifest.facts
    assert (facts["num_comments"], facts["num_item_events"], facts["num_comment_events"]) == (7, 2, 3)


def test_threads_from_a_day_on(tmp_path: Path) -> None:
    since = int(datetime(2021, 11, 5, tzinfo=UTC).timestamp())
    times: list[object] = [since + 10 * i for i in range(7)]
    settings = {**ORDERED, "source": {"opened_from": "2021-11-05"}}
    (tmp_path / "lost").mkdir()
    for folder, changes in ((tmp_path, {}), (tmp_path / "lost", {"thread_id": [1, 1, 1, 1, 1, 1, 3]})):
        raw = write_threads(folder / "raw", created=times, **changes)
        threads = pl.read_parquet(raw / "threads.parquet")
        threads.with_columns(created=pl.Series([since - 1, since])).write_parquet(raw / "threads.parquet")
    assert "item_key" in told("threads", tmp_path / "lost" / "raw", settings)  # of no thread, old or new
    dataset = prepared("threads", tmp_path / "raw", settings)
    assert dataset.items["item_key"].to_list() == ["2"]
    assert dataset.comments["comment_key"].to_list() == ["7"]


def test_threads_in_another_unit_or_type(tmp_path: Path) -> None:
    raw = write_threads(tmp_path / "ms", created=[START * 1000 + i for i in range(7)])
    assert "comments.parquet: created looks like milliseconds in 7 rows (row 1: 1600000000000" in told("threads", raw)
    raw.rename(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path.parent / f"{tmp_path.name}-old")
    raw = write_threads(tmp_path / "typed", text=list(range(7)))
    assert "column 'text' is Int64, expected String" in told("threads", raw)
    forum = pl.read_parquet(raw / "threads.parquet").with_columns(forum=pl.lit(1.5))
    forum.write_parquet(raw / "threads.parquet")
    assert "threads.parquet: column 'forum' is Float64, expected String" in told("threads", raw)


def test_threads_take_small_whole_numbers_and_columns_of_nulls(tmp_path: Path) -> None:
    raw = write_threads(tmp_path / "raw", parent_id=pl.Series([None] * 7))
    for name in ("threads", "comments"):
        frame = pl.read_parquet(raw / f"{name}.parquet")
        frame.with_columns(pl.col("created").cast(pl.Int32)).write_parquet(raw / f"{name}.parquet")
    facts = prepared("threads", raw).manifest.facts
    assert (facts["num_item_events"], facts["num_comment_events"]) == (2, 0)


def test_sequences(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "users.txt").write_text("u1 a b  c\n\nu2\tc a\n")
    (raw / "items.txt").write_text("a first item\nb\nc third, with 'quotes\" \n")
    settings = {"source": {"users_file": "users.txt", "items_file": "items.txt"}}
    dataset = prepared("sequences", raw, settings)
    assert dataset.items.select("item_key", "title").rows() == [
        ("a", "first item"),
        ("b", ""),
        ("c", "third, with 'quotes\""),
    ]
    assert dataset.item_events["item_id"].to_list() == [1, 2, 3, 3, 1]
    assert dataset.item_events["time"].to_list() == [ORDER_START + DAY * step for step in (0, 1, 2, 0, 1)]
    assert dataset.item_events["split"].to_list() == [0, 1, 2, 0, 0]
    assert dataset.manifest.facts["clock"] == "order"
    (tmp_path / "dataset").rename(tmp_path.parent / f"{tmp_path.name}-dataset")
    (raw / "users.txt").write_text("u1 a b\nu2\nu1 c\n")
    message = told("sequences", raw, settings)
    assert "line 2: user 'u2' has no item" in message
    assert "line 3: user 'u1' stands in an earlier line too" in message
    (raw / "users.txt").write_text("u1 a b zz\n")
    assert "users.txt: 1 rows name an unknown item_key (row 1: 'zz')" in told("sequences", raw, settings)


def test_microlens(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "Tiny_pairs.tsv").write_text("1\t5 6 7\n2\t7 5\n")
    assert "must hold one file named *_titles.csv, but there are: none" in told("microlens", raw)
    (raw / "Tiny_titles.csv").write_text('item,title\n5,"one, two"\n6,\n7,three\n')
    dataset = prepared("microlens", raw)
    assert dataset.items.select("item_key", "title").rows() == [("5", "one, two"), ("6", ""), ("7", "three")]
    assert dataset.item_events.select("user_id", "item_id").rows() == [(1, 1), (1, 2), (1, 3), (2, 3), (2, 1)]


RETAIL = (
    "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
    "1,A, MUG ,6,2010-12-01 08:26:00,2.5,17850.0,UK\n"
    "1,B,,1,2010-12-01 08:26:00,2.5,17850.0,UK\n"
    "2,A,CUP,1,2010-12-02 08:26:00,2.5,12000.0,UK\n"
    "3,A,MUG,1,2010-12-03 08:26:00,2.5,12000.0,UK\n"
    "C4,A,MUG,-1,2010-12-04 08:26:00,2.5,12000.0,UK\n"
    "5,C,LAMP,1,2010-12-04 08:26:00,2.5,,UK\n"
)


def test_retail(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "shop.csv.gz").write_bytes(gzip.compress(RETAIL.encode()))
    dataset = prepared("retail", raw, {"drop_repeats": False, **ORDERED})
    assert dataset.items.select("item_key", "title").rows() == [("A", "MUG"), ("B", "")]
    assert dataset.users["user_key"].to_list() == ["12000", "17850"]
    assert dataset.item_events.select("user_id", "item_id").rows() == [(1, 1), (1, 1), (2, 1), (2, 2)]
    assert dataset.item_events["time"][2] == 1_291_191_960_000
    assert set(dataset.item_events["behaviour"]) == {"buy"}

    rows = ",A,,1,2010-12-01 08:26:00,2.5,17850.0,UK\n", *("6,A, ,1,2010-12-05 08:26:00,2.5,17850.0,UK\n",) * 5
    (raw / "shop.csv.gz").write_bytes(gzip.compress("".join([RETAIL, *rows]).encode()))
    more = prepare("retail", raw=raw, out=tmp_path / "more", settings=PrepareSettings(split="leave_one_out"))
    assert more.items["title"].to_list() == ["MUG", ""]  # the most frequent of those that say something
    assert more.manifest.facts["dropped"]["item_events_repeated"] + len(more.item_events) == 4 + 6


def test_retail_dates(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "shop.csv").write_text(RETAIL.replace("2010-12-02 08:26:00", "12/2/2010 8:26"))
    assert prepared("retail", raw).item_events["time"][0] == 1_291_278_360_000
    (tmp_path / "dataset").rename(tmp_path.parent / f"{tmp_path.name}-dataset")
    (raw / "shop.csv").write_text(RETAIL.replace("2010-12-03 08:26:00", "yesterday"))
    assert "InvoiceDate is no date in 1 rows (row 4: 'yesterday')" in told("retail", raw)


def test_errors_name_the_row_of_the_file_where_a_source_leaves_rows_out(tmp_path: Path) -> None:
    retail = tmp_path / "retail" / "raw.csv"
    retail.parent.mkdir()
    lines = RETAIL.splitlines()
    without_customer, without_item = lines[1].split(","), lines[1].split(",")
    without_customer[lines[0].split(",").index("CustomerID")] = ""
    without_item[lines[0].split(",").index("StockCode")] = ""
    retail.write_text("\n".join([*lines, ",".join(without_customer), ",".join(without_item)]))
    assert f"purchases of {retail}: item_key is null in 1 rows (row {len(lines) + 1}: None)" in told("retail", retail)
    (tmp_path / "threads").mkdir()
    threads = write_threads(tmp_path / "threads" / "raw")
    posts = pl.read_parquet(threads / "comments.parquet")
    stray = posts.tail(1).with_columns(pl.Series("comment_id", [8]), pl.Series("thread_id", [77]))
    pl.concat([posts, stray]).write_parquet(threads / "comments.parquet")
    message = told("threads", threads)
    assert message.count(f"(row {len(posts) + 1}: '77')") == 2  # of the comment, and of the first post that it is


def test_an_order_begins_where_the_message_says(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "items.csv").write_text("item_key,title\na,A\n")
    events = "user_key,item_key,time,behaviour\nu,a,{},like\n"
    (tmp_path / "raw" / "item_events.csv").write_text(events.format(1))
    message = told("tables", tmp_path / "raw", {"source": {"clock": "order"}})
    assert "order events, begin at 946684800000" in message
    (tmp_path / "raw" / "item_events.csv").write_text(events.format(946684800000))
    assert len(prepared("tables", tmp_path / "raw", {"source": {"clock": "order"}}).item_events) == 1


def test_a_user_of_more_items_than_the_clock_has_days(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "user_sequence.txt").write_text("u a b\nw" + " a b" * 20_000)
    (raw / "item_generative_indexing_phase_0.txt").write_text("a\tfirst\nb second\n")
    assert "line 2: user 'w' has more than 36,525 items" in told("sequences", raw)
    (raw / "user_sequence.txt").write_text("u a b\n")
    assert prepared("sequences", raw).items["title"].to_list() == ["first", "second"]
