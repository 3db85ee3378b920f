"""The batches of an alignment run: instances in, histories, prompts and token ids out.

Shapes: U distinct texts, E text width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reeltalk.data.batch import AlignmentBatch
from reeltalk.data.dataset import Dataset
from reeltalk.data.instance_stream import Instances
from reeltalk.data.instances import InstanceBatch
from reeltalk.llm.prompts import Order, Prompt, PromptWriter
from reeltalk.llm.recommender import LLMRecommender
from reeltalk.llm.settings import AlignSettings
from reeltalk.text.encoder import tokenize
from reeltalk.text.table import TextTable

_ORDERS: tuple[Order, ...] = ("items_first", "records_first")
_ORDER_STREAM = 3  # of random numbers; those before it are the instances'


@dataclass(frozen=True)
class AlignExample:
    """A step's instances: the SR model's side, and for the LLM prompts and token ids of the distinct texts.

    text_UE: vectors of the table, in the warm start and with a frozen encoder; otherwise None.
    """

    batch: AlignmentBatch
    prompts: list[Prompt]
    text_ids: list[list[int]]
    text_UE: Tensor | None


class AlignBatches:
    """All steps of a run, beginning with the first that was not done: warm ones, then those with the LLM."""

    def __init__(
        self, instances: Instances, table: TextTable, settings: AlignSettings, llm: LLMRecommender | None
    ) -> None:
        self.instances, self.table, self.settings, self.llm = instances, table, settings, llm
        self.writer = None
        if llm is not None:
            self.writer = PromptWriter(llm.tokenizer, settings.prompt, max_tokens=llm.max_tokens)
        self.steps_done = 0  # the module counts, checkpoints keep it
        self.rank, self.num_ranks = 0, 1

    def state_dict(self) -> dict[str, int]:
        return {"steps_done": self.steps_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps_done = state["steps_done"]

    def __len__(self) -> int:
        return self.settings.train.warm_steps + self.settings.train.steps

    def __iter__(self) -> Iterator[AlignExample]:
        train = self.settings.train
        # the stream goes on behind what the warm start took of it
        behind_warm = -(-train.warm_steps * train.warm_batch_size // train.batch_size)
        for step in range(self.steps_done, len(self)):
            if step < train.warm_steps:
                yield self._warm_example(self._instances(step, train.warm_batch_size))
            else:
                at = behind_warm + step - train.warm_steps
                yield self._example(self._instances(at, train.batch_size), at)

    def _instances(self, step: int, batch_size: int) -> InstanceBatch:
        return self.instances.batch(
            step, batch_size=batch_size // self.num_ranks, rank=self.rank, num_ranks=self.num_ranks
        )

    def _warm_example(self, told: InstanceBatch) -> AlignExample:
        return AlignExample(AlignmentBatch.of(told), [], [], table_vectors(self.table, told.texts))

    def _example(self, told: InstanceBatch, step: int) -> AlignExample:
        assert self.llm is not None
        is_frozen = self.settings.encoder == "frozen"
        max_tokens = min(self.settings.train.max_text_tokens, self.llm.max_tokens)
        return AlignExample(
            AlignmentBatch.of(told),
            self._prompts(told, step),
            [] if is_frozen else [[], *tokenize(self.llm.tokenizer, told.texts[1:], max_tokens=max_tokens)],
            table_vectors(self.table, told.texts) if is_frozen else None,
        )

    def _prompts(self, told: InstanceBatch, step: int) -> list[Prompt]:
        """A prompt an instance, in one of the two orders of histories, which its place in the stream decides."""
        loss = self.settings.loss
        if not (loss.lm or loss.ssc or loss.vcc):
            return []
        assert self.writer is not None
        has_records = len(self.instances.histories.record_item) > 0
        first = step * self.settings.train.batch_size + self.rank
        places = range(first, first + len(told.instances) * self.num_ranks, self.num_ranks)
        seed = [self.settings.train.seed, _ORDER_STREAM]
        return [
            self.writer.write(
                instance.items,
                instance.records if has_records else None,
                task=instance.task,
                order=_ORDERS[np.random.default_rng([*seed, place]).integers(2)],
                watched=instance.watched or "",
                target=instance.target if loss.lm else "",
            )
            for place, instance in zip(places, told.instances, strict=True)
        ]


def table_vectors(table: TextTable, texts: list[str]) -> Tensor:
    """The table's vectors of some texts: float32 [U, E], zeros where a text is empty."""
    rows = table.rows(texts)
    vectors = np.zeros((len(rows), table.width), np.float32)
    vectors[rows >= 0] = table.vectors[rows[rows >= 0]]
    return torch.from_numpy(vectors)


def instances_of(dataset: Dataset, settings: AlignSettings) -> Instances:
    """The stream of instances of these settings."""
    data = settings.data
    return Instances.of(
        dataset,
        length=data.history_length,
        num_positions=data.num_positions,
        record_comments=data.record_comments,
        history_probability=data.history_probability,
        entry_probability=data.entry_probability,
        with_comments=data.comments,
        hot_comments=data.hot_comments,
        num_negatives=data.num_negatives,
        active_days=data.active_days,
        seed=settings.train.seed,
    )
