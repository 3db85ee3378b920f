"""`reeltalk prepare`: a raw log in, a `Dataset` out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.progress import Progress

from reeltalk.artifacts import new_folder, write_manifest
from reeltalk.data.candidates import comment_candidates, comment_positives, item_candidates, pick_targets
from reeltalk.data.checks import is_full_disk
from reeltalk.data.dataset import ID, TABLES, Dataset, Split
from reeltalk.data.hot import Leaders, hot_comments
from reeltalk.data.ids import number_comment_events, number_users_and_items, write_comments, write_impressions
from reeltalk.data.raw import DAY, Clock
from reeltalk.data.records import comment_records
from reeltalk.data.sources import read_source, source_settings
from reeltalk.data.splits import Cuts, leave_one_out
from reeltalk.data.staging import StagedLog, stage
from reeltalk.errors import ArtifactError, ConfigError, DataError

_STEPS = 9
_CENTURY = 36_525  # days; all that the clock reaches
_OF_SPLIT_BY_TIME = ("valid_from", "test_from", "valid_days", "test_days")


class PrepareSettings(BaseModel):
    """How a raw log becomes a dataset. Days and cut points are UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: dict[str, Any] = Field(default={}, description="settings of the source itself")
    unknown_ids: Literal["error", "drop"] = Field(
        default="error", description="what to do with events that name an unknown item or comment"
    )
    drop_repeats: bool = Field(
        default=True, description="keep only the first of consecutive events of a user on the same item"
    )
    min_user_events: int = Field(default=0, ge=0, description="drop users with fewer item events (0: keep all)")
    min_item_events: int = Field(default=0, ge=0, description="drop items with fewer item events (0: keep all)")
    record_gap_seconds: int = Field(default=3600, ge=0, description="a longer pause begins a new comment record")

    split: Literal["time", "leave_one_out"] | None = Field(
        default=None, description="default: by time, or leave_one_out where times only order events"
    )
    valid_from: datetime | None = Field(default=None, description="start of the validation window, else by valid_days")
    test_from: datetime | None = Field(default=None, description="start of the test window, else by test_days")
    valid_days: float = Field(
        default=1, gt=0, le=_CENTURY, description="length of the validation window before the test window"
    )
    test_days: float = Field(
        default=1, gt=0, le=_CENTURY, description="length of the test window, back from the last event"
    )

    num_item_negatives: int = Field(default=99, ge=1)
    item_negatives: Literal["uniform", "active"] = Field(
        default="uniform",
        description="all items that existed, or those active in the last active_days before the target",
    )
    active_days: float = Field(default=3, gt=0, le=_CENTURY)
    max_comment_candidates: int = Field(default=100, ge=2, description="positives and negatives together")
    max_targets: int = Field(default=0, ge=0, description="targets a task and split, drawn at random (0: all)")
    seed: int = Field(default=0, ge=0)


def prepare(
    source: str, *, raw: Path | None, out: Path, settings: PrepareSettings | None = None, overwrite: bool = False
) -> Dataset:
    """Turn a raw log into a dataset folder: ids, histories, splits, hot comments and candidate sets.

    The same input, settings and seed give the same bytes. Raises ConfigError for contradicting settings, DataError
    where the log breaks its schema, ArtifactError where `out` cannot be written; nothing half-written is left behind.
    """
    settings = settings or PrepareSettings()
    of_source = source_settings(source, settings.source)
    with _write_errors(out), new_folder(out, kind="dataset", overwrite=overwrite) as folder:
        log = read_source(source, raw=raw, settings=of_source)
        settings = _resolved(settings, log.clock).model_copy(update={"source": of_source.model_dump(mode="json")})
        with _progress(source) as progress:
            staging = folder / ".staged"
            staging.mkdir()
            progress.next("reading the log")
            staged = stage(log, staging, drop_unknown=settings.unknown_ids == "drop")
            if log.oracle is not None:
                np.savez(folder / "oracle.npz", allow_pickle=False, **log.oracle)
            facts = _build(staged, folder, settings, progress)
            shutil.rmtree(staging)
            progress.next("hashing")
            write_manifest(
                folder,
                kind="dataset",
                config={"source_name": source, **settings.model_dump(mode="json")},
                parents={},
                facts={
                    "source": source,
                    "raw": None if raw is None else str(raw.resolve()),
                    "clock": log.clock,
                    "split": settings.split,
                    **facts,
                },
            )
    return Dataset.load(out)


class _Progress:
    """A bar on stderr that names the step at hand."""

    def __init__(self, bar: Progress, source: str) -> None:
        self._bar, self._task, self._step = bar, bar.add_task(f"prepare {source}", total=_STEPS), 0

    def next(self, description: str) -> None:
        self._bar.update(self._task, description=description, completed=self._step)
        self._step += 1

    def advance(self, share: float) -> None:
        """Go on within a step, 0..1 of it."""
        self._bar.advance(self._task, share)


@contextmanager
def _progress(source: str) -> Iterator[_Progress]:
    with Progress(console=Console(stderr=True), transient=True) as bar:
        yield _Progress(bar, source)


@contextmanager
def _write_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        if isinstance(error, pl.exceptions.PolarsError) and not is_full_disk(error):
            raise
        raise ArtifactError(
            f"{out} cannot be written: {error}; free some space or choose another folder. Nothing was left behind"
        ) from error


def _resolved(settings: PrepareSettings, clock: Clock) -> PrepareSettings:
    """The settings with the split chosen.

    Raises ConfigError where they ask more of the clock than it tells, or for what split and negatives do not use.
    """
    split = settings.split or ("time" if clock == "time" else "leave_one_out")
    unused: tuple[str, ...] = _OF_SPLIT_BY_TIME if split == "leave_one_out" else ()
    unused += () if settings.item_negatives == "active" else ("active_days",)
    defaults = PrepareSettings()
    if changed := [name for name in unused if getattr(settings, name) != getattr(defaults, name)]:
        raise ConfigError(
            f"{', '.join(changed)}: not used with split={split} and item_negatives={settings.item_negatives}; leave it "
            "out, or choose split=time or item_negatives=active"
        )
    if clock == "order":
        for is_asked, name in (
            (split == "time", "split=time"),
            (settings.item_negatives == "active", "item_negatives=active"),
        ):
            if is_asked:
                raise ConfigError(f"{name} needs times, but this log only orders events; use leave_one_out and uniform")
    return settings.model_copy(update={"split": split})


def _build(staged: StagedLog, folder: Path, settings: PrepareSettings, progress: _Progress) -> dict[str, Any]:
    """Write every table of the dataset from the staged log; returns the manifest's facts."""
    progress.next("numbering users and items")
    numbered = number_users_and_items(
        staged,
        drop_repeats=settings.drop_repeats,
        min_user_events=settings.min_user_events,
        min_item_events=settings.min_item_events,
    )
    users, items, item_events = numbered.users, numbered.items, numbered.item_events
    if item_events.is_empty():
        raise DataError(f"no item event is left; dropped: {_told(staged.dropped)}")
    _write(folder, "users", users)
    _write(folder, "items", items)
    progress.next("sorting comments")
    comments = write_comments(staged, folder, users=users, items=items)
    comment_events = number_comment_events(staged, users=users, comments=comments)
    comments = comments.drop("comment_key")

    progress.next("splitting")
    cuts = _cuts(settings, item_events, comment_events) if settings.split == "time" else None
    records, comment_events = comment_records(
        comment_events,
        item_events=item_events,
        num_users=len(users),
        gap_seconds=settings.record_gap_seconds,
        cuts=cuts,
    )
    records = _with_split(records, "start", cuts)
    item_events = _with_split(item_events, "time", cuts)
    progress.next("finding hot comments")
    leaders = Leaders.told_by(comment_events, comments=comments, num_items=len(items))
    happened, item_id = (item_events[name].to_numpy().astype(np.int64) for name in ("time", "item_id"))
    hot = pl.Series("hot_comment_id", leaders.before(happened, item_id), dtype=ID)
    item_events = item_events.with_columns(hot)
    _write(folder, "item_events", item_events)
    _write(folder, "comment_records", records)
    _write(folder, "comment_events", comment_events)
    _write_hot_comments(folder, comments, comment_events, records, cuts)
    facts: dict[str, Any] = {
        "num_users": len(users),
        "num_items": len(items),
        "num_comments": len(comments),
        "num_item_events": len(item_events),
        "num_comment_records": len(records),
        "num_comment_events": len(comment_events),
        "valid_from": cuts.valid if cuts else None,
        "test_from": cuts.test if cuts else None,
    }
    facts |= _write_candidates(folder, settings, progress, items, item_events, comments, comment_events, records)
    progress.next("writing impressions")
    if "impressions" in staged.names:
        facts["num_impressions"] = write_impressions(staged, folder, users=users, items=items)
    return facts | {"dropped": {**staged.dropped, **facts["dropped"]}}


def _cuts(settings: PrepareSettings, item_events: pl.DataFrame, comment_events: pl.DataFrame) -> Cuts:
    first, last = item_events["time"].min(), max(_int(item_events["time"].max()), _int(comment_events["time"].max()))
    test = _ms(settings.test_from) if settings.test_from else last + 1 - round(settings.test_days * DAY)
    valid = _ms(settings.valid_from) if settings.valid_from else test - round(settings.valid_days * DAY)
    if not _int(first) < valid < test <= last:
        raise ConfigError(
            f"a split by time needs first event < valid_from < test_from <= last event, but they are "
            f"{_date(_int(first))} < {_date(valid)} < {_date(test)} <= {_date(last)}; set valid_from and test_from, "
            f"or valid_days and test_days"
        )
    return Cuts(valid, test)


def _with_split(frame: pl.DataFrame, time: str, cuts: Cuts | None) -> pl.DataFrame:
    split = cuts.split_of(frame[time].to_numpy()) if cuts else leave_one_out(frame["user_id"].to_numpy())
    return frame.with_columns(pl.Series("split", split))


def _write_hot_comments(
    folder: Path, comments: pl.DataFrame, comment_events: pl.DataFrame, records: pl.DataFrame, cuts: Cuts | None
) -> None:
    if cuts is not None:
        known, seen = comments.filter(pl.col("created") < cuts.test), comment_events.filter(pl.col("time") < cuts.test)
    else:
        training = records.filter(pl.col("split") == int(Split.TRAIN))
        known, seen = comments, comment_events.join(training, on="record_id", how="semi")
    _write(folder, "hot_comments", hot_comments(seen, comments=known))


def _write_candidates(
    folder: Path,
    settings: PrepareSettings,
    progress: _Progress,
    items: pl.DataFrame,
    item_events: pl.DataFrame,
    comments: pl.DataFrame,
    comment_events: pl.DataFrame,
    records: pl.DataFrame,
) -> dict[str, Any]:
    item_rng, comment_rng = (np.random.default_rng([settings.seed, task]) for task in range(2))
    progress.next("drawing item candidates")
    targets = pick_targets(item_events["split"], most=settings.max_targets, rng=item_rng)
    of_items, num_filled = item_candidates(
        item_events,
        items=items,
        targets=targets,
        num_negatives=settings.num_item_negatives,
        active_days=settings.active_days if settings.item_negatives == "active" else None,
        rng=item_rng,
        advance=progress.advance,
    )
    _write(folder, "item_candidates", of_items)

    progress.next("drawing comment candidates")
    held_out = int((records["split"] != int(Split.TRAIN)).sum())
    positives = comment_positives(comment_events, comment_records=records, comments=comments)
    split = positives.join(records, on="record_id", how="left", maintain_order="left")["split"]
    picked = positives[pick_targets(split, most=settings.max_targets, rng=comment_rng)]
    of_comments = comment_candidates(
        picked,
        comment_records=records,
        comments=comments,
        num_items=len(items),
        most=settings.max_comment_candidates,
        rng=comment_rng,
        advance=progress.advance,
    )
    _write(folder, "comment_candidates", of_comments)
    return {
        "targets": {"item": _split_counts(of_items), "comment": _split_counts(of_comments)},
        "item_negatives_filled_up": num_filled,
        "dropped": {
            "item_targets_without_negatives": len(targets) - len(of_items),
            "comment_targets_without_positives": held_out - len(positives),
            "comment_targets_without_negatives": len(picked) - len(of_comments),
        },
    }


def _split_counts(candidates: pl.DataFrame) -> dict[str, int]:
    return {split.name.lower(): int((candidates["split"] == int(split)).sum()) for split in (Split.VALID, Split.TEST)}


def _write(folder: Path, name: str, frame: pl.DataFrame) -> None:
    typed = frame.select(pl.col(column).cast(dtype) for column, dtype in TABLES[name].items())
    # in one chunk: how many there are depends on the number of threads, and the file's bytes on the chunks
    typed.rechunk().write_parquet(folder / f"{name}.parquet")


def _int(value: Any) -> int:
    return int(value or 0)


def _ms(moment: datetime) -> int:
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _date(ms: int) -> str:
    return str(np.datetime64(ms // 1000, "s")).replace("T", " ")  # of any year, where datetime ends at 1 and 9999


def _told(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in dropped.items() if count) or "nothing"
