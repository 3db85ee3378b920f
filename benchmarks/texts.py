"""The texts of the encoding benchmark: given ones, or comments generated with the lengths of a forum's. Standard library
only, for peers' environments import it; a Parquet file needs polars.
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
WORDS = """the of and to in for is on that by this with you it not or be are from at as your all have new more an was we
will home can us about if page my has search free but our one other do no they site he up may what which their news out
use any there see only so his when contact here business who web also now help get view online first been would how were
services some these click its like service than find price date back top people list name just over state year day into
email two health world next used go work last most music buy data make them should product system post her city add
policy number such please available copyright support message after best software then good video well where info rights
public books high school through each links she review years order very privacy book items company read group need many
user said does set under general research university january mail full map reviews program life know games way days
management part could great united hotel real item international center must store travel comments made development
report off member details line terms before hotels did send right type because local those using results office
education national car design take posted internet address community within states area want phone shipping reserved
subject between forum family long based code show even black check special prices website index being women much sign
file link open today technology south case project same pages version section own found sports house related security
both county american photo game members power while care network down computer systems three total place end following
download him without per access think north resources current posts big media law control water history pictures size
art personal since including guide shop directory board location change white text small rating rate government""".split()


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
