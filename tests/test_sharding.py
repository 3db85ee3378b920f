"""An LLM whose layers are divided over two processes, which have differently much to read, beside whole copies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_llms import save_llm
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from reeltalk.data.instances import Entry
from reeltalk.llm.causal_lm import LLMSettings
from reeltalk.llm.prompts import Prompt, PromptSettings, PromptWriter
from reeltalk.llm.recommender import LLMRecommender
from reeltalk.text.encoder import tokenize

CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("qwen3", {"precision": "float32"}),
    ("bert", {"precision": "bf16"}),
    ("llama", {"precision": "float32", "gradient_checkpointing": True}),
)
NUM_LAYERS = 4
TEXTS = ["a cat on a roof", "bread at home", "so brave", "how high is it?", "cats, all of them, asleep"]
NUM_READ = ((5, 4), (0, 1))  # texts and prompts of each process


def recommender_of(folder: Path, settings: dict[str, Any], *, will_be_sharded: bool = False) -> LLMRecommender:
    torch.manual_seed(0)
    llm = LLMSettings.model_validate({"name": str(folder), "lora_dropout": 0, **settings})
    recommender = LLMRecommender(llm, dim=6, device="cpu", will_be_sharded=will_be_sharded).train()
    for name, parameter in recommender.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return recommender


def prompts_of(recommender: LLMRecommender, number: int) -> list[Prompt]:
    writer = PromptWriter(recommender.tokenizer, PromptSettings(), max_tokens=recommender.max_tokens)
    entries = [Entry(n, TEXTS[n], [TEXTS[-n]]) for n in range(number)]
    return [
        writer.write(entries[:n], entries[n:], task="item", order="items_first", watched=TEXTS[n], target=TEXTS[n])
        for n in range(number)
    ]


def read(recommender: LLMRecommender, rank: int, tokens_kept: int) -> dict[str, Tensor]:
    """What one process makes of its texts and prompts, and the gradients of their sum; twice, as in two steps."""
    num_texts, num_prompts = NUM_READ[rank]
    ids = [[], *tokenize(recommender.tokenizer, TEXTS[:num_texts], max_tokens=20)]
    for _ in range(2):
        torch.manual_seed(1)
        text_UE = recommender.text_vectors(ids, tokens_per_batch=10, tokens_kept=tokens_kept)
        prompts = prompts_of(recommender, num_prompts)
        preference_BD, loss, _ = recommender.read(prompts, tokens_per_batch=150, tokens_kept=tokens_kept)
        (text_UE.square().sum() + preference_BD.square().sum() + loss).backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad for name, p in recommender.named_parameters() if p.grad is not None}
    return found | {"texts": text_UE.detach(), "preferences": preference_BD.detach(), "loss": loss.detach()}


def most_gathered(recommender: LLMRecommender) -> list[int]:
    """It grows at every end of a layer by the number of layers that are whole then."""
    layers = [layer for layer in recommender.llm.base_model.modules() if isinstance(layer, FSDPModule)][1:]
    frozen = [name for name, p in layers[0].named_parameters() if isinstance(p, DTensor)]  # type: ignore[attr-defined]
    seen: list[int] = []

    def count(*_: Any) -> None:
        seen.append(sum(not isinstance(layer.get_parameter(frozen[0]), DTensor) for layer in layers))  # type: ignore[attr-defined]

    for layer in layers:
        layer.register_forward_hook(count)  # type: ignore[attr-defined]
    return seen


def compare(folder: Path, rank: int) -> None:
    for kind, settings in CASES:
        for tokens_kept in (0, 30, 100_000):
            whole = recommender_of(folder / kind, settings)
            expected = read(whole, rank, tokens_kept)
            divided = recommender_of(folder / kind, settings, will_be_sharded=True)
            divided.shard()
            seen = most_gathered(divided)
            found = read(divided, rank, tokens_kept)
            assert found.keys() == expected.keys() and len(found) > 20
            for name, value in expected.items():
                assert torch.equal(found[name], value), (kind, tokens_kept, name)
            held = [p for p in divided.parameters() if isinstance(p, DTensor)]
            assert len(held) > NUM_LAYERS * 8 and all(2 * p.to_local().numel() == p.numel() for p in held)
            assert len(seen) > NUM_LAYERS * 8 and max(seen) <= 1
            if rank == 0 and not tokens_kept:
                whole.save(folder / "whole")
                divided.save(folder / "divided")
                for file in (folder / "whole").iterdir():
                    assert file.read_bytes() == (folder / "divided" / file.name).read_bytes(), file


def test_a_divided_llm_reads_and_learns_as_a_whole_one(tmp_path: Path) -> None:
    """To the bit, with no more than a layer gathered in a forward pass, whatever of it runs again."""
    for kind, _ in CASES:
        save_llm(tmp_path / kind, kind, num_layers=NUM_LAYERS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "GLOO_SOCKET_IFNAME": "lo"}
    running = [
        subprocess.Popen([sys.executable, __file__, str(tmp_path), str(rank)], env=environment) for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=300) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()


def _as_one_of_two(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    compare(folder, rank)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _as_one_of_two(Path(sys.argv[1]), int(sys.argv[2]))
