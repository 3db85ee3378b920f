"""The texts of a dataset while their encoder learns: with gradient in a step, each once in an evaluation.

Shapes: N items, P items of a batch, U distinct comments, E text width, T targets.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from reeltalk.data.batch import Batch
from reeltalk.data.dataset import Dataset
from reeltalk.data.ragged import Ints
from reeltalk.errors import ConfigError
from reeltalk.models import model_spec
from reeltalk.text.table import TextTable
from reeltalk.text.trained import TrainedEncoder
from reeltalk.training.settings import FinetuneSettings


class TrainedTexts(nn.Module):
    """Titles and comments by id. Without gradient, vectors are kept until the weights change: `forget`."""

    def __init__(self, encoder: TrainedEncoder, dataset: Dataset) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_items = dataset.num_items
        # row 0 is no text, then come titles, then comments
        self.texts = pl.concat([pl.Series([None], dtype=pl.String), dataset.items["title"], dataset.comments["text"]])
        self.forget()

    def forward(self, batch: Batch, item_T: Tensor) -> tuple[Batch, Tensor]:
        """The batch with its comments' vectors, and titles', [N + 1, E]: those of its items and item_T, else zeros."""
        item_P = torch.cat([batch.items.item_RL.flatten(), batch.records.item_RL.flatten(), item_T]).unique()  # type: ignore[no-untyped-call]
        comment_U = torch.where(batch.comment_U > 0, batch.comment_U + self.num_items, 0)
        rows = torch.cat([item_P, comment_U]).cpu().numpy()
        vectors = self._learnt(rows) if torch.is_grad_enabled() else self._kept(rows).to(item_P.device)
        title_PE, comment_UE = vectors[: len(item_P)], vectors[len(item_P) :]
        title_NE = title_PE.new_zeros(self.num_items + 1, title_PE.shape[1]).index_copy(0, item_P, title_PE)
        return replace(batch, comment_text_UE=comment_UE), title_NE

    def forget(self) -> None:
        """The weights changed."""
        self._is_kept = np.zeros(len(self.texts), np.bool_)
        self._vectors = np.zeros((0, 0), np.float16)

    def _learnt(self, rows: Ints) -> Tensor:
        vectors: Tensor = self.encoder(self.texts.gather(rows).to_list())
        return vectors

    def _kept(self, rows: Ints) -> Tensor:
        """In float16, as a table keeps them."""
        missing = np.unique(rows[~self._is_kept[rows]])
        if len(missing):
            made = self._learnt(missing).half().cpu().numpy()
            if not len(self._vectors):  # pages that are never written take no memory
                self._vectors = np.zeros((len(self.texts), made.shape[1]), np.float16)
            self._vectors[missing] = made
            self._is_kept[missing] = True
        return torch.from_numpy(self._vectors[rows])


def trained_texts(dataset: Dataset, text: TextTable | None, settings: FinetuneSettings) -> TrainedTexts | None:
    """What `text.trained_encoder` asks for, beginning with the encoder that made the table; None where it is not set.

    Raises ConfigError for a model that reads no text, and where the encoder is another.
    """
    name = settings.text.trained_encoder
    if name is None:
        return None
    if text is None or not model_spec(settings.name, settings.task).reads_text:
        raise ConfigError(f"text.trained_encoder={name!r}, but model {settings.name!r} reads no text; leave it out")
    encoder = TrainedEncoder.of(
        name, text, precision=settings.train.precision, tokens_per_batch=settings.text.tokens_per_batch
    )
    return TrainedTexts(encoder, dataset)
