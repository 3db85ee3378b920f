"""Life on the platform, step by step: who opens what, likes it, reads its comments, likes them, answers, writes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from reeltalk.data.simulator.platform import (
    DAY,
    FOREVER,
    Flags,
    Floats,
    Ints,
    Platform,
    SimulatorSettings,
    draw_ranked,
)
from reeltalk.data.simulator.texts import SUBTOPICS

MINUTE = 60_000
SLACK = 30 * MINUTE  # what follows a visit ends within it, so in the same step
TRIES = 4  # choices in order of liking, of which the first not yet liked counts
EVENTS_A_VISIT = 3
FOLLOWERS = 0.5  # comment visits that follow the like of an item; the others leave no item event
NOTHING: Ints = np.empty(0, dtype=np.int64)
REPLY_CHANCE = np.array([0.15, 0.15, 0.35, 0.5, 0.25])  # of a comment event, by the stance it answers


class SeenPairs:
    """A set of pairs of rows, asked and filled an array at a time."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.keys: Ints = np.array([FOREVER])  # sorted; the last one is no pair

    def has(self, rows: Ints, columns: Ints) -> Flags:
        wanted = rows * self.columns + columns
        return np.asarray(self.keys[np.searchsorted(self.keys, wanted)] == wanted)

    def firsts(self, rows: Ints, columns: Ints) -> Ints:
        """Places of the pairs that are not in the set, each pair only where it first occurs, in ascending order."""
        _, first = np.unique(rows * self.columns + columns, return_index=True)
        first.sort()
        return np.asarray(first[~self.has(rows[first], columns[first])])

    def add(self, rows: Ints, columns: Ints) -> None:
        self.keys = np.sort(np.concatenate([self.keys, rows * self.columns + columns]), kind="stable")


class Visits(NamedTuple):
    """Columns of users who open an item each."""

    users: Ints
    items: Ints
    times: Ints

    def at(self, rows: Ints) -> Visits:
        return Visits(*(column[rows] for column in self))


class Answers(NamedTuple):
    """Columns of comment events."""

    users: Ints
    comments: Ints
    times: Ints
    is_reply: Flags


class Written:
    """What is known of the comments beyond the platform's arrays, filled as they are written; parent -1: none."""

    def __init__(self, num_comments: int) -> None:
        self.count = 0
        self.item, self.author, self.parent, self.cell, self.stance, self.depth = np.full((6, num_comments), -1)


class Generation:
    """A running platform: its state, and the columns of what has happened, a step at a time."""

    def __init__(self, platform: Platform, settings: SimulatorSettings, *, rng: np.random.Generator) -> None:
        self.platform, self.settings, self.rng = platform, settings, rng
        self.item_events = [Visits(NOTHING, NOTHING, NOTHING)]
        self.comment_events = [Answers(NOTHING, NOTHING, NOTHING, NOTHING.astype(bool))]
        self.written = Written(len(platform.comment_created))
        # rows of the newest comments of each item, a ring; -1: none
        self.latest = np.full((settings.num_items, settings.comments_shown), -1, dtype=np.int32)
        self.num_written = np.zeros(settings.num_items, dtype=np.int64)
        self.liked_items = SeenPairs(settings.num_items)
        self.liked_comments = SeenPairs(len(platform.comment_created))

    def run(self, *, progress: bool) -> None:
        """Live through all steps. What a step could not place (nobody there, nothing to like) is owed to the next."""
        settings = self.settings
        start, length, end = (int(value) for value in self.platform.clock)
        begins = np.arange(start, end, length)
        busy = 1.0 + 0.5 * np.sin(2 * np.pi * ((begins - start) / DAY - 0.54))  # most in the evening
        totals = (settings.num_item_events, settings.num_comment_events, settings.num_comments)
        plan = np.stack([self.rng.multinomial(total, busy / busy.sum()) for total in totals], axis=1)
        owed = np.zeros(3, dtype=np.int64)
        steps: Iterable[int] = range(len(begins))
        if progress:
            steps = track(steps, "simulating", console=Console(stderr=True), transient=True)
        for step in steps:
            due = owed + plan[step]
            owed = due - self._step(int(begins[step]), likes=due[0], answers=due[1], comments=due[2])
        self._hide()

    def _step(self, now: int, *, likes: int, answers: int, comments: int) -> Ints:
        """Place at most so many item events, comment events and comments in a step; returns how many it could."""
        followers = int(FOLLOWERS * answers)
        liked = self._like(now, likes)
        guests = self._open(
            now, answers - followers + comments // 2, count=1, attraction=np.sqrt(1.0 + self.num_written)
        )
        visits = Visits(*(np.concatenate([one, other.ravel()]) for one, other in zip(liked, guests, strict=True)))
        if not len(visits.users):
            return np.zeros(3, dtype=np.int64)
        num_liked = len(liked.users)
        followers_rows = self.rng.permutation(num_liked)[:followers]
        readers = visits.at(np.concatenate([followers_rows, np.arange(num_liked, len(visits.users))]))
        answered = self._read(now, readers, most=answers, most_replies=comments)
        self._write(answered, visits, count=comments)
        return np.array([num_liked, len(answered.users), comments])

    def _open(self, now: int, openings: int, *, count: int, attraction: Floats) -> tuple[Ints, Ints, Ints]:
        """Users present, the `count` items each likes best of those shown, [openings, count], and the times.

        Items are shown by popularity times `attraction`.
        """
        platform, rng = self.platform, self.rng
        present = int(np.searchsorted(platform.user_joined, now, side="right"))
        existing = int(np.searchsorted(platform.item_created, now, side="right"))
        if not present or not existing:
            return NOTHING, np.empty((0, count), dtype=np.int64), NOTHING
        users = _drawn(platform.user_activity[:present], (openings,), rng)
        popularity = np.exp(platform.item_popularity(np.arange(existing), np.array(now)))
        shown = _drawn(popularity * attraction[:existing], (openings, self.settings.items_shown), rng)
        ranked = platform.respond(users, shown, now, count=count, rng=rng)
        return users, ranked, now + rng.integers(int(platform.clock[1]) - SLACK, size=openings)

    def _like(self, now: int, likes: int) -> Visits:
        """Item events: each user's best of what is shown that they have not liked before."""
        attraction = np.ones(self.settings.num_items, dtype=np.float32)
        users, ranked, times = self._open(now, likes, count=TRIES, attraction=attraction)
        fresh = ~self.liked_items.has(users[:, None], ranked)
        items = np.take_along_axis(ranked, fresh.argmax(axis=1)[:, None], axis=1)[:, 0]
        liked = Visits(users, items, times).at(self.liked_items.firsts(users, items))
        self.liked_items.add(liked.users, liked.items)
        self.item_events.append(liked)
        return liked

    def _read(self, now: int, visits: Visits, *, most: int, most_replies: int) -> Answers:
        """Comment events: up to three a visit of what the item shows, none the user's own, none twice."""
        rng, users = self.rng, visits.users
        shown = self.latest[visits.items].astype(np.int64)
        weights = self.platform.true_comment_preference(users[:, None], shown, np.array(now))
        weights[(shown < 0) | (self.written.author[shown] == users[:, None])] = -np.inf
        picks = draw_ranked(weights, count=EVENTS_A_VISIT, rng=rng)
        wanted = 1 + rng.binomial(EVENTS_A_VISIT - 1, 0.3, size=(len(users), 1))
        chosen = np.isfinite(np.take_along_axis(weights, picks, axis=1)) & (np.arange(EVENTS_A_VISIT) < wanted)
        visit, place = np.nonzero(chosen)
        comments = shown[visit, picks[visit, place]]
        kept = rng.permutation(self.liked_comments.firsts(users[visit], comments))[:most]
        visit, place, comments = visit[kept], place[kept], comments[kept]
        self.liked_comments.add(users[visit], comments)
        times = visits.times[visit] + (1 + place) * rng.integers(MINUTE // 6, 4 * MINUTE, size=len(kept))
        is_reply = rng.random(len(kept)) < REPLY_CHANCE[self.written.stance[comments]]
        is_reply &= np.cumsum(is_reply) <= most_replies
        answered = Answers(users[visit], comments, times, is_reply)
        self.comment_events.append(answered)
        return answered

    def _write(self, answered: Answers, visits: Visits, *, count: int) -> None:
        """Replies become comments that answer one; the rest of `count` is written under what is visited."""
        rng, written, platform = self.rng, self.written, self.platform
        replies = np.flatnonzero(answered.is_reply)
        top = visits.at(rng.integers(len(visits.users), size=count - len(replies)))
        author = np.concatenate([answered.users[replies], top.users])
        parent = np.concatenate([answered.comments[replies], np.full(len(top.users), -1)])
        item = np.concatenate([written.item[answered.comments[replies]], top.items])
        pause = rng.integers(MINUTE, 15 * MINUTE, size=len(top.users))
        created = np.concatenate([answered.times[replies], top.times + pause])
        order = np.argsort(created, kind="stable")
        author, parent, item, created = author[order], parent[order], item[order], created[order]

        cell = self._aspects(np.where(parent < 0, platform.item_cell[item], written.cell[parent]))
        stance = draw_ranked(2 * platform.user_character[author], count=1, rng=rng)[:, 0]
        depth = rng.choice(4, p=[0.15, 0.4, 0.3, 0.15], size=count)
        rows = np.arange(written.count, written.count + count)
        written.item[rows], written.author[rows], written.parent[rows] = item, author, parent
        written.cell[rows], written.stance[rows], written.depth[rows] = cell, stance, depth
        written.count += count
        platform.comment_created[rows] = created
        platform.comment_vector[rows] = platform.comment_vectors(cell, stance, depth)
        platform.comment_quality[rows] = rng.normal(0.25 * depth, 0.9)
        self._show(rows, item)

    def _show(self, rows: Ints, item: Ints) -> None:
        """Put new comments on their items' rings."""
        by_item = np.argsort(item, kind="stable")
        rows, sorted_item = rows[by_item], item[by_item]
        place = self.num_written[sorted_item] + np.arange(len(rows)) - np.searchsorted(sorted_item, sorted_item)
        self.latest[sorted_item, place % self.settings.comments_shown] = rows
        self.num_written += np.bincount(item, minlength=self.settings.num_items)

    def _aspects(self, cells: Ints) -> Ints:
        """What comments talk about, given the cell they start from: that one, one of its topic, seldom anything."""
        rng, num_cells = self.rng, len(self.platform.cell_vector)
        beside = cells // SUBTOPICS * SUBTOPICS + rng.integers(SUBTOPICS, size=len(cells))
        anything = rng.integers(num_cells, size=len(cells))
        return np.choose(rng.choice(3, p=[0.45, 0.4, 0.15], size=len(cells)), [cells, beside, anything])

    def _hide(self) -> None:
        """Say when each comment was pushed out by newer ones of its item."""
        count, shown = self.written.count, self.settings.comments_shown
        order = np.argsort(self.written.item[:count], kind="stable")
        older, newer = order[:-shown], order[shown:]
        pushed = self.written.item[older] == self.written.item[newer]
        self.platform.comment_hidden[older[pushed]] = self.platform.comment_created[newer[pushed]]


def _drawn(weights: Floats, shape: tuple[int, ...], rng: np.random.Generator) -> Ints:
    """Rows drawn with replacement by their weights."""
    share = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    counts = rng.multinomial(math.prod(shape), share)  # counts in a random order are independent draws, and soon made
    return rng.permutation(np.repeat(np.arange(len(weights)), counts)).reshape(shape)
