"""Text encoders: any Hugging Face encoder or causal LM, or the MiniLM that needs no model hub.

Shape suffixes: B texts of a batch, T tokens, E text width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reeltalk.errors import ConfigError
from reeltalk.text.checkpoint import Precision, load_checkpoint

Pooling = Literal["mean", "last", "cls"]

CHARACTERS_PER_TOKEN = 64  # a longer text is cut before it is tokenised; words are far shorter
_LENGTH_STEP = 4  # batches are padded to a multiple of this, so that kernels are prepared for few shapes
_TOKENS_ON_CPU, _TOKENS_ON_GPU = 2_048, 65_536  # of a batch; a core's caches hold no more


@dataclass(frozen=True)
class Encoder:
    """A frozen language model that turns texts into vectors. `weights` is the digest of what it was loaded from."""

    model: nn.Module
    tokenizer: Any
    name: str
    weights: str
    max_tokens: int
    width: int
    tokens_per_batch: int
    text_map: nn.Module | None = None  # what vectors go through at the end
    is_part: bool = False  # of a model with a decoder too

    @property
    def precision(self) -> str:
        return "bf16" if next(self.model.parameters()).dtype == torch.bfloat16 else "float32"

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens around it, cut to `max_tokens`; what reads ``[SEP]`` in it is text."""
        return tokenize(self.tokenizer, texts, max_tokens=self.max_tokens)

    def encode(
        self, ids: Sequence[Sequence[int]], *, pooling: Pooling, on_batch: Callable[[int], None] = lambda tokens: None
    ) -> Tensor:
        """One float32 vector per token sequence, [texts, E], on the CPU; a sequence without tokens gives zeros.

        Sequences are sorted by length and run in batches of at most `tokens_per_batch` tokens, padded on the right.
        After each batch `on_batch` hears its number of tokens.
        """
        device = next(self.model.parameters()).device
        lengths = np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids))
        tokens = np.fromiter((token for row in ids for token in row), dtype=np.int64, count=int(lengths.sum()))
        starts = np.cumsum(lengths) - lengths
        order = np.argsort(-lengths, kind="stable")[: int((lengths > 0).sum())]

        @torch.inference_mode()
        def run(batch: NDArray[np.int64]) -> Tensor:
            ids_BT, mask_BT = self._padded(tokens, starts[batch], lengths[batch])
            hidden_BTE = self.model(
                input_ids=torch.from_numpy(ids_BT).to(device),
                attention_mask=None if mask_BT.all() else torch.from_numpy(mask_BT).to(device).long(),
            ).last_hidden_state
            vectors_BE = pool(hidden_BTE, torch.from_numpy(lengths[batch]).to(device), pooling=pooling)
            return vectors_BE if self.text_map is None else cast(Tensor, self.text_map(vectors_BE))

        vectors = torch.zeros(len(ids), self.width, device=device)
        batches = list(self._batches(order, lengths))
        for batch, vectors_BE in zip(batches, _on_all_cores(run, batches, device=device), strict=True):
            vectors[torch.from_numpy(batch).to(device)] = vectors_BE
            on_batch(int(lengths[batch].sum()))
        return vectors.cpu()

    def _batches(self, order: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        start = 0
        while start < len(order):
            longest = _stepped(int(lengths[order[start]]), self.max_tokens)
            stop = start + max(1, self.tokens_per_batch // longest)
            yield order[start:stop]
            start = stop

    def _padded(
        self, tokens: NDArray[np.int64], starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Token ids [B, T] and which of them are tokens."""
        column = np.arange(_stepped(int(lengths.max()), self.max_tokens))
        mask = column < lengths[:, None]
        pad = self.tokenizer.pad_token_id
        return np.where(mask, tokens[np.where(mask, starts[:, None] + column, 0)], 0 if pad is None else pad), mask


def _on_all_cores(
    run: Callable[[NDArray[np.int64]], Tensor], batches: Sequence[NDArray[np.int64]], *, device: torch.device
) -> Iterator[Tensor]:
    """The result of each batch, in order. On a CPU every core takes batches of its own and waits for no other core."""
    cores = torch.get_num_threads()
    if device.type != "cpu" or cores == 1:
        yield from map(run, batches)
        return
    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as workers:
            yield from workers.map(run, batches)
    finally:
        torch.set_num_threads(cores)


def pool(hidden_BTE: Tensor, lengths_B: Tensor, *, pooling: Pooling) -> Tensor:
    """One float32 vector per text [B, E] from the hidden states of right-padded texts."""
    if pooling == "cls":
        return hidden_BTE[:, 0].float()
    if pooling == "last":
        return hidden_BTE[torch.arange(len(hidden_BTE), device=hidden_BTE.device), lengths_B - 1].float()
    mask_BT1 = (torch.arange(hidden_BTE.shape[1], device=hidden_BTE.device) < lengths_B[:, None]).unsqueeze(-1)
    return (hidden_BTE.float() * mask_BT1).sum(1) / lengths_B[:, None]


def load_encoder(
    name: str,
    *,
    max_tokens: int = 128,
    tokens_per_batch: int | None = None,
    precision: Precision = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Encoder:
    """Load a frozen encoder: ``minilm``, a folder, or the id of a model on the Hugging Face hub.

    `max_tokens` is lowered to what the model has positions for. Raises ConfigError where the model cannot be loaded, or
    its files lack weights.
    """
    checkpoint = load_checkpoint(
        name, as_causal_lm=False, precision=precision, device=device, trust_remote_code=trust_remote_code
    )
    model = checkpoint.model
    is_part = hasattr(model, "encoder") and hasattr(model, "decoder")  # a T5's encoder alone says that it is whole
    needless = ("pooler", "decoder.") if is_part else ("pooler",)
    missing = [key for key in checkpoint.missing if not any(part in key for part in needless)]
    if missing:
        raise ConfigError(f"encoder {name!r} lacks the weights of {', '.join(missing[:3])} ({len(missing)} in all)")
    encoder = encoder_of(
        (model.get_encoder() if is_part else model).requires_grad_(False),
        checkpoint.tokenizer,
        name=checkpoint.name,
        weights=checkpoint.weights,
        max_tokens=min(max_tokens, checkpoint.max_tokens),
        tokens_per_batch=tokens_per_batch,
    )
    return replace(encoder, is_part=is_part)


def encoder_of(
    model: Any,
    tokenizer: Any,
    *,
    name: str,
    weights: str,
    max_tokens: int,
    tokens_per_batch: int | None = None,
    text_map: nn.Module | None = None,
) -> Encoder:
    """An encoder of a frozen model that is there already; its vectors go through `text_map` where there is one."""
    device = next(model.parameters()).device
    text_map = None if text_map is None else text_map.to(device)
    return Encoder(
        model=model,
        tokenizer=tokenizer,
        name=name,
        weights=weights,
        max_tokens=max_tokens,
        width=_width(model, text_map, device),
        tokens_per_batch=tokens_per_batch or (_TOKENS_ON_CPU if device.type == "cpu" else _TOKENS_ON_GPU),
        text_map=text_map,
    )


def tokenize(tokenizer: Any, texts: Sequence[str], *, max_tokens: int) -> list[list[int]]:
    """Token ids of each text, special tokens included, cut to `max_tokens`."""
    if not texts:  # tokenizers take no empty list
        return []
    ids: list[list[int]] = tokenizer(
        [text[: max_tokens * CHARACTERS_PER_TOKEN] for text in texts],
        truncation=True,
        max_length=max_tokens,
        split_special_tokens=True,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"]
    return ids


def _stepped(length: int, limit: int) -> int:
    return min(-(-length // _LENGTH_STEP) * _LENGTH_STEP, max(limit, length))


@torch.inference_mode()
def _width(model: nn.Module, text_map: nn.Module | None, device: torch.device) -> int:
    hidden_11E = model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device)).last_hidden_state.float()
    return int((hidden_11E if text_map is None else text_map(hidden_11E)).shape[-1])
