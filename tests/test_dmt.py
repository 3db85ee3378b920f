"""DMT against a loop over one user's plain lists in float64, which shares the weights and none of the code."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from random_logs import Log, User, preferences, random_log, random_model
from slow_parts import Vector, Weights, causal_encoder, linear, mixture, softmax, transformer_layer, weights_of

from reeltalk.data.histories import target_windows
from reeltalk.models.dmt import DMT

LENGTH = 9


@pytest.fixture(scope="module")
def log() -> Log:
    return random_log(11, dtype=np.float64)


def slow_interest(w: Weights, which: int, items: list[int]) -> Vector:
    """Of one behaviour: encoder, then decoder with the learned query."""
    scale = w[f"queries.{which}"].size ** 0.5
    placed = [
        scale * w["item_embedding.weight"][item] + w[f"positions.{which}.weight"][i] for i, item in enumerate(items)
    ]
    encoded = causal_encoder(w, f"encoders.{which}", [scale * w[f"starts.{which}"], *placed], 2)
    return transformer_layer(w, f"decoders.{which}", scale * w[f"queries.{which}"], encoded, 2)


def slow_dmt(w: Weights, user: User, place: int, num_experts: int) -> Vector:
    now = user.items[place].time
    watched = [event.item for event in user.items[:place]]
    talked = [record.item for record in user.records if record.end < now]
    x = np.concatenate([slow_interest(w, 0, watched[-LENGTH:]), slow_interest(w, 1, talked[-LENGTH:])])
    outputs = []
    for expert in range(num_experts):
        y = x
        for layer in (0, 3):
            y = np.maximum(linear(w, f"experts.{expert}.{layer}", y), 0)
        outputs.append(y)
    return linear(w, "tower", mixture(softmax(linear(w, "gate", x).tolist()), outputs))


def test_dmt(log: Log) -> None:
    values: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "num_experts": 3, "expert_dims": (7, 5)}
    model = cast(DMT, random_model("dmt", "item", log, length=LENGTH, **values))
    w = weights_of(model)
    rows = np.arange(len(log.histories.item))
    _, fast_TD = preferences(model, log, target_windows(log.histories, "item", rows, length=LENGTH), "item")
    targets = [(user, place) for user in log.users for place in range(len(user.items))]
    assert sum(any(record.end < user.items[place].time for record in user.records) for user, place in targets) > 10
    for (user, place), fast_D in zip(targets, fast_TD, strict=True):
        np.testing.assert_allclose(fast_D.numpy(), slow_dmt(w, user, place, 3), atol=1e-11)
