"""Asking a trained system: for a user of the dataset, or for one never seen whose history is written by hand.

Shapes: D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from torch import Tensor

from reeltalk.data.dataset import ids_of
from reeltalk.data.histories import NOW, Histories, Windows, offsets_by_id, request_windows, without_repeats
from reeltalk.data.ragged import Ints, Ragged
from reeltalk.data.records import record_starts
from reeltalk.errors import DataError
from reeltalk.objectives import comment_scores, target_preferences
from reeltalk.training.feed import Feed
from reeltalk.training.ranking import WINDOWS_A_BATCH
from reeltalk.training.system import System, as_read

LAST_MOMENT = int(NOW)
UNTIMED = 1_000_000  # milliseconds over which a history without times is spread: about a quarter of an hour
Times = Sequence[int] | Ints | pl.Series


@dataclass(frozen=True)
class History:
    """A history written by hand, oldest first: keys of items, and keys of comments that the user liked or answered.

    Times are milliseconds since 1970, one for each key. Keys without times are taken to run evenly over the time of the
    other list, or where that has none, side by side with it, over the quarter of an hour up to now.
    """

    items: Sequence[str] = ()
    comments: Sequence[str] = ()
    item_times: Times | None = None
    comment_times: Times | None = None


@torch.inference_mode()
def recommend_items(
    system: System,
    user: str | History,
    *,
    k: int = 10,
    exclude_seen: bool = True,
    now: int = LAST_MOMENT,
) -> pl.DataFrame:
    """The k best items for a user: columns item_key, title, score; best first.

    `now` (ms) hides what happened later and items that did not exist yet. Most baselines have no preference for someone
    without an item event (see docs/papers.md): all scores are 0 then, and the order says nothing.

    Raises DataError for an unknown user, item or comment key, for times that fall or cannot be milliseconds, where no
    item existed at `now`, for a negative `k`, and for a system of the comment task.
    """
    system.require_task("item")
    feed, user_id = _feed(system, user, now)
    existing = int(np.searchsorted(feed.item_created, now, side="right"))
    if not existing:
        first = int(feed.item_created[0])
        raise DataError(f"no item existed at now={now}, the first came at {first}; give milliseconds since 1970")
    preference_D = _preferences(system, feed, _windows(system, feed, user_id, now))[0]
    scores = (system.vectors_of_items()[:existing] @ preference_D).cpu()
    if exclude_seen:
        histories = feed.histories
        rows = slice(histories.item_offsets[user_id], histories.item_offsets[user_id + 1])
        seen = np.unique(histories.item[rows][histories.time[rows] < now])
        seen = seen[seen <= existing]
        scores.numpy()[seen - 1] = -np.inf
        existing -= len(seen)
    best = scores.topk(min(_number(k), existing))
    return _best(system.dataset.items, "item_key", "title", best)


@torch.inference_mode()
def recommend_comments(
    system: System, user: str | History, *, item: str, k: int = 10, now: int = LAST_MOMENT
) -> pl.DataFrame:
    """The k best comments under the item that a user watches: columns comment_key, text, score; best first.

    Comments that were not written by `now` (ms), and the user's own, are no candidates. Raises DataError as
    `recommend_items` does.
    """
    system.require_task("comment")
    feed, user_id = _feed(system, user, now)
    assert feed.pool is not None
    item_id = int(ids_of("item", [item], system.dataset.item_ids)[0])
    first, end = feed.pool.offsets[item_id : item_id + 2]
    is_candidate = pl.col("created") < now
    if isinstance(user, str):
        is_candidate &= pl.col("user_id") != user_id
    comments = system.dataset.comments[int(first) : int(end)].filter(is_candidate)
    if comments.is_empty():
        return comments.select("comment_key", "text").with_columns(score=pl.Series([], dtype=pl.Float32))
    candidates = Ragged(comments["comment_id"].to_numpy(), np.array([0, len(comments)]))
    windows = _windows(system, feed, user_id, now)
    batch, targets = feed.candidate_batch(windows, np.array([item_id]), candidates)
    device = next(system.parameters()).device
    with system.evaluating():
        scores, _ = system.read(comment_scores, batch.to(device), targets.to(device))
    best = scores[0].cpu().topk(min(_number(k), len(comments)))
    return _best(comments, "comment_key", "text", best)


def user_vectors(system: System, users: Sequence[str], *, now: int = LAST_MOMENT) -> Tensor:
    """Preferences of some users of the dataset for an index of one's own: float32 [users, D]; item task only.

    Zeros where the model has no preference for a user without an item event (see docs/papers.md).
    """
    system.require_task("item")
    ids = ids_of("user", _keys("users", users), system.dataset.user_ids)
    if not len(ids):
        return system.vectors_of_items()[:0].clone()
    windows = request_windows(
        system.feed.histories, "item", ids, np.full(len(ids), now), length=system.settings.data.history_length
    )
    starts = range(0, len(windows), WINDOWS_A_BATCH)
    return torch.cat([_preferences(system, system.feed, windows[at : at + WINDOWS_A_BATCH]) for at in starts])


@torch.inference_mode()
def _preferences(system: System, feed: Feed, windows: Windows) -> Tensor:
    batch, targets = feed.item_batch(windows)
    device = next(system.parameters()).device
    with system.evaluating():
        return target_preferences(system.recommender, batch.to(device), targets.to(device)).float()


def _windows(system: System, feed: Feed, user_id: int, now: int) -> Windows:
    length = system.settings.data.history_length
    return request_windows(feed.histories, system.settings.task, np.array([user_id]), np.array([now]), length=length)


def _feed(system: System, user: str | History, now: int) -> tuple[Feed, int]:
    if isinstance(user, str):
        return system.feed, int(ids_of("user", [user], system.dataset.user_ids)[0])
    return replace(system.feed, histories=as_read(_written(system, user, now), system.settings)), 1


def _written(system: System, history: History, now: int) -> Histories:
    dataset = system.dataset
    items = ids_of("item", _keys("items", history.items), dataset.item_ids)
    comments = ids_of("comment", _keys("comments", history.comments), dataset.comment_ids)
    watched = dataset.comments["item_id"].to_numpy()[comments - 1].astype(np.int64)
    item_times = _times("item", history.item_times, len(items), now, beside=history.comment_times)
    comment_times = _times("comment", history.comment_times, len(comments), now, beside=history.item_times)
    told_at = np.full(len(items), now) if history.item_times is None else item_times
    are_timed = history.item_times is not None and history.comment_times is not None
    starts = record_starts(
        np.ones_like(comments),
        watched,
        comment_times,
        item_offsets=np.array([0, 0, len(items) if are_timed else 0]),
        item_time=item_times,
        gap_seconds=dataset.manifest.config["record_gap_seconds"],
    )
    first = np.flatnonzero(starts)
    end = np.append(first[1:], len(comments))[: len(first)]
    record, comment = without_repeats(np.cumsum(starts) - 1, comments)
    return Histories(
        item_offsets=np.array([0, 0, len(items)]),
        item=items,
        time=item_times,
        hot_comment=system.leaders.before(told_at, items),
        item_split=np.zeros_like(items),
        record_offsets=np.array([0, 0, len(first)]),
        record_item=watched[first],
        start=comment_times[first],
        end=comment_times[end - 1],
        record_split=np.zeros_like(first),
        comment_offsets=offsets_by_id(record, len(first) - 1) if len(first) else np.zeros(1, np.int64),
        comment=comment,
    )


def _times(what: str, times: Times | None, count: int, now: int, *, beside: Times | None) -> Ints:
    if times is None:
        first, last = (now - UNTIMED, now - 1) if beside is None or not len(beside) else (min(beside), max(beside))
        return np.sort(np.linspace(last, first, count).astype(np.int64))  # one alone is the last
    if len(times) != count:
        raise DataError(f"{what}_times holds {len(times)} times for {count} keys; give one each")
    found = np.asarray(times, dtype=np.int64)
    if (np.diff(found) < 0).any():
        raise DataError(f"{what}_times go back at place {int((np.diff(found) < 0).argmax()) + 1}; give oldest first")
    if count and found[-1] >= NOW:
        raise DataError(f"{what}_times holds {found[-1]}, after the year 2109; give milliseconds since 1970")
    return found


def _keys(what: str, keys: Sequence[str]) -> Sequence[str]:
    if isinstance(keys, str):
        raise DataError(f"{what} is {keys!r}, one key; give a list of keys")
    return keys


def _number(k: int) -> int:
    if k < 0:
        raise DataError(f"k is {k}; give how many are wanted")
    return k


def _best(table: pl.DataFrame, key: str, text: str, best: torch.return_types.topk) -> pl.DataFrame:
    rows = best.indices.numpy()  # of one column at a time: those of a frame are gathered by threads, which wake slowly
    return pl.DataFrame([table[key][rows], table[text][rows], pl.Series("score", best.values.numpy())])
