"""Settings of fine-tuning; the resolved ones are saved beside the model, and reproduce it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from reeltalk.data.dataset import Task
from reeltalk.evaluation.metrics import METRIC
from reeltalk.models import model_spec


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(Section):
    """What a batch holds."""

    history_length: int = Field(50, gt=0, description="events of each history that a preference is made from")
    record_comments: int = Field(3, gt=0, description="comments of one record that are read")
    num_negatives: int = Field(19, gt=0, description="comment task: sampled comments of the watched item per target")
    active_days: float | None = Field(
        None, gt=0, description="item task: only items created so many days before a target compete with it in training"
    )
    comments: bool = Field(True, description="off: histories are of items alone, as on platforms without comments")
    candidate_features: bool = Field(False, description="comment task: age and answers so far join the score")


class TrainerSettings(Section):
    """What all stages share: the machine, checkpoints, logs, the seed."""

    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto", description="auto: bf16 where products in it are native"
    )
    devices: int = Field(1, gt=0, description="processes, a device each")
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    checkpoint_seconds: float = Field(60.0, gt=0, description="how much work a kill can cost")
    logger: Literal["csv", "tensorboard"] = "csv"
    seed: int = Field(0, ge=0)


class TrainSettings(TrainerSettings):
    """How long and how fast it learns."""

    batch_size: int = Field(128, gt=0, description="histories (windows) a step, over all processes")
    learning_rate: float = Field(0.001, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    regularisation: float = Field(0.1, ge=0, description="eta of LSVCR eq 18")
    max_epochs: int = Field(50, gt=0)
    patience: int = Field(5, gt=0, description="epochs without a better validation value before training stops")
    monitor: str = Field("ndcg@10", description="metric over the validation targets that picks the epoch to keep")
    monitor_protocol: Literal["sampled", "full"] = Field(
        "sampled", description="the monitored metric among the saved candidates, or among all items (item task)"
    )
    exclude_seen: bool = Field(
        True, description="monitored among all items: leave out what the user turned to before, as evaluate does"
    )
    max_validation_targets: int = Field(20_000, ge=0, description="validation targets used a time, 0: all")
    accumulate: int = Field(1, gt=0, description="batches a step is made of, each divided by its own count")

    @field_validator("monitor")
    @classmethod
    def _is_a_metric(cls, monitor: str) -> str:
        if METRIC.fullmatch(monitor) is None:
            raise ValueError("no metric; give recall@K, ndcg@K, hit@K or mrr")
        return monitor

    @model_validator(mode="after")
    def _steps_divide(self) -> Self:
        if self.batch_size % (self.devices * self.accumulate):
            raise ValueError(
                f"batch_size={self.batch_size} does not divide by devices x accumulate = {self.devices} x "
                f"{self.accumulate}; give a multiple"
            )
        return self


class TextSettings(Section):
    """Whether text vectors stay as they were encoded."""

    trained_encoder: str | None = Field(
        None, description="comment task: the encoder that made --text, named as for encode, to train with the model"
    )
    learning_rate: float = Field(2e-5, gt=0, description="of the trained encoder")
    tokens_per_batch: int | None = Field(
        None, ge=1, description="tokens at once through the trained encoder; default: what is fast on the device"
    )


class FinetuneSettings(Section):
    """All of a fine-tuning run; `finetune_settings` gives the class whose section `model` is that of one model."""

    name: str = Field(description="the model")
    task: Task
    model: BaseModel
    data: DataSettings = DataSettings()
    text: TextSettings = TextSettings()
    train: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _fits_the_task(self) -> Self:
        if self.task == "comment" and not self.data.comments:
            raise ValueError("data.comments=false leaves the comment task without targets; it is for the item task")
        if self.task == "comment" and self.train.monitor_protocol == "full":
            raise ValueError("train.monitor_protocol=full is for the item task; comments are ranked under their item")
        if self.task == "item" and self.text.trained_encoder is not None:
            raise ValueError(
                "text.trained_encoder is for the comment task: the item task holds each preference against all titles, "
                "which an encoder cannot read in every step; leave it out"
            )
        return self


def finetune_settings(name: str, task: Task) -> type[FinetuneSettings]:
    """The settings of one model for one task; raises ConfigError where the model is unknown or does not do the task."""
    section = model_spec(name, task).settings
    return create_model(
        f"{section.__name__.removesuffix('Settings')}FinetuneSettings",
        __base__=FinetuneSettings,
        name=(Literal[name], name),  # type: ignore[arg-type]
        task=(Literal[task], task),  # type: ignore[arg-type]
        model=(section, section()),
    )
