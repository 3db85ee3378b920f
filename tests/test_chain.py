"""`reeltalk train`: a whole chain from one file; what is done is skipped, what was interrupted goes on."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_chains import MODEL, fake_alignment, manifests, write_config
from typer.testing import CliRunner, Result

from reeltalk.artifacts import PROGRESS, is_finished, read_manifest, write_manifest
from reeltalk.cli import app
from reeltalk.data.dataset import Dataset
from reeltalk.errors import ArtifactError, ConfigError, ReeltalkError
from reeltalk.experiments import runner
from reeltalk.experiments.chain import load_chain
from reeltalk.experiments.runner import run_chain
from reeltalk.models.lsvcr import LSVCRSettings
from reeltalk.training.module import FinetuneModule
from reeltalk.training.system import System


def train(config: Path, out: Path, *overrides: str) -> Result:
    options = [each for override in overrides for each in ("--set", override)]
    return CliRunner().invoke(app, ["train", str(config), "--out", str(out), *options])


@pytest.fixture(scope="module")
def config(toy_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("chain") / "chain.yaml"
    return write_config(file, source="tables", raw=str(toy_tables), prepare={"num_item_negatives": 20})


@pytest.fixture(scope="module")
def done(config: Path) -> Path:
    """The folder of a finished chain without alignment."""
    out = config.parent / "out"
    result = train(config, out)
    assert result.exit_code == 0, result.output
    return out


STEPS = {"data", "text", "item", "comment", "item-report", "comment-report"}


def test_a_chain_makes_a_folder_a_step_and_a_second_run_skips_them_all(done: Path, config: Path) -> None:
    assert {path.name for path in done.iterdir()} == STEPS
    before = manifests(done)
    assert len(before) == len(STEPS)
    again = train(config, done)
    assert again.exit_code == 0, again.output
    assert {line.split(":")[0] for line in again.stdout.splitlines() if line.endswith("was there")} == STEPS
    assert manifests(done) == before


def test_the_chain_writes_what_its_steps_write(done: Path, toy_dataset: Dataset, tmp_path: Path) -> None:
    item = read_manifest(done / "item", "model")
    assert item.parents["dataset"] == toy_dataset.manifest.digest
    assert item.config["model"]["dim"] == 16
    reached = json.loads((done / "item-report" / "report.json").read_text())
    assert reached["model"]["digest"] == item.digest
    assert reached["protocol"]["settings"]["bootstrap_samples"] == 20


def test_a_trained_system_leaves_memory_with_its_step(config: Path, tmp_path: Path) -> None:
    alive = []
    gc.disable()  # as if Python's own search for cycles came late
    try:
        for _ in run_chain(load_chain(file=config), out=tmp_path / "out"):
            alive.append(sum(type(each) is System for each in gc.get_objects()))
    finally:
        gc.enable()
    assert len(alive) == len(STEPS) and max(alive) - alive[0] <= 1


@pytest.mark.parametrize(
    ("override", "folder", "message"),
    [
        ("finetune.item.train.seed=5", "item", "train.seed: 0 then, 5 now"),
        ("finetune.comment.model.dim=32", "comment", "model.dim: 16 then, 32 now"),
        ("evaluate.ks=[3]", "item-report", "protocol.settings.ks: [5, 10] then, [3] now"),
        ("prepare.seed=1", "data", "seed: 0 then, 1 now"),
        ("prepare.split=leave_one_out", "data", "split: 'time' then, 'leave_one_out' now"),
        ("raw=elsewhere", "data", "not from"),
        ("encode.max_tokens=9", "text", "max_tokens: 128 there, 9 now"),
    ],
)
def test_a_folder_made_with_other_settings_is_named_with_the_difference(
    done: Path, config: Path, override: str, folder: str, message: str
) -> None:
    before = manifests(done)
    result = train(config, done, override)
    assert result.exit_code == 2
    assert message in result.stderr
    assert str(done / folder) in result.stderr
    assert manifests(done) == before


def test_finished_folders_stand_in_for_steps(done: Path, config: Path, tmp_path: Path) -> None:
    given = ["source=null", "raw=null", "prepare={}", f"dataset={done / 'data'}", f"text={done / 'text'}"]
    only = ["finetune.comment=null"]
    made = {each.step: each for each in run_chain(load_chain(config, overrides=[*given, *only]), out=tmp_path / "o")}
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"item", "item-report"}
    assert (made["data"].folder, made["data"].was_there) == (done / "data", True)
    assert not made["item"].was_there


def test_a_model_of_ids_alone_encodes_and_aligns_nothing(done: Path, config: Path, tmp_path: Path) -> None:
    given = ["source=null", "raw=null", "prepare={}", f"dataset={done / 'data'}"]
    only = ["finetune.comment=null", "finetune.item={name: sasrec, model: {dim: 16}, train: {max_epochs: 1}}"]
    settings = load_chain(config, overrides=[*given, *only, "align={}"])
    assert [made.step for made in run_chain(settings, out=tmp_path / "o")] == ["data", "item", "item-report"]


def test_an_interrupted_finetune_goes_on(
    done: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["source=null", "raw=null", "prepare={}", f"dataset={done / 'data'}", f"text={done / 'text'}"]
    longer = [
        "finetune.comment=null",
        "finetune.item.train.max_epochs=4",
        "finetune.item.train.checkpoint_seconds=1e-9",
    ]
    settings = load_chain(config, overrides=[*given, *longer])
    list(run_chain(settings, out=tmp_path / "unbroken"))
    steps: list[int] = []
    training_step = FinetuneModule.training_step

    def stops_once(self: FinetuneModule, batch: object, batch_idx: int) -> object:
        steps.append(self.trainer.global_step)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return training_step(self, batch, batch_idx)  # type: ignore[arg-type]

    monkeypatch.setattr(FinetuneModule, "training_step", stops_once)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        list(run_chain(settings, out=tmp_path / "broken"))
    assert (tmp_path / "broken" / "item" / PROGRESS).is_file()
    list(run_chain(settings, out=tmp_path / "broken"))
    assert steps[5] > 0, "the second run went on, not from the start"
    whole, resumed = (load_file(tmp_path / name / "item" / "model.safetensors") for name in ("unbroken", "broken"))
    assert all((whole[name] == resumed[name]).all() for name in whole)


def test_alignment_stands_between_two_encodings(
    done: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_alignment(monkeypatch)
    given = ["source=null", "raw=null", "prepare={}", f"dataset={done / 'data'}", f"text={done / 'text'}"]
    settings = load_chain(config, overrides=[*given, f"align.model={json.dumps(MODEL)}", "finetune.comment=null"])
    made = [each.step for each in run_chain(settings, out=tmp_path / "o")]
    assert made == ["data", "text", "aligned", "text-aligned", "item", "item-report"]
    assert calls == ["align", "encode_aligned", "finetune"]
    held = read_manifest(tmp_path / "o" / "item", "model")
    assert held.parents["aligned"] == read_manifest(tmp_path / "o" / "aligned", "aligned").digest
    assert held.facts["text"] == str(tmp_path / "o" / "text-aligned")
    before = manifests(tmp_path / "o")
    assert all(each.was_there for each in run_chain(settings, out=tmp_path / "o"))
    assert len(calls) == 3
    assert manifests(tmp_path / "o") == before
    other = load_chain(base=settings, overrides=["align.loss.ssc=0"])
    with pytest.raises(ArtifactError, match=r"aligned was made with other settings \(loss\.ssc: 0\.5 then, 0\.0 now\)"):
        list(run_chain(other, out=tmp_path / "o"))


def test_pretraining_stands_before_finetuning(done: Path, config: Path, tmp_path: Path) -> None:
    """Of a model that reads no text: texts are encoded for its pre-training, and no part of the model."""
    given = ["source=null", "raw=null", "prepare={}", f"dataset={done / 'data'}", "finetune.comment=null"]
    item = "finetune.item={name: s3rec, train: {max_epochs: 1, batch_size: 16}}"
    start = "pretrain={model: {dim: 16, num_layers: 1}, train: {max_epochs: 1, batch_size: 16}}"
    settings = load_chain(config, overrides=[*given, item, start, f"text={done / 'text'}"])
    steps = [each.step for each in run_chain(settings, out=tmp_path / "o")]
    assert steps == ["data", "text", "pretrained", "item", "item-report"]
    pretrained, held = (
        read_manifest(tmp_path / "o" / name, kind) for name, kind in (("pretrained", "pretrained"), ("item", "model"))
    )
    assert set(held.parents) == {"dataset", "pretrained"}
    assert held.parents["pretrained"] == pretrained.digest
    assert (held.config["model"]["dim"], held.facts["text"]) == (16, None)
    before = manifests(tmp_path / "o")
    assert all(each.was_there for each in run_chain(settings, out=tmp_path / "o"))
    assert manifests(tmp_path / "o") == before
    other = load_chain(base=settings, overrides=["pretrain.loss.hidden_share=0.4"])
    with pytest.raises(ArtifactError, match=r"pretrained was made with other settings \(loss\.hidden_share: 0\.2 then"):
        list(run_chain(other, out=tmp_path / "o"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["finetune.item={name: sasrec}", "pretrain={}"], "'sasrec' has no pre-training; did you mean 's3rec'?"),
        (["finetune.comment={}", "pretrain={}"], "give finetune.item, or leave out pretrain"),
        (["finetune.item={name: s3rec}", "pretrain={}", "align={}"], "align and pretrain are two starts"),
        (
            ["finetune.item={name: s3rec, model: {dim: 8}}", "pretrain={}"],
            "dim=8, but it starts from pretrain, where it is 64",
        ),
        (
            ["finetune.item={name: s3rec, data: {history_length: 9}}", "pretrain={}"],
            "history_length=9 is less than pretrain.data.history_length=50",
        ),
        (["finetune.item={name: unisrec, model: {train_encoder: false}}"], "a pretrain section makes one"),
        (["finetune.item={name: s3rec}", "pretrain.loss.hiden_share=1"], "did you mean 'hidden_share'?"),
        (["finetune.item={name: unisrec}", "align={}"], "name='unisrec' has no aligned start"),
        (["finetune.item={}", "finetune.comment={name: att}", "align={}"], "name='att' has no aligned start"),
        (
            ["finetune.item={model: {dim: 32}}", "align.model.dim=128"],
            "dim=32, but it starts from align, where it is 128",
        ),
        (
            ["finetune.item={data: {history_length: 20}}", "align={}"],
            "history_length=20 is less than align.data.num_positions=50",
        ),
        (["finetune.item={model: {text_map: linear}}", "align={}"], "starts from align, where it is 'none'"),
        (["finetune.comment={text: {trained_encoder: minilm}}", "align={}"], "vectors will be the aligned LLM's"),
        (["finetune.item={text: {trained_encoder: minilm}}"], "trained_encoder is for the comment task"),
        (["finetune.item={name: unisrec, model: {train_encoder: false}}", "align={}"], "has no aligned start"),
        (["finetune.item={}", "align={}", "encode_aligned.pooling=cls"], "alignment has mean pooling and no prefix"),
        (["finetune.item={}", "dataset=null", "source=simulator", "prepare.source.usres=9"], "source.usres is unknown"),
        (["finetune.comment={}", "evaluate.full_ranking=true"], "evaluate.full_ranking=true is for the item task"),
    ],
)
def test_what_cannot_be_done_hours_later_is_told_before_anything_runs(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_chain(overrides=["dataset=x", *overrides])
    assert message in str(caught.value)


def test_training_on_several_devices_is_left_to_the_step_itself(done: Path, config: Path, tmp_path: Path) -> None:
    given = ["source=null", "raw=null", "prepare={}", f"dataset={done / 'data'}", f"text={done / 'text'}"]
    settings = load_chain(config, overrides=[*given, "finetune.*.train.devices=2"])
    with pytest.raises(ConfigError, match="run this step by its own command"):
        list(run_chain(settings, out=tmp_path / "o"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.item.model.dims=3", "finetune.item.model.dims is unknown; did you mean 'dim'?"),
        ("finetune.comment.trian.seed=3", "finetune.comment.trian is unknown; did you mean 'train'?"),
        ("align.loss.scc=0", "align.loss.scc is unknown; did you mean 'vcc'?"),
        ("datset=x", "datset is unknown; did you mean 'dataset'?"),
        ("dataset=x", "either dataset, a finished folder, or source and raw"),
        ("text=x", "encode makes a text folder, but text names a finished one"),
        ("encode_aligned.max_tokens=9", "encode_aligned needs an align section"),
        ("finetune={}", "no task is run"),
        ("finetune.item.name=lsvc", "did you mean 'lsvcr'?"),
    ],
)
def test_mistakes_in_the_file_are_told_before_anything_runs(
    config: Path, tmp_path: Path, override: str, message: str
) -> None:
    result = train(config, tmp_path / "o", override, "encode.max_tokens=9")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "o").exists()


def test_sections_of_a_chain_have_the_defaults_of_their_steps() -> None:
    chain = load_chain(overrides=["dataset=x", "align.model.dim=16", "finetune.item={}"])
    assert chain.align is not None
    assert chain.align.model == LSVCRSettings(dim=16, use_item_ids=False)
    assert list(chain.tasks) == ["item"]
    assert chain.tasks["item"].name == "lsvcr"
    assert load_chain(base=chain, overrides=["align=null"]).align is None


def test_a_finished_folder_is_compared_in_what_is_asked_of_it(tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert not is_finished(out, kind="model", config={}, parents={})
    out.mkdir()
    write_manifest(out, kind="model", config={"a": {"b": 1, "c": (2,)}, "d": 3}, parents={"dataset": "x"})
    assert is_finished(out, kind="model", config={"a": {"c": (2,)}}, parents={"dataset": "x"})
    with pytest.raises(ArtifactError, match=r"\(a\.b: 1 then, 5 now; dataset: 'x' then, 'y' now\)"):
        is_finished(out, kind="model", config={"a": {"b": 5}}, parents={"dataset": "y"})
    with pytest.raises(ArtifactError, match="text: None then"):
        is_finished(out, kind="model", config={}, parents={"dataset": "x", "text": "z"})
    with pytest.raises(ArtifactError, match="holds a model, expected a report"):
        is_finished(out, kind="report", config={}, parents={})


def test_a_failed_step_is_not_tried_twice(tmp_path: Path) -> None:
    tried = []

    def fails(out: Path) -> None:
        tried.append(out)
        raise ArithmeticError("no")

    steps = runner.Runner(lambda step: tmp_path / step.name)
    for kind in (ArithmeticError, ReeltalkError):
        with pytest.raises(kind, match="no"):
            steps._once(runner.Step("data", {}, {}), fails)
    assert len(tried) == 1
