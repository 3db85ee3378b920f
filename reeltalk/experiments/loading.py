"""The file of a comparison, read, and checked before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from reeltalk.config import load_settings
from reeltalk.data.sources import SOURCES
from reeltalk.errors import ConfigError, all_problems, nearest
from reeltalk.evaluation.metrics import METRIC
from reeltalk.experiments.experiment import DataSection, ExperimentSettings
from reeltalk.training.start import start_sizes

OF_THE_SEARCH = (  # or what makes validation values comparable
    *("name", "task", "train.seed", "train.max_epochs"),
    *("train.monitor", "train.monitor_protocol", "train.max_validation_targets", "train.exclude_seen"),
)


GIVEN = {  # fine-tuning settings that other sections of the file give
    "name": "the system's name or model",
    "task": "task",
    "train.seed": "seeds",
    "train.exclude_seen": "evaluate.exclude_seen",
}


def load_experiment(file: Path, *, overrides: Sequence[str] = ()) -> ExperimentSettings:
    """The settings of a comparison; raises ConfigError that tells at once all that keeps it from being run."""
    experiment = load_settings(ExperimentSettings, file=file, overrides=overrides)
    problems = [*_of_names(experiment), *_of_given(experiment), *_of_figures(experiment)]
    for name, section in experiment.of_data.items():
        problems += [f"data.{name}.{problem}" for problem in _of_folders(name, section)]
    problems += _of_chains(experiment)
    all_problems(ConfigError, f"{file} cannot be run:", problems)
    return experiment


def _of_names(experiment: ExperimentSettings) -> Iterator[str]:
    for what, names in (("data", experiment.of_data), ("systems", experiment.of_systems)):
        if not names:
            yield f"{what} is empty; name at least one"
    for name in experiment.ours:
        if name not in experiment.systems:
            yield f"ours={name!r} is no system;{nearest(name, experiment.of_systems)}"
    if not experiment.of_ours and all(name in experiment.systems for name in experiment.ours):
        left_out = ", ".join(map(repr, experiment.ours))
        yield f"ours={left_out} are all left out; name a system that is tested against the others"


def _of_given(experiment: ExperimentSettings) -> Iterator[str]:
    sections = {"finetune": experiment.finetune}
    sections |= {f"data.{name}.finetune": section.finetune for name, section in experiment.of_data.items()}
    sections |= {f"systems.{name}.finetune": section.finetune for name, section in experiment.of_systems.items()}
    for where, section in sections.items():
        train = section.get("train")
        given = [*section, *(f"train.{name}" for name in (train if isinstance(train, Mapping) else ()))]
        yield from (f"{where}.{name} is what {GIVEN[name]} gives; leave it out" for name in given if name in GIVEN)


def _of_figures(experiment: ExperimentSettings) -> Iterator[str]:
    ks = experiment.evaluate.ks
    for metric in experiment.metrics:
        match = METRIC.fullmatch(metric)
        if match is None or (match["k"] and int(match["k"]) not in ks):
            yield f"metrics: {metric!r} is not measured; give mrr, or recall, ndcg or hit at one of evaluate.ks={ks}"
    for where, grid in (("search", experiment.search.grid), *((n, s.grid) for n, s in experiment.of_systems.items())):
        for name, values in grid.items():
            if name in OF_THE_SEARCH:
                yield f"{where}: grid names {name}, which is not for the grid to choose; leave it out"
            if not values:
                yield f"{where}: grid holds no value of {name}; give some"


def _of_folders(name: str, section: DataSection) -> Iterator[str]:
    for field in ("dataset", "text", "raw"):
        path = getattr(section, field)
        if path is not None and not path.exists():
            yield f"{field}={str(path)!r} is not there"
    if section.source is None:
        return
    source = SOURCES.get(section.source)
    if source is not None and source.needs_raw and section.raw is None:
        way_out = f"--set data.{name}.raw=PATH gives it, --set data.{name}=null leaves the data set out"
        yield f"raw is missing: {source.expects}; {way_out}"


def _of_chains(experiment: ExperimentSettings) -> Iterator[str]:
    """Each problem of the systems' settings once, with the systems and data sets that have it."""
    found: dict[str, dict[str, list[str]]] = {}
    for data in experiment.of_data:
        for system in experiment.of_systems:
            for problem in dict.fromkeys(_of_chain(experiment, data, system)):
                found.setdefault(problem, {}).setdefault(system, []).append(data)
    for problem, by_system in found.items():
        told = re.sub(rf"finetune\.{experiment.task}(\.|: )", "", problem)
        yield f"{_whose(by_system, experiment)}: {told}"


def _of_chain(experiment: ExperimentSettings, data: str, system: str) -> Iterator[str]:
    """What is wrong without the grid, and with what will be tried of it."""
    grid = {name for name, values in experiment.grid(system).items() if values and name not in OF_THE_SEARCH}
    plain = list(_refusals(experiment, data, system, {}))
    yield from plain
    section = experiment.of_systems[system]
    has_start = section.align is not None or section.pretrain is not None
    if has_start and not plain:
        if section.align is not None and not experiment.chain(data, system, {}).reads_text(experiment.task):
            yield "align is for a model that reads text; leave it out"
        for size in start_sizes(section.model or system, is_pretrained=section.pretrain is not None):
            if size in grid:
                grid.remove(size)
                yield f"grid names {size}, a size of what it starts from; give it to systems without a start alone"
    for trial in experiment.trials(system):
        choice = {name: value for name, value in trial.items() if name in grid}
        yield from (problem for problem in _refusals(experiment, data, system, choice) if problem not in plain)


def _refusals(experiment: ExperimentSettings, data: str, system: str, choice: Mapping[str, object]) -> tuple[str, ...]:
    try:
        experiment.chain(data, system, choice)
    except ConfigError as error:
        return error.problems
    return ()


def _whose(by_system: Mapping[str, list[str]], experiment: ExperimentSettings) -> str:
    if len(by_system) == len(experiment.of_systems) > 1:
        every = list(dict.fromkeys(name for names in by_system.values() for name in names))
        return f"all systems on {', '.join(every)}"
    return ", ".join(f"{system} on {', '.join(names)}" for system, names in by_system.items())
