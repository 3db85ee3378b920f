"""Titles and comments from the grammar, a column at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from reeltalk.data.simulator.grammar import CHARACTERS, COMMENTS, SPANS, TITLES, WORDS

Ints = npt.NDArray[np.integer[Any]]
Flags = npt.NDArray[np.bool_]

NUM_CHARACTERS = len(CHARACTERS)
SUBTOPICS = 4  # of each topic: cell c is subtopic c % 4 of topic c // 4


def _parse(words: str) -> tuple[list[str], list[str], list[str]]:
    adjectives: list[str] = []
    nouns: list[str] = []
    verbs: list[str] = []
    for line in words.strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        (adjectives, nouns, verbs)[depth].extend(line.split(": ")[-1].strip().split(", "))
    return adjectives, nouns, verbs


ADJECTIVES, NOUNS, VERBS = _parse(WORDS)
NUM_CELLS = len(NOUNS) // 8
NUM_TOPICS = NUM_CELLS // SUBTOPICS


def _gather(words: Iterable[str], rows: Ints) -> pl.Series:
    return pl.Series(list(words), dtype=pl.String).gather(rows)


def _vocabulary(cells: Ints, rng: np.random.Generator) -> pl.DataFrame:
    """The words that each row's pattern may use; a pattern never says the same noun, verb or adjective twice."""
    columns: dict[str, pl.Series] = {"span": _gather(SPANS.split(", "), rng.integers(8, size=len(cells)))}
    for slot, words, group, size in (
        ("noun", NOUNS, cells, 8),
        ("verb", VERBS, cells, 6),
        ("adj", ADJECTIVES, cells // SUBTOPICS, 8),
    ):
        first = rng.integers(size, size=len(cells))
        second = (first + rng.integers(1, size, size=len(cells))) % size
        columns[slot] = _gather(words, group * size + first)
        columns[f"{slot}2"] = _gather(words, group * size + second)
    return pl.DataFrame(columns)


def _fill(patterns: Sequence[str], chosen: Ints, words: pl.DataFrame) -> pl.Series:
    """Row by row, the chosen pattern with its slots filled."""
    parts = []
    for number, pattern in enumerate(patterns):
        rows = np.flatnonzero(chosen == number)
        slots = [pl.col(slot) for slot in re.findall(r"{(\w+)}", pattern)]
        text = pl.format(re.sub(r"{\w+}", "{}", pattern), *slots)
        parts.append(words[rows].select(text=text, row=pl.lit(pl.Series(rows, dtype=pl.Int64))))
    text = pl.col("text").str.replace_all(r"\b([aA]) ([aeiou])", "${1}n $2")
    return pl.concat(parts).sort("row").select(text).to_series()


def _capitalised(text: pl.Expr) -> pl.Expr:
    sentence = text.str.slice(0, 1).str.to_uppercase() + text.str.slice(1)
    return sentence.str.replace_all(r"\bi\b", "I")


def _ended(text: pl.Expr) -> pl.Expr:
    return text + pl.when(text.str.ends_with("?")).then(pl.lit("")).otherwise(pl.lit("."))


def write_titles(cells: Ints, formats: Ints, *, rng: np.random.Generator) -> pl.Series:
    """One title for each item of a cell (topic and subtopic) and a format (one of the characters)."""
    patterns = [pattern for character in CHARACTERS for pattern in TITLES[character]]
    chosen = formats * 5 + rng.integers(5, size=len(cells))
    titles = _fill(patterns, chosen, _vocabulary(cells, rng))
    return titles.to_frame("text").select(_capitalised(pl.col("text"))).to_series()


def write_comments(
    cells: Ints, stances: Ints, depths: Ints, *, lowercase: Flags, emoji: Flags, rng: np.random.Generator
) -> pl.Series:
    """One text for each comment about a cell with a stance (one of the characters).

    A text of depth 0 says no more than its stance; 1 names the cell's words; 2 has an opener before, 3 goes on behind.
    `lowercase` and `emoji` are manners of the author.
    """
    openers, bodies, closers, shorts, signs = (
        [text for character in CHARACTERS for text in COMMENTS[character][part]] for part in range(5)
    )

    def drawn(texts: Sequence[str]) -> Ints:
        count = len(texts) // NUM_CHARACTERS
        return stances * count + rng.integers(count, size=len(stances))

    depth = pl.col("depth")
    parts = pl.DataFrame(
        {
            "depth": depths,
            "lowercase": lowercase,
            "wordless": emoji & (rng.random(len(cells)) < 0.3),
            "body": _fill(bodies, drawn(bodies), _vocabulary(cells, rng)),
            "more": _fill(bodies, drawn(bodies), _vocabulary(cells, rng)),
            "opener": _gather(openers, drawn(openers)),
            "closer": _gather(closers, drawn(closers)),
            "short": _gather(shorts, drawn(shorts)),
            "sign": _gather(signs, drawn(signs)),
            "signed": emoji,
        }
    )
    sentence = pl.concat_str(
        pl.when(depth >= 2).then("opener"),
        pl.when(depth >= 3).then(_ended(pl.col("body"))).otherwise("body"),
        pl.when(depth >= 3).then(_ended(pl.col("more")) + " " + pl.col("closer")),
        separator=" ",
        ignore_nulls=True,
    )
    text = pl.when(depth > 0).then(sentence).when("wordless").then(pl.lit(None)).otherwise("short")
    text = pl.when("lowercase").then(text).otherwise(_capitalised(text))
    signed = pl.concat_str(text, pl.when("signed").then("sign"), separator=" ", ignore_nulls=True)
    return parts.select(signed).to_series()
