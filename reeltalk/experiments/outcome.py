"""What the runs of a study reached, from their report folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reeltalk.artifacts import facts_of
from reeltalk.data.dataset import Task
from reeltalk.evaluation.significance import Comparison
from reeltalk.experiments.runs import ALL, Run, corrected, means, over_runs, paired, part_of, read_run

_Runs = dict[str, dict[int, Run]]  # variant -> seed


@dataclass(frozen=True)
class Cell:
    """One run: the folder of each step that is done, and what stopped it where it failed.

    is_refused: what stopped it is its settings or data, so that it would stop it again.
    """

    variant: str
    seed: int
    task: Task
    folders: dict[str, str]
    error: str | None = None
    trace: str | None = None
    is_refused: bool = False


@dataclass(frozen=True)
class Reached:
    """A variant's figures in one task, over some targets.

    by_seed: means over targets. mean: over seeds. against_first: per-user values averaged over the seeds that both
    have, against those of the first variant; empty for that itself, and where the two were not measured on the same
    targets. p_holm: the p-values of its t-tests, each corrected for the other variants tested in the same metric. All
    by protocol and metric.
    """

    targets: int
    by_seed: dict[int, dict[str, dict[str, float]]]
    mean: dict[str, dict[str, float]]
    against_first: dict[str, dict[str, Comparison]]
    p_holm: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Cost:
    """What a step took, where its folder tells: the mean over seeds.

    tokens: what an encoder or LLM read. peak_bytes: the most that the process held while the step ran.
    """

    seconds: float | None
    tokens: float | None = None
    peak_bytes: float | None = None


@dataclass(frozen=True)
class Study:
    """Everything that ``study.json`` holds. parts: task -> part of the targets -> variant; costs: variant -> step."""

    variants: dict[str, list[str]]
    seeds: list[int]
    parts: dict[str, dict[str, dict[str, Reached]]]
    costs: dict[str, dict[str, Cost]]
    cells: list[Cell]

    @property
    def failures(self) -> list[Cell]:
        """The runs that failed."""
        return [cell for cell in self.cells if cell.error is not None]


def study_of(
    cells: Sequence[Cell], *, variants: Mapping[str, Sequence[str]], seeds: Sequence[int], segments: Sequence[str] = ()
) -> Study:
    """The study of some runs; the first variant is what the others are held against."""
    parts: dict[str, dict[str, dict[str, Reached]]] = {}
    for task in dict.fromkeys(cell.task for cell in cells):
        runs: _Runs = {name: {} for name in variants}
        for cell in cells:
            if cell.task == task and cell.error is None:
                runs[cell.variant][cell.seed] = read_run(Path(cell.folders[f"{task}-report"]))
        parts[task] = {part: _reached(runs, part) for part in (ALL, *segments)}
    return Study(
        variants={name: list(overrides) for name, overrides in variants.items()},
        seeds=list(seeds),
        parts=parts,
        costs={name: _costs([cell for cell in cells if cell.variant == name]) for name in variants},
        cells=list(cells),
    )


def _reached(runs: _Runs, part: str) -> dict[str, Reached]:
    """The figures of every variant that has any on this part."""
    of_part = {
        variant: {seed: run for seed, whole in of.items() if len((run := part_of(whole, part)).values)}
        for variant, of in runs.items()
    }
    first = next(iter(of_part))
    others = [variant for variant, of in of_part.items() if of and variant != first]
    against = {variant: paired(of_part[variant], of_part[first]) for variant in others}
    p_holm = corrected(against)
    found = {}
    for variant, of in of_part.items():
        if of:
            by_seed = {seed: means(run.values) for seed, run in of.items()}
            mean = over_runs(list(by_seed.values()))
            targets = len(next(iter(of.values())).values)
            found[variant] = Reached(targets, by_seed, mean, against.get(variant, {}), p_holm.get(variant, {}))
    return found


def _costs(cells: Sequence[Cell]) -> dict[str, Cost]:
    folders: dict[str, set[str]] = {}
    for cell in cells:
        for step, folder in cell.folders.items():
            folders.setdefault(step, set()).add(folder)
    return {step: _cost([facts_of(Path(folder)) for folder in sorted(of)]) for step, of in folders.items()}


def _cost(facts: Sequence[Mapping[str, Any]]) -> Cost:
    return Cost(
        seconds=_mean_of(facts, "seconds"),
        tokens=_mean_of(facts, "tokens", "prompt_tokens", "text_tokens"),
        peak_bytes=_mean_of(facts, "peak_bytes"),
    )


def _mean_of(facts: Sequence[Mapping[str, Any]], *names: str) -> float | None:
    """The mean over folders of what these facts sum up to; None where no folder tells any of them."""
    told = [[float(each[name]) for name in names if each.get(name) is not None] for each in facts]
    sums = [sum(values) for values in told if values]
    return float(np.mean(sums)) if sums else None
