"""Instances of alignment (stage 1), each told as the texts that the LLM reads and as the histories of the SR model.

Paper: LSVCR section 4.2 (what an instruction says of a history) and 4.3.3 (target texts).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, pairwise
from typing import NamedTuple, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from reeltalk.data.dataset import Dataset, Task
from reeltalk.data.diversification import Sides
from reeltalk.data.histories import Happened, Histories, Windows
from reeltalk.data.ragged import Ints, offsets_of, ranges

NO_TEXT = ""


@dataclass(frozen=True)
class Words:
    """The texts of ids 1..; what is blank counts as empty."""

    titles: pl.Series
    comments: pl.Series

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        return cls(dataset.items["title"], dataset.comments["text"])

    def has_title(self, items: Ints) -> NDArray[np.bool_]:
        return (_gathered(self.titles, items) != NO_TEXT).to_numpy()

    def has_text(self, comments: Ints) -> NDArray[np.bool_]:
        return (_gathered(self.comments, comments) != NO_TEXT).to_numpy()

    def entries(self, history: Sequence[Happened]) -> list[Entry]:
        """A history in words, without the comments that have none."""
        title = _texts(self.titles, (entry.item for entry in history))
        comment = _texts(self.comments, chain.from_iterable(entry.comments for entry in history))
        return [_in_words(entry, title, comment) for entry in history]


class Entry(NamedTuple):
    """An entry of a history in words: an item event with its hot comment, or a record (its start) with its comments."""

    time: int
    title: str
    comments: Sequence[str] = ()


@dataclass(frozen=True)
class Instance:
    """What an instruction is made of, and the text to be answered. Histories are oldest first, and may be empty.

    watched: title of the item being watched, in the comment task; None in the item task.
    """

    task: Task
    items: list[Entry]
    records: list[Entry]
    watched: str | None
    target: str


@dataclass(frozen=True)
class InstanceBatch:
    """T instances as the LLM reads them, and the same ones as the SR model does, with its own comments.

    texts: the distinct texts of the SR side and the targets; row 0 is none. histories: of T users, user i + 1 being
    instance i; in place of ids stand rows of `texts`. windows: their whole histories, with item events as anchor in
    both tasks. positions: what rows of both position tables the entries stand on, int64 [2, length]. is_item (bool),
    user (user_id), watched and target (rows of `texts`; watched 0 in the item task): [T]. answer: what was chosen in
    each record, a row of `texts`, 0 where the SR side is not told of it. negative: what was drawn beside the targets,
    rows of `texts`. text_key: [texts], equal where texts are, on any process.
    """

    instances: list[Instance]
    texts: list[str]
    histories: Histories
    windows: Windows
    positions: Ints
    is_item: NDArray[np.bool_]
    user: Ints
    watched: Ints
    target: Ints
    answer: Ints
    negative: Ints
    text_key: Ints


class Drawn(NamedTuple):
    """Negatives that were drawn: item ids (their titles are meant) and comment ids."""

    items: Ints
    comments: Ints


@dataclass(frozen=True)
class Targets:
    """Row of each target's event or record; the item there; the comment chosen, 0 in the item task. int64 [M]"""

    row: Ints
    item: Ints
    comment: Ints

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: Ints | NDArray[np.bool_]) -> Targets:
        return Targets(self.row[index], self.item[index], self.comment[index])


def told(
    targets: Targets,
    windows: Windows,
    items: list[Sides],
    records: list[Sides],
    answers: list[int],
    *,
    drawn: Drawn,
    histories: Histories,
    words: Words,
    positions: Ints,
) -> InstanceBatch:
    """The batch of some targets: their item-anchored windows, the comments of all entries one after another.

    answers: the comment chosen in each record, 0 where it is none of those that are told on the SR side.
    """
    item_rows, record_rows = ranges(windows.begin, windows.end), ranges(windows.other_begin, windows.other_end)
    seen, talked = histories.item[item_rows].tolist(), histories.record_item[record_rows].tolist()
    title = _texts(words.titles, chain(seen, talked, targets.item.tolist(), drawn.items.tolist()))
    used = (each for sides in chain(items, records) for side in sides for each in side)
    comment = _texts(words.comments, chain(used, targets.comment.tolist(), drawn.comments.tolist()))
    item_offsets = offsets_of([0, *(windows.end - windows.begin)])
    record_offsets = offsets_of([0, *(windows.other_end - windows.other_begin)])
    item_entries = _entries(histories.time[item_rows], seen, items, item_offsets, title, comment)
    record_entries = _entries(histories.start[record_rows], talked, records, record_offsets, title, comment)
    instances = _instances(targets, item_entries, record_entries, title, comment)
    row = _Numbered()
    sequential = Histories(
        item_offsets=item_offsets,
        item=row(title[item] for item in seen),
        time=histories.time[item_rows],
        hot_comment=row(comment[side.sequential[0]] if side.sequential else NO_TEXT for side in items),
        item_split=histories.item_split[item_rows],
        record_offsets=record_offsets,
        record_item=row(title[item] for item in talked),
        start=histories.start[record_rows],
        end=histories.end[record_rows],
        record_split=histories.record_split[record_rows],
        comment_offsets=offsets_of([len(side.sequential) for side in records]),
        comment=row(comment[each] for side in records for each in side.sequential),
    )
    columns = {
        "watched": row(instance.watched or NO_TEXT for instance in instances),
        "target": row(instance.target for instance in instances),
        "answer": row(comment[answer] for answer in answers),
        "negative": row(
            filter(None, [*(title[item] for item in drawn.items), *(comment[each] for each in drawn.comments)])
        ),
    }
    texts = list(row.of)
    return InstanceBatch(
        instances=instances,
        histories=sequential,
        windows=_whole(sequential, windows.request),
        positions=positions,
        is_item=targets.comment == 0,
        user=windows.user,
        texts=texts,
        text_key=np.array([_key(text) for text in texts], np.int64),
        **columns,
    )


def _instances(
    targets: Targets,
    items: list[list[Entry]],
    records: list[list[Entry]],
    title: Mapping[int, str],
    comment: Mapping[int, str],
) -> list[Instance]:
    return [
        Instance("comment", told_items, told_records, watched=title[item], target=comment[chosen])
        if chosen
        else Instance("item", told_items, told_records, watched=None, target=title[item])
        for item, chosen, told_items, told_records in zip(
            targets.item.tolist(), targets.comment.tolist(), items, records, strict=True
        )
    ]


def _entries(
    times: Ints,
    items: list[int],
    sides: list[Sides],
    offsets: Ints,
    title: Mapping[int, str],
    comment: Mapping[int, str],
) -> list[list[Entry]]:
    """Of each instance, the entries as the LLM is told of them; given one after another, from user 1 on."""
    flat = [
        _in_words(Happened(item, time, side.supplemental), title, comment)
        for time, item, side in zip(times.tolist(), items, sides, strict=True)
    ]
    return [flat[first:last] for first, last in pairwise(offsets[1:])]


def _in_words(entry: Happened, title: Mapping[int, str], comment: Mapping[int, str]) -> Entry:
    return Entry(entry.time, title[entry.item], [text for each in entry.comments if (text := comment[each])])


class _Numbered:
    """Rows of distinct texts, given out as the texts come."""

    def __init__(self) -> None:
        self.of = {NO_TEXT: 0}

    def __call__(self, texts: Iterable[str]) -> Ints:
        return np.array([self.of.setdefault(text, len(self.of)) for text in texts], dtype=np.int64)


def _whole(histories: Histories, request: Ints) -> Windows:
    """Everything of users 1.., before a target that is yet to come."""
    begin, end = histories.item_offsets[1:-1], histories.item_offsets[2:]
    other_begin, other_end = histories.record_offsets[1:-1], histories.record_offsets[2:]
    return Windows(np.arange(1, len(request) + 1), begin, end, end, other_begin, other_end, request)


def _gathered(texts: pl.Series, ids: Ints) -> pl.Series:
    found = texts.gather(ids - 1).fill_null(NO_TEXT)
    return found.set(found.str.strip_chars() == NO_TEXT, NO_TEXT)


def _texts(texts: pl.Series, ids: Iterable[int]) -> dict[int, str]:
    """The texts of some ids; that of id 0 is empty."""
    used = np.unique(np.fromiter(ids, np.int64))
    used = used[used > 0]
    return {0: NO_TEXT} | dict(zip(used.tolist(), _gathered(texts, used).to_list(), strict=True))


def _key(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
