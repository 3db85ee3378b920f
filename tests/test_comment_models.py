"""The baselines of the comment task against loops over one user's plain lists in float64.

The loops share the weights with the models and none of their code: no packing, no masks, no batches.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from random_logs import Log, Record, packed_batch, preferences, random_log, random_model
from slow_parts import (
    Vector,
    Weights,
    causal_encoder,
    linear,
    mixture,
    multi_head_attention,
    norm,
    softmax,
    transformer_layer,
    unit,
    weights_of,
)

from reeltalk.data.histories import training_windows
from reeltalk.models import MODELS

LENGTH = 9
Slow = Callable[[Weights, Log, list[Record], int], Vector]


def sigmoid(x: Vector) -> Vector:
    return 1 / (1 + np.exp(-x))


def embedded(w: Weights, text: Vector) -> Vector:
    return linear(w, "text_map", unit(text))


def records_of(w: Weights, log: Log, past: list[Record], embed: Callable[[Weights, Vector], Vector]) -> list[Vector]:
    """The mean of each record's comments; without any, the embedding of an empty text."""
    found = []
    for record in past:
        texts = [embed(w, log.comments[comment]) for comment in record.comments[-3:] or (0,)]
        found.append(np.sum(texts, axis=0) / len(texts))
    return found


def additive_attention(w: Weights, entries: list[Vector]) -> Vector:
    scores = [linear(w, "attention.query", np.tanh(linear(w, "attention.hidden", x)))[0] for x in entries]
    return mixture(softmax([float(score) for score in scores]), entries)


def dssm(w: Weights, log: Log, past: list[Record], item: int) -> Vector:
    return 10.0 * tower(w, "title_tower", log.titles[item])


def tower(w: Weights, name: str, text: Vector) -> Vector:
    for layer in (0, 2, 4):
        text = np.tanh(linear(w, f"{name}.{layer}", text))
    return unit(text)


def gru(w: Weights, log: Log, past: list[Record], item: int) -> Vector:
    """Cho et al., eq 5 to 8, with gates for input and state as torch lays them: reset, update, new."""
    h = w["start_D"]
    for x in records_of(w, log, past, embedded):
        from_x = np.split(w["cell.weight_ih_l0"] @ x + w["cell.bias_ih_l0"], 3)
        from_h = np.split(w["cell.weight_hh_l0"] @ h + w["cell.bias_hh_l0"], 3)
        reset, update = (sigmoid(a + b) for a, b in zip(from_x[:2], from_h[:2], strict=True))
        h = (1 - update) * np.tanh(from_x[2] + reset * from_h[2]) + update * h
    return h


def att(w: Weights, log: Log, past: list[Record], item: int) -> Vector:
    return additive_attention(w, records_of(w, log, past, embedded) or [w["start_D"]])


def mha(w: Weights, log: Log, past: list[Record], item: int) -> Vector:
    entries = records_of(w, log, past, embedded) or [w["start_D"]]
    seen = [multi_head_attention(w, "self_attention", x, entries[: i + 1], 2) for i, x in enumerate(entries)]
    return additive_attention(w, seen)


def adapted(w: Weights, text: Vector) -> Vector:
    """UniSRec, eq 2 to 4, without the noise of training."""
    shares = softmax([float(row @ text) for row in w["text_map.gate_GE"]])
    experts = zip(w["text_map.weight_GDE"], w["text_map.shift_GE"], strict=True)
    return mixture(shares, [weight @ (text - shift) for weight, shift in experts])


def unisrec_c(w: Weights, log: Log, past: list[Record], item: int) -> Vector:
    entries = records_of(w, log, past, adapted) or [w["start_D"]]
    placed = [norm(w, "input_norm", x + w["positions.weight"][place]) for place, x in enumerate(entries)]
    return unit(causal_encoder(w, "encoder", placed, 2)[-1]) / 0.07


def zam(w: Weights, log: Log, past: list[Record], item: int) -> Vector:
    """f(q, i) = (i · tanh(W_f q + b_f)) · W_h, unit by unit; the zero vector adds exp(0) to the denominator."""
    q = np.tanh(linear(w, "query", unit(log.titles[item])))
    hidden = np.tanh(linear(w, "attention", q)).reshape(len(q), -1)
    entries = records_of(w, log, past, embedded)
    powers = [np.exp(sum(w["units.weight"][0][h] * float(i @ hidden[:, h]) for h in range(4))) for i in entries]
    shares = [power / (1.0 + sum(powers)) for power in powers]
    return q + mixture([1.0, *shares], [np.zeros(len(q)), *entries])


def tem(w: Weights, log: Log, past: list[Record], item: int) -> Vector:
    positions = w["positions.weight"]
    query: Vector = np.tanh(linear(w, "query", unit(log.titles[item]))) + positions[0]
    entries = [x + positions[1 + place] for place, x in enumerate(records_of(w, log, past, embedded))]
    for layer in range(2):
        name = f"encoder.layers.{layer}"
        query, entries = (
            transformer_layer(w, name, query, [query, *entries], 2),
            [transformer_layer(w, name, x, entries[: i + 1], 2) for i, x in enumerate(entries)],
        )
    return query


PREFERENCES: dict[str, Slow] = {
    "att": att,
    "dssm": dssm,
    "gru": gru,
    "mha": mha,
    "tem": tem,
    "unisrec_c": unisrec_c,
    "zam": zam,
}
VECTORS: dict[str, Callable[[Weights, Vector], Vector]] = {
    "dssm": lambda w, text: tower(w, "comment_tower", text),
    "unisrec_c": lambda w, text: unit(adapted(w, text)),
}


def test_all_of_them_are_here() -> None:
    assert set(PREFERENCES) == {name for name, spec in MODELS.items() if spec.tasks == ("comment",)}


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_before_every_record(name: str) -> None:
    """Of users without a record, too, and after records without a comment."""
    log = random_log(2, dtype=np.float64)
    model = random_model(name, "comment", log, length=LENGTH)
    w = weights_of(model)
    windows = training_windows(log.histories, "comment", length=LENGTH, has_start=True)
    _, fast_TD = preferences(model, log, windows, "comment")
    expected = [
        PREFERENCES[name](w, log, user.records[:place], record.item)
        for user in log.users
        for place, record in enumerate(user.records)
    ]
    assert len(expected) > 20
    np.testing.assert_allclose(fast_TD.numpy(), np.stack(expected), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", [*PREFERENCES, "lsvcr"])
def test_a_batch_without_targets(name: str) -> None:
    """As a small last batch may be, whose answers were all given later."""
    log = random_log(2, dtype=np.float64)
    model = random_model(name, "comment", log, length=LENGTH)
    windows = training_windows(log.histories, "comment", length=LENGTH, has_start=True)
    _, batch = packed_batch(log, windows, "comment", has_start=model.has_start)
    none = torch.zeros(0, dtype=torch.int64)
    width = model.comment_vectors(batch.comment_text_UE).shape[1]
    assert model.comment_preferences(batch, none, none).shape == (0, width)


@pytest.mark.parametrize("name", PREFERENCES)
def test_vectors_of_comments(name: str) -> None:
    log = random_log(2, dtype=np.float64)
    model = random_model(name, "comment", log, length=LENGTH)
    w = weights_of(model)
    with torch.no_grad():
        fast_UD = model.comment_vectors(torch.from_numpy(log.comments[1:]))
    expected = [VECTORS.get(name, embedded)(w, text) for text in log.comments[1:]]
    np.testing.assert_allclose(fast_UD.numpy()[1:], np.stack(expected)[1:], atol=1e-11)


def test_zam_turns_to_nothing_where_the_query_says_so() -> None:
    """With scores far below that of the zero vector the history has no say; far above, all of it."""
    log = random_log(2, dtype=np.float64)
    model = random_model("zam", "comment", log, length=LENGTH)
    windows = training_windows(log.histories, "comment", length=LENGTH, has_start=True)
    w = weights_of(model)
    users = [(user, place) for user in log.users for place in range(len(user.records))]
    _, before_TD = preferences(model, log, windows, "comment")
    with torch.no_grad():
        model.get_parameter("units.weight").zero_()  # every score is that of the zero vector
    _, even_TD = preferences(model, log, windows, "comment")
    for (user, place), even_D in zip(users, even_TD.numpy(), strict=True):
        q = np.tanh(linear(w, "query", unit(log.titles[user.records[place].item])))
        entries = records_of(w, log, user.records[:place], embedded)
        np.testing.assert_allclose(even_D, q + np.sum([np.zeros(len(q)), *entries], axis=0) / (place + 1), atol=1e-11)
    assert not torch.allclose(before_TD, even_TD)
