"""`reeltalk encode`: every distinct text of a dataset once through an encoder, into a text table.

Texts are taken longest first, in blocks. A block is the unit of work: its vectors do not depend on what was encoded
before, and it counts whole or not at all. So a run that was killed goes on after its last block and ends with the bytes
of an unbroken run, and new texts are added behind the old rows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from reeltalk.artifacts import MANIFEST, read_manifest, reading_file, resumable_folder, write_manifest
from reeltalk.data.dataset import Dataset
from reeltalk.errors import ArtifactError, ConfigError
from reeltalk.lock import only_writer
from reeltalk.memory import keep_freed_memory
from reeltalk.text.checkpoint import OFFLINE, Precision
from reeltalk.text.encoder import Encoder, Pooling, load_encoder
from reeltalk.text.packed import pack_linears
from reeltalk.text.store import Store
from reeltalk.text.table import KIND, TextTable, is_empty, key_frame, text_keys

BLOCK = 2_048  # texts; what a kill can cost
_TEXTS = {"items": "title", "comments": "text"}
_BYTES_SORTED = 4_096  # longer texts are all cut to the same number of tokens


class EncodeSettings(BaseModel):
    """Which texts become vectors, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: str = Field(default=OFFLINE, description="minilm (offline), a folder, or the id of a Hugging Face model")
    pooling: Pooling = Field(
        default="mean", description="mean over tokens, last token (causal LMs), or cls (first token)"
    )
    max_tokens: int = Field(default=128, ge=1, description="longer texts are cut; lowered to the model's positions")
    prefix: str = Field(default="", description="put before every text, as instruction-tuned encoders want it")
    texts: tuple[Literal["items", "comments"], ...] = Field(default=("items", "comments"), min_length=1)
    precision: Precision = Field(default="auto", description="auto: bf16 where the processor multiplies it natively")
    tokens_per_batch: int | None = Field(default=None, ge=1, description="default: what is fast on the device")
    device: str = Field(default="auto", description="auto: a GPU where there is one")
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model")
    is_mapped: bool = Field(default=True, description="of an aligned folder: vectors go through its text map")


def encode(
    dataset: Dataset, *, out: Path, settings: EncodeSettings | None = None, encoder: Encoder | None = None
) -> TextTable:
    """Encode the titles and comments of a dataset into the text folder `out`; only texts it does not hold yet.

    `encoder` is the one that the settings name unless given. Killed and run again, it goes on where it was. Raises
    ConfigError where the encoder cannot be loaded, ArtifactError where `out` holds vectors of another encoder or other
    settings, or something else.
    """
    settings = settings or EncodeSettings()
    parts = []
    for name in settings.texts:
        path = dataset.path / f"{name}.parquet"
        with reading_file(path):
            parts.append(pl.scan_parquet(path).select(pl.col(_TEXTS[name]).cast(pl.String)).unique().collect())
    texts = pl.concat([part.to_series() for part in parts]).unique()
    return encode_texts(texts, out=out, settings=settings, encoder=encoder)


def encode_texts(
    texts: pl.Series, *, out: Path, settings: EncodeSettings | None = None, encoder: Encoder | None = None
) -> TextTable:
    """The same for any texts. Null and white space get no row."""
    settings = settings or EncodeSettings()
    keep_freed_memory()
    encoder = encoder or load_encoder(
        settings.encoder,
        max_tokens=settings.max_tokens,
        tokens_per_batch=settings.tokens_per_batch,
        precision=settings.precision,
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
    )
    pack_linears(encoder.model, rows=encoder.tokens_per_batch)
    config = _identity(encoder, settings)
    if (finished := _finished(texts, out, config)) is not None:
        return finished
    with only_writer(out):
        if (out / MANIFEST).is_file():
            require_same_encoding(out, config)
        else:
            resumable_folder(out, kind=KIND, config=config, parents={})
        try:
            store = Store(out, width=encoder.width)
            _encode_blocks(encoder, _missing(texts, store.keys()), store=store, settings=settings)
            store.finish()
        except OSError as error:
            raise ArtifactError(
                f"{out} cannot be written ({error}); mend that and run again, it goes on where it was"
            ) from error
        write_manifest(out, kind=KIND, config=config, parents={}, facts=asdict(store.done))
        store.close()
        return TextTable.load(out)


def _identity(encoder: Encoder, settings: EncodeSettings) -> dict[str, Any]:
    """What makes two vectors of a text the same, up to rounding."""
    return {
        "encoder": encoder.name,
        "weights": encoder.weights,
        "width": encoder.width,
        "pooling": settings.pooling,
        "max_tokens": encoder.max_tokens,
        "prefix": settings.prefix,
        "precision": encoder.precision,
    } | ({} if encoder.text_map is None else {"is_mapped": True})


def _finished(texts: pl.Series, out: Path, config: Mapping[str, Any]) -> TextTable | None:
    """The finished table, where it holds all of these texts: read without a lock, which several processes may want."""
    if not (out / MANIFEST).is_file():
        return None
    require_same_encoding(out, config)
    table = TextTable.load(out)
    return table if _missing(texts, table.keys).is_empty() else None


def require_same_encoding(out: Path, config: Mapping[str, Any]) -> None:
    """Raise ArtifactError, naming what differs, where the finished folder holds other vectors of the same texts."""
    held = read_manifest(out, KIND).config
    changed = [
        f"{key}: {held.get(key)!r} there, {value!r} now" for key, value in config.items() if held.get(key) != value
    ]
    if changed:
        raise ArtifactError(
            f"{out} holds the vectors of another encoder or other settings ({'; '.join(changed)}); "
            "give the ones it was made with, or choose another folder"
        )


def _missing(texts: pl.Series, keys: NDArray[np.uint64]) -> pl.DataFrame:
    """Distinct texts without a row, with their keys; longest first, then by key, whatever order they came in."""
    texts = texts.filter(~is_empty(texts)).unique()
    frame = key_frame(text_keys(texts)).with_columns(
        texts.alias("text"), size=texts.str.len_bytes().clip(upper_bound=_BYTES_SORTED)
    )
    return frame.join(key_frame(keys), on=["first", "second"], how="anti").sort(
        "size", "first", "second", descending=[True, False, False]
    )


def _encode_blocks(encoder: Encoder, missing: pl.DataFrame, *, store: Store, settings: EncodeSettings) -> None:
    columns = (TextColumn("encoding texts"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        # bytes stand for work: the number of tokens is known only when a block's turn comes
        task = progress.add_task("", total=int(missing["size"].sum() or 0), speed="")
        for block in missing.iter_slices(BLOCK):
            started = time.perf_counter()
            ids = encoder.tokenize([settings.prefix + text for text in block["text"]])
            lengths = [len(row) for row in ids]
            bytes_per_token = int(block["size"].sum()) / max(1, sum(lengths))

            def advance(tokens: int, factor: float = bytes_per_token) -> None:
                progress.advance(task, tokens * factor)

            vectors = encoder.encode(ids, pooling=settings.pooling, on_batch=advance)
            store.append(
                block.select("first", "second").to_numpy(),
                _half(vectors.numpy(), encoder.name),
                tokens=sum(lengths),
                cut=sum(length == encoder.max_tokens for length in lengths),
                seconds=time.perf_counter() - started,
            )
            speed = f"{store.done.tokens / store.done.seconds:,.0f} tokens/s"
            progress.update(task, speed=speed)
            if not progress.console.is_terminal:  # a bar is drawn once there, at its end
                told = progress.tasks[0]
                progress.console.print(f"encoding texts: {told.percentage:.0f}% in {told.elapsed or 0:.0f} s, {speed}")


def _half(vectors: NDArray[np.float32], name: str) -> NDArray[np.float16]:
    limit = float(np.finfo(np.float16).max)
    largest = float(np.abs(vectors).max(initial=0.0))
    if not largest <= limit:  # not a number counts as too large
        raise ConfigError(
            f"encoder {name!r} gives values up to {largest}, float16 holds {limit}; use another pooling or encoder"
        )
    return vectors.astype(np.float16)
