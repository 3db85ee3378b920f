"""What the processes of studies and comparisons do: a part of one run, or the timing of one model's requests."""

from __future__ import annotations

import statistics
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from reeltalk.api import load_system, recommend_comments, recommend_items
from reeltalk.artifacts import digest_of
from reeltalk.data.dataset import Split, Task
from reeltalk.data.sources import source_settings
from reeltalk.errors import ConfigError, DataError, ReeltalkError
from reeltalk.experiments.chain import TASKS, ChainSettings, load_chain
from reeltalk.experiments.floors import FLOORS, floor_config
from reeltalk.experiments.outcome import Cell
from reeltalk.experiments.runner import DATA, STARTS, TEXT, Made, Runner, error_line
from reeltalk.training.start import ALIGNED

REQUESTS, WARM_UP = 300, 20
_OF_TRAINING = {"finetune", "evaluate"}
_AFTER_TEXT = _OF_TRAINING | {"align", "encode_aligned", "pretrain"}
_NOT_READ: dict[str, set[str]] = {  # by step: sections of a chain that neither it nor a step before it reads
    DATA: _AFTER_TEXT | {"encode", "text"},
    TEXT: _AFTER_TEXT,
    **dict.fromkeys(STARTS, _OF_TRAINING),
    ALIGNED: _OF_TRAINING | {"encode_aligned"},
    **{task: {"evaluate"} for task in TASKS},
}
_ABOUT_TEXT = {"encode", "text", "align", "encode_aligned"}


@dataclass(frozen=True)
class Job:
    """The steps of a run up to `until`; jobs of one key are one job.

    chain: its settings as plain values, which travel between processes. out: the folder of the study or comparison.
    key: what is made, and the sections that it reads: what another system or data set has else makes no other job.
    """

    name: str
    task: Task
    seed: int
    until: str
    out: Path
    chain: dict[str, Any] = field(repr=False)
    key: str

    @classmethod
    def of(cls, chain: ChainSettings, *, name: str, task: Task, seed: int, until: str, out: Path) -> Job:
        values = chain.model_dump()
        made_from = values | {"finetune": values["finetune"][task]} | _as_read(chain)
        left_out = _NOT_READ.get(until, set())
        if until == f"{task}-{FLOORS}":
            made_from["floors"] = floor_config(task, chain.evaluate, chain.tasks[task].train)
            left_out = _AFTER_TEXT
        if not chain.reads_text(task):
            left_out = left_out | _ABOUT_TEXT
        if not chain.is_pretrained(task):
            left_out = left_out | {"pretrain"}
        made_from = {name: section for name, section in made_from.items() if name not in left_out}
        return cls(name, task, seed, until, out, values, f"{until}-{digest_of(made_from)}")


def _as_read(chain: ChainSettings) -> dict[str, Any]:
    """Paths and the source's settings, which may be written in several ways, in one."""
    paths = {name: getattr(chain, name) for name in ("raw", "dataset", "text")}
    resolved: dict[str, Any] = {name: None if path is None else str(path.resolve()) for name, path in paths.items()}
    if chain.source is not None:
        source = source_settings(chain.source, chain.prepare.source)
        resolved["prepare"] = chain.prepare.model_dump() | {"source": source.model_dump()}
    return resolved


def do(job: Job, runner: Runner | None = None) -> Cell:
    """Run the steps of a job; without a runner, with this process's own."""
    chain = load_chain(base=job.chain)
    runner = runner or _runner(job.out)
    run = runner.run_floors if job.until == f"{job.task}-{FLOORS}" else runner.run
    return run_cell(run(chain, job.task), job.task, variant=job.name, seed=job.seed, until=job.until)


def run_cell(steps: Iterable[Made], task: Task, *, variant: str, seed: int, until: str) -> Cell:
    """Go through the steps of a run, until one of that name; what stops it is told in the cell."""
    folders: dict[str, str] = {}
    try:
        for made in steps:
            folders[made.step] = str(made.folder)
            if made.step == until:
                break
    except Exception as error:
        trace = None if isinstance(error, ReeltalkError) else traceback.format_exc()
        if trace is not None:
            print(f"{variant}\n{trace}", file=sys.stderr, flush=True)
        is_refused = isinstance(error, ConfigError | DataError)
        return Cell(variant, seed, task, folders, error=error_line(error), trace=trace, is_refused=is_refused)
    return Cell(variant, seed, task, folders)


def new_runner(out: Path) -> Runner:
    """Runs chains whose folders are named by what they were asked for; floors are measured apart, if at all."""
    return Runner(lambda step: out / "runs" / f"{step.name}-{step.digest}", with_floors=False)


@cache
def _runner(out: Path) -> Runner:
    """One a process: steps that it has opened are not opened again."""
    return new_runner(out)


def time_requests(model: str) -> float | str:
    """Median milliseconds of a request for the ten best, over test targets at their own time; what went wrong else."""
    try:
        return _milliseconds(Path(model))
    except ReeltalkError as error:
        return error_line(error)


def _milliseconds(model: Path) -> float:
    system = load_system(model)
    dataset, task = system.dataset, system.settings.task
    targets = dataset.candidates(task, Split.TEST)
    rows = np.random.default_rng(0).integers(0, len(targets), REQUESTS + WARM_UP)
    users, items = dataset.users["user_key"], dataset.items["item_key"]
    seconds = []
    for target in targets[rows].iter_rows(named=True):
        user, now = users[target["user_id"] - 1], int(target["time"])
        item = None if task == "item" else items[target["item_id"] - 1]
        began = time.perf_counter()
        if item is None:
            recommend_items(system, user, now=now)
        else:
            recommend_comments(system, user, item=item, now=now)
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds[WARM_UP:])
