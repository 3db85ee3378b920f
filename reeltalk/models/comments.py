"""What the baselines of the comment task share: a record is the mean of its comments, one embedding serves both sides.

All of them read the same: the comments of the records, and of titles that of the watched item alone where they are
query-aware. A record's own title and the item events stay unread.

Shapes: R rows, L positions, K comments of an entry, M entries, D width, E text width, T targets, U distinct comments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reeltalk.data.batch import Batch, PackedHistory
from reeltalk.losses import unit
from reeltalk.models.attention import dropout
from reeltalk.models.recommender import Items, Recommender, Step


class CommentSettings(BaseModel):
    """What all of them have; the width is LSVCR's for every baseline (its section 5.1.4)."""

    model_config = ConfigDict(extra="forbid")

    dim: int = Field(64, gt=0)
    dropout: float = Field(0.2, ge=0, lt=1, description="of the records' embeddings, and within layers")


class CommentRecommender(Recommender, ABC):
    """A recommender of comments from records of comments; a subclass says how these become a preference."""

    has_start = True
    title_vectors_NE: Tensor

    def __init__(self, settings: CommentSettings, items: Items, *, text_map: nn.Module | None = None) -> None:
        """`text_map`: from text vectors to the embeddings of comments, a `TextMap` unless given."""
        super().__init__()
        self.dropout = settings.dropout
        self.register_buffer("title_vectors_NE", items.title_vectors_NE, persistent=False)
        self.text_map = TextMap(items.title_vectors_NE.shape[1], settings.dim) if text_map is None else text_map

    @abstractmethod
    def preferences(self, records: PackedHistory, x_RLD: Tensor, position_T: Tensor, title_TE: Tensor) -> Tensor:
        """As `comment_preferences`, from the records' embeddings and the watched items' title vectors: [T, D].

        At start entries and padding x_RLD means nothing.
        """

    def dropped(self, x: Tensor) -> Tensor:
        """With dropout, while training."""
        return dropout(x, self.dropout, training=self.training)

    def candidates(self, comment_UD: Tensor) -> Tensor:
        """What preferences are held against, from the comments' embeddings: themselves, unless overridden."""
        return comment_UD

    def comment_vectors(self, text_UE: Tensor) -> Tensor:
        return self.candidates(self.text_map(text_UE))

    def comment_preferences(self, batch: Batch, position_T: Tensor, item_T: Tensor) -> Tensor:
        return self.comment_step(batch, position_T, item_T, regularise=False).preferences

    def comment_step(self, batch: Batch, position_T: Tensor, item_T: Tensor, *, regularise: bool) -> Step:
        comment_UD = self.text_map(batch.comment_text_UE)
        records = batch.records
        x_RLD = mean_comments(records.comment_RLK.flatten(0, 1), comment_UD).view(*records.item_RL.shape, -1)
        preference_TD = self.preferences(records, x_RLD, position_T, F.embedding(item_T, self.title_vectors_NE))
        return Step(preference_TD, self.candidates(comment_UD))


class TextMap(nn.Linear):
    """Text vectors, made unit vectors, through a linear layer, whatever type they are stored in.

    Its weights start so large that an embedding's length is about 1, whatever the encoder: preferences are dot
    products, and scores that start far from each other take epochs to mend.
    """

    def forward(self, text_UE: Tensor) -> Tensor:
        return super().forward(unit(text_UE.to(self.weight.dtype)))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.out_features**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def mean_comments(comment_MK: Tensor, comment_UD: Tensor) -> Tensor:
    """The mean over each entry's comments: [M, D]; where there are none, row 0, the embedding of an empty text."""
    if comment_MK.shape[1] == 1:
        return F.embedding(comment_MK[:, 0], comment_UD)
    is_there_MK = comment_MK > 0
    is_there_MK[:, 0] |= ~is_there_MK.any(dim=1)
    share_MK = is_there_MK.to(comment_UD.dtype) / is_there_MK.sum(dim=1, keepdim=True)
    return (F.embedding(comment_MK, comment_UD) * share_MK[..., None]).sum(dim=1)


def with_start(x_RLD: Tensor, records: PackedHistory, start_D: Tensor) -> Tensor:
    """Start entries put in: what is known of someone without a record."""
    return torch.where(records.is_start_RL[..., None], start_D.to(x_RLD.dtype), x_RLD)
