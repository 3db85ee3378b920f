"""`prepare` against a slow second writing of every rule, on random small logs with many equal times."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from reeltalk.artifacts import versions
from reeltalk.data.dataset import TABLES, Dataset, Split
from reeltalk.data.features import CommentFeatures
from reeltalk.data.histories import NOW
from reeltalk.data.prepare import PrepareSettings, prepare
from reeltalk.errors import ConfigError

START, HOUR = 1_700_000_000_000, 3_600_000
Row = dict[str, Any]
Log = dict[str, list[Row]]

BY_TIME: Row = {
    "split": "time",
    "valid_from": "2023-11-15T20:13:20",  # START + 22 hours
    "test_from": "2023-11-16T02:13:20",
    "record_gap_seconds": 10800,
    "num_item_negatives": 6,
    "max_comment_candidates": 5,
}
VALID, TEST = START + 22 * HOUR, START + 28 * HOUR


def random_log(seed: int, *, knows_creation: bool = True) -> Log:
    """7 users, 25 items, 60 comments, events in whole hours of a day and a half, in any order."""
    rng = np.random.default_rng(seed)

    def hour(low: int = 0) -> int:
        return START + int(rng.integers(low, 36)) * HOUR

    items = [
        {"item_key": f"v{i}", "title": f"t{i}", "created": hour() - 12 * HOUR if knows_creation else None}
        for i in range(25)
    ]
    comments = [
        {
            "comment_key": f"c{i}",
            "item_key": f"v{rng.integers(0, 12 if i >= 25 else 3)}",
            "text": f"words {i}",
            "created": hour(-2) if rng.random() < 0.9 else None,
            "user_key": f"u{rng.integers(0, 9)}" if rng.random() < 0.8 else None,
            "parent_key": f"c{rng.integers(0, 60)}" if rng.random() < 0.3 else None,
        }
        for i in range(60)
    ]
    item_events = [
        {
            "user_key": f"u{rng.integers(0, 7)}",
            "item_key": f"v{rng.integers(0, 25)}",
            "time": hour(),
            "behaviour": "like",
        }
        for _ in range(90)
    ]
    comment_events = [
        {
            "user_key": f"u{rng.integers(0, 7)}",
            "comment_key": f"c{rng.integers(0, 25)}",
            "time": hour(),
            "behaviour": "r",
        }
        for _ in range(300)
    ]
    return {"items": items, "comments": comments, "item_events": item_events, "comment_events": comment_events}


def prepared(log: Log, folder: Path, settings: Row) -> Dataset:
    raw = folder / "raw"
    raw.mkdir(parents=True)
    for name, rows in log.items():
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(raw / f"{name}.parquet")
    return prepare("tables", raw=raw, out=folder / "dataset", settings=PrepareSettings.model_validate(settings))


class Slow:
    """The rules once more, one row at a time, on keys."""

    def __init__(self, log: Log, *, by_time: bool) -> None:
        self.by_time = by_time
        self.items = sorted(log["items"], key=lambda row: (row["created"] or 0, row["item_key"]))
        self.created = {row["item_key"]: row["created"] or 0 for row in self.items}
        self.comments = [
            row | {"created": self.created[row["item_key"]] if row["created"] is None else row["created"]}
            for row in log["comments"]
        ]
        self.comments.sort(
            key=lambda row: (self.item_id(row["item_key"]), row["created"], row["comment_key"]),
        )
        self.comment = {row["comment_key"]: row for row in self.comments}
        self.item_events = self._item_events(log["item_events"])
        in_order = sorted(enumerate(log["comment_events"]), key=lambda found: (found[1]["time"], found[0]))
        self.comment_events = [
            row | {"item_key": self.comment[row["comment_key"]]["item_key"]}
            for _, row in in_order
            if row["time"] >= self.comment[row["comment_key"]]["created"]
        ]
        self.records = self._records()

    def item_id(self, key: str) -> int:
        return [row["item_key"] for row in self.items].index(key) + 1

    def _item_events(self, rows: list[Row]) -> list[Row]:
        kept: list[Row] = []
        ordered = sorted(enumerate(rows), key=lambda found: (found[1]["user_key"], found[1]["time"], found[0]))
        existing = [row for _, row in ordered if row["time"] >= self.created[row["item_key"]]]
        for before, row in pairwise([{}, *existing]):
            if (before.get("user_key"), before.get("item_key")) != (row["user_key"], row["item_key"]):
                kept.append(row)
        return self._split(kept, "time")

    def _records(self) -> list[Row]:
        records: list[Row] = []
        for event in sorted(self.comment_events, key=lambda row: row["user_key"]):  # stable: time and place stay
            last = records[-1] if records else None
            between = [
                row
                for row in self.item_events
                if last is not None
                and row["user_key"] == event["user_key"]
                and last["end"] < row["time"] < event["time"]
            ]
            if (
                last is None
                or last["user_key"] != event["user_key"]
                or last["item_key"] != event["item_key"]
                or event["time"] - last["end"] > 3 * HOUR
                or between
                or (self.by_time and any(last["end"] < cut <= event["time"] for cut in (VALID, TEST)))
            ):
                last = {
                    "user_key": event["user_key"],
                    "item_key": event["item_key"],
                    "start": event["time"],
                    "events": [],
                }
                records.append(last)
            last["end"] = event["time"]
            last["events"].append(event)
        return self._split(records, "start")

    def _split(self, rows: list[Row], time: str) -> list[Row]:
        of_user = defaultdict(list)
        for row in rows:
            of_user[row["user_key"]].append(row)
        for row in rows:
            if self.by_time:
                row["split"] = (row[time] >= VALID) + (row[time] >= TEST)
            else:
                mine = of_user[row["user_key"]]
                from_end = len(mine) - [id(other) for other in mine].index(id(row))
                row["split"] = {1: Split.TEST, 2: Split.VALID}.get(from_end, Split.TRAIN) if len(mine) > 2 else 0
        return rows

    def hot_at(self, item_key: str, time: int) -> str | None:
        counts: dict[str, int] = defaultdict(int)
        leader: str | None = None
        for event in self.comment_events:  # in order of time, then of the log
            if event["item_key"] == item_key and event["time"] < time:
                counts[event["comment_key"]] += 1
                if leader is None or counts[event["comment_key"]] > counts[leader]:
                    leader = event["comment_key"]
        if leader is not None:
            return leader
        older = [row for row in self.comments if row["item_key"] == item_key and row["created"] < time]
        return str(older[0]["comment_key"]) if older else None

    def hot_comments(self) -> list[tuple[str, int, str, int]]:
        training = [event for record in self.records if record["split"] == 0 for event in record["events"]]
        events = [row for row in self.comment_events if row["time"] < TEST] if self.by_time else training
        known = [row for row in self.comments if not self.by_time or row["created"] < TEST]
        found = []
        for item in self.items:
            of_item = [row["comment_key"] for row in known if row["item_key"] == item["item_key"]]
            count = {key: sum(event["comment_key"] == key for event in events) for key in of_item}
            ranked = sorted(of_item, key=lambda key: -count[key])
            found += [(item["item_key"], rank, key, count[key]) for rank, key in enumerate(ranked[:10])]
        return found

    def item_pool(self, number: int, *, active_days: float | None) -> set[str]:
        """Every item that may be a negative of an event."""
        event = self.item_events[number]
        time, mine = event["time"], [row for row in self.item_events if row["user_key"] == event["user_key"]]
        seen = {row["item_key"] for row in mine if row["time"] <= time}
        if event["item_key"] in [row["item_key"] for row in mine[: mine.index(event)]]:
            seen = {event["item_key"]}
        pool = {key for key, created in self.created.items() if created <= time} - seen
        if active_days is None:
            return pool
        since = time - active_days * 24 * HOUR
        if min(self.created.values()) > 0:
            return {key for key in pool if self.created[key] >= since}
        return pool & {row["item_key"] for row in self.item_events if since <= row["time"] < time}

    def comment_target(self, record: Row) -> tuple[set[str], set[str]]:
        """Positives, and every comment that may be a negative."""
        exists = {
            row["comment_key"]: row["user_key"]
            for row in self.comments
            if row["item_key"] == record["item_key"] and row["created"] < record["start"]
        }
        others = {key for key, author in exists.items() if author != record["user_key"]}
        positives = {event["comment_key"] for event in record["events"]} & others
        return positives, others - positives


def keyed(dataset: Dataset, frame: pl.DataFrame) -> list[Row]:
    """Rows with keys for ids."""
    users, items, comments = (
        dict(zip(table[f"{name}_id"], table[f"{name}_key"], strict=True)) | {0: None}
        for name, table in (("user", dataset.users), ("item", dataset.items), ("comment", dataset.comments))
    )
    names = {"user_id": users, "item_id": items, "comment_id": comments, "hot_comment_id": comments}
    return [
        {name: names[name][value] if name in names else value for name, value in row.items()}
        for row in frame.to_dicts()
    ]


@pytest.mark.parametrize("by_time", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_tables_equal_the_slow_rules(seed: int, by_time: bool, tmp_path: Path) -> None:
    log = random_log(seed, knows_creation=seed % 2 == 0)
    settings = BY_TIME if by_time else BY_TIME | {"split": "leave_one_out", "valid_from": None, "test_from": None}
    dataset, slow = prepared(log, tmp_path, settings), Slow(log, by_time=by_time)

    assert dataset.items["item_key"].to_list() == [row["item_key"] for row in slow.items]
    assert dataset.items["item_id"].to_list() == list(range(1, 26))
    assert dataset.users["user_key"].is_sorted()
    assert dataset.comments["comment_key"].to_list() == [row["comment_key"] for row in slow.comments]
    assert dataset.comments["text"].to_list() == [row["text"] for row in slow.comments]
    known_users = {*dataset.users["user_key"]}
    for row, expected in zip(keyed(dataset, dataset.comments), slow.comments, strict=True):
        assert row["user_id"] == (expected["user_key"] if expected["user_key"] in known_users else None)
        assert (
            dataset.comments["comment_key"].to_list()[row["parent_id"] - 1] == expected["parent_key"]
            or not row["parent_id"]
        )

    assert [
        (row["user_id"], row["item_id"], row["time"], row["split"], row["hot_comment_id"])
        for row in keyed(dataset, dataset.item_events)
    ] == [
        (row["user_key"], row["item_key"], row["time"], row["split"], slow.hot_at(row["item_key"], row["time"]))
        for row in slow.item_events
    ]
    assert [
        (row["record_id"], row["user_id"], row["item_id"], row["start"], row["end"], row["split"])
        for row in keyed(dataset, dataset.comment_records)
    ] == [
        (number, row["user_key"], row["item_key"], row["start"], row["end"], row["split"])
        for number, row in enumerate(slow.records)
    ]
    assert [(row["record_id"], row["comment_id"], row["time"]) for row in keyed(dataset, dataset.comment_events)] == [
        (number, event["comment_key"], event["time"])
        for number, row in enumerate(slow.records)
        for event in row["events"]
    ]
    assert [tuple(row.values()) for row in keyed(dataset, dataset.hot_comments)] == slow.hot_comments()
    facts = dataset.manifest.facts
    assert facts["dropped"]["item_events_before_creation"] == sum(
        row["time"] < slow.created[row["item_key"]] for row in log["item_events"]
    )
    assert facts["num_comment_events"] == len(slow.comment_events)
    assert {name: dict(dataset.table(name).schema) for name in TABLES} == {
        name: {column: dtype() if isinstance(dtype, type) else dtype for column, dtype in schema.items()}
        for name, schema in TABLES.items()
    }


@pytest.mark.parametrize(
    ("seed", "by_time", "active_days", "knows_creation"),
    [
        (0, True, None, True),
        (6, True, 0.25, True),
        (1, True, 0.25, True),
        (2, True, 0.25, False),
        (3, False, None, True),
        (4, False, 0.125, False),
    ],
)
def test_candidates_existed_and_are_no_history(
    seed: int, by_time: bool, active_days: float | None, knows_creation: bool, tmp_path: Path
) -> None:
    log = random_log(seed, knows_creation=knows_creation)
    settings = BY_TIME if by_time else BY_TIME | {"split": "leave_one_out", "valid_from": None, "test_from": None}
    if active_days is not None:
        settings = settings | {"item_negatives": "active", "active_days": active_days}
    wanted = 6 if seed % 2 else 30  # 30 are more than there are: the whole pool
    settings = settings | {"num_item_negatives": wanted}
    dataset, slow = prepared(log, tmp_path, settings), Slow(log, by_time=by_time)
    item_key, comment_key = dataset.items["item_key"].to_list(), dataset.comments["comment_key"].to_list()

    expected_targets, filled_up = [], 0
    negatives_of = {row["target"]: row for row in keyed(dataset, dataset.table("item_candidates"))}
    for number, event in enumerate(slow.item_events):
        every = slow.item_pool(number, active_days=None)
        if event["split"] == Split.TRAIN or not every:
            continue
        expected_targets.append(number)
        row = negatives_of[number]
        assert (row["user_id"], row["time"], row["split"]) == (event["user_key"], event["time"], event["split"])
        assert item_key[row["positive"] - 1] == event["item_key"]
        negatives = {item_key[item - 1] for item in row["negatives"]}
        preferred = slow.item_pool(number, active_days=active_days)
        assert len(negatives) == len(row["negatives"]) == min(wanted, len(every))
        assert negatives <= every
        assert len(negatives & preferred) == min(wanted, len(preferred))
        filled_up += len(negatives - preferred)
    assert list(negatives_of) == expected_targets
    assert dataset.manifest.facts["item_negatives_filled_up"] == filled_up

    expected_targets = []
    found = {row["target"]: row for row in keyed(dataset, dataset.table("comment_candidates"))}
    for number, record in enumerate(slow.records):
        positives, pool = slow.comment_target(record)
        if record["split"] == Split.TRAIN or not positives or not pool:
            continue
        expected_targets.append(number)
        row = found[number]
        assert (row["user_id"], row["item_id"], row["time"]) == (
            record["user_key"],
            record["item_key"],
            record["start"],
        )
        assert {comment_key[comment - 1] for comment in row["positives"]} == positives
        negatives = {comment_key[comment - 1] for comment in row["negatives"]}
        assert negatives <= pool
        assert len(row["negatives"]) == len(negatives) == min(max(5 - len(positives), 1), len(pool))
    assert list(found) == expected_targets
    counted = dataset.manifest.facts["targets"]
    assert sum(counted["comment"].values()) == len(found)
    assert sum(counted["item"].values()) == len(negatives_of)


def test_the_future_changes_nothing_before_it(tmp_path: Path) -> None:
    """A log cut off at a time tells the same of what lay before it."""
    log, end = random_log(11), START + 30 * HOUR
    cut = {
        name: [row for row in rows if (row.get("time", row.get("created")) or 0) < end] for name, rows in log.items()
    }
    keys = {"item_key": {row["item_key"] for row in cut["items"]}}
    cut["comments"] = [row for row in cut["comments"] if row["item_key"] in keys["item_key"]]
    keys["comment_key"] = {row["comment_key"] for row in cut["comments"]}
    cut["item_events"] = [row for row in cut["item_events"] if row["item_key"] in keys["item_key"]]
    cut["comment_events"] = [row for row in cut["comment_events"] if row["comment_key"] in keys["comment_key"]]
    whole, past = prepared(log, tmp_path / "whole", BY_TIME), prepared(cut, tmp_path / "cut", BY_TIME)
    before = keyed(whole, whole.item_events.filter(pl.col("time") < end))
    assert before == keyed(past, past.item_events)
    records = keyed(whole, whole.comment_records.drop("record_id").filter(pl.col("end") < end))
    assert [row for row in keyed(past, past.comment_records.drop("record_id")) if row in records] == records
    assert keyed(whole, whole.hot_comments) == keyed(past, past.hot_comments)


def test_features_count_only_the_past(tmp_path: Path) -> None:
    dataset, rng = prepared(random_log(5), tmp_path, BY_TIME), np.random.default_rng(0)
    comments = rng.integers(0, dataset.num_comments + 1, 300)
    times = START + rng.integers(-5, 40, 300) * HOUR
    found = CommentFeatures.of(dataset)(comments, times)
    events = dataset.comment_events.select("comment_id", "time").rows()
    created = [0, *dataset.comments["created"]]
    for row, comment, time in zip(found, comments, times, strict=True):
        age = max(0, time - created[comment]) / 1000 if created[comment] else 0
        so_far = sum(1 for other, moment in events if other == comment and moment < time)
        np.testing.assert_allclose(row, np.log1p([age, so_far]), rtol=1e-6)
    assert found.dtype == np.float32
    assert (found[:, 1] > 0).any()
    # a request without a time comes after all that is known
    last = max(*dataset.comment_events["time"], *dataset.comments["created"])
    untimed, after = (CommentFeatures.of(dataset)(comments, np.full(300, time)) for time in (NOW, last + 1))
    assert np.array_equal(untimed, after)


def test_same_log_same_bytes(toy_tables: Path, toy_dataset: Dataset, tmp_path: Path) -> None:
    settings = PrepareSettings(num_item_negatives=20)
    again = prepare("tables", raw=toy_tables, out=tmp_path / "again", settings=settings)
    assert again.manifest.digest == toy_dataset.manifest.digest
    assert again.manifest.versions == versions()
    other = prepare("tables", raw=toy_tables, out=tmp_path / "other", settings=settings.model_copy(update={"seed": 1}))
    assert other.manifest.files["item_candidates.parquet"] != again.manifest.files["item_candidates.parquet"]
    assert other.manifest.files["item_events.parquet"] == again.manifest.files["item_events.parquet"]
    names = {path.name for path in again.path.iterdir()}
    assert names == {"manifest.json", *(f"{name}.parquet" for name in TABLES)}


def test_minimum_counts_hold_and_are_told(tmp_path: Path) -> None:
    log = random_log(6, knows_creation=False)
    dataset = prepared(log, tmp_path, BY_TIME | {"min_user_events": 9, "min_item_events": 3, "drop_repeats": False})
    events, facts = dataset.item_events, dataset.manifest.facts
    assert events["user_id"].value_counts()["count"].min() >= 9  # type: ignore[operator]
    assert events["item_id"].value_counts()["count"].min() >= 3  # type: ignore[operator]
    assert facts["num_users"] < 7 and facts["num_items"] < 25
    assert sorted(events["item_id"].unique()) == list(range(1, facts["num_items"] + 1))
    assert facts["dropped"]["items_below_minimum"] == 25 - facts["num_items"]
    assert facts["num_comments"] + facts["dropped"]["comments_of_dropped"] == 60
    kept = {row["comment_key"]: row["item_key"] for row in log["comments"]}
    assert {kept[key] for key in dataset.comments["comment_key"]} <= set(dataset.items["item_key"])


def test_what_the_minimum_leaves_holds_no_repeats(tmp_path: Path) -> None:
    """A user's a, b, a is a, a once b is too rare; without the second a the user has too few."""
    items = [{"item_key": key, "title": "", "created": None} for key in "abcd"]
    seen = {"u": "abacd", "v": "acdc", "w": "cdac", "x": "aba"}
    events = [
        {"user_key": user, "item_key": key, "time": START + row * HOUR, "behaviour": "x"}
        for user, keys in seen.items()
        for row, key in enumerate(keys)
    ]
    settings = {"split": "leave_one_out", "min_item_events": 3, "min_user_events": 2}
    dataset = prepared({"items": items, "item_events": events}, tmp_path, settings)
    names, users = dataset.items["item_key"], dataset.users["user_key"]
    kept = dataset.item_events.group_by("user_id", maintain_order=True).agg("item_id")
    told = {users[user - 1]: "".join(names.gather([item - 1 for item in ids])) for user, ids in kept.iter_rows()}
    assert told == {"u": "acd", "v": "acdc", "w": "cdac"}
    dropped = dataset.manifest.facts["dropped"]
    assert (dropped["item_events_repeated"], dropped["item_events_below_minimum"]) == (2, 3)


@pytest.mark.parametrize(
    ("settings", "unused"),
    [
        ({"split": "leave_one_out", "test_from": "2023-11-16"}, "test_from"),
        ({"split": "leave_one_out", "valid_days": 2, "active_days": 5}, "valid_days, active_days"),
        ({"active_days": 5}, "active_days"),
    ],
)
def test_settings_without_a_use_are_told(settings: Row, unused: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{unused}: not used with split="):
        prepared(random_log(6), tmp_path, settings)


def test_max_targets_draws_a_part_of_the_targets(tmp_path: Path) -> None:
    log = random_log(7)
    every, some = (
        prepared(log, tmp_path / name, BY_TIME | more) for name, more in (("a", {}), ("b", {"max_targets": 5}))
    )
    for task in ("item", "comment"):
        all_targets, targets = every.table(f"{task}_candidates"), some.table(f"{task}_candidates")
        assert targets["split"].to_list() == [Split.VALID] * 5 + [Split.TEST] * 5 or len(targets) == 10
        assert set(targets["target"]) < set(all_targets["target"])
    assert every.item_events.equals(some.item_events)


def test_repeats_and_last_days(tmp_path: Path) -> None:
    items = [{"item_key": key, "title": None, "created": None} for key in "ab"]
    hours = [("a", 0), ("a", 1), ("b", 2), ("a", 50), ("a", 60), ("b", 75)]
    events = [{"user_key": "u", "item_key": key, "time": START + hour * HOUR, "behaviour": "x"} for key, hour in hours]
    dataset = prepared({"items": items, "item_events": events}, tmp_path / "a", {})
    assert dataset.item_events.select("item_id", "split").rows() == [(1, 0), (2, 0), (1, 1), (2, 2)]
    assert dataset.items["title"].to_list() == ["", ""]
    kept = prepared({"items": items, "item_events": events}, tmp_path / "b", {"drop_repeats": False})
    assert kept.item_events["item_id"].to_list() == [1, 1, 2, 1, 1, 2]
    assert kept.manifest.facts["test_from"] == START + 51 * HOUR + 1
    with pytest.raises(ConfigError, match=r"first event < valid_from < test_from"):
        prepared({"items": items, "item_events": events}, tmp_path / "c", {"test_days": 4})
    assert not (tmp_path / "c" / "dataset").exists()
