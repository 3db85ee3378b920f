"""VQ-Rec: an item is the mean of the embeddings of its text vector's discrete codes.

Paper: Hou et al., Learning Vector-Quantized Item Representation for Transferable Sequential Recommenders (WWW 2023),
    arXiv 2210.12316. Codes by optimised product quantisation `fit`; code embeddings and their pooling
    `embeddings`; the transformer with positions, and cosine with temperature, in `CosineTransformer`. What it is
    pre-trained for is in `reeltalk.pretraining`.
Differs from the paper: codes of another dataset are not matched to those of the pre-trained one (its permutation of
    codes), so a pre-trained model starts models of its own dataset. The quantiser is written here and not FAISS's.
    Fine-tuning trains the transformer too unless `train_encoder` is off, as it is in the authors' runs.
Checked against: a slow loop over one history in float64 (tests/test_text_models.py).

Shapes: D width, N items, M codebooks (an item's codes) or, in `embeddings`, some items, P rows of codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from reeltalk.models.cosine_transformer import CosineTransformer, CosineTransformerSettings
from reeltalk.models.quantisation import ProductQuantiser
from reeltalk.models.recommender import Items, initialise


class VQRecSettings(CosineTransformerSettings):
    """Sizes and switches of VQ-Rec; defaults are its authors'."""

    num_codebooks: int = Field(32, gt=0, description="codes of an item")
    num_codes: int = Field(256, gt=0, description="of a codebook")


class VQRec(CosineTransformer):
    """Item task. Codes are learnt from the titles of items with a training event; those without a title share theirs.

    code_NM holds rows of the code embedding, num_codes a codebook; it is saved with the weights.
    """

    code_NM: Tensor

    def __init__(self, settings: VQRecSettings, items: Items, *, history_length: int) -> None:
        super().__init__(settings, history_length=history_length)
        self.num_codes = settings.num_codes
        self.register_buffer("code_NM", torch.zeros(len(items.known_N), settings.num_codebooks, dtype=torch.int32))
        self.code_embedding = nn.Embedding(settings.num_codebooks * settings.num_codes, settings.dim)
        initialise(self)

    @torch.no_grad()
    def fit(self, items: Items) -> None:
        item_M, num_codebooks = items.with_titles(), self.code_NM.shape[1]
        if len(item_M):
            quantiser = ProductQuantiser.fit(
                items.title_vectors_NE[item_M], num_codebooks=num_codebooks, num_codes=self.num_codes
            )
            self.code_NM.copy_(quantiser.codes(items.title_vectors_NE))
        self.code_NM += self.num_codes * torch.arange(num_codebooks, dtype=torch.int32)

    def embeddings(self, item_M: Tensor | None = None) -> Tensor:
        return self.code_embeddings(self.code_NM if item_M is None else self.code_NM[item_M])

    def code_embeddings(self, code_PM: Tensor) -> Tensor:
        """The mean of the embeddings of each row's codes: [P, D]."""
        return F.embedding_bag(code_PM, self.code_embedding.weight, mode="mean")
