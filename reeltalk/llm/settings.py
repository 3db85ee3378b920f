"""Settings of alignment (LSVCR stage 1); the resolved ones are saved beside the result, and reproduce it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from reeltalk.data.instance_stream import ItemComments
from reeltalk.llm.causal_lm import LLMSettings
from reeltalk.llm.prompts import PromptSettings
from reeltalk.models.lsvcr import LSVCRSettings
from reeltalk.training.settings import Section, TrainerSettings


class AlignDataSettings(Section):
    """What an instance is made of; defaults are the paper's and its reference implementation's."""

    history_length: int = Field(20, gt=0, description="events of each history")
    num_positions: int = Field(50, gt=0, description="rows of a position table; history_length: no drawn positions")
    record_comments: int = Field(3, gt=0, description="comments of one record that are used")
    history_probability: float = Field(0.5, ge=0, le=1, description="of a history to be diversified; 0: never")
    entry_probability: float = Field(0.3, ge=0, le=1, description="of an entry of such a history")
    hot_comments: ItemComments = Field(
        "hot",
        description="of item entries, and what diversification adds: an item's hot comments, any of its, or none",
    )
    comments: bool = Field(True, description="off: titles alone, item task alone")
    num_negatives: int = Field(
        0,
        ge=0,
        description="drawn beside the batch's for eq 14: comments of each watched item, items; 0: as in the paper",
    )
    active_days: float | None = Field(
        None, gt=0, description="items drawn are those created within so many days before the target; None: any"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.history_length > self.num_positions:
            raise ValueError(
                f"history_length={self.history_length} does not fit num_positions={self.num_positions}; raise it"
            )
        return self


class LossWeights(Section):
    """Weights of eq 15; a loss of weight 0 is left out."""

    lm: float = Field(1.0, ge=0, description="L_LM, eq 13")
    sr: float = Field(1.0, ge=0, description="lambda: L_SR, eq 14")
    prefix: float = Field(
        1.0,
        ge=0,
        description="eq 14 for the entries of the histories (at most 2,048 of each kind in a step), whose texts are "
        "read anyway; 0: as in the paper",
    )
    ssc: float = Field(0.5, ge=0, description="mu: L_SSC, eq 10")
    vcc: float = Field(0.5, ge=0, description="mu: L_VCC, eq 12")


class AlignTrainSettings(TrainerSettings):
    """How long and how fast it learns. Without steps, only the warm start is done, and no LLM is loaded."""

    steps: int = Field(5_000, ge=0)
    batch_size: int = Field(128, gt=1, description="instances a step, over all processes")
    learning_rate: float = Field(3e-4, gt=0, description="of LoRA; the paper's for everything")
    sequential_learning_rate: float = Field(1e-3, gt=0, description="of the sequential model and its text map")
    head_learning_rate: float = Field(1e-3, gt=0, description="of the map from the LLM's width to a preference's")
    warmup_share: float = Field(0.03, ge=0, le=1, description="of the steps, over which learning rates rise")
    weight_decay: float = Field(0.0, ge=0)
    warm_steps: int = Field(1_000, ge=0, description="steps of eq 14 alone, on the table's vectors, before the LLM")
    warm_batch_size: int = Field(256, gt=1)
    warm_learning_rate: float = Field(2e-3, gt=0)
    tokens_per_batch: int | None = Field(
        None,
        gt=0,
        description="what goes through the LLM at once; bounds memory, changes dropout's draws alone; None: 8,192 on a "
        "CPU, 65,536 on a GPU, fewer where the LLM is large for the memory",
    )
    tokens_kept: int = Field(
        32_768,
        ge=0,
        description="of a step, whose activations stay in memory for the backward pass; the others are run again; it "
        "is fewer where the LLM is large for the memory",
    )
    max_text_tokens: int = Field(64, gt=0, description="of a text that the LLM encodes; a longer one is cut")
    shard_llm: bool = Field(
        False, description="divide the LLM's layers over the processes (FSDP), for one that no device can hold whole"
    )

    @model_validator(mode="after")
    def _has_processes(self) -> Self:
        if self.shard_llm and self.devices == 1:
            raise ValueError("shard_llm divides the LLM over processes; give devices above 1, or leave it off")
        return self


class AlignSettings(Section):
    """All of an alignment run."""

    encoder: Literal["llm", "frozen"] = Field(
        "llm", description="what vectors texts have: those of the LLM in training, or the table's (the paper's w/ BERT)"
    )
    llm: LLMSettings = LLMSettings()
    prompt: PromptSettings = PromptSettings()
    model: LSVCRSettings = LSVCRSettings(use_item_ids=False)
    data: AlignDataSettings = AlignDataSettings()
    loss: LossWeights = LossWeights()
    train: AlignTrainSettings = AlignTrainSettings()

    @model_validator(mode="after")
    def _learns(self) -> Self:
        loss, train = self.loss, self.train
        if train.warm_steps and not (loss.sr or loss.prefix):
            raise ValueError("the warm start learns by loss.sr and loss.prefix, which are 0; set train.warm_steps=0")
        if train.steps and not any(loss.model_dump().values()):
            raise ValueError("all weights under loss are 0: there is nothing to learn")
        return self

    @field_validator("model")
    @classmethod
    def _of_texts_alone(cls, model: LSVCRSettings) -> LSVCRSettings:
        if model.use_item_ids:
            raise ValueError("alignment learns from texts alone; leave use_item_ids off")
        if model.use_recency:
            raise ValueError("alignment draws positions, which do not tell how long ago; leave use_recency off")
        return model
