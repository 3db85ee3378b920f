"""Settings of a whole chain, from the raw log to the reports, in one file.

A file names its steps' sections; what a section leaves out has the step's own default::

    source: threads
    raw: shared/data/threads
    prepare: {split: time}
    align: {}                  # without this section: no alignment, and texts are encoded once
    finetune:
      item: {name: lsvcr}      # a task that is not named is not run
      comment: {train: {max_epochs: 6}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import Field, create_model, model_validator

from reeltalk.config import load_settings
from reeltalk.data.dataset import Task
from reeltalk.data.prepare import PrepareSettings
from reeltalk.evaluation.protocol import EvaluationSettings
from reeltalk.llm.settings import AlignSettings
from reeltalk.models import model_spec
from reeltalk.text.encode import EncodeSettings
from reeltalk.training.settings import FinetuneSettings, Section, finetune_settings

TASKS: tuple[Task, ...] = get_args(Task)
DEFAULT_MODEL = "lsvcr"


class TaskSections(Section):
    """The fine-tuning of each task; one without a section is not run."""

    item: FinetuneSettings | None = None
    comment: FinetuneSettings | None = None


class ChainSettings(Section):
    """All of a chain; `chain_settings` gives the class whose sections under `finetune` are those of their models."""

    source: str | None = Field(None, description="log format; `reeltalk sources` lists them")
    raw: Path | None = Field(None, description="the raw log")
    prepare: PrepareSettings = PrepareSettings()
    dataset: Path | None = Field(None, description="a finished dataset folder, in place of source, raw and prepare")
    encode: EncodeSettings = EncodeSettings()
    text: Path | None = Field(None, description="a finished text folder of this dataset, in place of encode")
    align: AlignSettings | None = None
    encode_aligned: EncodeSettings | None = Field(None, description="how the aligned LLM encodes every text again")
    finetune: TaskSections = TaskSections()
    evaluate: EvaluationSettings = EvaluationSettings()

    @property
    def tasks(self) -> dict[Task, FinetuneSettings]:
        """The tasks that are run."""
        found = {task: getattr(self.finetune, task) for task in TASKS}
        return {task: section for task, section in found.items() if section is not None}

    def reads_text(self, task: Task) -> bool:
        """Whether the model of a task needs text vectors."""
        return model_spec(self.tasks[task].name, task).reads_text

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        problems = []
        if (self.dataset is None) == (self.source is None):
            problems.append("give either dataset, a finished folder, or source and raw")
        if self.dataset is not None and (self.raw is not None or self.prepare != PrepareSettings()):
            problems.append("raw and prepare make a dataset, but dataset names a finished one; leave out either")
        if self.text is not None and self.encode != EncodeSettings():
            problems.append("encode makes a text folder, but text names a finished one; leave out either")
        if self.align is None and self.encode_aligned is not None:
            problems.append("encode_aligned needs an align section; align={} takes its defaults")
        if not self.tasks:
            problems.append("no task is run; give finetune.item or finetune.comment, finetune.item={} for its defaults")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def load_chain(
    file: Path | None = None, *, base: ChainSettings | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> ChainSettings:
    """Settings of a chain from a file, from others or from plain values, with overrides on top.

    Raises ConfigError as `load_settings` does, and where a model is unknown or does not do its task.
    """
    return load_settings(ChainSettings, file=file, base=base, overrides=overrides, choose=_chosen)


@cache
def chain_settings(item: str = DEFAULT_MODEL, comment: str = DEFAULT_MODEL) -> type[ChainSettings]:
    """The settings of a chain with these models; raises ConfigError where one is unknown or does not do its task."""
    sections: dict[str, Any] = {
        "item": (finetune_settings(item, "item") | None, None),
        "comment": (finetune_settings(comment, "comment") | None, None),
    }
    tasks = create_model("TaskSections", __base__=TaskSections, **sections)
    return create_model("ChainSettings", __base__=ChainSettings, finetune=(tasks, tasks()))


def _chosen(values: Mapping[str, Any]) -> type[ChainSettings]:
    """The settings of a chain with the models that the values name."""
    given = values.get("finetune")
    of_tasks = given if isinstance(given, dict) else {}
    named = {task: of.get("name") for task, of in of_tasks.items() if isinstance(of, dict)}
    return chain_settings(*(str(named.get(task) or DEFAULT_MODEL) for task in TASKS))
