"""Pre-training as a step: what its folder holds, that it goes on where it was, and what may start from it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import write_text_table

from reeltalk.artifacts import _content_digest, file_digest, read_manifest, write_manifest
from reeltalk.config import save_settings
from reeltalk.data.batch import Batch, ItemTargets
from reeltalk.data.dataset import Dataset, Split
from reeltalk.data.prepare import PrepareSettings, prepare
from reeltalk.errors import ArtifactError, ConfigError
from reeltalk.pretraining import PRETRAINING
from reeltalk.text.table import KEYS, KIND, VECTORS, TextTable
from reeltalk.training.finetune import finetune
from reeltalk.training.module import Example, FinetuneModule
from reeltalk.training.pretrain import PretrainSettings, pretrain, pretrain_settings
from reeltalk.training.settings import FinetuneSettings, finetune_settings
from reeltalk.training.start import PRETRAINED, start_from
from reeltalk.training.system import WEIGHTS, System, load_system

SMALL: dict[str, dict[str, Any]] = {
    "s3rec": {"dim": 16, "num_layers": 1, "inner_dim": 32, "dropout": 0.1},
    "unisrec": {"dim": 16, "num_layers": 1, "inner_dim": 32, "dropout": 0.1, "num_experts": 2},
    "vqrec": {"dim": 16, "num_layers": 1, "inner_dim": 32, "dropout": 0.1, "num_codebooks": 4, "num_codes": 8},
}
TRAIN = {"max_epochs": 2, "batch_size": 16, "learning_rate": 0.01, "precision": "float32", "accelerator": "cpu"}


@pytest.fixture(scope="module")
def toy_text(toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> TextTable:
    return write_text_table(toy_dataset, tmp_path_factory.mktemp("toy") / "text")


@pytest.fixture(scope="module")
def other_dataset(toy_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Made from the same log, but another one to whoever asks."""
    out = tmp_path_factory.mktemp("toy") / "other"
    return prepare("tables", raw=toy_tables, out=out, settings=PrepareSettings(num_item_negatives=15))


def small_pretraining(name: str, **train: Any) -> PretrainSettings:
    settings = pretrain_settings(name)
    fixed = dict(PRETRAINING[name].fixed)
    return settings.model_validate({"model": SMALL[name] | fixed, "train": TRAIN | train})


def next_to_nothing(name: str, **sections: Any) -> FinetuneSettings:
    """Fine-tuning that hardly moves."""
    values = {"train": TRAIN | {"max_epochs": 1, "learning_rate": 1e-9}} | sections
    return finetune_settings(name, "item").model_validate(values)


@pytest.mark.parametrize("name", PRETRAINING)
def test_finetuning_starts_at_the_pretrained_weights(
    name: str, toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path
) -> None:
    """Sizes come from the folder; what pre-training has not, and a longer position table's end, stay as drawn."""
    start = tmp_path / "pretrained"
    manifest = pretrain(toy_dataset, text=toy_text, settings=small_pretraining(name), out=start)
    assert sorted(path.name for path in start.iterdir()) == ["config.yaml", "logs", "manifest.json", WEIGHTS]
    assert manifest.kind == PRETRAINED
    assert manifest.parents == {"dataset": toy_dataset.manifest.digest, "text": toy_text.encoding}
    settings = next_to_nothing(name, data={"history_length": 60})
    system = finetune(toy_dataset, text=toy_text, settings=settings, out=tmp_path / "m", start=start)
    assert read_manifest(tmp_path / "m", "model").parents[PRETRAINED] == manifest.digest
    assert {size: getattr(system.settings.model, size) for size in SMALL[name] if size != "dropout"} == {
        size: value for size, value in SMALL[name].items() if size != "dropout"
    }
    found, held = system.state_dict(), load_file(start / WEIGHTS)
    fresh = System.new(toy_dataset, text=toy_text, settings=system.settings).state_dict()
    for key, value in held.items():
        torch.testing.assert_close(found[key][: len(value)], value, atol=1e-6, rtol=0)
    assert any(not torch.equal(fresh[key][: len(value)], value) for key, value in held.items())
    table = "recommender.history_encoder.positions.weight"
    assert (len(held[table]), len(found[table])) == (50, 60)
    torch.testing.assert_close(found[table][50:], fresh[table][50:], atol=1e-6, rtol=0)
    assert found.keys() - held.keys() == ({"recommender.item_embedding.weight"} if name == "unisrec" else set())


def test_what_is_of_text_alone_starts_other_datasets(
    toy_dataset: Dataset, other_dataset: Dataset, toy_text: TextTable, tmp_path: Path
) -> None:
    for name in PRETRAINING:
        pretrain(toy_dataset, text=toy_text, settings=small_pretraining(name, max_epochs=1), out=tmp_path / name)
    settings = next_to_nothing("unisrec", model={"train_encoder": False})
    finetune(other_dataset, text=toy_text, settings=settings, out=tmp_path / "m", start=tmp_path / "unisrec")
    with pytest.raises(ArtifactError, match="was made from dataset"):
        settings = next_to_nothing("vqrec")
        finetune(other_dataset, text=toy_text, settings=settings, out=tmp_path / "v", start=tmp_path / "vqrec")


def test_a_model_of_codes_keeps_them(toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path) -> None:
    """Codes are made with the seed, saved with the weights, and those of the start are taken over."""
    start = tmp_path / "pretrained"
    pretrain(toy_dataset, text=toy_text, settings=small_pretraining("vqrec", max_epochs=1, seed=5), out=start)
    held = load_file(start / WEIGHTS)["recommender.code_NM"]
    settings = next_to_nothing("vqrec")
    system = finetune(toy_dataset, text=toy_text, settings=settings, out=tmp_path / "m", start=start)
    own = System.new(toy_dataset, text=toy_text, settings=system.settings).recommender.state_dict()["code_NM"]
    assert not torch.equal(own, held)
    for folder in (system, load_system(tmp_path / "m")):
        assert torch.equal(folder.state_dict()["recommender.code_NM"], held)
    assert torch.equal(system.item_vectors(), load_system(tmp_path / "m").item_vectors())


def test_a_killed_run_goes_on_to_the_weights_of_an_unbroken_one(
    toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path
) -> None:
    settings = small_pretraining("unisrec", max_epochs=40, patience=40, batch_size=8, checkpoint_seconds=0.2)
    save_settings(settings, tmp_path / "config.yaml")
    pretrain(toy_dataset, text=toy_text, settings=settings, out=tmp_path / "unbroken")
    command = [sys.executable, "-m", "reeltalk", "pretrain", str(toy_dataset.path), "--text", str(toy_text.path)]
    command += ["--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert checkpoint.exists()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(ArtifactError, match="unfinished"):
        finetune(
            toy_dataset,
            text=toy_text,
            settings=next_to_nothing("unisrec"),
            out=tmp_path / "m",
            start=tmp_path / "killed",
        )
    pretrain(toy_dataset, text=toy_text, settings=settings, out=tmp_path / "killed")
    assert (tmp_path / "killed" / WEIGHTS).read_bytes() == (tmp_path / "unbroken" / WEIGHTS).read_bytes()


def test_what_pretraining_alone_uses_is_left_behind(toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path) -> None:
    """S3-Rec's maps are trained, and neither written nor counted; fine-tuning then asks for no text."""
    settings = small_pretraining("s3rec", max_epochs=1, precision="bf16")
    manifest = pretrain(toy_dataset, text=toy_text, settings=settings, out=tmp_path / "p")
    plain = System.new(toy_dataset, text=None, settings=settings)
    held = load_file(tmp_path / "p" / WEIGHTS)
    assert {name: value.shape for name, value in held.items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }
    assert manifest.facts["num_parameters"] == sum(weight.numel() for weight in plain.parameters())
    system = finetune(
        toy_dataset, text=None, settings=next_to_nothing("s3rec"), out=tmp_path / "m", start=tmp_path / "p"
    )
    assert read_manifest(tmp_path / "m", "model").facts["num_parameters"] == manifest.facts["num_parameters"]
    torch.testing.assert_close(system.state_dict(), held, atol=1e-6, rtol=0)


def test_an_interrupted_run_goes_on_with_what_pretraining_alone_uses(
    toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_pretraining("s3rec", max_epochs=2, patience=2, batch_size=8, checkpoint_seconds=1e-9)
    pretrain(toy_dataset, text=toy_text, settings=settings, out=tmp_path / "unbroken")
    steps: list[int] = []
    training_step = FinetuneModule.training_step

    def stops_once(self: FinetuneModule, batch: Example, batch_idx: int) -> torch.Tensor:
        steps.append(self.trainer.global_step)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(FinetuneModule, "training_step", stops_once)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        pretrain(toy_dataset, text=toy_text, settings=settings, out=tmp_path / "broken")
    pretrain(toy_dataset, text=toy_text, settings=settings, out=tmp_path / "broken")
    assert steps[5] > 0, "the second run went on, not from the start"
    assert (tmp_path / "broken" / WEIGHTS).read_bytes() == (tmp_path / "unbroken" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_sees_training_events_alone(
    name: str, toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No entry of a history and no target of any step is of the validation or the test split."""
    trained = toy_dataset.item_events.filter(toy_dataset.item_events["split"] == Split.TRAIN)
    entries, wanted = Counter[int](), Counter[int]()
    objective = PRETRAINING[name].objective

    def watched(recommender: Any, batch: Batch, targets: ItemTargets, settings: Any) -> Any:
        entries.update(batch.items.item_RL[batch.items.item_RL > 0].tolist())
        wanted.update(targets.item_T.tolist())
        return objective(recommender, batch, targets, settings)

    monkeypatch.setitem(PRETRAINING, name, replace(PRETRAINING[name], objective=watched))
    pretrain(toy_dataset, text=toy_text, settings=small_pretraining(name, max_epochs=1), out=tmp_path / "p")
    is_later = (trained["user_id"] == trained["user_id"].shift(1)).fill_null(False)
    assert wanted == Counter((trained if name == "s3rec" else trained.filter(is_later))["item_id"].to_list())
    assert entries < Counter(trained["item_id"].to_list())


@pytest.mark.parametrize("name", ["unisrec", "vqrec"])
def test_what_would_stay_random_is_refused(
    toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path, name: str
) -> None:
    settings = next_to_nothing(name, model={"train_encoder": False})
    with pytest.raises(ConfigError, match=r"model\.train_encoder=False keeps what was pre-trained.*--pretrained"):
        finetune(toy_dataset, text=toy_text, settings=settings, out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_what_does_not_belong_together_is_refused(toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'sasrec' has no pre-training;.*unisrec"):
        pretrain_settings("sasrec")
    for name in PRETRAINING:
        with pytest.raises(ConfigError, match="--text"):
            pretrain(toy_dataset, text=None, settings=small_pretraining(name), out=tmp_path / "p")
    with_ids = pretrain_settings("unisrec").model_validate({"model": SMALL["unisrec"]})
    with pytest.raises(ConfigError, match=r"model\.use_item_ids=True, but unisrec is pre-trained with False"):
        pretrain(toy_dataset, text=toy_text, settings=with_ids, out=tmp_path / "p")
    assert not (tmp_path / "p").exists()
    settings = small_pretraining("unisrec", max_epochs=1)
    pretrain(toy_dataset, text=toy_text, settings=settings, out=tmp_path / "p")

    with pytest.raises(ArtifactError, match="already exists, finished; choose another folder, or delete it") as caught:
        pretrain(toy_dataset, text=toy_text, settings=settings, out=tmp_path / "p")
    assert "--overwrite" not in str(caught.value)

    def start(settings: FinetuneSettings, text: TextTable | None = toy_text) -> None:
        finetune(toy_dataset, text=text, settings=settings, out=tmp_path / "m", start=tmp_path / "p")

    with pytest.raises(ConfigError, match=r"holds a pre-trained unisrec, which is no start for lsvcr"):
        start(next_to_nothing("lsvcr"))
    with pytest.raises(ConfigError, match=r"model\.dim=32, but it starts from .* where it is 16"):
        start(next_to_nothing("unisrec", model={"dim": 32}))
    with pytest.raises(ConfigError, match=r"positions\.weight of shape \[50, 16\].*raise data\.history_length"):
        start(next_to_nothing("unisrec", data={"history_length": 20}))
    with pytest.raises(ArtifactError, match=r"no text is given, but .* was pre-trained on"):
        start(next_to_nothing("unisrec"), text=None)
    other = tmp_path / "other-text"
    other.mkdir()
    for name in (VECTORS, KEYS):
        (other / name).write_bytes((toy_text.path / name).read_bytes())
    write_manifest(other, kind=KIND, config={"encoder": "another"}, parents={}, facts=toy_text.manifest.facts)
    with pytest.raises(ArtifactError, match=r"other-text holds text vectors .* was pre-trained on"):
        start(next_to_nothing("unisrec"), text=TextTable.load(other))
    assert not (tmp_path / "m").exists()


def test_a_start_is_taken_over_whole_or_not_at_all(toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path) -> None:
    pretrain(toy_dataset, text=toy_text, settings=small_pretraining("s3rec", max_epochs=1), out=tmp_path / "p")
    held = load_file(tmp_path / "p" / WEIGHTS)
    manifest = json.loads((tmp_path / "p" / "manifest.json").read_text())
    renamed = {name.replace("item_embedding", "video_embedding").replace("norm", "n"): v for name, v in held.items()}
    for weights, digest, told in (
        (held, "of another", "was changed since it was written"),
        (renamed, None, "does not fit s3rec as it is now"),
    ):
        save_file(weights, tmp_path / "p" / WEIGHTS)
        files = manifest["files"] | {WEIGHTS: digest or file_digest(tmp_path / "p" / WEIGHTS)}
        parts = manifest["kind"], manifest["config"], manifest["parents"], files
        changed = manifest | {"files": files, "digest": _content_digest(*parts)}
        (tmp_path / "p" / "manifest.json").write_text(json.dumps(changed))
        system = System.new(toy_dataset, text=None, settings=next_to_nothing("s3rec"))
        with pytest.raises(ArtifactError, match=told):
            start_from(system, tmp_path / "p")
