"""The vectors that fine-tuning reads, made by what an aligned folder holds."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from reeltalk.artifacts import (
    MANIFEST,
    Manifest,
    folder_kind,
    new_folder,
    read_manifest,
    reading_file,
    write_manifest,
)
from reeltalk.data.dataset import Dataset
from reeltalk.errors import ArtifactError, ConfigError
from reeltalk.llm.align import LLM
from reeltalk.llm.causal_lm import read_both_ways
from reeltalk.llm.recommender import LLMRecommender
from reeltalk.llm.settings import AlignSettings
from reeltalk.models.lsvcr import text_map
from reeltalk.text.encode import EncodeSettings, encode, require_same_encoding
from reeltalk.text.encoder import Encoder, encoder_of
from reeltalk.text.lookup import TextLookup
from reeltalk.text.table import KEYS, KIND, VECTORS, TextTable
from reeltalk.training.start import ALIGNED, SEQUENTIAL
from reeltalk.training.system import recorded

_ROWS_AT_ONCE = 65_536


def encode_aligned(
    dataset: Dataset,
    aligned: Path,
    *,
    out: Path,
    settings: EncodeSettings | None = None,
    text: TextTable | None = None,
) -> TextTable:
    """Encode every text of the dataset with the aligned LLM and its text map (`is_mapped` off: without the map).

    Where alignment left the encoder as it was (frozen, or no step with an LLM), the table that it started from is
    mapped, and no LLM runs; `text` is that table, found by the recorded path where not given. Otherwise as `reeltalk
    encode`: killed and run again it goes on, new texts are added. Encoder and precision are the aligned ones, whatever
    the settings. Raises ConfigError where the settings ask for other vectors than alignment saw, ArtifactError where
    the aligned folder or that table is not there any more or lacks texts, or `text` is another.
    """
    settings = settings or EncodeSettings()
    if settings.pooling != "mean" or settings.prefix:
        raise ConfigError(f"{aligned} was aligned with mean pooling and no prefix; leave pooling and prefix out")
    manifest = read_manifest(aligned, ALIGNED)
    if text is not None:
        _require_start(text, aligned, manifest)
    if manifest.facts["trained_encoder"]:
        return encode(dataset, out=out, settings=settings, encoder=aligned_encoder(aligned, settings))
    if not settings.is_mapped:
        raise ConfigError(
            f"{aligned} left the encoder as it was: give fine-tuning the vectors it started from as --text"
        )
    if text is None:
        text = TextTable.load(recorded(aligned, manifest, "text"))
        _require_start(text, aligned, manifest)
    comments = AlignSettings.model_validate(manifest.config).data.comments
    TextLookup.of(dataset, text, with_comments=comments)  # raises where texts are missing
    return _mapped_table(text, aligned, manifest, out)


def _require_start(text: TextTable, aligned: Path, manifest: Manifest) -> None:
    if text.encoding != manifest.parents["text"]:
        raise ArtifactError(
            f"{aligned} started from text vectors {manifest.parents['text']}, but {text.path} holds {text.encoding}; "
            "give the folder it started from as --text, encode that again, or align again"
        )


def aligned_encoder(aligned: Path, settings: EncodeSettings) -> Encoder:
    """The aligned LLM, LoRA merged into its weights, as a frozen encoder; raises as `LLMRecommender.load`."""
    manifest = read_manifest(aligned, ALIGNED)
    recommender = LLMRecommender.load(aligned / LLM, device=settings.device)
    llm = recommender.lora.merge_and_unload()
    model = llm.base_model.requires_grad_(False)
    if recommender.is_made_causal:
        read_both_ways(model)
    return encoder_of(
        model,
        recommender.tokenizer,
        name=f"{recommender.settings.name}, aligned",
        weights=manifest.digest,
        max_tokens=min(settings.max_tokens, recommender.max_tokens),
        tokens_per_batch=settings.tokens_per_batch,
        text_map=_text_map(aligned, manifest, recommender.width) if settings.is_mapped else None,
    )


def is_aligned(folder: str | Path) -> bool:
    """Whether `reeltalk align` wrote, or began, a folder under this name."""
    return folder_kind(Path(folder).expanduser()) == ALIGNED


def _text_map(aligned: Path, manifest: Manifest, width: int) -> nn.Module:
    settings = AlignSettings.model_validate(manifest.config)
    found = text_map(settings.model, width)
    prefix = "text_map."
    with reading_file(aligned / SEQUENTIAL):
        weights = load_file(aligned / SEQUENTIAL)
    found.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    return found.requires_grad_(False).eval()


@torch.inference_mode()
def _mapped_table(table: TextTable, aligned: Path, manifest: Manifest, out: Path) -> TextTable:
    mapped = _text_map(aligned, manifest, table.width)
    width = mapped(torch.zeros(1, table.width)).shape[1]
    config = table.manifest.config | {"weights": manifest.digest, "width": width, "is_mapped": True}
    if (out / MANIFEST).is_file():
        require_same_encoding(out, config)
        held = TextTable.load(out)
        if len(held.vectors) == len(table.vectors):
            return held
    with new_folder(out, kind=KIND, overwrite=True) as partial:
        shape = (len(table.vectors), width)
        vectors = np.lib.format.open_memmap(partial / VECTORS, "w+", np.float16, shape)
        for start in range(0, len(vectors), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            vectors[rows] = mapped(torch.from_numpy(table.vectors[rows].astype(np.float32))).numpy()
        vectors.flush()
        shutil.copyfile(table.path / KEYS, partial / KEYS)
        facts = table.manifest.facts | {"seconds": 0.0, "tokens": 0}  # no LLM ran
        write_manifest(partial, kind=KIND, config=config, parents={}, facts=facts)
    return TextTable.load(out)
