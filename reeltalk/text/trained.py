"""A text encoder that learns with the model that reads its vectors.

Shape suffixes: B texts of a batch, T tokens, U texts, E text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from reeltalk.data.dataset import Dataset
from reeltalk.data.ragged import Ints
from reeltalk.errors import ConfigError
from reeltalk.precision import matmul_dtype
from reeltalk.text.batches import TEXT_STEP, distinct_vectors, pad_right
from reeltalk.text.checkpoint import Precision
from reeltalk.text.encode import EncodeSettings, encode
from reeltalk.text.encoder import Encoder, load_encoder, pool
from reeltalk.text.table import TextTable

TOKENS_ON_CPU, TOKENS_ON_GPU = 8_192, 65_536  # at once through the encoder
ENCODER, TEXT = "encoder", "text"  # folders in that of the model


class TrainedEncoder(nn.Module):
    """The encoder that made a table, with float32 weights that learn; its own dropout is off, as in alignment."""

    def __init__(self, encoder: Encoder, settings: EncodeSettings) -> None:
        super().__init__()
        self.model: Any = encoder.model.requires_grad_(True).train()
        self.encoder = encoder
        self.settings = settings

    @classmethod
    def of(cls, name: str, table: TextTable, *, precision: Precision, tokens_per_batch: int | None) -> Self:
        """Load the encoder by its name.

        Raises ConfigError where it cannot be loaded, did not make the table, or is half of a model like T5.
        """
        made = table.manifest.config
        encoder = load_encoder(name, max_tokens=made.get("max_tokens", 1), precision="float32", device="cpu")
        if encoder.weights != made.get("weights") or made.get("is_mapped"):
            raise ConfigError(
                f"text.trained_encoder={name!r} is not what made {table.path} ({made.get('encoder')!r}); "
                "give that one, or encode with this one first"
            )
        if encoder.is_part:
            raise ConfigError(
                f"text.trained_encoder={name!r} has a decoder too, and its encoder alone cannot be saved as a model; "
                "give one that is an encoder, or leave the vectors as they are"
            )
        settings = EncodeSettings(
            pooling=made["pooling"],
            prefix=made["prefix"],
            max_tokens=made["max_tokens"],
            precision=precision,
            tokens_per_batch=tokens_per_batch,
        )
        return cls(encoder, settings)

    def forward(self, texts: Sequence[str | None]) -> Tensor:
        """A vector for each text, float32 [U, E], with gradient where it is on; zeros for null and white space.

        Distinct texts run once, some tokens at a time; of more than one such batch nothing is kept but the vectors, and
        the backward pass runs each again.
        """
        there = [(self.settings.prefix + text) if text and text.strip() else None for text in texts]
        tokens = iter(self.encoder.tokenize([text for text in there if text is not None]))
        ids: list[list[int]] = [[] if text is None else next(tokens) for text in there]
        weight = next(self.model.parameters())
        default = TOKENS_ON_CPU if weight.device.type == "cpu" else TOKENS_ON_GPU
        tokens_per_batch = self.settings.tokens_per_batch or default
        return distinct_vectors(
            self._vectors, ids, width=self.encoder.width, tokens_per_batch=tokens_per_batch, place=weight
        )

    def _vectors(self, rows: list[Ints]) -> Tensor:
        device = next(self.model.parameters()).device
        padded = pad_right(rows, multiple=TEXT_STEP, max_tokens=self.encoder.max_tokens)
        ids_BT, mask_BT = (tensor.to(device) for tensor in padded)
        half = self.settings.precision == "bf16" or (
            self.settings.precision == "auto" and matmul_dtype(device) == torch.bfloat16
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            hidden_BTE = self.model(
                input_ids=ids_BT, attention_mask=None if mask_BT.all() else mask_BT.long()
            ).last_hidden_state
        return pool(hidden_BTE, mask_BT.sum(1), pooling=self.settings.pooling)

    def finish(self, dataset: Dataset, out: Path) -> TextTable:
        """Write the encoder as a Hugging Face folder, and every text of the dataset encoded by it, once."""
        folder = out / ENCODER
        self.model.save_pretrained(folder)
        self.encoder.tokenizer.save_pretrained(folder)
        return encode(dataset, out=out / TEXT, settings=self.settings.model_copy(update={"encoder": str(folder)}))
