"""The texts of the encoding benchmark: given ones, or comments generated with the lengths of a forum's.

Standard library only, because peers' environments import it; a Parquet file needs polars.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

COMMENTS = 6_000
MAX_TOKENS = 256  # what sentence-transformers cuts this model's texts to
THROUGHPUT = "encode: 6,000 comments with MiniLM, texts of up to 256 tokens"
MEDIAN_WORDS, SPREAD, MOST_WORDS = 21, 1.2, 600  # log-normal: 43 words on average, one text in 40 above 200
VOCABULARY = """
a the and or not this that it I you she they was is did so very too just only still never again here there why what how
video clip song game match recipe trailer episode channel comment cat dog puppy goal player singer dance guitar bread
soup cake train bridge garden winter summer morning weekend minute second year watch laugh cry cook bake sing play win
lose train build repair explain miss share love hate agree wonder funny sad brilliant boring honest slow quick loud
quiet better best worst underrated unexpected delicious terrible lovely thanks please sorry wow finally because although
"""
WORDS = VOCABULARY.split()


def arguments(description: str | None) -> argparse.Namespace:
    """The command line that ours and the peer's script share."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--texts", type=Path, help="real comments: Parquet with a column text, or a JSON string a line")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs; the median counts")
    parser.add_argument("--seed", type=int, default=0, help="of the texts that are drawn or generated")
    return parser.parse_args()


def comments(source: Path | None, *, seed: int) -> list[str]:
    """`COMMENTS` texts drawn from `source`, or generated; the same ones for the same seed."""
    draw = random.Random(seed)
    if source is not None:
        return draw.sample(_read(source), COMMENTS)
    lengths = (min(MOST_WORDS, 1 + int(draw.lognormvariate(math.log(MEDIAN_WORDS), SPREAD))) for _ in range(COMMENTS))
    return [" ".join(draw.choices(WORDS, k=length)) for length in lengths]


def origin(source: Path | None) -> str:
    """What a row says about its texts."""
    return "generated comments" if source is None else "real comments"


def _read(source: Path) -> list[str]:
    if source.suffix == ".parquet":
        import polars as pl

        return pl.read_parquet(source, columns=["text"])["text"].drop_nulls().to_list()
    return [json.loads(line) for line in source.read_text().splitlines()]
