"""The order of a comparison's jobs: each flow yields the jobs that it needs next and is sent what came of them."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reeltalk.artifacts import facts_of
from reeltalk.experiments.chain import ChainSettings, load_chain
from reeltalk.experiments.experiment import Choice, ExperimentSettings
from reeltalk.experiments.floors import FLOORS
from reeltalk.experiments.jobs import Job
from reeltalk.experiments.outcome import Cell
from reeltalk.experiments.runner import DATA, TEXT, TEXT_ALIGNED
from reeltalk.experiments.schedule import Flow
from reeltalk.experiments.search import halving
from reeltalk.training.start import ALIGNED, PRETRAINED


@dataclass(frozen=True)
class Trial:
    """A configuration trained for some epochs (None: in full), and its validation value; None where it failed."""

    choice: dict[str, Any]
    epochs: int | None
    value: float | None
    seconds: float | None
    folder: str | None
    error: str | None


@dataclass
class Line:
    """One system on one data set, filled by its flow.

    error: what stopped it before its runs. cells: its runs on test, one a seed.
    """

    data: str
    system: str
    trials: list[Trial] = field(default_factory=list)
    choice: dict[str, Any] | None = None
    cells: list[Cell] = field(default_factory=list)
    error: str | None = None

    @property
    def measured(self) -> list[Cell]:
        """The runs that have a report."""
        return [cell for cell in self.cells if cell.error is None]


@dataclass(frozen=True)
class _Jobs:
    """The jobs of one system on one data set whose folders are made."""

    experiment: ExperimentSettings
    line: Line
    folders: dict[str, str]
    out: Path

    def of(self, choice: Choice, what: str, *, until: str, seed: int, epochs: int | None = None) -> Job:
        chain = self.experiment.chain(self.line.data, self.line.system, choice, seed=seed, epochs=epochs)
        name = f"{self.line.data}, {self.line.system}: {what}"
        task = self.experiment.task
        return Job.of(_on_folders(chain, self.folders), name=name, task=task, seed=seed, until=until, out=self.out)


def floor_flow(experiment: ExperimentSettings, data: str, floors: dict[str, Cell], *, out: Path) -> Flow:
    """Make a data set and measure its floors; what came of it goes to `floors`."""
    chain = _of_most(experiment, data)
    floors[data] = yield from _ground(experiment, data, chain, out)
    if floors[data].error is None:
        task, seed = experiment.task, experiment.seeds[0]
        chain = _on_folders(chain, floors[data].folders)
        until = f"{task}-{FLOORS}"
        (floors[data],) = yield [Job.of(chain, name=f"{data}: floors", task=task, seed=seed, until=until, out=out)]


def line_flow(experiment: ExperimentSettings, line: Line, *, out: Path) -> Flow:
    """Choose the settings of one system on one data set, then run them with every seed."""
    ground = yield from _ground(experiment, line.data, experiment.chain(line.data, line.system, {}), out)
    jobs = _Jobs(experiment, line, ground.folders, out)
    first = experiment.seeds[0]
    line.error = ground.error
    if line.error is None:
        line.error = (yield from _start(jobs, [first]))[first]
    if line.error is None:
        line.choice = yield from _choose(jobs)
    if line.choice is not None:
        line.cells = yield from _run(jobs, line.choice)


def _start(jobs: _Jobs, seeds: Sequence[int]) -> Generator[list[Job], list[Cell], dict[int, str | None]]:
    """Align or pre-train with each seed what starts so; what stopped it by seed, None where nothing did."""
    of_system = jobs.experiment.of_systems[jobs.line.system]
    stages: dict[str, str] = {}
    if of_system.align is not None:
        stages = {ALIGNED: "alignment", TEXT_ALIGNED: "encoding by the aligned LLM"}
    elif of_system.pretrain is not None:
        stages = {PRETRAINED: "pre-training"}
    errors: dict[int, str | None] = dict.fromkeys(seeds)
    for until, what in stages.items():
        going = [seed for seed in seeds if errors[seed] is None]
        cells = yield [jobs.of({}, f"{what}, seed {seed}", seed=seed, until=until) for seed in going]
        errors |= {seed: cell.error for seed, cell in zip(going, cells, strict=True)}
    return errors


def _choose(jobs: _Jobs) -> Generator[list[Job], list[Cell], dict[str, Any] | None]:
    """The settings with the best validation value; None where there is none, and the line then tells why.

    A trial that its settings or data stop is left behind. One that failed otherwise, as for want of memory, might have
    won: it ends the choice, and a further call of the comparison tries it again.
    """
    experiment, line = jobs.experiment, jobs.line
    search, task, seed = experiment.search, experiment.task, experiment.seeds[0]
    choices = experiment.trials(line.system)
    full = experiment.chain(line.data, line.system, choices[0]).tasks[task].train.max_epochs
    rounds = halving(choices, rungs=search.epochs(full), keep=search.keep)
    values: list[float | None] | None = None
    while True:
        try:
            asked, epochs = next(rounds) if values is None else rounds.send(values)
        except StopIteration as end:
            if end.value is None:
                line.error = f"every trial that was left failed, the last: {line.trials[-1].error}"
            best: dict[str, Any] | None = end.value
            return best
        cells = yield [
            jobs.of(choice, shown_trial(choice, epochs), until=task, seed=seed, epochs=epochs) for choice in asked
        ]
        tried = [_trial(choice, epochs, cell) for choice, cell in zip(asked, cells, strict=True)]
        line.trials += tried
        for choice, cell in zip(asked, cells, strict=True):
            if cell.error is not None and not cell.is_refused:
                trial = shown_trial(choice, epochs)
                line.error = f"the trial {trial} might have won, but failed, so run again: {cell.error}"
                return None
        values = [trial.value for trial in tried]


def _run(jobs: _Jobs, choice: Choice) -> Generator[list[Job], list[Cell], list[Cell]]:
    """Train and measure with every seed; a cell a seed."""
    task, seeds = jobs.experiment.task, jobs.experiment.seeds
    started = yield from _start(jobs, seeds)
    found = {seed: Cell(jobs.line.system, seed, task, {}, error=error) for seed, error in started.items()}
    for until, what in ((task, ""), (f"{task}-report", " on test")):
        going = [seed for seed in seeds if found[seed].error is None]
        cells = yield [jobs.of(choice, f"seed {seed}{what}", until=until, seed=seed) for seed in going]
        found |= {seed: replace(cell, variant=jobs.line.system) for seed, cell in zip(going, cells, strict=True)}
    return [found[seed] for seed in seeds]


def shown(choice: Choice) -> str:
    """A choice of settings in a line."""
    return " ".join(f"{name}={value}" for name, value in choice.items()) or "settings as given"


def shown_trial(choice: Choice, epochs: int | None) -> str:
    """The same with how long it is trained."""
    long = "in full" if epochs is None else f"{epochs} epoch{'s' * (epochs > 1)}"
    return f"{long}, {shown(choice)}"


def _trial(choice: dict[str, Any], epochs: int | None, cell: Cell) -> Trial:
    if cell.error is not None:
        return Trial(choice, epochs, None, None, None, cell.error)
    folder = cell.folders[cell.task]
    facts = facts_of(Path(folder))
    value, error = facts["best_value"], None
    if value is None or not math.isfinite(value):
        value, error = None, "its validation value is no number"
    return Trial(choice, epochs, value, facts["seconds"], folder, error)


def _ground(
    experiment: ExperimentSettings, data: str, chain: ChainSettings, out: Path
) -> Generator[list[Job], list[Cell], Cell]:
    """What systems of a data set share: the dataset, and text vectors where this chain reads text.

    One after the other, as two data sections may share a dataset and differ in its texts' encoding.
    """
    task, seed = experiment.task, experiment.seeds[0]
    (cell,) = yield [Job.of(chain, name=f"{data}: data", task=task, seed=seed, until=DATA, out=out)]
    if cell.error is None and chain.reads_text(task):
        (cell,) = yield [Job.of(chain, name=f"{data}: text", task=task, seed=seed, until=TEXT, out=out)]
    return cell


def _of_most(experiment: ExperimentSettings, data: str) -> ChainSettings:
    """The chain of the first system that reads text, if any does: floors read as much."""
    chains = [experiment.chain(data, system, {}) for system in experiment.of_systems]
    return next((each for each in chains if each.reads_text(experiment.task)), chains[0])


def _on_folders(chain: ChainSettings, folders: dict[str, str]) -> ChainSettings:
    """The chain on finished folders of data and text, which are then not asked again what they hold."""
    given: dict[str, Any] = {"source": None, "raw": None, "prepare": {}, "dataset": folders[DATA]}
    if TEXT in folders:
        given |= {"encode": {}, "text": folders[TEXT]}
    return load_chain(base=chain.model_dump() | given)
