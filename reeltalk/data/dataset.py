"""The dataset: frozen tables on disk, with integer ids, splits and saved candidate sets.

Ids run 1..N, 0 is padding ("none"). Times are integer milliseconds since 1970, UTC. Everything that is counted is
counted from what happened strictly before the moment it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from reeltalk.artifacts import Manifest, read_manifest, reading_file
from reeltalk.data.ragged import Ints
from reeltalk.errors import ArtifactError, ConfigError, DataError

Task = Literal["item", "comment"]


class Split(IntEnum):
    """Which part of the log a target belongs to."""

    TRAIN = 0
    VALID = 1
    TEST = 2


ID = pl.Int32
TIME = pl.Int64

TABLES: dict[str, dict[str, type[pl.DataType] | pl.DataType]] = {
    # row i holds user_id i + 1
    "users": {"user_id": ID, "user_key": pl.String},
    # ordered by (created, item_key): the items that exist at a time are the first ids. created 0: unknown, always there
    "items": {"item_id": ID, "item_key": pl.String, "title": pl.String, "created": TIME},
    # ordered by (item_id, created, comment_key): the comments of an item are a range of ids. user_id, parent_id 0:
    # unknown
    "comments": {
        "comment_id": ID,
        "comment_key": pl.String,
        "item_id": ID,
        "user_id": ID,
        "parent_id": ID,
        "created": TIME,
        "text": pl.String,
    },
    # events that count, ordered by (user_id, time). hot_comment_id: the item's hottest comment as known at that time,
    # or 0
    "item_events": {
        "user_id": ID,
        "item_id": ID,
        "time": TIME,
        "behaviour": pl.String,
        "hot_comment_id": ID,
        "split": pl.UInt8,
    },
    # a record is a run of a user's comment events under one item, uninterrupted by an event elsewhere; ordered by
    # (user_id, start)
    "comment_records": {
        "record_id": ID,  # row number, 0-based
        "user_id": ID,
        "item_id": ID,
        "start": TIME,
        "end": TIME,
        "split": pl.UInt8,
    },
    # ordered by (record_id, time)
    "comment_events": {"record_id": ID, "comment_id": ID, "time": TIME, "behaviour": pl.String},
    # the ten hottest comments of each item, counted before the cut (by time) or on training events (leave-one-out)
    "hot_comments": {"item_id": ID, "rank": ID, "comment_id": ID, "num_events": ID},
    # one row a validation or test target. target: row number in item_events. negatives: sampled once, with a seed
    "item_candidates": {
        "target": ID,
        "user_id": ID,
        "time": TIME,
        "split": pl.UInt8,
        "positive": ID,
        "negatives": pl.List(ID),
    },
    # target: record_id. positives: the record's comments; negatives: other comments of the item that existed
    "comment_candidates": {
        "target": ID,
        "user_id": ID,
        "item_id": ID,
        "time": TIME,
        "split": pl.UInt8,
        "positives": pl.List(ID),
        "negatives": pl.List(ID),
    },
}


@dataclass(frozen=True)
class Dataset:
    """A finished dataset folder. Tables are read when first asked for and then kept."""

    path: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: str | Path) -> Dataset:
        """Open a folder written by `reeltalk prepare`; raises ArtifactError where it is none or unfinished."""
        folder = Path(path)
        return cls(folder, read_manifest(folder, "dataset"))

    def table(self, name: str) -> pl.DataFrame:
        """One of the tables of `TABLES`, read afresh; raises ArtifactError where its file is damaged."""
        path = self.path / f"{name}.parquet"
        with reading_file(path):
            frame = pl.read_parquet(path)
        wrong = [column for column, dtype in TABLES.get(name, {}).items() if frame.schema.get(column) != dtype]
        if wrong:
            raise ArtifactError(f"{path} lacks {', '.join(wrong)}, or holds another type there; prepare it again")
        return frame

    @cached_property
    def users(self) -> pl.DataFrame:
        return self.table("users")

    @cached_property
    def items(self) -> pl.DataFrame:
        return self.table("items")

    @cached_property
    def comments(self) -> pl.DataFrame:
        return self.table("comments")

    @cached_property
    def item_events(self) -> pl.DataFrame:
        return self.table("item_events")

    @cached_property
    def comment_records(self) -> pl.DataFrame:
        return self.table("comment_records")

    @cached_property
    def comment_events(self) -> pl.DataFrame:
        return self.table("comment_events")

    @cached_property
    def hot_comments(self) -> pl.DataFrame:
        return self.table("hot_comments")

    @cached_property
    def user_ids(self) -> dict[str, int]:
        """The user_id of each user_key."""
        return _ids_by_key(self.users, "user")

    @cached_property
    def item_ids(self) -> dict[str, int]:
        """The item_id of each item_key."""
        return _ids_by_key(self.items, "item")

    @cached_property
    def comment_ids(self) -> dict[str, int]:
        """The comment_id of each comment_key."""
        return _ids_by_key(self.comments, "comment")

    def candidates(self, task: Task, split: Split) -> pl.DataFrame:
        """The saved candidate sets of one task and split, in the order of their targets."""
        return self.table(f"{task}_candidates").filter(pl.col("split") == int(split))

    def require_creation(self, active_days: float | None) -> None:
        """Raise ConfigError where days are given and the log does not tell since when items exist."""
        if active_days is not None and not self.items["created"].cast(pl.Boolean).any():
            raise ConfigError(
                f"data.active_days={active_days:g} leaves out items by their age, but {self.path} does not tell since "
                "when items exist; leave it null"
            )

    @property
    def num_users(self) -> int:
        return int(self.manifest.facts["num_users"])

    @property
    def num_items(self) -> int:
        return int(self.manifest.facts["num_items"])

    @property
    def num_comments(self) -> int:
        return int(self.manifest.facts["num_comments"])


def ids_of(what: str, keys: Sequence[str], known: Mapping[str, int]) -> Ints:
    """The ids of some keys; raises DataError where a key is unknown. `what` they are: user, item or comment."""
    unknown = [key for key in keys if key not in known]
    if unknown:
        way_out = f"keys look like {next(iter(known))!r}" if known else "it has none"
        raise DataError(f"{len(unknown)} {what} keys are not in the dataset, the first is {unknown[0]!r}; {way_out}")
    return np.array([known[key] for key in keys], dtype=np.int64)


def _ids_by_key(table: pl.DataFrame, what: str) -> dict[str, int]:
    return dict(zip(table[f"{what}_key"].to_list(), table[f"{what}_id"].to_list(), strict=True))
