"""Amazon reviews (2014, 2018 and 2023 releases): JSON lines, plain or gz, and the metadata that holds the titles.

A review is a comment on its item, keyed ``user:item:time``, and an item event of its user (behaviour ``review``);
nobody acts on comments. Its text is the heading, a line break and the body, without markup. A review that stands there
twice is one event; where a user wrote different texts on an item at the same time, the keys of the later ones end in
``:2``, ``:3``, .. Items are those that have a review; their title is the first one in the metadata, or empty. In the
2023 release an item is the parent (`parent_asin`), as in its metadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html.entities import html5
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.progress import track

from reeltalk.data.checks import LATEST
from reeltalk.data.raw import EARLIEST, SECOND, RawLog
from reeltalk.data.sources.json_lines import BROKEN, broken_at, first_fields, lines_at, scan
from reeltalk.errors import DataError, all_problems

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
OPENED = 804_556_800_000  # 1995-07-01: Amazon's first month; an earlier time is no time of a review
TAG = r"(?is)<(script|style)\b.*?</(script|style)\s*>|</?[a-z][^<>]*>|<!--.*?-->"


class Settings(BaseModel):
    """Which files hold what, and how to treat what the releases leave open."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reviews: list[str] | None = Field(
        default=None, description="file names or patterns within raw; default: all JSON lines not named meta*"
    )
    metadata: list[str] | None = Field(
        default=None, description="file names or patterns within raw, [] for none; default: all JSON lines named meta*"
    )
    item_created: Literal["unknown", "first_review"] = Field(
        default="unknown", description="unknown: items always existed; first_review: since their first review"
    )
    before_2000: Literal["error", "drop"] = Field(
        default="error", description="what to do with reviews of 1995 to 1999, which reeltalk's clock does not reach"
    )


@dataclass(frozen=True)
class Form:
    """The names that a release gives to a review's fields, and its unit of time in milliseconds."""

    user: str
    items: tuple[str, ...]
    heading: str
    body: str
    time: str
    unit: int

    def is_told_by(self, fields: Sequence[str]) -> bool:
        """Whether a record with these fields is of this form, one missing field allowed."""
        expected = {self.user, self.time, self.body, "asin"}
        return len(expected - set(fields)) <= 1

    def scan(self, path: Path) -> pl.LazyFrame:
        """user_key, item_key, time (ms), heading, body: as they stand, null where missing."""
        texts = (self.user, *self.items, self.heading, self.body)
        frame = scan(path, schema={**dict.fromkeys(texts, pl.String), self.time: pl.Int64})
        return frame.select(
            user_key=pl.col(self.user).replace("", None),
            item_key=pl.coalesce(pl.col(self.items).replace("", None)),
            time=pl.col(self.time) * self.unit,
            heading=self.heading,
            body=self.body,
        )


FORMS = (
    Form("reviewerID", ("asin",), "summary", "reviewText", "unixReviewTime", SECOND),  # 2014, 2018
    Form("user_id", ("parent_asin", "asin"), "title", "text", "timestamp", 1),  # 2023
)


def read(raw: Path, *, settings: Settings) -> RawLog:
    """Read the reviews and metadata in the folder `raw`; memory grows by 8 bytes a review and with the items' titles.

    Raises DataError that tells of every file what is wrong in it, with the line: gz data cut off, a line that is no
    JSON object, no user, item or time, a time in another unit or before 2000.
    """
    review_files = _files(raw, settings.reviews, is_metadata=False)
    metadata_files = _files(raw, settings.metadata, is_metadata=True)
    reviews = _reviews(review_files, drop_before_2000=settings.before_2000 == "drop")
    _check_metadata(metadata_files)
    versions = _versions(reviews)
    numbered = reviews.with_row_index("row")
    if versions.height:
        numbered = numbered.join(versions.lazy(), on="row", how="left", maintain_order="left")
        suffix = pl.when(pl.col("version") > 1).then(pl.format(":{}", "version")).otherwise(pl.lit(""))
        events = numbered.filter(pl.col("is_first").fill_null(True))
    else:
        suffix, events = pl.lit(""), numbered
    heading, body = (_plain(pl.col(name).fill_null("")) for name in ("heading", "body"))
    names = ", ".join(path.name for path in review_files)
    return RawLog(
        items=_items(reviews, metadata_files, knows_creation=settings.item_created == "first_review"),
        item_events=events.select("user_key", "item_key", "time", behaviour=pl.lit("review")),
        comments=numbered.select(
            pl.format("{}:{}:{}{}", "user_key", "item_key", "time", suffix).alias("comment_key"),
            "item_key",
            text=pl.concat_str(heading, body, separator="\n").str.strip_chars(),
            created="time",
            user_key="user_key",
            parent_key=pl.lit(None, pl.String),
        ),
        origins={"items": f"items of {names}", "item_events": names, "comments": names},
    )


def _files(raw: Path, patterns: Sequence[str] | None, *, is_metadata: bool) -> list[Path]:
    """The files that the patterns name, or those found by their names; raises DataError where a pattern names none."""
    role = "metadata" if is_metadata else "reviews"
    if patterns is not None:
        absolute = [pattern for pattern in patterns if not pattern or Path(pattern).is_absolute()]
        outside = [f"source.{role}: {pattern!r} is no file name or pattern within {raw}" for pattern in absolute]
        all_problems(DataError, "files are missing:", outside)
        found = {pattern: sorted(path for path in raw.glob(pattern) if path.is_file()) for pattern in patterns}
        missing = [f"source.{role}: no file {pattern!r} in {raw}" for pattern, paths in found.items() if not paths]
        all_problems(DataError, "files are missing:", missing)
        return list(dict.fromkeys(path for paths in found.values() for path in paths))
    lines = sorted(path for path in raw.glob("*") if path.name.endswith(SUFFIXES) and path.is_file())
    chosen = [path for path in lines if path.name.lower().startswith("meta") == is_metadata]
    if not chosen:
        told = ", ".join(path.name for path in lines) or "none"
        way_out = "set source.metadata=[] if there is none" if is_metadata else "name them with source.reviews"
        raise DataError(f"{raw} holds no file of {role}; {way_out}. JSON lines ({', '.join(SUFFIXES)}) there: {told}")
    return chosen


def _reviews(paths: Sequence[Path], *, drop_before_2000: bool) -> pl.LazyFrame:
    """All reviews, in the order of the files; raises DataError with the problems of all of them."""
    problems: list[str] = []
    frames = []
    for path in track(paths, description="Checking reviews", console=Console(stderr=True), transient=True):
        fields = first_fields(path)
        form = next((form for form in FORMS if form.is_told_by(fields)), None)
        if form is None:
            found = f"its first record has {', '.join(fields)}" if fields else broken_at(path) or "it is empty"
            known = "; or ".join(f"{form.user}, asin, {form.body}, {form.time}" for form in FORMS)
            problems.append(f"{path.name} holds no reviews: {found}; expected {known}")
            continue
        frame = form.scan(path)
        problems += _problems(path, frame, _unfit(form, allow_before_2000=drop_before_2000))
        frames.append(frame.filter(pl.col("time") >= EARLIEST) if drop_before_2000 else frame)
    all_problems(DataError, "the reviews cannot be used:", problems)
    return pl.concat(frames)


def _check_metadata(paths: Sequence[Path]) -> None:
    problems: list[str] = []
    for path in track(paths, description="Checking metadata", console=Console(stderr=True), transient=True):
        problems += _problems(path, _titles(path), {("asin", "expected an item"): pl.col("item_key").is_null()})
    all_problems(DataError, "the metadata cannot be used:", problems)


def _unfit(form: Form, *, allow_before_2000: bool) -> dict[tuple[str, str], pl.Expr]:
    """The kinds of unfit rows: field and words, and the rows that are meant."""
    time = pl.col("time")
    is_meant = time.is_between(EARLIEST, LATEST, closed="left")
    is_old = time.is_between(OPENED, EARLIEST, closed="left")
    other, unit = (time // SECOND, "milliseconds") if form.unit == SECOND else (time * SECOND, "seconds")
    is_other = other.is_between(EARLIEST, LATEST, closed="left") & ~is_meant
    kinds = {
        (form.user, "expected a user"): pl.col("user_key").is_null(),
        (form.items[0], "expected an item"): pl.col("item_key").is_null(),
        (form.time, "expected a whole number"): time.is_null(),
        (form.time, f"it looks like {unit}, where this release has the other unit"): is_other,
        (form.time, "before 2000; leave such reviews out with source.before_2000=drop"): is_old & ~is_other,
        (form.time, "no time of a review"): ~(is_meant | is_other | is_old),
    }
    return {kind: rows & ~is_old.fill_null(False) for kind, rows in kinds.items()} if allow_before_2000 else kinds


def _problems(path: Path, frame: pl.LazyFrame, kinds: Mapping[tuple[str, str], pl.Expr]) -> list[str]:
    """One problem a kind of unfit row, found in one pass over the file; only the first line of each is looked up."""
    counted = frame.with_row_index("row").select(
        pl.struct(pl.col("row").filter(rows).first(), rows.sum().alias("count")).alias(str(number))
        for number, rows in enumerate(kinds.values())
    )
    try:
        found = dict(zip(kinds, counted.collect(engine="streaming").row(0), strict=True))
        found = {kind: first for kind, first in found.items() if first["count"]}
        lines = lines_at(path, rows={first["row"] for first in found.values()})
    except BROKEN as error:
        return [broken_at(path) or f"{path.name}: {error}"]
    problems = []
    for (field, words), first in found.items():
        number, record = lines[first["row"]]
        others = f" (and so in {first['count'] - 1:,} more lines)" if first["count"] > 1 else ""
        told = f"is {record[field]!r:.60}" if field in record else "is missing"
        problems.append(f"{path.name}: {field} {told} in line {number}{others}, {words}")
    return problems


def _titles(path: Path) -> pl.LazyFrame:
    keys = ("parent_asin", "asin")
    frame = scan(path, schema=dict.fromkeys((*keys, "title"), pl.String))
    return frame.select(item_key=pl.coalesce(pl.col(keys).replace("", None)), title="title")


def _items(reviews: pl.LazyFrame, metadata: Sequence[Path], *, knows_creation: bool) -> pl.LazyFrame:
    items = reviews.group_by("item_key").agg(
        pl.col("time").min().alias("created") if knows_creation else pl.lit(None, pl.Int64).alias("created")
    )
    if not metadata:
        return items.with_columns(title=pl.lit(""))
    titles = pl.concat([_titles(path) for path in metadata]).join(items, on="item_key", how="semi")
    titles = titles.with_columns(_plain(pl.col("title").fill_null("")).str.replace_all(r"\s+", " "))
    titles = titles.filter(pl.col("title") != "").group_by("item_key").agg(pl.col("title").first())
    return items.join(titles, on="item_key", how="left").with_columns(pl.col("title").fill_null(""))


def _versions(reviews: pl.LazyFrame) -> pl.DataFrame:
    """For rows that share user, item and time with another: the ordinal of their text among these, and who is first.

    Columns row, version (1 for the first text) and is_first. A row's hash stands for it, so that memory stays small.
    """
    key = ["user_key", "item_key", "time"]
    hashes = reviews.select(pl.struct(key).hash()).collect(engine="streaming").to_series()
    shared = pl.Series("row", hashes.is_duplicated().arg_true(), dtype=pl.UInt32)
    if shared.is_empty():
        return pl.DataFrame(schema={"row": pl.UInt32, "version": pl.UInt32, "is_first": pl.Boolean})
    rows = (
        reviews.with_row_index("row")
        .join(shared.to_frame().lazy(), on="row", how="semi")
        .collect(engine="streaming")
        .sort("row")
    )
    first_of_text = pl.col("row").min().over(*key, "heading", "body")
    return rows.select(
        "row",
        first_of_text.rank("dense").over(key).cast(pl.UInt32).alias("version"),
        (pl.col("row") == pl.col("row").min().over(key)).alias("is_first"),
    )


@cache
def _entities() -> dict[str, str]:
    """Every named character reference, and numeric ones of Latin letters and typographic marks."""
    codes = [*range(0x20, 0x7F), *range(0xA0, 0x180), *range(0x2000, 0x2070), 0x20AC, 0x2122]
    numeric = {form.format(code): chr(code) for code in codes for form in ("&#{};", "&#0{};", "&#x{:x};", "&#x{:X};")}
    return {f"&{name}": text for name, text in html5.items() if name.endswith(";")} | numeric


def _plain(text: pl.Expr) -> pl.Expr:
    """Text without tags, scripts and styles, its character references written out."""
    return text.str.replace_all(TAG, " ").str.replace_many(_entities()).str.strip_chars()
