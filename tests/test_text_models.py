"""FDSA, UniSRec and VQ-Rec against loops over one user's plain lists in float64, and what only they promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from random_logs import Log, preferences, random_log, random_model, settings_of
from slow_parts import Vector, Weights, each_target, linear, norm, slow_history_encoder, softmax, unit, weights_of

from reeltalk.data.histories import training_windows
from reeltalk.models import build
from reeltalk.models.recommender import Recommender
from reeltalk.models.unisrec import Adaptor, UniSRec
from reeltalk.models.vqrec import VQRec

LENGTH = 9
TEMPERATURE = 0.07
HEADS = 2


@pytest.fixture(scope="module")
def log() -> Log:
    return random_log(23, num_users=10, max_items=LENGTH, dtype=np.float64)


def slow_fdsa(model: Recommender, log: Log, items: list[int]) -> tuple[Vector, Callable[[int], Vector]]:
    """Both self-attention networks, joined by the fully connected layer, normalised; item vectors are ID embeddings."""
    w = weights_of(model)
    by_id = [w["item_embedding.weight"][item] for item in items]
    features = [linear(w, "feature_map", log.titles[item]) for item in items]
    both = [
        slow_history_encoder(w, "item_encoder", by_id, HEADS),
        slow_history_encoder(w, "feature_encoder", features, HEADS),
    ]
    joined = norm(w, "output_norm", linear(w, "merge", np.concatenate(both)))
    return joined, lambda item: w["item_embedding.weight"][item]


def slow_adaptor(w: Weights, x: Vector) -> Vector:
    """Whitening by each expert, (x - b) W; gates are a softmax of x W1."""
    shares = softmax([float(row @ x) for row in w["adaptor.gate_GE"]])
    experts = zip(shares, w["adaptor.shift_GE"], w["adaptor.weight_GDE"], strict=True)
    mixed: Vector = np.sum([share * (weight @ (x - shift)) for share, shift, weight in experts], axis=0)
    return mixed


def slow_unisrec(model: Recommender, log: Log, items: list[int]) -> tuple[Vector, Callable[[int], Vector]]:
    w = weights_of(model)

    def embedding(item: int) -> Vector:
        mixed = slow_adaptor(w, log.titles[item])
        if "item_embedding.weight" in w and log.known[item]:
            mixed = mixed + w["item_embedding.weight"][item]
        return mixed

    preference = slow_history_encoder(w, "history_encoder", [embedding(item) for item in items], HEADS)
    return unit(preference) / TEMPERATURE, lambda item: unit(embedding(item))


def slow_vqrec(model: Recommender, log: Log, items: list[int]) -> tuple[Vector, Callable[[int], Vector]]:
    w = weights_of(model)

    def embedding(item: int) -> Vector:
        mean: Vector = np.mean([w["code_embedding.weight"][int(code)] for code in w["code_NM"][item]], axis=0)
        return mean

    preference = slow_history_encoder(w, "history_encoder", [embedding(item) for item in items], HEADS)
    return unit(preference) / TEMPERATURE, lambda item: unit(embedding(item))


@pytest.mark.parametrize(
    ("name", "slow", "values"),
    [
        ("fdsa", slow_fdsa, {}),
        ("unisrec", slow_unisrec, {"num_experts": 3}),
        ("unisrec", slow_unisrec, {"use_item_ids": False}),
        ("vqrec", slow_vqrec, {}),
    ],
)
def test_preferences_and_vectors(
    log: Log,
    name: str,
    slow: Callable[[Recommender, Log, list[int]], tuple[Vector, Callable[[int], Vector]]],
    values: dict[str, Any],
) -> None:
    model = random_model(name, "item", log, length=LENGTH, **values)
    windows = training_windows(log.histories, "item", length=LENGTH, has_start=False)
    rows, fast_TD = preferences(model, log, windows, "item")
    targets = each_target(log, "item")
    assert sorted(rows.tolist()) == [row for row, (_, place) in enumerate(targets) if place]
    for row, fast_D in zip(rows, fast_TD, strict=True):
        user, place = targets[row]
        expected, vector = slow(model, log, [event.item for event in user.items[:place]])
        np.testing.assert_allclose(fast_D.numpy(), expected, atol=1e-11)
    found_ND = model.item_vectors().detach().numpy()
    for item in range(1, log.num_items + 1):
        np.testing.assert_allclose(found_ND[item], vector(item), atol=1e-11)


# UniSRec --------------------------------------------------------------------------------------------------------------


def test_gates_are_noisy_in_training_only() -> None:
    torch.manual_seed(0)
    adaptor = Adaptor(6, 4, num_experts=3, dropout=0.0)
    with torch.no_grad():
        adaptor.noise_GE.normal_()
        adaptor.weight_GDE.normal_()
    text_ME = torch.randn(2_000, 6)[:1].expand(2_000, -1)
    adaptor.eval()
    assert torch.equal(adaptor(text_ME)[0], adaptor(text_ME)[1])
    # gates at zero: logits are noise of deviation softplus(x W3) + .01, and what comes out is linear in the gates
    noisy_MD = adaptor.train()(text_ME)
    deviation_G = torch.nn.functional.softplus(text_ME[0] @ adaptor.noise_GE.T) + 0.01
    share_MG = (torch.randn(200_000, 3) * deviation_G).softmax(-1)
    whitened_GD = torch.einsum("gde,e->gd", adaptor.weight_GDE, text_ME[0])
    expected_MD = share_MG @ whitened_GD
    torch.testing.assert_close(noisy_MD.mean(0), expected_MD.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(noisy_MD.std(0), expected_MD.std(0), atol=0.1, rtol=0.05)


@pytest.mark.parametrize("name", ["unisrec", "vqrec"])
def test_a_fixed_transformer_is_not_trained(log: Log, name: str) -> None:
    titles = torch.from_numpy(log.titles)
    settings = settings_of(name, train_encoder=False)
    model = build(name, "item", settings, titles=titles, history_length=LENGTH, seed=0)
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert fixed == {
        name for name, _ in model.named_parameters() if name.startswith(("history_encoder.enc", "history_encoder.pos"))
    }
    assert len(fixed) > 10


def test_an_unknown_item_is_its_text(log: Log) -> None:
    with_ids, texts = (
        cast(UniSRec, random_model("unisrec", "item", log, length=LENGTH, use_item_ids=ids)) for ids in (True, False)
    )
    texts.load_state_dict({name: value for name, value in with_ids.state_dict().items() if "item_emb" not in name})
    is_same_N = (with_ids.item_vectors() - texts.item_vectors()).abs().amax(1) < 1e-12
    assert is_same_N.nonzero()[:, 0].tolist() == [0, 4, 9]


# VQ-Rec ---------------------------------------------------------------------------------------------------------------


def codes_of(log: Log, *, seed: int, is_loaded: bool = False) -> torch.Tensor:
    titles, known = torch.from_numpy(log.titles), torch.from_numpy(log.known)
    model = build(
        "vqrec",
        "item",
        settings_of("vqrec"),
        titles=titles,
        known_items=known,
        history_length=LENGTH,
        seed=seed,
        is_loaded=is_loaded,
    )
    return cast(VQRec, model).code_NM


def test_codes_are_made_once_by_the_seed(log: Log) -> None:
    first = codes_of(log, seed=1)
    torch.manual_seed(5)
    assert torch.equal(first, codes_of(log, seed=1))
    assert not torch.equal(first, codes_of(log, seed=2))
    assert not codes_of(log, seed=1, is_loaded=True).any(), "a model that is loaded does not make them again"
    assert torch.equal(first // 6, torch.arange(4, dtype=torch.int32).expand_as(first)), "each from its own codebook"
    assert len(first[1:].unique(dim=0)) > log.num_items / 2  # type: ignore[no-untyped-call]


def test_codes_are_learnt_from_known_items_alone(log: Log) -> None:
    other = log.titles.copy()
    other[~log.known] += 100
    changed = Log(log.users, log.created, log.known, log.pool, other, log.comments)
    before, after = codes_of(log, seed=1), codes_of(changed, seed=1)
    assert torch.equal(before[torch.from_numpy(log.known)], after[torch.from_numpy(log.known)])
