"""GRU4Rec, NARM, Caser and HSTU against loops over one user's plain list of events in float64.

The loops share the weights with the models and none of their code: no packing, no grids, no masks, no batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import exp, log, sqrt
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from random_logs import ItemEvent, Log, packed_batch, preferences, random_log, random_model

from reeltalk.data.histories import NOW, request_windows, training_windows
from reeltalk.errors import ConfigError
from reeltalk.models import MODELS, build
from reeltalk.models.hstu import HSTU, time_buckets
from reeltalk.models.narm import additive_attention

LENGTH = 9
Vector = NDArray[np.float64]
Weights = dict[str, Vector]
Preference = Callable[[Weights, list[ItemEvent], int], Vector]


def sigmoid(x: Vector) -> Vector:
    return np.array([1 / (1 + exp(-v)) for v in x])


def silu(x: Vector) -> Vector:
    return x * sigmoid(x)


def items_of(weights: Weights, events: list[ItemEvent]) -> list[Vector]:
    return [weights["item_embedding.weight"][event.item] for event in events]


# recurrent ------------------------------------------------------------------------------------------------------------


def gru(weights: Weights, inputs: list[Vector]) -> list[Vector]:
    """Two layers of the gated recurrent unit from a zero state: all states of the last."""
    for layer in range(2):
        w_r, w_z, w_n = np.split(weights[f"gru.weight_ih_l{layer}"], 3)
        u_r, u_z, u_n = np.split(weights[f"gru.weight_hh_l{layer}"], 3)
        h, states = np.zeros(u_r.shape[1]), []
        for x in inputs:
            reset, keep = sigmoid(w_r @ x + u_r @ h), sigmoid(w_z @ x + u_z @ h)
            h = (1 - keep) * np.tanh(w_n @ x + reset * (u_n @ h)) + keep * h
            states.append(h)
        inputs = states
    return inputs


def slow_gru4rec(weights: Weights, before: list[ItemEvent], moment: int) -> Vector:
    return weights["out.weight"] @ gru(weights, items_of(weights, before))[-1] + weights["out.bias"]


def slow_narm(weights: Weights, before: list[ItemEvent], moment: int) -> Vector:
    states = gru(weights, items_of(weights, before))
    last = states[-1]
    local = np.zeros(len(last))
    for h in states:
        alpha = weights["weight.weight"][0] @ sigmoid(weights["query.weight"] @ last + weights["key.weight"] @ h)
        local += alpha * h
    decoded: Vector = weights["decoder.weight"] @ np.concatenate([last, local])
    return decoded


# Caser ----------------------------------------------------------------------------------------------------------------


def slow_caser(weights: Weights, before: list[ItemEvent], moment: int) -> Vector:
    """Eq 3 to 10, and the 1 that meets the bias b'."""
    window, dim = 5, weights["item_embedding.weight"].shape[1]
    image = ([np.zeros(dim)] * window + items_of(weights, before))[-window:]
    horizontal = []
    for height in range(1, window + 1):
        filters, bias = (weights[f"horizontal.{height - 1}.{name}"] for name in ("weight", "bias"))
        for k in range(len(filters)):
            places = range(window - height + 1)
            products = [filters[k] @ np.concatenate(image[i : i + height]) + bias[k] for i in places]
            horizontal.append(max(max(product, 0.0) for product in products))
    vertical = [
        np.sum([share * e for share, e in zip(row, image, strict=True)], axis=0) for row in weights["vertical.weight"]
    ]
    z = weights["merge.weight"] @ np.concatenate([horizontal, *vertical]) + weights["merge.bias"]
    preference: Vector = np.append(np.maximum(z, 0), 1.0)
    return preference


# HSTU -----------------------------------------------------------------------------------------------------------------


def slow_hstu(weights: Weights, before: list[ItemEvent], moment: int) -> Vector:
    """Eq 1 to 3; moments[i] is the time of what follows entry i."""
    moments = [*(event.time for event in before[1:]), moment]
    dim = weights["item_embedding.weight"].shape[1]
    xs = [
        item * sqrt(dim) + weights["position_embedding.weight"][place]
        for place, item in enumerate(items_of(weights, before))
    ]
    for layer in range(2):
        w = {name.split(".", 2)[2]: value for name, value in weights.items() if name.startswith(f"layers.{layer}.")}
        xs = hstu_layer(w, xs, [event.time for event in before], moments)
    preference: Vector = xs[-1] / sqrt(float(xs[-1] @ xs[-1])) / 0.05
    return preference


def hstu_layer(w: Weights, xs: list[Vector], times: list[int], moments: list[int], num_heads: int = 2) -> list[Vector]:
    offers = [np.split(silu(w["offer.weight"] @ normed(x)), 4) for x in xs]
    results = []
    for i, x in enumerate(xs):
        gate, _, query, _ = offers[i]
        head, gathered = len(x) // num_heads, np.zeros(len(x))
        for j in range(i + 1):
            _, value, _, key = offers[j]
            seconds = (moments[i] - times[j]) / 1000
            bias = w["by_distance"][i - j] + w["by_time"][min(int(log(max(seconds, 1)) / 0.301), 127)]
            for h in range(0, len(x), head):
                part = slice(h, h + head)
                gathered[part] += silu(np.array([query[part] @ key[part] + bias])) / LENGTH * value[part]
        results.append(x + w["out.weight"] @ (normed(gathered) * gate) + w["out.bias"])
    return results


def normed(x: Vector) -> Vector:
    centred: Vector = x - x.mean()
    scaled: Vector = centred / np.sqrt((centred**2).mean() + 1e-6)
    return scaled


# all of them ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spread() -> Log:
    """Times from under a second to a year apart, so that time buckets matter."""
    given = random_log(23, num_users=12, max_items=LENGTH, dtype=np.float64)
    at = {time: int(exp(log(3e10) * time / 40)) for time in range(41)}
    users = [
        replace(user, items=[replace(event, time=at[event.time]) for event in user.items], records=[])
        for user in given.users
    ]
    return replace(given, users=users)


@pytest.mark.parametrize(
    ("name", "slow"),
    [("gru4rec", slow_gru4rec), ("narm", slow_narm), ("caser", slow_caser), ("hstu", slow_hstu)],
)
def test_preferences(spread: Log, name: str, slow: Preference) -> None:
    """The preference before every event but a user's first."""
    model = random_model(name, "item", spread, length=LENGTH)
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    windows = training_windows(spread.histories, "item", length=LENGTH, has_start=False)
    _, fast_TD = preferences(model, spread, windows, "item")
    expected = [
        slow(weights, user.items[:place], user.items[place].time)
        for user in spread.users
        for place in range(1, len(user.items))
    ]
    assert len(expected) > 20
    np.testing.assert_allclose(fast_TD.numpy(), np.stack(expected), rtol=0, atol=1e-11)


def test_caser_scores_have_a_bias(spread: Log) -> None:
    """Eq 10: W' z + b'."""
    model = random_model("caser", "item", spread, length=LENGTH)
    windows = training_windows(spread.histories, "item", length=LENGTH, has_start=False)
    _, preference_TD = preferences(model, spread, windows, "item")
    weights = model.state_dict()
    expected_TN = preference_TD[:, :-1] @ weights["target_embedding.weight"].T + weights["target_bias"]
    torch.testing.assert_close(preference_TD @ model.item_vectors().detach().T, expected_TN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_additive_attention_and_its_gradients(dtype: torch.dtype) -> None:
    """As the plain expression has them, of three histories of three, two and one entries."""
    torch.manual_seed(0)
    inputs = [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((8, 4), (8, 4), (8, 4), (4,))]
    query, key, value, weight = inputs
    before = [[0], [1], [2], [0, 3], [1, 4], [0, 3, 5]]  # of each entry those up to it, step after step
    expected = torch.stack(
        [
            sum(((query[place] + key[j]).sigmoid() @ weight) * value[j] for j in up_to)  # type: ignore[misc]
            for place, up_to in enumerate(before)
        ]
    )
    found = additive_attention(query, key, value, weight, counts=[3, 2, 1])
    torch.testing.assert_close(found[:6], expected)
    assert not found[6:].any()
    given = torch.randn_like(expected)
    for x, y in zip(
        torch.autograd.grad(found[:6], inputs, given), torch.autograd.grad(expected, inputs, given), strict=True
    ):
        torch.testing.assert_close(x, y)


# what HSTU knows of time ----------------------------------------------------------------------------------------------


def test_time_buckets_read_only_what_has_happened_and_when_it_was_asked(spread: Log) -> None:
    """Of an entry and those before it: their own times, and the time of the next target."""
    windows = training_windows(spread.histories, "item", length=LENGTH, has_start=False)
    packed, batch = packed_batch(spread, windows, "item", has_start=False)
    bucket_RLM = time_buckets(batch.items, count=128)
    seen = set()
    for window, user in enumerate(user for user in spread.users if len(user.items) > 1):
        row, column = packed.packing.row[window], packed.packing.item_column[window]
        times = [event.time for event in user.items]
        for i, asked in enumerate(times[1:]):
            for j in range(i + 1):
                seconds = max((asked - times[j]) / 1000, 1)
                assert bucket_RLM[row, column + i, column + j] == int(log(seconds) / 0.301)
                seen.add(int(log(seconds) / 0.301))
    assert len(seen) > 15 and max(seen) < 127


def test_a_request_without_a_time_follows_the_last_event(spread: Log) -> None:
    """`NOW` is no time: its bucket was never trained."""
    model = cast(HSTU, random_model("hstu", "item", spread, length=LENGTH))
    users = np.array([index for index, user in enumerate(spread.users, start=1) if user.items])
    last = np.array([spread.users[user - 1].items[-1].time for user in users])
    found = {}
    for name, moments in (
        ("none", np.full(len(users), NOW)),
        ("at once", last + 1),
        ("a year later", last + 3 * 10**10),
    ):
        windows = request_windows(spread.histories, "item", users, moments, length=LENGTH)
        packed, batch = packed_batch(spread, windows, "item", has_start=False)
        rows, window = packed.target_rows()
        with torch.no_grad():
            preference = model.item_preferences(batch).flatten(0, 1)
        found[name] = preference[torch.from_numpy(packed.target_positions(rows, window, "item"))]
    torch.testing.assert_close(found["none"], found["at once"])
    assert (found["none"] - found["a year later"]).abs().amax(1).min() > 1e-3


def test_heads_must_divide_the_width(spread: Log) -> None:
    with pytest.raises(ConfigError, match="dim=10 is not a multiple of num_heads=4"):
        random_model("hstu", "item", spread, length=LENGTH, dim=10, num_heads=4)


def test_weights_start_as_in_public_code() -> None:
    """So small a start as .02 that little of a history comes through would cost the first epochs."""
    found = {
        name: build(
            name, "item", MODELS[name].settings(), titles=torch.zeros(30, 4), history_length=50, seed=0
        ).state_dict()
        for name in ("caser", "narm", "gru4rec", "hstu")
    }
    uniform = (1 / 3) ** 0.5
    for name, weight, expected in (
        ("caser", "vertical.weight", uniform * 5**-0.5),
        ("caser", "horizontal.2.weight", uniform * (3 * 64) ** -0.5),
        ("caser", "merge.weight", (2 / (5 * 16 + 8 * 64 + 64)) ** 0.5),
        ("narm", "query.weight", (2 / 256) ** 0.5),
        ("narm", "decoder.weight", (2 / (256 + 64)) ** 0.5),
        ("gru4rec", "out.weight", uniform * 128**-0.5),
        ("hstu", "position_embedding.weight", 64**-0.5),
    ):
        assert float(found[name][weight].std()) == pytest.approx(expected, rel=0.15), (name, weight)
