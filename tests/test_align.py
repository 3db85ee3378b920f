"""Stage 1 as a step: from a folder of an LLM to a fine-tuned model, divided, interrupted, and over two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from tiny_llms import KINDS, save_llm
from toy import with_tables

from reeltalk.artifacts import read_manifest
from reeltalk.config import load_settings, save_settings
from reeltalk.data.dataset import Dataset, Split, Task
from reeltalk.errors import ArtifactError, ConfigError
from reeltalk.llm.align import LLM, align, new_module
from reeltalk.llm.aligned import aligned_encoder, encode_aligned, is_aligned
from reeltalk.llm.feed import AlignBatches, instances_of
from reeltalk.llm.module import AlignModule
from reeltalk.llm.recommender import LLMRecommender
from reeltalk.llm.settings import AlignSettings
from reeltalk.models import build
from reeltalk.models.lsvcr import LSVCR, LSVCRSettings
from reeltalk.text.encode import EncodeSettings, encode
from reeltalk.text.table import TextTable
from reeltalk.training.finetune import finetune
from reeltalk.training.settings import finetune_settings
from reeltalk.training.start import ALIGNED, SEQUENTIAL, start_settings

SMALL_MODEL = {"dim": 16, "num_layers": 1, "inner_dim": 32, "text_dim": 16, "dropout": 0.1, "use_item_ids": False}


def small_settings(folder: Path, **sections: Any) -> AlignSettings:
    values: dict[str, Any] = {
        "llm": {"name": str(folder), "precision": "float32"},
        "prompt": {"max_text_tokens": 6},
        "model": SMALL_MODEL,
        "data": {"history_length": 5, "num_positions": 12},
        "train": {
            "steps": 2,
            "batch_size": 6,
            "warm_steps": 2,
            "warm_batch_size": 8,
            "max_text_tokens": 6,
            "precision": "float32",
            "accelerator": "cpu",
        },
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    return AlignSettings.model_validate(values)


def encoded(dataset: Dataset, llm: Path, out: Path) -> TextTable:
    return encode(dataset, out=out, settings=EncodeSettings(encoder=str(llm), precision="float32", max_tokens=6))


@pytest.fixture(scope="module")
def llms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("llms")
    return {kind: save_llm(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def tables(
    toy_dataset: Dataset, llms: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, TextTable]:
    root = tmp_path_factory.mktemp("texts")
    return {kind: encoded(toy_dataset, folder, root / kind) for kind, folder in llms.items()}


# the whole chain ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_from_an_llm_in_a_folder_to_a_finetuned_model(
    kind: str, toy_dataset: Dataset, llms: dict[str, Path], tables: dict[str, TextTable], tmp_path: Path
) -> None:
    out = tmp_path / "aligned"
    align(toy_dataset, text=tables[kind], settings=small_settings(llms[kind]), out=out)
    facts = read_manifest(out, ALIGNED).facts
    assert set(facts["losses"]) == {"lm", "sr", "prefix", "ssc", "vcc", "teacher"}
    assert facts["prompts"] == 12 and facts["prompt_tokens"] > 12 * 20 and facts["text_tokens"] > 0
    assert is_aligned(out) and not is_aligned(llms[kind]) and not is_aligned(tables[kind].path)
    with pytest.raises(ConfigError, match="aligned with mean pooling"):
        encode_aligned(toy_dataset, out, out=tmp_path / "text", settings=EncodeSettings(pooling="last"))
    assert not (out / "checkpoints").exists()

    settings = EncodeSettings(max_tokens=6)
    text = encode_aligned(toy_dataset, out, out=tmp_path / "text", settings=settings)
    assert text.width == SMALL_MODEL["text_dim"]
    # every vector is LLM(x) of the aligned LLM through the aligned text map
    recommender = LLMRecommender.load(out / LLM, device="cpu")
    raw = encode_aligned(
        toy_dataset, out, out=tmp_path / "raw", settings=settings.model_copy(update={"is_mapped": False})
    )
    texts = toy_dataset.comments["text"].unique(maintain_order=True)[:20]
    ids = aligned_encoder(out, settings).tokenize(texts.to_list())
    with torch.no_grad():
        expected = recommender.text_vectors(ids, tokens_per_batch=64)
    np.testing.assert_allclose(raw.vectors[raw.rows(texts)], expected.numpy(), atol=4e-3)
    assert not np.allclose(raw.vectors[raw.rows(texts)], tables[kind].vectors[tables[kind].rows(texts)], atol=1e-4)
    weights = load_file(out / SEQUENTIAL)
    hidden = torch.nn.functional.gelu(expected @ weights["text_map.0.weight"].T + weights["text_map.0.bias"])
    mapped = hidden @ weights["text_map.2.weight"].T + weights["text_map.2.bias"]
    np.testing.assert_allclose(text.vectors[text.rows(texts)], mapped.numpy(), atol=2e-2)

    runs: tuple[tuple[Task, TextTable, str], ...] = (("item", text, "none"), ("comment", raw, "mlp"))
    for task, table, text_map in runs:
        chosen = finetune_settings("lsvcr", task).model_validate(
            {"data": {"history_length": 20}, "train": {"max_epochs": 1, "batch_size": 16, "accelerator": "cpu"}}
        )
        system = finetune(toy_dataset, text=table, settings=chosen, out=tmp_path / task, start=out)
        assert isinstance(system.settings.model, LSVCRSettings)
        assert (system.settings.model.text_map, system.settings.model.dim) == (text_map, 16)
        assert read_manifest(tmp_path / task, "model").parents["aligned"] == read_manifest(out, ALIGNED).digest


def test_the_first_step_of_finetuning_starts_at_the_aligned_weights(
    toy_dataset: Dataset, llms: dict[str, Path], tables: dict[str, TextTable], tmp_path: Path
) -> None:
    """Learning at a rate of next to nothing, the weights are the aligned ones; a longer position table adds rows."""
    out = tmp_path / "aligned"
    settings = small_settings(llms["qwen3"], train={"steps": 0})
    align(toy_dataset, text=tables["qwen3"], settings=settings, out=out)
    assert not (out / LLM).exists(), "no step with an LLM, no LLM"
    chosen = finetune_settings("lsvcr", "item").model_validate(
        {
            "data": {"history_length": 20},
            "train": {"max_epochs": 1, "learning_rate": 1e-9, "accelerator": "cpu", "precision": "float32"},
        }
    )
    system = finetune(toy_dataset, text=tables["qwen3"], settings=chosen, out=tmp_path / "m", start=out)
    found = system.recommender.state_dict()
    for name, value in load_file(out / SEQUENTIAL).items():
        torch.testing.assert_close(found[name][: len(value)] if value.dim() else found[name], value, atol=1e-6, rtol=0)
    assert len(found["positions.0.weight"]) == 20 and found["positions.0.weight"][12:].any()

    # the table goes through the text map as it stands, without an LLM
    mapped = encode_aligned(toy_dataset, out, out=tmp_path / "mapped")
    keys = np.load(tables["qwen3"].path / "keys.npy")
    assert np.array_equal(np.load(mapped.path / "keys.npy")[: len(keys)], keys)
    assert start_settings(chosen, out, mapped).model.text_map == "none"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="give fine-tuning the vectors it started from"):
        encode_aligned(toy_dataset, out, out=tmp_path / "raw", settings=EncodeSettings(is_mapped=False))


def test_without_any_step_the_start_is_written(
    toy_dataset: Dataset, llms: dict[str, Path], tables: dict[str, TextTable], tmp_path: Path
) -> None:
    """What "no alignment" is where the schedule has no warm start."""
    settings = small_settings(llms["qwen3"], train={"steps": 0, "warm_steps": 0})
    align(toy_dataset, text=tables["qwen3"], settings=settings, out=tmp_path / "aligned")
    assert read_manifest(tmp_path / "aligned", ALIGNED).facts["losses"] == {}
    start = new_module(toy_dataset, tables["qwen3"], settings).recommender.state_dict()
    torch.testing.assert_close(load_file(tmp_path / "aligned" / SEQUENTIAL), dict(start))
    text = encode_aligned(
        toy_dataset, tmp_path / "aligned", out=tmp_path / "text", settings=EncodeSettings(max_tokens=6)
    )
    assert text.width == SMALL_MODEL["text_dim"]


def test_the_start_knows_texts_of_training_targets_alone(
    toy_dataset: Dataset, llms: dict[str, Path], tables: dict[str, TextTable]
) -> None:
    settings, table = small_settings(llms["qwen3"], train={"steps": 0, "warm_steps": 0}), tables["qwen3"]
    held_out = pl.when(pl.col("item_id") % 2 == 0).then(int(Split.TEST)).otherwise("split").cast(pl.UInt8)
    of_train = {
        name: getattr(toy_dataset, name).with_columns(split=held_out) for name in ("item_events", "comment_records")
    }
    dataset = with_tables(toy_dataset, **of_train)
    targets = instances_of(dataset, settings).targets
    titles, comments = dataset.items["title"], dataset.comments["text"]
    learnt = [*titles.gather(targets.item - 1), *comments.gather(targets.comment[targets.comment > 0] - 1)]
    is_other = np.ones(len(table.vectors), np.bool_)
    is_other[table.rows([text for text in learnt if text.strip()])] = False
    start = new_module(dataset, table, settings).recommender.state_dict()
    for where, is_same in ((is_other, True), (~is_other, False)):
        vectors = np.where(where[:, None], np.float16(9), table.vectors)
        other = new_module(dataset, replace(table, vectors=vectors), settings).recommender.state_dict()
        assert torch.equal(other["text_map.0.weight"], start["text_map.0.weight"]) == is_same
    assert 3 < is_other.sum() < len(is_other) - 3


def test_variants_leave_out_what_they_say(
    toy_dataset: Dataset, llms: dict[str, Path], tables: dict[str, TextTable], tmp_path: Path
) -> None:
    def losses(**sections: Any) -> dict[str, float]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        align(toy_dataset, text=tables["bert"], settings=small_settings(llms["bert"], **sections), out=folder)
        found: dict[str, float] = read_manifest(folder, ALIGNED).facts["losses"]
        return found

    everything = {"lm", "sr", "prefix", "ssc", "vcc", "teacher"}
    for name in ("lm", "prefix", "ssc", "vcc"):
        assert set(losses(loss={name: 0})) == everything - {name}
    assert set(losses(loss={"lm": 0, "ssc": 0, "vcc": 0})) == {"sr", "prefix"}
    assert set(losses(encoder="frozen")) == everything
    assert losses(data={"comments": False})["vcc"] == 0, "there is no second history to tell apart"
    frozen = read_manifest(tmp_path / "5", ALIGNED).facts
    assert not frozen["trained_encoder"] and frozen["text_tokens"] == 0


def test_it_learns(toy_dataset: Dataset, llms: dict[str, Path], tables: dict[str, TextTable], tmp_path: Path) -> None:
    """All losses fall well below where they start, and s~ alone finds the target better than chance."""
    rates = {"learning_rate": 0.01, "sequential_learning_rate": 0.005, "head_learning_rate": 0.01}
    train = {"steps": 70, "batch_size": 16, "warm_steps": 0, "checkpoint_seconds": 1000} | rates
    settings = small_settings(llms["qwen3"], llm={"lora_dropout": 0}, model=SMALL_MODEL | {"dropout": 0}, train=train)
    align(toy_dataset, text=tables["qwen3"], settings=settings, out=tmp_path / "a")
    log = pl.read_csv(next((tmp_path / "a" / "logs").glob("*/metrics.csv")))
    for name in ("lm", "sr", "ssc"):
        values = log[f"loss/{name}"].drop_nulls()
        assert values[-2:].mean() < 0.85 * values[0], (name, values.to_list())


# what must not matter -------------------------------------------------------------------------------------------------


def module_of(dataset: Dataset, text: TextTable, settings: AlignSettings) -> AlignModule:
    recommender = build("lsvcr", "item", settings.model, titles=torch.zeros(1, text.width), history_length=12, seed=0)
    assert isinstance(recommender, LSVCR)
    torch.manual_seed(0)
    llm = LLMRecommender(settings.llm, dim=settings.model.dim, device="cpu")
    instances = instances_of(dataset, settings)
    return AlignModule(recommender, llm, AlignBatches(instances, text, settings, llm)).double()


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_step_does_not_depend_on_how_it_goes_through_the_llm(
    kind: str, toy_dataset: Dataset, llms: dict[str, Path], tables: dict[str, TextTable]
) -> None:
    """1 x 16 = 16 x 1, for every loss and every gradient."""
    found = []
    for tokens in (1, 100, 100_000):
        settings = small_settings(
            llms[kind],
            llm={"lora_dropout": 0},
            model=SMALL_MODEL | {"dropout": 0},
            train={"batch_size": 16, "warm_steps": 0, "tokens_per_batch": tokens},
        )
        module = module_of(toy_dataset, tables[kind], settings)
        terms = module.terms(next(iter(module.batches)))
        assert all(count > 0 for _, count in terms.values())
        torch.stack([total / count for total, count in terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        assert any("lora" in name for name in gradients) and any("text_map" in name for name in gradients)
        found.append((terms, gradients))
    for terms, gradients in found[1:]:
        torch.testing.assert_close(terms, found[0][0], rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(gradients, found[0][1], rtol=1e-7, atol=1e-9)


def test_what_goes_through_a_large_llm_at_once_fits_half_of_the_memory(
    toy_dataset: Dataset, llms: dict[str, Path], tables: dict[str, TextTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    def budget(memory: float, **train: Any) -> tuple[int, int]:
        monkeypatch.setattr("reeltalk.llm.module.memory_of", lambda device: memory)
        return module_of(toy_dataset, tables["qwen3"], small_settings(llms["qwen3"], train=train))._budget

    llm = module_of(toy_dataset, tables["qwen3"], small_settings(llms["qwen3"])).llm
    assert llm is not None
    holds_4000 = 2 * (sum(weight.nbytes for weight in llm.parameters()) + 4_000.5 * llm.bytes_a_token())
    assert budget(1 << 50) == (8_192, 32_768)
    assert budget(holds_4000) == (1_000, 3_000)
    assert budget(holds_4000, tokens_per_batch=300, tokens_kept=200) == (300, 200)
    assert budget(0) == (512, 0)
    assert budget(1 << 50, tokens_kept=0) == (8_192, 0)
    shared = budget(holds_4000, devices=2, batch_size=8)
    assert sum(shared) < 2_000


def test_a_killed_run_goes_on_to_the_weights_of_an_unbroken_one(
    toy_dataset: Dataset, llms: dict[str, Path], tables: dict[str, TextTable], tmp_path: Path
) -> None:
    train = {"steps": 20, "warm_steps": 5, "checkpoint_seconds": 0.1}
    settings = small_settings(llms["qwen3"], train=train)
    save_settings(settings, tmp_path / "config.yaml")
    align(toy_dataset, text=tables["qwen3"], settings=settings, out=tmp_path / "unbroken")
    command = [sys.executable, "-m", "reeltalk", "align", str(toy_dataset.path), "--text", str(tables["qwen3"].path)]
    command += ["--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if checkpoint.exists() and steps_of(checkpoint) > 8:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 8 < steps_of(checkpoint) < 25
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert not any("base_layer" in name for name in weights), "what is frozen is in no checkpoint"
    assert is_aligned(tmp_path / "killed")
    with pytest.raises(ArtifactError, match="unfinished"):
        encode_aligned(toy_dataset, tmp_path / "killed", out=tmp_path / "text")
    assert load_settings(AlignSettings, file=tmp_path / "config.yaml") == settings
    align(toy_dataset, text=tables["qwen3"], settings=settings, out=tmp_path / "killed")
    for name in (SEQUENTIAL, f"{LLM}/adapter_model.safetensors", f"{LLM}/preference_adapter.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes(), name
    facts = [read_manifest(tmp_path / name, ALIGNED).facts for name in ("unbroken", "killed")]
    for name in ("prompts", "prompt_tokens", "text_tokens", "losses"):
        assert facts[0][name] == facts[1][name]


def steps_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["global_step"])


def test_two_processes_give_the_weights_of_one(
    toy_dataset: Dataset, llms: dict[str, Path], tables: dict[str, TextTable], tmp_path: Path
) -> None:
    model, llm = SMALL_MODEL | {"dropout": 0}, {"lora_dropout": 0}
    for devices in (1, 2):
        settings = small_settings(llms["qwen3"], model=model, llm=llm, train={"devices": devices})
        save_settings(settings, tmp_path / f"{devices}.yaml")
        command = [sys.executable, "-m", "reeltalk", "align", str(toy_dataset.path)]
        command += ["--text", str(tables["qwen3"].path), "--config", str(tmp_path / f"{devices}.yaml")]
        done = subprocess.run(
            [*command, "--out", str(tmp_path / str(devices))],
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
    for name in (SEQUENTIAL, f"{LLM}/adapter_model.safetensors", f"{LLM}/preference_adapter.safetensors"):
        one, two = (load_file(tmp_path / devices / name) for devices in ("1", "2"))
        # Adam's first steps are signs of gradients: a gradient that is nothing but rounding may turn
        apart = torch.cat([(one[key] - two[key]).abs().flatten() for key in one])
        assert apart.quantile(0.99) < 1e-5, name
    one, two = (read_manifest(tmp_path / devices, ALIGNED).facts for devices in ("1", "2"))
    for name in ("prompts", "prompt_tokens", "dropped_events", "shortened_texts"):
        assert one[name] == two[name], name
    assert one["prompts"] == 12
    assert two["text_tokens"] >= one["text_tokens"], "a text that both processes meet is read twice"
    assert two["losses"] == pytest.approx(one["losses"], abs=2e-4)


def test_a_divided_llm_changes_nothing_also_after_a_kill(
    toy_dataset: Dataset, llms: dict[str, Path], tables: dict[str, TextTable], tmp_path: Path
) -> None:
    """Two processes with a part of the LLM each: to the bit what they give with a copy each."""
    model, llm = SMALL_MODEL | {"dropout": 0}, {"lora_dropout": 0}  # a batch that fills up has draws of its own
    train = {"devices": 2, "steps": 22, "warm_steps": 3, "tokens_per_batch": 150, "tokens_kept": 600}
    command = [sys.executable, "-m", "reeltalk", "align", str(toy_dataset.path), "--text", str(tables["bert"].path)]
    for name, more in (("whole", {}), ("divided", {"shard_llm": True, "checkpoint_seconds": 0.1})):
        settings = small_settings(llms["bert"], model=model, llm=llm, train=train | more)
        save_settings(settings, tmp_path / f"{name}.yaml")
        run = [*command, "--config", str(tmp_path / f"{name}.yaml"), "--out", str(tmp_path / name)]
        if more:
            process = subprocess.Popen(
                run, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
            )
            checkpoint = tmp_path / name / "checkpoints" / "last.ckpt"
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                if checkpoint.exists() and steps_of(checkpoint) > 4:
                    break
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert 4 < steps_of(checkpoint) < 25
            weights = torch.load(checkpoint, weights_only=True)["state_dict"]
            assert not any("base_layer" in name for name in weights), "what is frozen is in no checkpoint"
        done = subprocess.run(run, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / LLM).iterdir())
    assert files == sorted(path.relative_to(tmp_path / "divided") for path in (tmp_path / "divided" / LLM).iterdir())
    for file in (Path(SEQUENTIAL), *files):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "divided" / file).read_bytes(), file
    whole, divided = (read_manifest(tmp_path / name, ALIGNED).facts for name in ("whole", "divided"))
    for name in ("prompts", "prompt_tokens", "text_tokens", "losses", "num_parameters"):
        assert whole[name] == divided[name], name


# errors ---------------------------------------------------------------------------------------------------------------


def test_what_does_not_belong_together_is_refused(
    toy_dataset: Dataset, llms: dict[str, Path], tables: dict[str, TextTable], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"holds vectors of encoder 'llama'.*--encoder .*qwen3"):
        align(toy_dataset, text=tables["llama"], settings=small_settings(llms["qwen3"]), out=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ConfigError, match="do not divide by 5"):
        align(
            toy_dataset,
            text=tables["qwen3"],
            settings=small_settings(llms["qwen3"], train={"devices": 5}),
            out=tmp_path / "a",
        )
    with pytest.raises(ValueError, match="shard_llm divides the LLM over processes; give devices above 1"):
        small_settings(llms["qwen3"], train={"shard_llm": True})
    with pytest.raises(ValueError, match="leave use_item_ids off"):
        small_settings(llms["qwen3"], model=SMALL_MODEL | {"use_item_ids": True})
    with pytest.raises(ValueError, match="leave use_recency off"):
        small_settings(llms["qwen3"], model=SMALL_MODEL | {"use_recency": True})
    with pytest.raises(ValueError, match="does not fit num_positions=12"):
        small_settings(llms["qwen3"], data={"history_length": 13, "num_positions": 12})
    with pytest.raises(ValueError, match="the warm start learns by"):
        small_settings(llms["qwen3"], loss={"sr": 0, "prefix": 0})
    align(
        toy_dataset,
        text=tables["qwen3"],
        settings=small_settings(llms["qwen3"], train={"steps": 0}),
        out=tmp_path / "b",
    )

    def start(values: dict[str, Any], kind: str = "qwen3", name: str = "lsvcr") -> None:
        settings = finetune_settings(name, "item").model_validate(values)
        finetune(toy_dataset, text=tables[kind], settings=settings, out=tmp_path / "m", start=tmp_path / "b")

    with pytest.raises(ArtifactError, match=r"llama was not encoded by .*--encoder"):
        start({}, kind="llama")
    with pytest.raises(ConfigError, match=r"model\.dim=32, but it starts from .* where it is 16"):
        start({"model": {"dim": 32}})
    with pytest.raises(ConfigError, match="'sasrec' has no aligned start"):
        start({}, name="sasrec")
    with pytest.raises(ConfigError, match=r"positions\.0\.weight of shape \[12, 16\].*raise data\.history_length"):
        start({"data": {"history_length": 4}})
    # a section that is given in part, with the rest filled in, is no wish for other sizes
    partly = load_settings(finetune_settings("lsvcr", "item"), overrides=["model.use_item_ids=false"])
    assert start_settings(partly, tmp_path / "b", tables["qwen3"]).model.dim == 16  # type: ignore[attr-defined]
    with pytest.raises(ArtifactError, match="holds a text, expected a"):
        is_model = tables["qwen3"].path
        finetune(
            toy_dataset,
            text=tables["qwen3"],
            settings=finetune_settings("lsvcr", "item")(),  # type: ignore[call-arg]
            out=tmp_path / "m",
            start=is_model,
        )


# the text map's start -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "linear", "none"])
def test_the_text_map_starts_as_a_whitened_pca(kind: str) -> None:
    torch.manual_seed(0)
    text_UE = torch.randn(500, 24) @ torch.randn(24, 24) + 3 * torch.randn(24)
    settings = LSVCRSettings.model_validate(
        {"dim": 8, "num_heads": 2, "text_dim": 12, "text_map": kind, "use_item_ids": False}
    )
    model = build("lsvcr", "item", settings, titles=torch.zeros(1, 24), history_length=5, seed=0)
    assert isinstance(model, LSVCR)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.start_text_map(text_UE)
    if kind == "none":
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        return
    rank = {"mlp": 3, "linear": 8}[kind]  # 24 // 4 hidden units, two a component
    with torch.no_grad():
        found = model.text_adapter(model.text_map(text_UE))[:, :rank]
    centred = text_UE - text_UE.mean(0)
    _, deviation, direction = torch.linalg.svd(centred, full_matrices=False)
    expected = centred @ direction[:rank].T / deviation[:rank] * 499**0.5
    expected *= (found * expected).sum(0).sign()  # a direction has none
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.T.cov(), torch.eye(rank), atol=1e-3, rtol=0)


def test_a_new_models_text_map_starts_from_the_titles_of_items_with_events() -> None:
    torch.manual_seed(0)
    titles_NE = torch.randn(300, 24) @ torch.randn(24, 24)
    titles_NE[0] = titles_NE[250:260] = 0
    known_N = torch.arange(300) % 3 > 0
    known_N[0] = False
    settings = LSVCRSettings(dim=8, num_heads=2, text_dim=12, text_map="linear")
    more = {"titles": titles_NE, "known_items": known_N, "history_length": 5, "seed": 0}
    model = build("lsvcr", "item", settings, **more)  # type: ignore[arg-type]
    is_learnt_N = known_N & titles_NE.any(1)
    assert isinstance(model, LSVCR) and 0 < is_learnt_N.sum() < known_N.sum()
    with torch.no_grad():
        found = model.text_adapter(model.text_map(titles_NE[is_learnt_N]))
    torch.testing.assert_close(found.mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.T.cov(), torch.eye(8), atol=1e-3, rtol=0)
    drawn = build("lsvcr", "item", settings, **more, is_loaded=True).state_dict()  # type: ignore[arg-type]
    assert not torch.allclose(drawn["text_adapter.weight"], model.text_adapter.weight)
