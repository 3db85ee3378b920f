"""Small random logs with many equal times, built by hand from plain lists, and models with weights that matter."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn

from reeltalk.data.batch import Batch, PackedWindows, distinct_comments
from reeltalk.data.dataset import Split, Task
from reeltalk.data.histories import Histories, Windows
from reeltalk.data.pool import CommentPool
from reeltalk.data.ragged import Ints, offsets_of
from reeltalk.models import MODELS, build
from reeltalk.models.recommender import Recommender
from reeltalk.text.lookup import TextLookup
from reeltalk.text.table import TextTable
from reeltalk.training.feed import Feed

Vectors = NDArray[np.float32] | NDArray[np.float64]
TEXT_WIDTH = 12
MODEL_TASKS = [(name, task) for name, spec in MODELS.items() for task in spec.tasks]


@dataclass(frozen=True)
class ItemEvent:
    time: int
    item: int
    hot: int = 0
    split: Split = Split.TRAIN


@dataclass(frozen=True)
class Record:
    start: int
    end: int
    item: int
    comments: tuple[int, ...]
    split: Split = Split.TRAIN


@dataclass(frozen=True)
class User:
    items: list[ItemEvent] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class Log:
    """Users 1.. as plain lists, what stands under each item, and text vectors of titles and comments (row 0: none).

    created: since when items 1.. exist; known: the items [N + 1] whose IDs mean something.
    """

    users: list[User]
    created: Ints
    known: NDArray[np.bool_]
    pool: CommentPool
    titles: Vectors
    comments: Vectors

    @property
    def num_items(self) -> int:
        return len(self.titles) - 1

    @property
    def histories(self) -> Histories:
        return histories_of(self.users)

    @property
    def text(self) -> TextLookup:
        """Stands in for a text table; a vector of zeros is what an empty text has."""
        table = cast(TextTable, SimpleNamespace(vectors=np.concatenate([self.titles, self.comments])))
        title_rows = np.where(self.titles.any(1), np.arange(len(self.titles)), -1)
        comment_rows = np.where(self.comments.any(1), len(self.titles) + np.arange(len(self.comments)), -1)
        return TextLookup(table, title_rows, comment_rows)

    def feed(self, task: Task, *, has_start: bool = True, record_comments: int = 3, num_negatives: int = 5) -> Feed:
        return Feed(
            histories=self.histories,
            item_created=self.created,
            text=self.text,
            task=task,
            pool=self.pool,
            features=None,
            has_start=has_start,
            record_comments=record_comments,
            num_negatives=num_negatives,
        )


def histories_of(users: list[User]) -> Histories:
    items = [event for user in users for event in user.items]
    records = [record for user in users for record in user.records]

    def column(values: list[int]) -> Ints:
        return np.array(values, dtype=np.int64)

    return Histories(
        item_offsets=offsets_of([0, *(len(user.items) for user in users)]),
        item=column([event.item for event in items]),
        time=column([event.time for event in items]),
        hot_comment=column([event.hot for event in items]),
        item_split=column([event.split for event in items]),
        record_offsets=offsets_of([0, *(len(user.records) for user in users)]),
        record_item=column([record.item for record in records]),
        start=column([record.start for record in records]),
        end=column([record.end for record in records]),
        record_split=column([record.split for record in records]),
        comment_offsets=offsets_of([len(record.comments) for record in records]),
        comment=column([comment for record in records for comment in record.comments]),
    )


def random_log(
    seed: int,
    *,
    num_users: int = 12,
    num_items: int = 20,
    max_items: int = 9,
    max_records: int = 7,
    max_time: int = 40,
    dtype: type[np.float32 | np.float64] = np.float32,
) -> Log:
    """Some users have no item event, some no record, user 1 neither; some texts are empty, some records lack comments.

    Comments under items 1, 2, .. are ids 1, 2, .. in order of creation; items 1 and 2 have none. Only items that exist
    are watched. Items 4 and 9 are unknown.
    """
    rng = np.random.default_rng(seed)
    item_created = np.sort(rng.integers(0, max_time, num_items))
    item_created[: num_items // 2] = 0
    known = ~np.isin(np.arange(num_items + 1), [0, 4, 9])
    num_comments = rng.integers(1, 7, num_items + 1)
    num_comments[:3] = 0
    offsets = offsets_of(num_comments)
    created = np.concatenate([np.sort(rng.integers(1, max_time, count)) for count in num_comments])
    author = rng.integers(0, num_users + 1, len(created))
    users = []
    for index in range(num_users):
        has_items, has_records = [(False, False), (True, False), (False, True), (True, True)][min(index, 3)]
        times = np.sort(rng.integers(1, max_time, rng.integers(1, max_items + 1) if has_items else 0))
        items = [ItemEvent(int(time), _existing(rng, item_created, time)) for time in times]
        items = [replace(event, hot=_one_of(rng, offsets, event.item)) for event in items]
        bounds = np.sort(rng.integers(1, max_time, 2 * int(rng.integers(1, max_records + 1)) if has_records else 0))
        records = []
        for start, end in bounds.reshape(-1, 2).tolist():
            item = _existing(rng, item_created, start)
            chosen = {_one_of(rng, offsets, item) for _ in range(rng.integers(0, 5))} - {0}
            records.append(Record(start, end, item, tuple(sorted(chosen))))
        users.append(User(items, records))
    titles, comments = (rng.normal(size=(size + 1, TEXT_WIDTH)).astype(dtype) for size in (num_items, len(created)))
    titles[[0, 3]] = 0
    comments[[0, 1]] = 0
    pool = CommentPool(offsets, np.concatenate([[0], created]), np.concatenate([[0], author]))
    return Log(users, item_created, known, pool, cast(Vectors, titles), cast(Vectors, comments))


def _existing(rng: np.random.Generator, created: Ints, time: int) -> int:
    return int(rng.integers(1, np.searchsorted(created, time, side="right") + 1))


def _one_of(rng: np.random.Generator, offsets: Ints, item: int) -> int:
    first, last = int(offsets[item]), int(offsets[item + 1])
    return int(rng.integers(first, last)) + 1 if last > first else 0


SMALL: dict[str, object] = {
    "dim": 8,
    "inner_dim": 16,
    "hidden_dim": 12,
    "text_dim": 10,
    "use_recency": True,
    "num_layers": 2,
    "num_heads": 2,
    "input_dropout": 0.0,
    "text_dropout": 0.0,
    "num_experts": 3,
    "dropout": 0.0,
    "num_codebooks": 4,
    "num_codes": 6,
    "scales": (2, 5),  # several means in a short history
}


def settings_of(name: str, **values: object) -> BaseModel:
    """Settings of a small model: two heads, two layers, dropout as given (off); of `SMALL`, what the model has."""
    section = MODELS[name].settings
    given = {key: value for key, value in (SMALL | values).items() if key in section.model_fields or key not in SMALL}
    return section.model_validate(given)


def random_model(name: str, task: Task, log: Log, *, length: int, seed: int = 0, **values: object) -> Recommender:
    """A small model with weights so large that every part shows in the result; of the titles' dtype, in eval mode."""
    titles = torch.from_numpy(log.titles if MODELS[name].reads_text else log.titles[:, :0])
    known = torch.from_numpy(log.known)
    model = build(
        name, task, settings_of(name, **values), titles=titles, known_items=known, history_length=length, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return model.to(titles.dtype).eval()


def packed_batch(log: Log, windows: Windows, task: Task, *, has_start: bool = True) -> tuple[PackedWindows, Batch]:
    """The windows with the comments of their histories and nothing else."""
    packed = PackedWindows.of(log.histories, windows, task, has_start=has_start, record_comments=3)
    comment_U = distinct_comments(packed.comments())
    return packed, packed.batch(comment_U, log.text.comments(comment_U))


def preferences(model: Recommender, log: Log, windows: Windows, task: Task) -> tuple[Ints, Tensor]:
    """Every target of the windows: its row in the history that the task predicts, the preference before it, [T, D]."""
    packed, batch = packed_batch(log, windows, task, has_start=model.has_start)
    rows, window = packed.target_rows()
    position = torch.from_numpy(packed.target_positions(rows, window, task))
    with torch.no_grad():
        if task == "item":
            preference_TD = model.item_preferences(batch).flatten(0, 1)[position]
        else:
            item = torch.from_numpy(log.histories.record_item[rows])
            preference_TD = model.comment_preferences(batch, position, item)
    return rows, preference_TD
