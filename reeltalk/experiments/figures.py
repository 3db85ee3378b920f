"""The figures of a comparison, from its report folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from scipy import stats

from reeltalk.artifacts import facts_of, read_manifest, reading_file
from reeltalk.evaluation.floors import ORACLE
from reeltalk.evaluation.significance import KEYS
from reeltalk.experiments.experiment import ExperimentSettings
from reeltalk.experiments.floors import FLOORS
from reeltalk.experiments.flows import Line, shown_trial
from reeltalk.experiments.outcome import Cell
from reeltalk.experiments.runner import STARTS
from reeltalk.experiments.runs import Run, corrected, means, over_runs, paired, part_of, read_run
from reeltalk.experiments.standings import Chosen, Cost, Failure, Kind, Part, Spread, Standing, Standings, Table, Test


def standings_of(
    experiment: ExperimentSettings,
    lines: Sequence[Line],
    *,
    floors: Mapping[str, Cell],
    milliseconds: Mapping[str, float],
    failures: Sequence[Failure],
    jobs: int,
) -> Standings:
    """All figures of a comparison; `milliseconds` a request by model folder, `failures` of their timing."""
    tables = {}
    for data in experiment.of_data:
        of_data = [line for line in lines if line.data == data]
        tables[data] = _table(experiment, of_data, floors[data], milliseconds)
    return Standings(
        task=experiment.task,
        ours=list(experiment.of_ours),
        seeds=list(experiment.seeds),
        metrics=list(experiment.metrics),
        ks=list(experiment.evaluate.ks),
        confidence=experiment.evaluate.confidence,
        jobs=jobs,
        data=tables,
        failures=[*_floor_failures(floors), *_failures(lines), *failures],
    )


def _table(
    experiment: ExperimentSettings, lines: Sequence[Line], floors: Cell, milliseconds: Mapping[str, float]
) -> Table:
    task = experiment.task
    folder = None if floors.error is not None else Path(floors.folders[f"{task}-{FLOORS}"])
    floor_runs = {} if folder is None else _floor_runs(folder)
    floors_chosen = {} if folder is None else facts_of(folder).get("chosen", {})
    taken = {line.system for line in lines}
    runs: dict[str, dict[int, Run]] = {}
    kinds: dict[str, Kind] = {}
    shown_as = {name: f"{name} (floor)" if name in taken else name for name in floor_runs}
    for name, run in floor_runs.items():
        shown = shown_as[name]
        runs[shown] = dict.fromkeys(experiment.seeds, run)
        kinds[shown] = "ceiling" if name == ORACLE else "floor"
    for line in lines:
        if line.measured:
            runs[line.system] = {cell.seed: read_run(Path(cell.folders[f"{task}-report"])) for cell in line.measured}
            kinds[line.system] = "ours" if line.system in experiment.of_ours else "baseline"
    some = next((run for of in runs.values() for run in of.values()), None)
    ours = [name for name in experiment.of_ours if name in runs]
    others = [name for name, kind in kinds.items() if kind in ("floor", "baseline")]
    pairs = [(name, other) for place, name in enumerate(ours) for other in (*others, *ours[place + 1 :])]
    return Table(
        targets=0 if some is None else len(some.values),
        users=0 if some is None else some.values["user_id"].n_unique(),
        standings={name: _standing(experiment, kinds[name], of) for name, of in runs.items()},
        tests=_tests(runs, pairs),
        chosen={line.system: chosen_of(line, milliseconds) for line in lines},
        floors_chosen={shown_as[name]: choice for name, choice in floors_chosen.items()},
    )


def _floor_runs(folder: Path) -> dict[str, Run]:
    dataset = read_manifest(folder, FLOORS).parents["dataset"]
    with reading_file(folder):
        return {file.stem: Run(dataset, pl.read_parquet(file).sort(KEYS)) for file in sorted(folder.glob("*.parquet"))}


def _standing(experiment: ExperimentSettings, kind: Kind, of: Mapping[int, Run]) -> Standing:
    """A floor has one run, which stands for every seed: no interval."""
    by_seed = {seed: means(run.values) for seed, run in of.items()}
    if kind in ("floor", "ceiling"):
        by_seed = dict(list(by_seed.items())[:1])
    first = next(iter(by_seed.values()))
    return Standing(
        kind=kind,
        metrics={
            protocol: {
                name: _spread({seed: found[protocol][name] for seed, found in by_seed.items()}, experiment)
                for name in metrics
            }
            for protocol, metrics in first.items()
        },
        parts=_parts([of[seed] for seed in by_seed]),
    )


def _spread(by_seed: dict[int, float], experiment: ExperimentSettings) -> Spread:
    values = np.array(list(by_seed.values()))
    mean = float(values.mean())
    if len(values) < 2:
        return Spread(mean, None, None, by_seed)
    reach = stats.t.ppf((1 + experiment.evaluate.confidence) / 2, len(values) - 1) * values.std(ddof=1)
    reach = float(reach / np.sqrt(len(values)))
    return Spread(mean, mean - reach, mean + reach, by_seed)


def _parts(of: Sequence[Run]) -> dict[str, dict[str, Part]]:
    found: dict[str, dict[str, Part]] = {}
    columns = of[0].values.columns
    for column in (name for name in columns if name.startswith("segments.")):
        _, partition, segment = column.split(".", 2)
        runs = [part_of(run, f"{partition}.{segment}").values for run in of]
        figures = [means(values) for values in runs if len(values)]
        found.setdefault(partition, {})[segment] = Part(len(runs[0]), over_runs(figures))
    return found


def _tests(
    runs: Mapping[str, Mapping[int, Run]], pairs: Sequence[tuple[str, str]]
) -> dict[str, dict[str, dict[str, dict[str, Test]]]]:
    compared = {(name, other): paired(runs[name], runs[other], samples=0) for name, other in pairs}
    p_holm = corrected(compared)
    tests: dict[str, dict[str, dict[str, dict[str, Test]]]] = {}
    for (name, other), of in compared.items():
        tests.setdefault(name, {})[other] = {
            protocol: {
                metric: Test(test.difference, test.gain, test.p_ttest, p_holm[name, other][protocol][metric])
                for metric, test in by_metric.items()
            }
            for protocol, by_metric in of.items()
        }
    return tests


def chosen_of(line: Line, milliseconds: Mapping[str, float]) -> Chosen:
    """How a system came to its settings, and what they cost; `milliseconds` a request by model folder."""
    models = {cell.seed: cell.folders[cell.task] for cell in line.measured}
    facts = [facts_of(Path(folder)) for folder in models.values()]
    cost = Cost(
        parameters=facts[0]["num_parameters"] if facts else None,
        start_seconds=_start_seconds(line),
        seconds=float(np.mean([each["seconds"] for each in facts])) if facts else None,
        search_seconds=sum(trial.seconds or 0.0 for trial in line.trials),
        request_ms=next((milliseconds[folder] for folder in models.values() if folder in milliseconds), None),
    )
    reports = {cell.seed: cell.folders[f"{cell.task}-report"] for cell in line.measured}
    return Chosen(line.choice, line.trials, cost, models, reports)


def _start_seconds(line: Line) -> float | None:
    by_seed = [
        sum(facts_of(Path(cell.folders[step])).get("seconds") or 0.0 for step in STARTS if step in cell.folders)
        for cell in line.measured
        if any(step in cell.folders for step in STARTS)
    ]
    return float(np.mean(by_seed)) if by_seed else None


def _floor_failures(floors: Mapping[str, Cell]) -> Iterator[Failure]:
    for data, cell in floors.items():
        if cell.error is not None:
            yield Failure(data, FLOORS, "", cell.error)


def _failures(lines: Sequence[Line]) -> Iterator[Failure]:
    for line in lines:
        for trial in line.trials:
            if trial.error is not None:
                yield Failure(
                    line.data, line.system, shown_trial(trial.choice, trial.epochs), trial.error, is_trial=True
                )
        if line.error is not None:
            yield Failure(line.data, line.system, "all seeds", line.error)
        for cell in line.cells:
            if cell.error is not None:
                yield Failure(line.data, line.system, f"seed {cell.seed}", cell.error)
