"""Fine-tuning: it learns, it goes on exactly where it was, it keeps its promises to whoever loads the result."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from toy import with_tables

from reeltalk.api import _training_log
from reeltalk.artifacts import PROGRESS, write_manifest
from reeltalk.config import load_settings
from reeltalk.data.dataset import Dataset, Split, Task
from reeltalk.data.histories import target_windows
from reeltalk.data.instance_stream import Instances
from reeltalk.data.ragged import Ragged
from reeltalk.errors import ArtifactError, ConfigError, DataError
from reeltalk.evaluation.protocol import evaluate
from reeltalk.evaluation.settings import EvaluationSettings
from reeltalk.llm.align import align
from reeltalk.llm.settings import AlignSettings, AlignTrainSettings
from reeltalk.objectives import target_preferences
from reeltalk.pretraining import PRETRAINING
from reeltalk.text.table import KEYS, KIND, VECTORS, TextTable, is_empty, text_keys
from reeltalk.training import finetune as command
from reeltalk.training.finetune import finetune
from reeltalk.training.module import FinetuneModule
from reeltalk.training.pretrain import _around
from reeltalk.training.ranking import PAIRS_AT_ONCE, SystemRanker, paired_dots
from reeltalk.training.settings import FinetuneSettings, finetune_settings
from reeltalk.training.system import WEIGHTS, System, load_system
from reeltalk.training.trainer import CHECKPOINTS
from reeltalk.training.validation import Validation

SMALL = {"dim": 16, "num_layers": 1, "inner_dim": 32, "text_dim": 16, "dropout": 0.1}
TOPICS = ("cats", "football", "cooking", "trains")


def write_text_table(dataset: Dataset, folder: Path) -> TextTable:
    """Vectors that say the topic word of a text, and little else."""
    texts = pl.concat([dataset.items["title"], dataset.comments["text"]]).unique(maintain_order=True)
    texts = texts.filter(~is_empty(texts))
    rng = np.random.default_rng(0)
    topic = np.array([[topic in text for topic in TOPICS] for text in texts], np.float32).reshape(-1, len(TOPICS))
    vectors = np.concatenate([topic * 3, rng.standard_normal((len(texts), 4)) * 0.3], axis=1)
    folder.mkdir()
    np.save(folder / VECTORS, vectors.astype(np.float16))
    np.save(folder / KEYS, text_keys(texts))
    write_manifest(folder, kind=KIND, config={"encoder": "toy"}, parents={}, facts={"rows": len(texts)})
    return TextTable.load(folder)


@pytest.fixture(scope="module")
def toy_text(toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> TextTable:
    return write_text_table(toy_dataset, tmp_path_factory.mktemp("toy") / "text")


def small_settings(
    task: Task, *, features: bool = False, epochs: int = 3, precision: str = "float32"
) -> FinetuneSettings:
    train = {
        "max_epochs": epochs,
        "batch_size": 8,
        "learning_rate": 0.01,
        "precision": precision,
        "checkpoint_seconds": 0.2,
        "patience": epochs,
    }
    return finetune_settings("lsvcr", task).model_validate(
        {"model": SMALL, "data": {"candidate_features": features}, "train": train}
    )


@pytest.mark.parametrize(("task", "features"), [("item", False), ("comment", False), ("comment", True)])
def test_a_model_folder_loads_to_the_same_scores(
    toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path, task: Task, features: bool
) -> None:
    system = finetune(toy_dataset, text=toy_text, settings=small_settings(task, features=features), out=tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "config.yaml",
        "logs",
        "manifest.json",
        "model.safetensors",
    ]
    # as readable as its neighbours
    assert (tmp_path / "m" / WEIGHTS).stat().st_mode == (tmp_path / "m" / "config.yaml").stat().st_mode
    loaded = load_system(tmp_path / "m")
    targets = toy_dataset.candidates(task, Split.TEST)
    chosen = "positive" if task == "item" else "positives"
    lists = targets.select(pl.concat_list(chosen, "negatives"))[chosen]
    candidates = Ragged.from_lists(lists)
    scores = SystemRanker(loaded).candidate_scores(targets, candidates)
    assert np.array_equal(scores, SystemRanker(system).candidate_scores(targets, candidates))
    assert np.isfinite(scores).all()
    assert len(scores) == len(candidates.values)


def test_training_learns_the_taste_of_toy_users(toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path) -> None:
    system = finetune(toy_dataset, text=toy_text, settings=small_settings("item", epochs=15), out=tmp_path / "m")
    targets = toy_dataset.candidates("item", Split.TEST)
    top = SystemRanker(system).catalogue_scores(targets).topk(10).indices.numpy()
    topic = (toy_dataset.items["item_key"].str.slice(1).cast(pl.Int64) % len(TOPICS)).to_numpy()
    user = toy_dataset.users["user_key"].str.slice(1).cast(pl.Int64).to_numpy()[targets["user_id"].to_numpy() - 1]
    share = (topic[top] == (user % len(TOPICS))[:, None]).mean()
    assert share > 0.6, "a quarter is chance; four of five toy events are on the user's topic"


@pytest.mark.parametrize(
    ("task", "protocol", "exclude_seen"),
    [("item", "sampled", True), ("item", "full", True), ("item", "full", False), ("comment", "sampled", True)],
)
def test_epochs_are_chosen_by_what_evaluation_measures(
    toy_dataset: Dataset, toy_text: TextTable, task: Task, protocol: str, exclude_seen: bool
) -> None:
    chosen = small_settings(task)
    train = chosen.train.model_copy(update={"monitor_protocol": protocol, "exclude_seen": exclude_seen})
    system = System.new(toy_dataset, text=toy_text, settings=chosen.model_copy(update={"train": train}))
    how = EvaluationSettings(ks=(10,), exclude_seen=exclude_seen, bootstrap_samples=0)
    report = evaluate(toy_dataset, {"lsvcr": SystemRanker(system)}, split=Split.VALID, settings=how)["lsvcr"]
    assert Validation(system).value() == pytest.approx(report.metrics[protocol]["ndcg@10"].mean)


def test_validation_has_no_gradients_beside_it(
    toy_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are as large as the weights, and are not needed once the step is made."""
    left: list[str] = []

    def value(validation: Validation) -> float:
        left.extend(name for name, weight in validation.system.named_parameters() if weight.grad is not None)
        return 0.5

    monkeypatch.setattr(Validation, "value", value)
    settings = finetune_settings("sasrec", "item").model_validate({"train": {"max_epochs": 1}})
    finetune(toy_dataset, text=None, settings=settings, out=tmp_path / "model")
    assert left == []


def test_a_ranker_keeps_what_it_was_asked_before(toy_dataset: Dataset, toy_text: TextTable) -> None:
    system = System.new(toy_dataset, text=toy_text, settings=small_settings("item"))
    targets = toy_dataset.candidates("item", Split.TEST)
    whole, ranker = SystemRanker(system).preferences(targets), SystemRanker(system)
    for rows in ([0, 1, 2], [1, 2, 3], [0], [5, 4, 3, 2, 1, 0], range(len(targets)), []):
        chosen = np.array(rows, dtype=np.int64)
        torch.testing.assert_close(ranker.preferences(targets[chosen]), whole[torch.from_numpy(chosen)])


@pytest.mark.parametrize(
    ("name", "length"), [("lsvcr", 50), ("lsvcr", 3), ("gru4rec", 50), ("bert4rec", 50), ("s3rec", 50)]
)
def test_targets_are_ranked_from_their_own_windows(
    toy_dataset: Dataset, toy_text: TextTable, name: str, length: int
) -> None:
    values = {"data": {"history_length": length}}
    system = System.new(toy_dataset, text=toy_text, settings=finetune_settings(name, "item").model_validate(values))
    targets = toy_dataset.candidates("item", Split.TEST)
    if (pretraining := PRETRAINING.get(name)) and pretraining.around:  # as pre-training validates it
        system = _around(system, pretraining.around, toy_text)
    assert len(targets) > targets["user_id"].n_unique(), "some could share a window"
    preference_BD = SystemRanker(system).preferences(targets)
    windows = target_windows(
        system.feed.histories, "item", targets["target"].to_numpy().astype(np.int64), length=length
    )
    batch, wanted = system.feed.item_batch(windows)
    with torch.inference_mode():
        torch.testing.assert_close(preference_BD, target_preferences(system.recommender, batch, wanted))


@pytest.mark.parametrize("pairs", [0, 1, 2 * PAIRS_AT_ONCE + 7])
def test_pairs_are_multiplied_piece_by_piece(pairs: int) -> None:
    rng = torch.Generator().manual_seed(0)
    a_BD, b_ND = torch.randn(9, 5, generator=rng), torch.randn(21, 5, generator=rng)
    row_M, column_M = (torch.randint(high, (pairs,), generator=rng) for high in (9, 21))
    whole_BN = a_BD.double() @ b_ND.double().T
    dots = paired_dots(a_BD, row_M, b_ND, column_M)
    torch.testing.assert_close(dots.double(), whole_BN[row_M, column_M], rtol=1e-5, atol=1e-5)


def test_a_killed_run_goes_on_to_the_weights_of_an_unbroken_one(
    toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path
) -> None:
    settings = small_settings("comment", epochs=40)
    finetune(toy_dataset, text=toy_text, settings=settings, out=tmp_path / "unbroken")
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[4]);"
        "from test_training import *;"
        "finetune(Dataset.load(sys.argv[1]), text=TextTable.load(sys.argv[2]),"
        " settings=small_settings('comment', epochs=40), out=Path(sys.argv[3]))"
    )
    arguments = [str(toy_dataset.path), str(toy_text.path), str(tmp_path / "killed"), str(Path(__file__).parent)]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert checkpoint.exists()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(ArtifactError, match="unfinished"):
        load_system(tmp_path / "killed")
    begun = torch.load(checkpoint, weights_only=True)["global_step"]
    assert begun > 0
    finetune(toy_dataset, text=toy_text, settings=settings, out=tmp_path / "killed")
    whole, resumed = (load_file(tmp_path / name / WEIGHTS) for name in ("unbroken", "killed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_goes_on(
    number: signal.Signals, toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    settings = small_settings("item", epochs=2)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(FinetuneModule, "on_train_epoch_start", lambda self: os.kill(os.getpid(), number))
        finetune(toy_dataset, text=toy_text, settings=settings, out=tmp_path / "out")
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ArtifactError, match="unfinished"):
        load_system(tmp_path / "out")
    finetune(toy_dataset, text=toy_text, settings=settings, out=tmp_path / "out")
    load_system(tmp_path / "out")


@pytest.mark.parametrize("patience", [None, 2])
def test_a_run_killed_at_its_end_does_not_start_over(
    patience: int | None, toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the manifest it still has its checkpoints; behind it, what is left of them is no part of the folder."""

    def stops(*_: object, **__: object) -> NoReturn:
        raise InterruptedError("killed")

    settings = small_settings("item", epochs=3)
    faster = {"checkpoint_seconds": 1e-9} | ({} if patience is None else {"max_epochs": 40, "patience": patience})
    chosen = settings.model_copy(update={"train": settings.train.model_copy(update=faster)})
    if patience is not None:
        monkeypatch.setattr(Validation, "value", lambda self: 0.5)

    def run(out: Path) -> System:
        return finetune(toy_dataset, text=toy_text, settings=chosen, out=out)

    run(tmp_path / "unbroken")
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(command, "write_manifest", stops)
        run(tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(FinetuneModule, "training_step", stops)
        run(tmp_path / "killed")
    whole, resumed = (load_file(tmp_path / name / WEIGHTS) for name in ("unbroken", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(shutil, "rmtree", stops)
        run(tmp_path / "finished")
    assert (tmp_path / "finished" / CHECKPOINTS / "best.ckpt").is_file()
    load_system(tmp_path / "finished")
    with pytest.raises(ArtifactError, match="already exists"):
        run(tmp_path / "finished")


@pytest.mark.parametrize(("accumulate", "stop"), [(1, 0), (1, 3), (4, 0), (4, 3), (4, 6)])
def test_a_run_stopped_anywhere_and_moved_goes_on_to_the_same_weights(
    accumulate: int,
    stop: int,
    toy_dataset: Dataset,
    toy_text: TextTable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = {"max_epochs": 4, "batch_size": 8, "accumulate": accumulate, "learning_rate": 0.01, "patience": 4}
    values = {"model": SMALL, "train": train | {"precision": "float32", "checkpoint_seconds": 1e-9}}
    settings = finetune_settings("lsvcr", "item").model_validate(values)
    step, done, reached = FinetuneModule.training_step, list[int](), [0.3, 0.5, 0.4, 0.2]
    per_epoch = 5 * accumulate

    def run(out: Path, *, batches: int | None = None) -> System:
        def stopping(self: FinetuneModule, *arguments: Any) -> Tensor:
            if self.batches.batches_done == batches:
                raise InterruptedError("stopped")
            done.append(self.batches.batches_done)
            return step(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(FinetuneModule, "training_step", stopping)
            patch.setattr(Validation, "value", lambda self: reached[done[-1] // per_epoch])
            return finetune(toy_dataset, text=toy_text, settings=settings, out=out)

    run(tmp_path / "unbroken")
    assert len(done) == 4 * per_epoch
    with pytest.raises(InterruptedError):
        run(tmp_path / "begun", batches=2 * per_epoch + stop)
    (tmp_path / "begun").rename(tmp_path / "moved")
    run(tmp_path / "moved")
    whole, resumed = (load_file(tmp_path / name / WEIGHTS) for name in ("unbroken", "moved"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logged = _training_log(tmp_path / "moved")
    assert logged is not None
    assert logged["validation"].drop_nulls().to_list() == pytest.approx(reached)
    assert logged["step"].is_sorted()
    for name, text in (("version_7", ""), ("version_8", "step,validation\n")):  # as a kill may leave them
        path = tmp_path / "moved" / "logs" / name / "metrics.csv"
        path.parent.mkdir()
        path.write_text(text)
    again = _training_log(tmp_path / "moved")
    assert again is not None and again.equals(logged)


def test_a_log_without_a_word_is_learnt_by_its_ids(toy_dataset: Dataset, tmp_path: Path) -> None:
    titles, comments = toy_dataset.items.with_columns(title=pl.lit("")), toy_dataset.comments
    silent = with_tables(toy_dataset, items=titles, comments=comments.with_columns(text=pl.lit(" ")))
    text = write_text_table(silent, tmp_path / "text")
    assert text.vectors.shape == (0, text.width)
    finetune(silent, text=text, settings=small_settings("item", epochs=1), out=tmp_path / "model")
    with pytest.raises(DataError, match="there is nothing to align on"):
        align(
            silent,
            text=text,
            settings=AlignSettings(encoder="frozen", train=AlignTrainSettings(steps=0)),
            out=tmp_path / "aligned",
        )


def test_other_settings_do_not_go_on_with_a_begun_run(
    toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path
) -> None:
    finetune(toy_dataset, text=toy_text, settings=small_settings("item", epochs=1), out=tmp_path / "m")
    with pytest.raises(ArtifactError, match="already exists"):
        finetune(toy_dataset, text=toy_text, settings=small_settings("item", epochs=1), out=tmp_path / "m")
    (tmp_path / "m" / "manifest.json").rename(tmp_path / "elsewhere.json")
    (tmp_path / "m" / PROGRESS).write_text('{"kind": "model", "config": {"train": {"seed": 9}}, "parents": {}}')
    with pytest.raises(ArtifactError, match=r"train\.seed: 9 then, 0 now"):
        finetune(toy_dataset, text=toy_text, settings=small_settings("item", epochs=1), out=tmp_path / "m")


def test_days_need_to_know_how_old_an_item_is(toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path) -> None:
    ageless = with_tables(toy_dataset, items=toy_dataset.items.with_columns(created=pl.lit(0, pl.Int64)))
    settings = finetune_settings("lsvcr", "item").model_validate({"data": {"active_days": 3}})
    with pytest.raises(ConfigError, match=r"data\.active_days=3 leaves out items by their age"):
        finetune(ageless, text=toy_text, settings=settings, out=tmp_path / "m")
    with pytest.raises(ConfigError, match=r"data\.active_days=3 leaves out items by their age"):
        Instances.of(ageless, active_days=3)


def test_what_this_machine_lacks_is_told(
    toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    settings = small_settings("item")
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"accelerator": "gpu"})})
    with pytest.raises(ConfigError, match=r"train\.accelerator=gpu with devices=1 .* cannot be used here: "):
        finetune(toy_dataset, text=toy_text, settings=settings, out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("task", "override", "message"),
    [
        (
            "item",
            "train={batch_size: 10, accumulate: 4}",
            "batch_size=10 does not divide by devices x accumulate",
        ),
        ("item", "train={batch_size: 5, devices: 2}", "batch_size=5 does not divide by devices x accumulate"),
        ("item", "train.monitor=ngdc@10", "train.monitor='ngdc@10': no metric; give recall@K"),
        ("comment", "train.monitor_protocol=full", "train.monitor_protocol=full is for the item task"),
        ("comment", "data.comments=false", "data.comments=false leaves the comment task without targets"),
    ],
)
def test_what_cannot_be_trained_is_told_with_the_settings(task: Task, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(finetune_settings("lsvcr", task), overrides=[override])
    assert message in str(caught.value)


def test_a_seed_may_be_a_date(toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path) -> None:
    settings = small_settings("item", epochs=1)
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"seed": 20_261_130_183_000})})
    system = finetune(toy_dataset, text=toy_text, settings=settings, out=tmp_path / "m")
    assert system.settings.train.seed == load_system(tmp_path / "m").settings.train.seed == 20_261_130_183_000


def test_texts_of_comments_are_asked_for_where_they_are_read(
    toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path
) -> None:
    titles = write_text_table(with_tables(toy_dataset, comments=toy_dataset.comments.clear()), tmp_path / "titles")
    settings = finetune_settings("unisrec", "item").model_validate({"model": {"dim": 16}})
    whole, alone = (System.new(toy_dataset, text=text, settings=settings) for text in (toy_text, titles))
    assert torch.equal(whole.feed.text.titles() > 1, alone.feed.text.titles() > 1)
    settings = finetune_settings("lsvcr", "item").model_validate({"data": {"comments": False}})
    System.new(toy_dataset, text=titles, settings=settings)
    with pytest.raises(ArtifactError, match="titles lacks"):
        System.new(toy_dataset, text=titles, settings=small_settings("item"))


def test_a_model_that_reads_text_asks_for_it(toy_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--text"):
        finetune(toy_dataset, text=None, settings=small_settings("item"), out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_data_parallel_training_runs_and_agrees_on_the_data(
    toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path
) -> None:
    from reeltalk.training.feed import shuffled

    windows = System.new(toy_dataset, text=toy_text, settings=small_settings("item")).training_windows()
    whole = [chunk.user for chunk in shuffled(windows, batch_size=4, seed=1, epoch=2)]
    parts = [
        [chunk.user for chunk in shuffled(windows, batch_size=2, seed=1, epoch=2, rank=r, num_ranks=2)] for r in (0, 1)
    ]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    for together, left, right in zip(whole[:-1], *(part[:-1] for part in parts), strict=True):
        assert sorted(together) == sorted([*left, *right])
