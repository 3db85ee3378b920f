"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import settings

from reeltalk.data.dataset import Dataset
from reeltalk.data.prepare import PrepareSettings, prepare

TOY_USERS, TOY_ITEMS, TOY_DAYS = 40, 60, 10
TOY_START = 1_700_000_000_000
DAY = 86_400_000
TOPICS = ("cats", "football", "cooking", "trains")

settings.register_profile("untimed", deadline=None)  # a busy machine is no defect
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def toy_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw log in the `tables` schema: 40 users with a favourite topic each, 60 items on 4 topics, 10 days.

    Among them are users without comment events (u00, u13, u26), one without item events (u39), an item without comments
    (v05), one without a title (v07), comments without an author, and answers.
    """
    folder = tmp_path_factory.mktemp("toy") / "tables"
    folder.mkdir()
    rng = np.random.default_rng(7)
    topic = np.arange(TOY_ITEMS) % len(TOPICS)
    created = TOY_START + np.sort(rng.integers(0, 6 * DAY, TOY_ITEMS))
    created[:10] = TOY_START
    titles = [f"{TOPICS[topic[i]]} episode {i}" for i in range(TOY_ITEMS)]
    titles[7] = ""
    items = pl.DataFrame({"item_key": [f"v{i:02}" for i in range(TOY_ITEMS)], "title": titles, "created": created})
    comments = _comments(rng, items, topic)
    item_events = _taste_events(rng, topic, created, num_events=16, without=[39])
    item_of_comment = comments["item_key"].str.slice(1).cast(pl.Int64).to_numpy()
    events = _taste_events(
        rng, topic[item_of_comment], comments["created"].to_numpy(), num_events=8, without=[0, 13, 26]
    )
    # half of the users who turn to a comment turn to the item's oldest one a minute later
    oldest = np.searchsorted(item_of_comment, item_of_comment)
    second = events.sample(fraction=0.5, seed=1)
    second = second.with_columns(pl.Series("row", oldest[second["row"]]), time=pl.col("time") + 60_000)
    events = pl.concat([events, second]).sort("time", "user_key", "row")
    items.write_parquet(folder / "items.parquet")
    comments.write_csv(folder / "comments.csv")
    _with_key(item_events, items["item_key"]).write_parquet(folder / "item_events.parquet")
    _with_key(events, comments["comment_key"]).write_csv(folder / "comment_events.csv")
    return folder


def _comments(rng: np.random.Generator, items: pl.DataFrame, topic: np.ndarray) -> pl.DataFrame:
    """Six comments an item, oldest first; the last of each answers the first."""
    item = np.repeat(np.delete(np.arange(TOY_ITEMS), 5), 6)
    author = [f"u{i:02}" if i < TOY_USERS else None for i in rng.integers(0, TOY_USERS + 5, len(item))]
    age = np.sort(rng.integers(1, DAY, (len(item) // 6, 6)), axis=1).reshape(-1)
    return pl.DataFrame(
        {
            "comment_key": [f"c{i:03}" for i in range(len(item))],
            "item_key": items["item_key"].gather(item),
            "text": [f"{TOPICS[topic[item[i]]]} remark {i % 7} 🙂" for i in range(len(item))],
            "created": items["created"].gather(item) + age,
            "user_key": author,
            "parent_key": [f"c{i - 5:03}" if i % 6 == 5 else None for i in range(len(item))],
        }
    )


def _taste_events(
    rng: np.random.Generator, topic: np.ndarray, created: np.ndarray, *, num_events: int, without: list[int]
) -> pl.DataFrame:
    """For each user `num_events` times and rows that existed then, four of five on the user's topic."""
    user = np.repeat(np.setdiff1d(np.arange(TOY_USERS), without), num_events)
    time = TOY_START + rng.integers(DAY // 2, TOY_DAYS * DAY, len(user))
    is_liked = (topic[None, :] == (user % len(TOPICS))[:, None]) == (rng.random(len(user)) < 0.8)[:, None]
    weight = rng.random((len(user), len(topic))) + is_liked
    row = np.argmax(np.where(created[None, :] < time[:, None], weight, -1), axis=1)
    frame = pl.DataFrame({"user_key": [f"u{i:02}" for i in user], "row": row, "time": time, "behaviour": "like"})
    return frame.sort("time", "user_key")


def _with_key(events: pl.DataFrame, keys: pl.Series) -> pl.DataFrame:
    return events.with_columns(keys.gather(events["row"])).drop("row")


@pytest.fixture(scope="session")
def toy_dataset(toy_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """`toy_tables` prepared with a split by time (last day tests, the day before validates) and 20 negatives."""
    out = tmp_path_factory.mktemp("toy") / "dataset"
    return prepare("tables", raw=toy_tables, out=out, settings=PrepareSettings(num_item_negatives=20))
