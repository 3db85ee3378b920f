"""`reeltalk align` with the offline LLM on a simulated platform, beside that LLM's own forward and backward passes.

python -m benchmarks.align
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks import logs
from benchmarks.rows import Measurement, emit, peak_memory_mib, versions
from reeltalk.data.dataset import Dataset
from reeltalk.llm.align import new_module
from reeltalk.llm.causal_lm import LLMSettings
from reeltalk.llm.recommender import LLMRecommender
from reeltalk.llm.settings import AlignSettings
from reeltalk.memory import keep_freed_memory
from reeltalk.text.encode import encode
from reeltalk.text.table import TextTable
from reeltalk.training.trainer import fit, new_trainer

PACKAGES = ("torch", "transformers", "peft", "lightning")
STEPS, BATCH = 8, 32
Shape = tuple[int, int]


def main() -> None:
    """Print tokens a second of whole steps and of the LLM alone, and what a step holds in memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        dataset = logs.platform_of(out / "data", seed=seed)
        text = encode(dataset, out=out / "text")
        counts, shapes = aligned(dataset, text, out / "aligned", seed)
    tokens = counts["prompt_tokens"] + counts["text_tokens"]
    note = f"batch {BATCH}, {counts['prompt_tokens']:,} tokens of prompts, {counts['text_tokens']:,} of texts"
    own = own_rate(shapes)

    def ours(name: str, value: float, unit: str, note: str = "") -> None:
        emit(Measurement(name=name, value=value, unit=unit, seed=seed, note=note, versions=versions(PACKAGES)))

    ours("align: tokens through whole steps", tokens / counts["seconds"], "tokens/s", note)
    ours("align: the LLM alone, forward and backward", own, "tokens/s", "full batches of the same shapes")
    ours("align: whole steps against the LLM alone", tokens / counts["seconds"] / own, "")
    ours("align: peak memory", peak_memory_mib(), "MiB", "encoding before it included")


def aligned(dataset: Dataset, text: TextTable, out: Path, seed: int) -> tuple[dict[str, Any], Counter[Shape]]:
    """Some steps of the real thing: its counts, and the batches that go through the LLM, each counted once."""
    train = {"steps": STEPS, "batch_size": BATCH, "warm_steps": 0, "seed": seed}
    module = new_module(dataset, text, AlignSettings.model_validate({"train": train}))
    assert module.llm is not None
    shapes: Counter[Shape] = Counter()
    hook = module.llm.llm.base_model.register_forward_hook(
        lambda layer, args, options, result: shapes.update([tuple(options["input_ids"].shape)]), with_kwargs=True
    )
    with torch.no_grad():  # in training, some batches run twice
        for example in module.batches:
            module.terms(example)
    hook.remove()
    trainer = new_trainer(out, module.settings, max_steps=STEPS, max_epochs=-1)
    fit(trainer, module, out, is_resumed=False)
    return module.counts, shapes


def own_rate(shapes: Counter[Shape]) -> float:
    """Tokens a second of forward and backward passes, LoRA included, over batches without any padding."""
    llm = LLMRecommender(LLMSettings(), dim=64).train()
    seconds = 0.0
    for place, (shape, count) in enumerate(shapes.items()):
        ids_BT = torch.randint(1_000, 20_000, shape)
        for run in range(count + (place == 0)):
            start = time.perf_counter()
            llm.hidden_states(ids_BT).float().mean().backward()  # type: ignore[no-untyped-call]
            if run or place:  # the first of all warms up
                seconds += time.perf_counter() - start
    return sum(rows * length * count for (rows, length), count in shapes.items()) / seconds


if __name__ == "__main__":
    main()
