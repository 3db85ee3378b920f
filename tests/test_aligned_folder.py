"""What an aligned folder stands on and survives: moved parents, other weights, a kill at its end, an LLM in bf16."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from test_align import encoded, small_settings
from tiny_chains import write_config
from tiny_llms import save_llm
from toy import with_tables
from typer.testing import CliRunner, Result

from reeltalk import api
from reeltalk.artifacts import PROGRESS, is_finished, read_manifest
from reeltalk.cli import app
from reeltalk.config import save_settings
from reeltalk.data.dataset import Dataset
from reeltalk.errors import ArtifactError, ConfigError
from reeltalk.experiments.chain import load_chain
from reeltalk.experiments.runner import run_chain
from reeltalk.llm import align as command
from reeltalk.llm.align import LLM, align, parents_of
from reeltalk.llm.aligned import encode_aligned
from reeltalk.llm.causal_lm import LLMSettings
from reeltalk.llm.module import AlignModule
from reeltalk.llm.recommender import LLMRecommender
from reeltalk.text.encode import EncodeSettings, encode
from reeltalk.text.table import TextTable
from reeltalk.training.settings import TrainerSettings
from reeltalk.training.start import ALIGNED, SEQUENTIAL
from reeltalk.training.trainer import CHECKPOINTS, new_trainer


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llm(tmp_path_factory.mktemp("llm") / "qwen3", "qwen3")


@pytest.fixture(scope="module")
def text(toy_dataset: Dataset, llm: Path, tmp_path_factory: pytest.TempPathFactory) -> TextTable:
    return encoded(toy_dataset, llm, tmp_path_factory.mktemp("text") / "text")


@pytest.fixture(scope="module")
def warm(toy_dataset: Dataset, llm: Path, text: TextTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warm start alone, whose encoder is as it was."""
    out = tmp_path_factory.mktemp("warm") / "aligned"
    align(toy_dataset, text=text, settings=small_settings(llm, train={"steps": 0}), out=out)
    return out


def stops(*_: object, **__: object) -> NoReturn:
    raise InterruptedError("killed")


def invoked(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# parents --------------------------------------------------------------------------------------------------------------


def test_without_text_vectors_the_command_makes_them_first(toy_dataset: Dataset, llm: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "align.yaml", tmp_path / "aligned"
    save_settings(small_settings(llm, train={"steps": 0}), file)
    done = invoked("align", toy_dataset.path, "--llm", llm, "--config", file, "--out", out)
    assert done.exit_code == 0, done.output
    made = TextTable.load(tmp_path / "aligned-text")
    assert (made.manifest.config["encoder"], made.manifest.config["precision"]) == (llm.name, "float32")
    assert read_manifest(out, ALIGNED).parents["text"] == made.encoding
    refused = invoked("align", toy_dataset.path, "--config", file, "--set", "encoder=frozen", "--out", tmp_path / "f")
    assert refused.exit_code == 2
    assert "give --text" in refused.stderr
    assert not (tmp_path / "f-text").exists()


def test_the_table_it_started_from_may_be_moved(
    toy_dataset: Dataset, llm: Path, text: TextTable, warm: Path, tmp_path: Path
) -> None:
    there, moved, out = tmp_path / "text", tmp_path / "moved", tmp_path / "aligned"
    shutil.copytree(text.path, there)
    align(toy_dataset, text=TextTable.load(there), settings=small_settings(llm, train={"steps": 0}), out=out)
    there.rename(moved)
    with pytest.raises(ArtifactError, match=r"aligned was made from the text at .*text, which is gone; give --text"):
        encode_aligned(toy_dataset, out, out=tmp_path / "mapped")
    other = encode(toy_dataset, out=tmp_path / "other", settings=EncodeSettings(encoder=str(llm), max_tokens=4))
    with pytest.raises(ArtifactError, match=r"started from text vectors .*other holds .*--text"):
        encode_aligned(toy_dataset, out, out=tmp_path / "mapped", text=other)
    done = invoked("encode", toy_dataset.path, "--encoder", out, "--text", moved, "--out", tmp_path / "mapped")
    assert done.exit_code == 0, done.output
    expected = encode_aligned(toy_dataset, warm, out=tmp_path / "expected")
    assert np.array_equal(TextTable.load(tmp_path / "mapped").vectors, expected.vectors)


def test_wherever_an_encoder_is_named_it_may_be_an_aligned_folder(
    toy_dataset: Dataset, text: TextTable, warm: Path, tmp_path: Path
) -> None:
    settings = EncodeSettings(encoder=str(warm))
    expected = encode_aligned(toy_dataset, warm, out=tmp_path / "expected")
    assert np.array_equal(api.encode(toy_dataset, out=tmp_path / "text", settings=settings).vectors, expected.vectors)
    with pytest.raises(ConfigError, match="is what an aligned folder started from, but 'minilm' is none"):
        api.encode(toy_dataset, out=tmp_path / "other", text=text)
    with pytest.raises(ConfigError, match="is_mapped=false is for an aligned folder, but 'minilm' is none"):
        api.encode(toy_dataset, out=tmp_path / "other", settings=EncodeSettings(is_mapped=False))
    file = write_config(tmp_path / "chain.yaml", dataset=str(toy_dataset.path), encode={"encoder": str(warm)})
    for made in run_chain(load_chain(file, overrides=["finetune.comment=null"]), out=tmp_path / "chain"):
        if made.step == "text":
            assert np.array_equal(TextTable.load(made.folder).vectors, expected.vectors)
            break


def test_texts_that_the_table_lacks_are_told_at_once(toy_dataset: Dataset, llm: Path, tmp_path: Path) -> None:
    settings = EncodeSettings(encoder=str(llm), precision="float32", max_tokens=6, texts=("items",))
    titles = encode(toy_dataset, out=tmp_path / "titles", settings=settings)
    with pytest.raises(ArtifactError, match=r"titles lacks .* texts"):
        align(toy_dataset, text=titles, settings=small_settings(llm, train={"steps": 0}), out=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    without = small_settings(llm, train={"steps": 0}, data={"comments": False})
    align(toy_dataset, text=titles, settings=without, out=tmp_path / "without")
    assert len(encode_aligned(toy_dataset, tmp_path / "without", out=tmp_path / "mapped").vectors) == len(
        titles.vectors
    )


def test_texts_that_came_after_alignment_are_asked_of_the_table_it_started_from(
    toy_dataset: Dataset, text: TextTable, warm: Path, tmp_path: Path
) -> None:
    encode_aligned(toy_dataset, warm, out=tmp_path / "mapped")
    renamed = toy_dataset.items.with_columns(title=pl.lit("a title of its own"))
    with pytest.raises(ArtifactError, match=f"{text.path} lacks 60 of 60 texts"):
        encode_aligned(with_tables(toy_dataset, items=renamed), warm, out=tmp_path / "mapped")


def test_another_llm_under_the_same_name_is_noticed(
    toy_dataset: Dataset, llm: Path, text: TextTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the encoder is frozen, the table does not tell which LLM it is that reads the prompts."""
    named = tmp_path / "llm"
    shutil.copytree(llm, named)
    settings = small_settings(named, encoder="frozen")
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(command, "_finish", stops)
        align(toy_dataset, text=text, settings=settings, out=tmp_path / "begun")
    align(toy_dataset, text=text, settings=settings, out=tmp_path / "done")
    held = read_manifest(tmp_path / "done", ALIGNED)
    assert set(held.parents) == {"dataset", "text", "llm"}
    asked: dict[str, Any] = {"kind": ALIGNED, "config": settings.model_dump(mode="json")}
    assert is_finished(tmp_path / "done", **asked, parents=parents_of(toy_dataset, text, settings))
    save_llm(named, "qwen3", seed=1)
    with pytest.raises(ArtifactError, match=r"begun with other settings \(parents\.llm: "):
        align(toy_dataset, text=text, settings=settings, out=tmp_path / "begun")
    with pytest.raises(ArtifactError, match=r"made with other settings \(llm: "):
        is_finished(tmp_path / "done", **asked, parents=parents_of(toy_dataset, text, settings))
    for known in (small_settings(named), small_settings(named, encoder="frozen", train={"steps": 0})):
        assert set(parents_of(toy_dataset, text, known)) == {"dataset", "text"}


# the end of a run -----------------------------------------------------------------------------------------------------


def test_a_run_killed_before_its_manifest_does_nothing_twice(
    toy_dataset: Dataset, llm: Path, text: TextTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(llm, train={"checkpoint_seconds": 1e-9})
    align(toy_dataset, text=text, settings=settings, out=tmp_path / "unbroken")
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(command, "write_manifest", stops)
        align(toy_dataset, text=text, settings=settings, out=tmp_path / "killed")
    monkeypatch.setattr(AlignModule, "training_step", stops)
    align(toy_dataset, text=text, settings=settings, out=tmp_path / "killed")
    for name in (SEQUENTIAL, f"{LLM}/adapter_model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes(), name
    assert not (tmp_path / "killed" / CHECKPOINTS).exists()


def test_a_run_killed_behind_its_manifest_is_finished(
    toy_dataset: Dataset, llm: Path, text: TextTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, out = small_settings(llm, train={"steps": 0, "checkpoint_seconds": 1e-9}), tmp_path / "aligned"
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(shutil, "rmtree", stops)
        align(toy_dataset, text=text, settings=settings, out=out)
    assert any((out / CHECKPOINTS).iterdir())
    (out / PROGRESS).write_text("{}")  # it goes after the manifest is there
    before = read_manifest(out, ALIGNED)
    assert not any(name.startswith(CHECKPOINTS) for name in before.files)
    with pytest.raises(ArtifactError, match="already exists"):
        align(toy_dataset, text=text, settings=settings, out=out)
    shutil.rmtree(out / CHECKPOINTS)
    assert read_manifest(out, ALIGNED) == before
    encode_aligned(toy_dataset, out, out=tmp_path / "text")


# devices and precision ------------------------------------------------------------------------------------------------


def test_the_llm_is_loaded_where_the_run_is(
    toy_dataset: Dataset, llm: Path, text: TextTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the processor where that is asked for, though there is a GPU; on a GPU of its own in each process."""
    asked: list[str] = []

    def load(settings: object, *, dim: int, device: str, will_be_sharded: bool) -> NoReturn:
        asked.append(device)
        stops()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(command, "LLMRecommender", load)
    with pytest.raises(InterruptedError), pytest.warns(UserWarning, match="GPU available but not used"):
        align(toy_dataset, text=text, settings=small_settings(llm), out=tmp_path / "a")
    assert asked == ["cpu"]
    whole_process: Any = rank_zero_only
    monkeypatch.setattr(whole_process, "rank", whole_process.rank)  # a trainer sets it for the whole process
    for rank in range(2):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        settings = TrainerSettings(devices=2, accelerator="gpu", precision="float32")
        assert new_trainer(tmp_path, settings).strategy.root_device == torch.device("cuda", rank)


def test_an_llm_given_by_a_relative_path_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_llm(tmp_path / "models" / "tiny", "llama")
    monkeypatch.chdir(tmp_path)
    LLMRecommender(LLMSettings(name="models/tiny", precision="float32"), dim=4, device="cpu").save(tmp_path / "llm")
    monkeypatch.chdir(tmp_path / "models")
    assert LLMRecommender.load(tmp_path / "llm", device="cpu").settings.name == str(tmp_path / "models" / "tiny")
