"""Settings of a whole chain, from the raw log to the reports, in one file.

A file names its steps' sections; what a section leaves out has the step's own default::

    source: threads
    raw: shared/data/threads
    prepare: {split: time}
    align: {}                  # without this section: no alignment, and texts are encoded once
    # pretrain: {}             # in place of align: item models that are pre-trained (unisrec, vqrec, s3rec)
    finetune:
      item: {name: lsvcr}      # a task that is not named is not run
      comment: {train: {max_epochs: 6}}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import Field, create_model, model_validator

from reeltalk.config import load_settings
from reeltalk.data.dataset import Task
from reeltalk.data.prepare import PrepareSettings
from reeltalk.data.sources import source_settings
from reeltalk.errors import ConfigError
from reeltalk.evaluation.settings import EvaluationSettings
from reeltalk.llm.settings import AlignSettings
from reeltalk.models import model_spec
from reeltalk.pretraining import PRETRAINING, pretraining_of
from reeltalk.text.encode import EncodeSettings
from reeltalk.training.pretrain import PretrainSettings, pretrain_settings
from reeltalk.training.settings import FinetuneSettings, Section, finetune_settings
from reeltalk.training.start import aligned_start_problems, needs_start, pretrained_start_problems

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
    pretrain: PretrainSettings | None = Field(None, description="of the item task's model, where it has a pre-training")
    finetune: TaskSections = TaskSections()
    evaluate: EvaluationSettings = EvaluationSettings()

    @property
    def tasks(self) -> dict[Task, FinetuneSettings]:
        """The tasks that are run."""
        found = {task: getattr(self.finetune, task) for task in TASKS}
        return {task: section for task, section in found.items() if section is not None}

    def model_reads_text(self, task: Task) -> bool:
        """Whether the model of a task needs text vectors."""
        return model_spec(self.tasks[task].name, task).reads_text

    def reads_text(self, task: Task) -> bool:
        """Whether the run of a task needs text vectors, of its model or for pre-training."""
        return self.model_reads_text(task) or self.is_pretrained(task)

    def is_pretrained(self, task: Task) -> bool:
        """Whether the model of a task starts from pre-training."""
        return task == "item" and self.pretrain is not None

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
        if self.source is not None:
            try:
                source_settings(self.source, self.prepare.source)
            except ConfigError as error:
                problems += [f"prepare: {problem}" for problem in error.problems]
        problems += self._start_problems()
        if self.evaluate.full_ranking and "comment" in self.tasks:
            problems.append(
                "evaluate.full_ranking=true is for the item task, comments are ranked under their item; leave it out"
            )
        if not self.tasks:
            problems.append("no task is run; give finetune.item or finetune.comment, finetune.item={} for its defaults")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _start_problems(self) -> Iterator[str]:
        """What would stop fine-tuning where it begins, hours later."""
        if self.align is not None and self.pretrain is not None:
            yield "align and pretrain are two starts of one model; leave out either"
            return
        for task, section in self.tasks.items():
            problems: Iterator[str] = iter(())
            if self.is_pretrained(task):
                assert self.pretrain is not None
                problems = pretrained_start_problems(
                    section, self.pretrain.model, history_length=self.pretrain.data.history_length
                )
            elif self.align is not None and self.model_reads_text(task):
                problems = aligned_start_problems(
                    section,
                    self.align.model,
                    num_positions=self.align.data.num_positions,
                    is_mapped=self.encode_aligned is None or self.encode_aligned.is_mapped,
                )
            elif problem := needs_start(section):
                yield f"finetune.{task}.{problem}; a pretrain section makes one"
            yield from (f"finetune.{task}.{problem}" for problem in problems)
        if self.encode_aligned is not None and (self.encode_aligned.pooling != "mean" or self.encode_aligned.prefix):
            yield "encode_aligned: alignment has mean pooling and no prefix; leave pooling and prefix out"


def load_chain(
    file: Path | None = None, *, base: ChainSettings | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> ChainSettings:
    """Settings of a chain from a file, from others or from plain values, with overrides on top.

    Raises ConfigError as `load_settings` does, and where a model is unknown, does not do its task, or has no
    pre-training that is asked for.
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
    pretrained: Any = pretrain_settings(item) | None if item in PRETRAINING else None
    return create_model("ChainSettings", __base__=ChainSettings, finetune=(tasks, tasks()), pretrain=(pretrained, None))


def _chosen(values: Mapping[str, Any]) -> type[ChainSettings]:
    """The settings of a chain with the models that the values name."""
    given = values.get("finetune")
    of_tasks = given if isinstance(given, dict) else {}
    named = {task: of.get("name") for task, of in of_tasks.items() if isinstance(of, dict)}
    item, comment = (str(named.get(task) or DEFAULT_MODEL) for task in TASKS)
    if values.get("pretrain") is not None:
        if of_tasks.get("item") is None:
            raise ConfigError("pretrain is of the item task's model; give finetune.item, or leave out pretrain")
        pretraining_of(item)
    return chain_settings(item, comment)
