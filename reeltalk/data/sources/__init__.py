"""The log formats that reeltalk reads: one module a format, named in `SOURCES`.

A source module holds two names::

    class Settings(pydantic.BaseModel):  # extra="forbid"; what a user may set as `--set source.NAME=VALUE`
    def read(raw: Path, *, settings: Settings) -> RawLog:  # the simulator takes `raw: Path | None`

`read` is lazy where the format allows it, checks columns and types, and raises DataError naming file, row and field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from reeltalk.data.checks import reading
from reeltalk.data.raw import RawLog
from reeltalk.errors import ConfigError, DataError, all_problems, nearest


@dataclass(frozen=True)
class Source:
    """Where a format's reader lives, and what it expects as `raw` (for help texts)."""

    module: str
    expects: str
    needs_raw: bool = True


SOURCES: dict[str, Source] = {
    "tables": Source("reeltalk.data.sources.tables", "a folder of Parquet or CSV tables in reeltalk's own schema"),
    "threads": Source("reeltalk.data.sources.threads", "a folder with threads.parquet and comments.parquet"),
    "kuaicomt": Source("reeltalk.data.sources.kuaicomt", "a folder with the five CSV files of KuaiComt"),
    "microlens": Source("reeltalk.data.sources.microlens", "a folder with MicroLens *_pairs.tsv and *_titles.csv"),
    "amazon": Source("reeltalk.data.sources.amazon", "a folder with Amazon reviews and metadata, JSON lines"),
    "retail": Source("reeltalk.data.sources.retail", "a CSV of transactions (UCI Online Retail), or its folder"),
    "sequences": Source("reeltalk.data.sources.sequences", "a folder with one user a line and one item text a line"),
    "simulator": Source("reeltalk.data.simulator", "nothing: the log is made, not read", needs_raw=False),
}


def source_settings(name: str, values: Mapping[str, Any]) -> BaseModel:
    """The settings of a source, filled with its defaults; raises ConfigError for an unknown source or setting."""
    if name not in SOURCES:
        raise ConfigError(f"source {name!r} is unknown;{nearest(name, SOURCES)}")
    model: type[BaseModel] = import_module(SOURCES[name].module).Settings
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            field = ".".join(str(part) for part in problem["loc"])
            told = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
            if problem["type"] == "extra_forbidden":
                problems.append(f"source.{field} is unknown;{nearest(field, model.model_fields)}")
            elif field:
                problems.append(f"source.{field}={problem['input']!r}: {told}")
            else:  # a rule between several fields
                problems.append(told)
        all_problems(ConfigError, f"settings of source {name!r} are wrong:", problems)
        raise


def read_source(name: str, *, raw: Path | None, settings: BaseModel) -> RawLog:
    """Read a log with the source of that name, whose settings `source_settings` made.

    Raises DataError where `raw` is missing or breaks the source's format.
    """
    source = SOURCES[name]
    if source.needs_raw and raw is None:
        raise DataError(f"source {name!r} needs --raw: {source.expects}")
    if source.needs_raw and raw is not None and not raw.exists():
        raise DataError(f"{raw} does not exist; source {name!r} needs {source.expects}")
    if not source.needs_raw and raw is not None:
        raise ConfigError(f"source {name!r} reads no raw log; leave out --raw {raw}")
    with reading(raw):
        log: RawLog = import_module(source.module).read(raw, settings=settings)
    return log
