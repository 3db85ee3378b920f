"""A made platform whose truth is known: users whose tastes drift, items, comments, and what they do to each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from reeltalk.data.raw import RawLog
from reeltalk.data.simulator.generation import Generation
from reeltalk.data.simulator.oracle import KEYS, Oracle
from reeltalk.data.simulator.platform import Platform, SimulatorSettings
from reeltalk.data.simulator.texts import write_comments, write_titles

__all__ = ["Oracle", "Platform", "Settings", "SimulatorSettings", "read", "simulate"]

Settings = SimulatorSettings  # the names by which every source is called


def read(raw: Path | None, *, settings: SimulatorSettings) -> RawLog:
    """The source `simulator`; there is no raw log to read."""
    return simulate(settings)


def simulate(settings: SimulatorSettings, *, progress: bool = True) -> RawLog:
    """A platform's log from its first day to its last, with the truth that it was drawn from as `RawLog.oracle`.

    Items carry like, collect and share events, comments like and reply events; a reply is also a new comment. The same
    settings give the same log. The oracle holds the arrays of `Platform` and the keys of users, items and comments.
    """
    rng = np.random.default_rng(settings.seed)
    platform = Platform.create(settings, rng=rng)
    life = Generation(platform, settings, rng=rng)
    life.run(progress=progress)
    counts = {"u": settings.num_users, "i": settings.num_items, "c": life.written.count}
    users, items, comments = (_keys(letter, count) for letter, count in counts.items())
    keys = (column.to_numpy().astype(str) for column in (users, items, comments))
    return RawLog(
        items=pl.LazyFrame(
            {
                "item_key": items,
                "title": write_titles(platform.item_cell, platform.item_format, rng=rng),
                "created": platform.item_created,
            }
        ),
        item_events=_item_events(life, users, items, rng).lazy(),
        comments=_comments(life, users, items, comments, rng).lazy(),
        comment_events=_comment_events(life, users, comments).lazy(),
        oracle=platform.arrays() | dict(zip(KEYS, keys, strict=True)),
    )


def _keys(letter: str, count: int) -> pl.Series:
    """Keys in the order of rows, which is their order as words too."""
    numbers = pl.Series(np.arange(1, count + 1)).cast(pl.String).str.zfill(len(str(count)))
    return pl.Series([letter], dtype=pl.String) + numbers


def _item_events(life: Generation, users: pl.Series, items: pl.Series, rng: np.random.Generator) -> pl.DataFrame:
    user, item, time = (np.concatenate(column) for column in zip(*life.item_events, strict=True))
    behaviours = rng.choice(3, p=[0.7, 0.2, 0.1], size=len(user))
    return pl.DataFrame(
        {
            "user_key": users.gather(user),
            "item_key": items.gather(item),
            "time": time,
            "behaviour": pl.Series(["like", "collect", "share"]).gather(behaviours),
        }
    ).sort("time", maintain_order=True)


def _comment_events(life: Generation, users: pl.Series, comments: pl.Series) -> pl.DataFrame:
    user, comment, time, is_reply = (np.concatenate(column) for column in zip(*life.comment_events, strict=True))
    return pl.DataFrame(
        {
            "user_key": users.gather(user),
            "comment_key": comments.gather(comment),
            "time": time,
            "behaviour": pl.Series(["like", "reply"]).gather(is_reply.astype(np.int64)),
        }
    ).sort("time", maintain_order=True)


def _comments(
    life: Generation, users: pl.Series, items: pl.Series, comments: pl.Series, rng: np.random.Generator
) -> pl.DataFrame:
    written, count = life.written, life.written.count
    item, author, parent = (column[:count] for column in (written.item, written.author, written.parent))
    cell, stance, depth = (column[:count] for column in (written.cell, written.stance, written.depth))
    lowercase = rng.random(len(users)) < 0.4  # manners of each author
    emoji_rate = rng.beta(0.5, 1.5, size=len(users))
    texts = write_comments(
        cell, stance, depth, lowercase=lowercase[author], emoji=rng.random(count) < emoji_rate[author], rng=rng
    )
    return pl.DataFrame(
        {
            "comment_key": comments,
            "item_key": items.gather(item),
            "text": texts,
            "created": life.platform.comment_created[:count],
            "user_key": users.gather(author),
            "parent_key": comments.gather(pl.Series(parent).replace(-1, None)),
        }
    )
