"""A text encoder that learns with the model: its vectors, its gradients, and the folder that it leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_llms import WIDTH, save_llm, tokenizer

from reeltalk.data.batch import Batch, CommentTargets
from reeltalk.data.dataset import Dataset, Split
from reeltalk.data.ragged import Ragged
from reeltalk.errors import ConfigError
from reeltalk.objectives import comment_objective, comment_scores
from reeltalk.text.batches import by_length
from reeltalk.text.encode import EncodeSettings, encode
from reeltalk.text.table import TextTable
from reeltalk.text.trained import TrainedEncoder
from reeltalk.training.finetune import finetune
from reeltalk.training.ranking import SystemRanker
from reeltalk.training.settings import FinetuneSettings, finetune_settings
from reeltalk.training.system import System, load_system
from reeltalk.training.texts import trained_texts

TEXTS = ["a video", "", "the comment of a user", "a video", None, "  ", "user", "user watched the video and liked it"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llm(tmp_path_factory.mktemp("encoders") / "tiny", "bert")


@pytest.fixture(scope="module", params=["mean", "cls"])
def table(
    request: pytest.FixtureRequest, folder: Path, toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> TextTable:
    how = EncodeSettings(encoder=str(folder), pooling=request.param, prefix="text: ", precision="float32")
    return encode(toy_dataset, out=tmp_path_factory.mktemp("tables") / "text", settings=how)


def settings(name: str, folder: Path, *, rate: float = 1e-3, epochs: int = 2, trained: bool = True) -> FinetuneSettings:
    train = {"max_epochs": epochs, "batch_size": 16, "learning_rate": 0.01, "precision": "float32"}
    text = {"trained_encoder": str(folder), "learning_rate": rate, "tokens_per_batch": 256} if trained else {}
    model = {"dim": 16} | ({} if name == "dssm" else {"dropout": 0.0})
    return finetune_settings(name, "comment").model_validate({"model": model, "text": text, "train": train})


def encoder(folder: Path, table: TextTable, *, tokens_per_batch: int) -> TrainedEncoder:
    return TrainedEncoder.of(str(folder), table, precision="float32", tokens_per_batch=tokens_per_batch).train()


def test_vectors_are_those_of_the_table_and_gradients_those_of_one_batch(
    folder: Path, table: TextTable, toy_dataset: Dataset
) -> None:
    titles = toy_dataset.items["title"]
    rows = table.rows(titles)
    expected = np.where(rows[:, None] < 0, 0, table.vectors[np.maximum(rows, 0)])
    gradients = []
    for tokens_per_batch in (100_000, 40):
        trained = encoder(folder, table, tokens_per_batch=tokens_per_batch)
        vectors = trained(titles.to_list())
        np.testing.assert_allclose(vectors.detach().numpy(), expected, atol=2e-3)  # float16 there
        vectors.square().sum().backward()
        gradients.append({name: weight.grad for name, weight in trained.named_parameters() if weight.grad is not None})
    assert len(gradients[0]) > 30
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-4)


def test_texts_without_words_are_zeros_and_the_same_text_runs_once(folder: Path, table: TextTable) -> None:
    trained = encoder(folder, table, tokens_per_batch=64)
    rows: list[int] = []
    trained.model.register_forward_pre_hook(
        lambda _, args, given: rows.append(len(given["input_ids"])), with_kwargs=True
    )
    with torch.no_grad():
        vectors = trained(TEXTS)
        assert trained([]).shape == (0, WIDTH)
        assert (trained([None, ""]) == 0).all()
    assert sum(rows) == 4
    assert torch.equal(vectors[0], vectors[3])
    assert [bool((vector == 0).all()) for vector in vectors] == [text is None or not text.strip() for text in TEXTS]


def example(system: System) -> tuple[Batch, CommentTargets]:
    return system.feed.comment_batch(system.training_windows(), rng=np.random.default_rng(0))


@pytest.mark.parametrize("name", ["zam", "lsvcr", "dssm"])
def test_a_step_reads_what_a_frozen_one_reads(name: str, folder: Path, table: TextTable, toy_dataset: Dataset) -> None:
    """Cached or live vectors: the same loss before anything is learnt; and the encoder gets a gradient."""
    losses = []
    for trained in (False, True):
        chosen = settings(name, folder, trained=trained)
        system = System.new(toy_dataset, text=table, settings=chosen)
        texts = trained_texts(toy_dataset, table, chosen)
        if texts is not None:
            system.train_texts(texts)
        total, count = system.read(comment_objective, *example(system))["softmax"]
        losses.append(float(total.detach()) / count)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    total.backward()  # type: ignore[no-untyped-call]
    assert texts is not None
    assert all(weight.grad is not None for key, weight in texts.named_parameters() if "pooler" not in key)
    assert all(weight.grad is not None for weight in system.own_parameters()) or name == "lsvcr"


def test_each_text_is_encoded_once_until_the_weights_change(
    folder: Path, table: TextTable, toy_dataset: Dataset
) -> None:
    chosen = settings("zam", folder)
    system = System.new(toy_dataset, text=table, settings=chosen)
    texts = trained_texts(toy_dataset, table, chosen)
    assert texts is not None
    system.train_texts(texts)
    system.eval()
    seen: list[int] = []
    texts.encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    batch, targets = example(system)
    with torch.inference_mode():
        before, _ = system.read(comment_scores, batch, targets)
        again, _ = system.read(comment_scores, batch, targets)
    assert len(seen) == 1 and torch.equal(before, again)
    with torch.no_grad():
        texts.encoder.model.embeddings.word_embeddings.weight.mul_(1.5)
    system.train()
    system.eval()
    with torch.inference_mode():
        after, _ = system.read(comment_scores, batch, targets)
    assert len(seen) == 2 and not torch.allclose(before, after)


def scores(system: System) -> np.ndarray:
    targets = system.dataset.candidates("comment", Split.TEST)
    lists = targets.select(pl.concat_list("positives", "negatives"))["positives"]
    return SystemRanker(system).candidate_scores(targets, Ragged.from_lists(lists))


def test_a_finished_folder_holds_the_encoder_and_its_vectors(
    folder: Path, table: TextTable, toy_dataset: Dataset, tmp_path: Path
) -> None:
    system = finetune(toy_dataset, text=table, settings=settings("zam", folder), out=tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "config.yaml",
        "encoder",
        "logs",
        "manifest.json",
        "model.safetensors",
        "text",
    ]
    assert not any("encoder" in name for name in load_file(tmp_path / "m" / "model.safetensors"))
    assert system.texts is None
    learnt, start = (load_file(path / "model.safetensors") for path in (tmp_path / "m" / "encoder", folder))
    assert any(not torch.equal(learnt[name], start[name]) for name in start)
    again = encode(
        toy_dataset,
        out=tmp_path / "text",
        settings=EncodeSettings(
            encoder=str(tmp_path / "m" / "encoder"),
            pooling=table.manifest.config["pooling"],
            prefix="text: ",
            precision="float32",
        ),
    )
    own = TextTable.load(tmp_path / "m" / "text")
    assert own.encoding == again.encoding != table.encoding
    assert np.array_equal(own.vectors, again.vectors)
    for given in (None, table):
        assert np.array_equal(scores(load_system(tmp_path / "m", text=given)), scores(system))


def test_what_cannot_be_trained_is_said(folder: Path, table: TextTable, toy_dataset: Dataset, tmp_path: Path) -> None:
    other = save_llm(tmp_path / "other", "bert", seed=1)
    with pytest.raises(ConfigError, match="is not what made"):
        trained_texts(toy_dataset, table, settings("zam", other))
    with pytest.raises(ConfigError, match="reads no text"):
        trained_texts(toy_dataset, None, settings("zam", folder))
    half = save_half(tmp_path / "half")
    made = encode(toy_dataset, out=tmp_path / "text", settings=EncodeSettings(encoder=str(half), precision="float32"))
    with pytest.raises(ConfigError, match="has a decoder too"):
        trained_texts(toy_dataset, made, settings("zam", half))


def save_half(folder: Path) -> Path:
    """The encoder of a T5, as sentence-t5 is published: without a decoder's weights."""
    words = tokenizer("bert")
    config = transformers.T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5EncoderModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tokens_per_batch", [40, 1_000, 8_000])
def test_batches_by_length_hold_little_padding_and_no_more_than_their_budget(tokens_per_batch: int) -> None:
    lengths = (3 + np.random.default_rng(0).gamma(2, 6, size=1_000)).astype(int).clip(max=40).tolist()
    batches = by_length(lengths, tokens_per_batch=tokens_per_batch)
    assert sorted(row for rows in batches for row in rows) == list(range(1_000))
    padded = [len(rows) * max(lengths[row] for row in rows) for rows in batches]
    assert max(padded) <= tokens_per_batch
    assert sum(padded) < 1.2 * sum(lengths)
    assert len(batches) <= 4 * sum(padded) / tokens_per_batch + 1  # and are not small for it
