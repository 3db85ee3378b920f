"""`reeltalk encode` with MiniLM: the whole step, from texts to a finished folder, and what bf16 costs in precision.

python -m benchmarks.encode --texts comments.parquet
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import polars as pl
import torch
import transformers  # noqa: F401  (starting the process is not what is timed, here and at the peer)

from benchmarks import texts
from benchmarks.rows import Measurement, emit, peak_memory_mib, versions
from reeltalk.text.encode import EncodeSettings, encode_texts
from reeltalk.text.encoder import load_encoder
from reeltalk.text.table import TextTable

PACKAGES = ("torch", "transformers", "tokenizers", "polars")


def main() -> None:
    """Print throughput, memory, and the cosine to float32."""
    chosen = texts.arguments(__doc__)
    comments = texts.comments(chosen.texts, seed=chosen.seed)
    note = f"{texts.origin(chosen.texts)}; median of {chosen.repeats}; loading the model included"

    def ours(name: str, value: float, unit: str) -> None:
        emit(Measurement(name=name, value=value, unit=unit, seed=chosen.seed, note=note, versions=versions(PACKAGES)))

    with tempfile.TemporaryDirectory() as scratch:
        seconds = []
        for repeat in range(chosen.repeats):
            start = time.perf_counter()
            table = encode_texts(
                pl.Series(comments),
                out=Path(scratch) / str(repeat),
                settings=EncodeSettings(max_tokens=texts.MAX_TOKENS, device="cpu"),
            )
            seconds.append(time.perf_counter() - start)
        elapsed = statistics.median(seconds)
        ours(texts.THROUGHPUT, len(comments) / elapsed, "comments/s")
        ours("encode: tokens of distinct texts", table.manifest.facts["tokens"] / elapsed, "tokens/s")
        ours("encode: peak memory", peak_memory_mib(), "MiB")
        lowest, mean = cosine_to_float32(table, comments)
    note = f"{texts.origin(chosen.texts)}; {table.manifest.config['precision']} against float32, all texts"
    ours("encode: lowest cosine to float32", lowest, "")
    ours("encode: mean cosine to float32", mean, "")


def cosine_to_float32(table: TextTable, comments: list[str]) -> tuple[float, float]:
    """Lowest and mean cosine between the table's vectors and those of the same encoder in float32."""
    exact = load_encoder("minilm", max_tokens=texts.MAX_TOKENS, precision="float32", device="cpu")
    reference = exact.encode(exact.tokenize(comments), pooling="mean")
    held = torch.from_numpy(table.vectors[table.rows(comments)]).float()
    cosine = torch.cosine_similarity(held, reference)
    return cosine.min().item(), cosine.mean().item()


if __name__ == "__main__":
    main()
