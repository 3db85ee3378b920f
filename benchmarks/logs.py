"""Generated logs for the speed benchmarks: seeded, vectorised, with sequences that a model can learn.

Items belong to topics. A user has a few topics; the next item follows from the last one (each item has a few successors
in its topic), or is drawn by Zipf popularity from one of the user's topics. Successors and topics are what a sequential
model learns: the first items of a topic within the first pass, the successors of rarer items over many.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from reeltalk.data.dataset import Dataset
from reeltalk.data.prepare import PrepareSettings, prepare

NUM_USERS, NUM_ITEMS, NUM_EVENTS = 45_000, 20_900, 390_000
NUM_TOPICS = 200
TOPICS_A_USER = 3
ZIPF = 0.8
"""Exponent of item popularity within a topic."""
SUCCESSOR_WEIGHTS = (0.6, 0.3, 0.1)
FOLLOWS, STAYS = 0.35, 0.3
"""Chance that an event follows from the last item, and that it stays in its topic; else any topic of the user."""
MIN_EVENTS = 3
LENGTH_SHAPE = 0.8
"""Shape of the gamma mixture that history lengths are drawn from: below 1 the tail is longer than geometric."""

PLATFORM = {"num_users": 2_000, "num_items": 1_000, "num_item_events": 60_000, "num_comment_events": 30_000}
"""The simulated platform of benchmarks that need comments."""

USERS_FILE, ITEMS_FILE = "user_sequence.txt", "item_texts.txt"

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Logs:
    """Events of all users, user by user and in order within a user; ids start at 1, 0 is padding.

    `topic` is that of item 1, 2, ..: one attribute for models that read attributes.
    """

    user_id: Ids
    item_id: Ids
    topic: Ids
    num_users: int
    num_items: int
    seed: int


def generate(
    num_users: int = NUM_USERS, *, num_items: int = NUM_ITEMS, num_events: int = NUM_EVENTS, seed: int = 0
) -> Logs:
    """Logs of exactly `num_events` events, at least three a user, no item twice in a row.

    Every item occurs where users are at least as many as items.
    """
    if num_events < MIN_EVENTS * num_users:
        raise ValueError(f"num_events={num_events} is fewer than {MIN_EVENTS} for each of {num_users} users")
    if num_items < 2 * NUM_TOPICS:
        raise ValueError(f"num_items={num_items} is fewer than two for each of {NUM_TOPICS} topics")
    rng = np.random.default_rng(seed)
    lengths = _lengths(rng, num_users, num_events)
    topics = _Topics(rng, num_items)
    # Each item opens some history, so that each one occurs; the opening item's topic is the user's first topic.
    item = np.resize(rng.permutation(num_items), num_users)
    tastes = rng.integers(0, NUM_TOPICS, (num_users, TOPICS_A_USER))
    tastes[:, 0] = item % NUM_TOPICS
    columns = np.zeros((num_users, int(lengths.max())), dtype=np.int64)
    columns[:, 0] = item
    for position in range(1, columns.shape[1]):  # a loop over positions, each step over all users
        active = np.flatnonzero(lengths > position)
        columns[active, position] = topics.next_items(rng, columns[active, position - 1], tastes[active])
    in_history = np.arange(columns.shape[1]) < lengths[:, None]
    # Ids say nothing of topic or popularity.
    item_ids = rng.permutation(num_items) + 1
    return Logs(
        user_id=np.repeat(np.arange(1, num_users + 1), lengths),
        item_id=item_ids[columns[in_history]],
        topic=np.argsort(item_ids) % NUM_TOPICS,
        num_users=num_users,
        num_items=num_items,
        seed=seed,
    )


def _lengths(rng: np.random.Generator, num_users: int, num_events: int) -> Ids:
    """History lengths that sum to `num_events`."""
    weights = rng.gamma(LENGTH_SHAPE, size=num_users)
    return MIN_EVENTS + rng.multinomial(num_events - MIN_EVENTS * num_users, weights / weights.sum())


class _Topics:
    """Items as numbers 0..N-1: the topic is the number modulo `NUM_TOPICS`, the popularity rank the quotient."""

    def __init__(self, rng: np.random.Generator, num_items: int) -> None:
        self.num_items = num_items
        mass = np.arange(1, -(-num_items // NUM_TOPICS) + 1) ** -ZIPF
        self.cumulative = np.cumsum(mass) / mass.sum()
        topic_of_each = np.arange(num_items) % NUM_TOPICS
        self.successors = np.stack([self.popular(rng, topic_of_each) for _ in SUCCESSOR_WEIGHTS], axis=1)

    def popular(self, rng: np.random.Generator, topic: Ids) -> Ids:
        """An item of each topic, by Zipf popularity."""
        rank = np.searchsorted(self.cumulative, rng.random(topic.shape))
        item = rank * NUM_TOPICS + topic
        return np.where(item < self.num_items, item, item - NUM_TOPICS)

    def next_items(self, rng: np.random.Generator, last: Ids, tastes: Ids) -> Ids:
        """The item after `last` ([users]) for users of these topics ([users, topics a user])."""
        kind = rng.random(last.shape)
        followed = self.successors[last, rng.choice(len(SUCCESSOR_WEIGHTS), last.shape, p=SUCCESSOR_WEIGHTS)]
        any_taste = tastes[np.arange(len(last)), rng.integers(0, TOPICS_A_USER, last.shape)]
        drawn = self.popular(rng, np.where(kind < FOLLOWS + STAYS, last % NUM_TOPICS, any_taste))
        item = np.where(kind < FOLLOWS, followed, drawn)
        return np.where(item == last, (last + NUM_TOPICS) % self.num_items, item)


def write(logs: Logs, folder: Path) -> Path:
    """Write the logs as RecBole's atomic files and as the `sequences` source's two files; returns the folder.

    The atomic files are FOLDER/NAME.inter and FOLDER/NAME.item, NAME the folder's own; an item's class is its topic.
    """
    events = pl.DataFrame({"user_id": logs.user_id, "item_id": logs.item_id})
    _write_atomic(events, folder)
    attributes = {"item_id:token": np.arange(1, logs.num_items + 1), "class:token": logs.topic}
    pl.DataFrame(attributes).write_csv(folder / f"{folder.name}.item", separator="\t")
    users = events.group_by("user_id", maintain_order=True).agg(pl.col("item_id").cast(pl.String))
    lines = users.select(pl.concat_str("user_id", pl.col("item_id").list.join(" "), separator=" "))
    lines.write_csv(folder / USERS_FILE, include_header=False)
    texts = pl.select(item=pl.int_range(1, logs.num_items + 1)).select(pl.format("{} item {}", "item", "item"))
    texts.write_csv(folder / ITEMS_FILE, include_header=False)
    return folder


def _write_atomic(events: pl.DataFrame, folder: Path) -> None:
    """FOLDER/NAME.inter of events in order (user_id, item_id); its time is the event's place in the log."""
    folder.mkdir(parents=True, exist_ok=True)
    events.select(
        pl.col("user_id").alias("user_id:token"),
        pl.col("item_id").alias("item_id:token"),
        pl.int_range(pl.len()).alias("timestamp:float"),
    ).write_csv(folder / f"{folder.name}.inter", separator="\t")


def write_events(dataset: Dataset, folder: Path) -> Path:
    """Write a dataset's item events as an atomic file that RecBole splits, and ranks, as we do; returns the folder.

    Raises ValueError where RecBole would do otherwise: it knows leave-one-out with three parts from four events a user
    on, and the items that have an event, at all times.
    """
    events, items = dataset.item_events, dataset.items
    short = events.group_by("user_id").len().filter(pl.col("len") < MIN_EVENTS + 1)
    problems = []
    if dataset.manifest.facts["split"] != "leave_one_out":
        problems.append("it is split by time; prepare it with split=leave_one_out")
    if len(short):
        problems.append(
            f"{len(short):,} users have fewer than four events, and RecBole trains on their validation target; "
            "prepare it with min_user_events=4"
        )
    elif dataset.manifest.facts["targets"]["item"]["test"] != dataset.num_users:
        problems.append("some users are not tested; prepare it with max_targets=0")
    if events["item_id"].n_unique() != len(items):
        problems.append(
            "items without events are ranked here and unknown to RecBole; prepare it with min_item_events=1"
        )
    if items["created"].max() != 0:
        problems.append("its items have dates of creation, which RecBole ignores; take a source without them")
    if problems:
        raise ValueError(f"{dataset.path} is not the same for RecBole: {'; '.join(problems)}")
    _write_atomic(events, folder)
    return folder


def dataset_of(logs: Path, out: Path, *, seed: int) -> Dataset:
    """Prepare the folder that `write` made: leave-one-out, one candidate, for full ranking needs none."""
    source = {"users_file": USERS_FILE, "items_file": ITEMS_FILE}
    settings = PrepareSettings(source=source, split="leave_one_out", num_item_negatives=1, seed=seed)
    return prepare("sequences", raw=logs, out=out, settings=settings)


def platform_of(out: Path, *, seed: int) -> Dataset:
    """Prepare the simulated platform, which has comments."""
    return prepare("simulator", raw=None, out=out, settings=PrepareSettings(source={**PLATFORM, "seed": seed}))
