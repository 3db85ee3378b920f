"""Settings of a comparison in one file: systems x data sets x seeds.

::

    task: item
    ours: [lsvcr]
    data:
      beauty: {source: sequences, prepare: {split: leave_one_out}, finetune: {data: {history_length: 20}}}
    systems:
      lsvcr: {grid: {model.dropout: [0.2, 0.5]}}     # a system is called as its model, or names it
      aligned: {model: lsvcr, align: {data: {num_positions: 20}}}  # with an align section it starts from alignment
      unisrec: {pretrain: {}}                        # with a pretrain section from pre-training
      sasrec: {}
    search: {trials: 9}
    seeds: [0, 1, 2]

Fine-tuning settings stand in `finetune` (for all), `data.NAME.finetune` and `systems.NAME.finetune`; the later wins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from reeltalk.data.dataset import Task
from reeltalk.data.prepare import PrepareSettings
from reeltalk.evaluation.settings import EvaluationSettings
from reeltalk.experiments.chain import ChainSettings, load_chain
from reeltalk.experiments.search import trials_of
from reeltalk.text.encode import EncodeSettings
from reeltalk.training.settings import Section

Choice = Mapping[str, Any]  # fine-tuning settings by name, as train.learning_rate

PAPERS_RATES = [0.005, 0.003, 0.001, 0.0005, 0.0001]


class DataSection(Section):
    """How a dataset and its text vectors are made (as in a chain), and the settings that all systems share on it."""

    source: str | None = None
    raw: Path | None = None
    prepare: PrepareSettings = PrepareSettings()
    dataset: Path | None = Field(None, description="a finished dataset folder, in place of source, raw and prepare")
    encode: EncodeSettings = EncodeSettings()
    text: Path | None = Field(None, description="a finished text folder of this dataset, in place of encode")
    align: dict[str, Any] = Field({}, description="of systems that are aligned: what this data asks of alignment")
    pretrain: dict[str, Any] = Field({}, description="of systems that are pre-trained: the same")
    finetune: dict[str, Any] = Field({})


class SystemSection(Section):
    """A model, and what it is given; a setting that the grid names is chosen on validation."""

    model: str | None = Field(None, description="`reeltalk models` lists them; default: the system's own name")
    finetune: dict[str, Any] = Field({})
    align: dict[str, Any] | None = Field(None, description="{} aligns with the defaults; left out: no alignment")
    encode_aligned: dict[str, Any] | None = None
    pretrain: dict[str, Any] | None = Field(
        None, description="{} pre-trains with the defaults, on histories as fine-tuning reads them; left out: not"
    )
    grid: dict[str, list[Any]] = Field({}, description="values to choose from, beside and before those of search.grid")


class SearchSettings(Section):
    """How each system's settings are chosen on validation: successive halving on the first seed."""

    trials: Annotated[int, Field(gt=0)] | Literal["all"] = Field(
        9, description="configurations of each system's grid that are tried on each data set"
    )
    rungs: tuple[float, ...] = Field(
        (0.07, 0.2),
        description="parts of a system's max_epochs after which its best go on, each from the start; what is left "
        "trains in full",
    )
    keep: int = Field(3, gt=1, description="one trial of so many goes on from a rung")
    seed: int = Field(0, ge=0, description="of the draw of trials")
    grid: dict[str, list[Any]] = Field(
        {"train.learning_rate": PAPERS_RATES}, description="values for all systems, by fine-tuning setting"
    )

    def epochs(self, full: int) -> list[int]:
        """The epochs of each rung of a system that trains for `full` at most."""
        return sorted({max(1, round(part * full)) for part in self.rungs} - {full})

    @field_validator("rungs")
    @classmethod
    def _rising(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < rung < 1 for rung in rungs):
            raise ValueError("give parts of max_epochs, above 0 and below 1, as 0.2")
        if list(rungs) != sorted(set(rungs)):
            raise ValueError("give each rung longer than the one before")
        return rungs


class ExperimentSettings(Section):
    """All of a comparison; a data set or system that is null is left out."""

    task: Task
    ours: tuple[str, ...] = Field(
        min_length=1,
        description="systems that are tested against all others, the baselines, and those named later here",
    )
    data: dict[str, DataSection | None]
    systems: dict[str, SystemSection | None]
    finetune: dict[str, Any] = Field({})
    search: SearchSettings = SearchSettings()
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2), min_length=1)
    evaluate: EvaluationSettings = EvaluationSettings(ks=(1, 5, 10, 20), bootstrap_samples=0)
    metrics: tuple[str, ...] = Field(
        ("recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr"), min_length=1, description="columns of the tables"
    )

    @field_validator("seeds", "ours")
    @classmethod
    def _once_each(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("give each once")
        return values

    @property
    def of_data(self) -> dict[str, DataSection]:
        """The data sets that are not left out."""
        return {name: section for name, section in self.data.items() if section is not None}

    @property
    def of_systems(self) -> dict[str, SystemSection]:
        """The systems that are not left out."""
        return {name: section for name, section in self.systems.items() if section is not None}

    @property
    def of_ours(self) -> tuple[str, ...]:
        """Ours, as far as they are not left out."""
        return tuple(name for name in self.ours if name in self.of_systems)

    def grid(self, system: str) -> dict[str, list[Any]]:
        """The values that a system's settings are chosen from."""
        return {**self.search.grid, **self.of_systems[system].grid}

    def trials(self, system: str) -> list[dict[str, Any]]:
        """The configurations of a system that are tried on each data set."""
        limit = None if self.search.trials == "all" else self.search.trials
        return trials_of(self.grid(system), limit=limit, seed=self.search.seed)

    def chain(
        self, data: str, system: str, choice: Choice, *, seed: int | None = None, epochs: int | None = None
    ) -> ChainSettings:
        """The chain of one run: raises ConfigError as `load_chain` does; `epochs` cuts training short."""
        seed = self.seeds[0] if seed is None else seed
        of_data, of_system = self.of_data[data], self.of_systems[system]
        train: dict[str, Any] = {"seed": seed, "exclude_seen": self.evaluate.exclude_seen}
        if epochs is not None:
            train["max_epochs"] = epochs
        asked = {"name": of_system.model or system, "train": train}
        tuned = merged(self.finetune, of_data.finetune, of_system.finetune, asked)
        values = of_data.model_dump() | {"finetune": {self.task: tuned}, "evaluate": self.evaluate.model_dump()}
        # a seed that the file names stays, and the runs of all seeds then share one start
        starts = {"align": {}, "pretrain": {"data": tuned.get("data", {})}}
        for start, given in starts.items():
            of_start = getattr(of_system, start)
            if of_start is None:
                del values[start]
            else:
                values[start] = merged(given, {"train": {"seed": seed}}, getattr(of_data, start), of_start)
        if of_system.encode_aligned is not None:
            values["encode_aligned"] = of_system.encode_aligned
        overrides = [f"finetune.{self.task}.{name}={json.dumps(value)}" for name, value in choice.items()]
        return load_chain(base=values, overrides=overrides)


def merged(*sections: Mapping[str, Any]) -> dict[str, Any]:
    """Sections put together, field by field; the later wins.

    >>> merged({"train": {"seed": 0, "patience": 3}}, {"train": {"seed": 1}})
    {'train': {'seed': 1, 'patience': 3}}
    """
    found: dict[str, Any] = {}
    for section in sections:
        for name, value in section.items():
            both = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
            found[name] = merged(found[name], value) if both else value
    return found
