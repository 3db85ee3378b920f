"""MBHT against a loop over one user's plain lists in float64, which shares the weights and none of the code."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any, cast

import numpy as np
import pytest
import torch
from random_logs import Log, User, packed_batch, preferences, random_log, random_model
from slow_parts import (
    Vector,
    Weights,
    gelu,
    linear,
    mixture,
    multi_head_attention,
    norm,
    softmax,
    weights_of,
)

from reeltalk.data.histories import target_windows, training_windows
from reeltalk.models import merged as merging
from reeltalk.models.hypergraph import LEAST_WEIGHT
from reeltalk.models.mbht import MBHT
from reeltalk.models.merged import Merged

LENGTH = 9
SCALES, RANK, SIMILAR, BEFORE, AFTER = (2, 5), 3, 2, 3, 2
VALUES: dict[str, Any] = {"scales": SCALES, "rank": RANK, "num_similar": SIMILAR, "neighbours": (BEFORE, AFTER)}
ITEM, RECORD = 1, 2


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "GROUP", 4)


@pytest.fixture(scope="module")
def log() -> Log:
    """Few items, so that users meet them again and talk about what they have watched."""
    log = random_log(12, num_users=16, num_items=20, dtype=np.float64)
    users = []
    for user in log.users:
        records = [replace(record, item=1 + record.item % 6) for record in user.records]
        users.append(User([replace(event, item=1 + event.item % 6) for event in user.items], records))
    return replace(log, users=users)


@pytest.fixture(scope="module")
def model(log: Log) -> MBHT:
    return cast(MBHT, random_model("mbht", "item", log, length=LENGTH, hidden_share=0.3, **VALUES))


# one user's sequence, an entry at a time ------------------------------------------------------------------------------

Entry = tuple[int, int]  # item, behaviour


def merged_entries(user: User, place: int) -> list[Entry]:
    """What is known before the item event at `place`, by time; of two at one time the item event first."""
    now = user.items[place].time
    timed = [(event.time, ITEM, event.item) for event in user.items[:place]]
    timed += [(record.end, RECORD, record.item) for record in user.records if record.end < now]
    return [(item, behaviour) for _, behaviour, item in sorted(timed, key=lambda each: each[:2])]


def slow_attention(w: Weights, name: str, x: list[Vector]) -> list[Vector]:
    """Low-rank attention, attention between means, and their fusion."""
    dim = len(x[0])
    keys, values = zip(*(np.split(linear(w, f"{name}.key_value", entry), 2) for entry in x), strict=True)
    key_sums = [mixture(w[f"{name}.key_sums.weight"][c, : len(x)].tolist(), list(keys)) for c in range(RANK)]
    value_sums = [mixture(w[f"{name}.value_sums.weight"][c, : len(x)].tolist(), list(values)) for c in range(RANK)]
    fine = []
    for entry in x:
        query, parts = linear(w, f"{name}.query", entry), []
        for h in (slice(0, dim // 2), slice(dim // 2, dim)):
            scores = [float(query[h] @ key[h]) / sqrt(dim // 2) for key in key_sums]
            parts.append(mixture(softmax(scores), [value[h] for value in value_sums]))
        fine.append(norm(w, f"{name}.norm", entry + linear(w, f"{name}.out", np.concatenate(parts))))
    fused = []
    coarser = []
    for which, scale in enumerate(SCALES):
        means = [np.mean(x[first : first + scale], axis=0) for first in range(0, len(x), scale)]
        mixed = [multi_head_attention(w, f"{name}.coarse.{which}", mean, means, 2) for mean in means]
        coarser.append([norm(w, f"{name}.coarse_norms.{which}", a + b) for a, b in zip(means, mixed, strict=True)])
    for place in range(len(x)):
        total = w[f"{name}.fusion.bias"][place] + mixture(w[f"{name}.fusion.weight"][place, : len(x)].tolist(), fine)
        for which, coarse in enumerate(coarser):
            total = total + mixture(w[f"{name}.coarse_fusions.{which}"][place, : len(coarse)].tolist(), coarse)
        fused.append(total)
    return fused


def slow_transformer(w: Weights, entries: list[Entry], hidden: set[int]) -> list[Vector]:
    x = []
    for place, (item, behaviour) in enumerate(entries):
        is_hidden = place in hidden
        entry = w["hidden_entry"] if is_hidden else w["item_embedding.weight"][item]
        entry = entry + w["position_embedding.weight"][place]
        x.append(norm(w, "input_norm", entry + w["behaviour_embedding.weight"][0 if is_hidden else behaviour]))
    for layer in range(2):
        x = slow_attention(w, f"layers.{layer}.attention", x)
        x = [
            norm(
                w,
                f"layers.{layer}.inner_norm",
                entry + linear(w, f"layers.{layer}.outer", gelu(linear(w, f"layers.{layer}.inner", entry))),
            )
            for entry in x
        ]
    return x


def cosine(a: Vector, b: Vector) -> float:
    """With what keeps vectors of zeros finite."""
    return float(a @ b) / sqrt((float(a @ a) + 1e-12) * (float(b @ b) + 1e-12))


def slow_hypergraph(w: Weights, entries: list[Entry], hidden: set[int]) -> list[Vector]:
    """Hyperedges as dicts from an entry's place to how much it belongs."""
    seen = [place for place in range(len(entries)) if place not in hidden]
    items = list(dict.fromkeys(entries[place][0] for place in seen))
    vector = {}
    for item in items:
        raw = w["item_embedding.weight"][item]
        vector[item] = raw / (1 + np.exp(-linear(w, "hypergraph.gate", raw)))
    similar: dict[int, dict[int, float]] = {item: {} for item in items}
    for place in seen:
        own = vector[entries[place][0]]
        likeness = {
            item: float(np.mean([cosine(c * own, c * vector[item]) for c in w["hypergraph.channels"]]))
            for item in items
        }
        for item in sorted(items, key=lambda each: -likeness[each])[:SIMILAR]:
            similar[item][place] = max(likeness[item], LEAST_WEIGHT)
    edges = [edge for edge in similar.values() if edge]
    for item in items:
        places = [place for place in seen if entries[place][0] == item]
        if len(places) > 1:
            edges.append(dict.fromkeys(places, 1.0))

    def convolved(x: dict[int, Vector]) -> dict[int, Vector]:
        means = [sum(weight * x[p] for p, weight in edge.items()) / sum(edge.values()) for edge in edges]
        result = {}
        for place in seen:
            own = [(edge[place], mean) for edge, mean in zip(edges, means, strict=True) if place in edge]
            result[place] = sum(weight * mean for weight, mean in own) / sum(weight for weight, _ in own)
        return cast(dict[int, Vector], result)

    once = convolved({place: vector[entries[place][0]] for place in seen})
    twice = convolved(once)
    result = []
    for place in range(len(entries)):
        near = [place] if place in seen else [p for p in seen if place - BEFORE <= p <= place + AFTER]
        views = [(once[p] + twice[p]) / 2 for p in near]
        result.append(np.mean(views, axis=0) if views else np.zeros(w["hidden_entry"].shape))
    return result


def slow_mbht(w: Weights, entries: list[Entry], hidden: set[int]) -> list[Vector]:
    """What stands at each place; the last one is that of the item yet to come."""
    entries, hidden = [*entries, (0, 0)], hidden | {len(entries)}
    pairs = zip(slow_transformer(w, entries, hidden), slow_hypergraph(w, entries, hidden), strict=True)
    result = []
    for views in pairs:
        scores = [float(linear(w, "view_weight.1", linear(w, "view_weight.0", view))[0]) for view in views]
        result.append(mixture(softmax(scores), list(views)))
    return result


# ----------------------------------------------------------------------------------------------------------------------


def test_before_each_target(log: Log, model: MBHT) -> None:
    w = weights_of(model)
    rows = np.arange(len(log.histories.item))
    _, fast_TD = preferences(model, log, target_windows(log.histories, "item", rows, length=LENGTH), "item")
    targets = [(user, place) for user in log.users for place in range(len(user.items))]
    behaviours = [{behaviour for _, behaviour in merged_entries(user, place)} for user, place in targets]
    assert behaviours.count({ITEM, RECORD}) > 20 and set() in behaviours
    for (user, place), fast_D in zip(targets, fast_TD, strict=True):
        np.testing.assert_allclose(fast_D.numpy(), slow_mbht(w, merged_entries(user, place), set())[-1], atol=1e-10)


def test_hidden_entries_and_the_records_that_tell_of_them(log: Log, model: MBHT) -> None:
    w = weights_of(model)
    windows = training_windows(log.histories, "item", length=LENGTH, has_start=True)
    packed, batch = packed_batch(log, windows, "item")
    torch.manual_seed(1)
    with torch.no_grad():
        step = model.item_step(batch, regularise=False)
    assert step.is_predicted_RL is not None
    num_told = num_checked = 0
    for index, owner in enumerate(windows.user):
        user = log.users[owner - 1]
        entries = merged_entries(user, len(user.items) - 1)
        row, column = packed.packing.row[index], packed.packing.item_column[index]
        is_hidden = step.is_predicted_RL[row, column : column + len(user.items)].tolist()  # of the next event
        events = [place for place, (_, behaviour) in enumerate(entries) if behaviour == ITEM]
        hidden = {place for place, gone in zip(events, is_hidden[:-1], strict=True) if gone}
        told = {
            place
            for place, (item, behaviour) in enumerate(entries)
            if behaviour == RECORD and item in {entries[other][0] for other in hidden}
        }
        num_told += len(told)
        expected = slow_mbht(w, entries, hidden | told)
        preference_LD = step.preferences[row, column : column + len(is_hidden)]
        for place, gone, fast_D in zip([*events, len(entries)], is_hidden, preference_LD, strict=True):
            if gone:
                np.testing.assert_allclose(fast_D.numpy(), expected[place], atol=1e-10)
                num_checked += 1
    assert num_told > 3 and num_checked > len(windows) + 10


def test_histories_as_long_as_can_be(log: Log, model: MBHT) -> None:
    """Both full: the last events of each, and the entry yet to come, which stands after all of them."""
    short = cast(MBHT, random_model("mbht", "item", log, length=2, **VALUES))
    w = weights_of(short)
    rows = np.arange(len(log.histories.item))
    _, fast_TD = preferences(short, log, target_windows(log.histories, "item", rows, length=2), "item")
    targets = [(user, place) for user in log.users for place in range(len(user.items))]
    num_full = 0
    for (user, place), fast_D in zip(targets, fast_TD, strict=True):
        known = [record for record in user.records if record.end < user.items[place].time][-2:]
        entries = merged_entries(User(user.items[max(0, place - 2) : place + 1], known), min(place, 2))
        num_full += len(entries) == 4
        np.testing.assert_allclose(fast_D.numpy(), slow_mbht(w, entries, set())[-1], atol=1e-10)
    assert num_full > 10


def test_both_histories_as_one_sequence(log: Log) -> None:
    """Of every window: entries in order, the one yet to come, padding; those of one length together."""
    windows = training_windows(log.histories, "item", length=LENGTH, has_start=True)
    packed, batch = packed_batch(log, windows, "item")
    merged = Merged.of(batch, batch.items.is_start_RL)
    users = [log.users[owner - 1] for owner in windows.user]
    histories = [(user, merged_entries(user, len(user.items) - 1)) for user in users]
    inside = np.lexsort((packed.packing.segment, packed.packing.row))
    ordered = sorted(inside, key=lambda index: len(histories[index][1]))
    sequences = [(group, row) for group in merged.groups for row in range(len(group.item_BS))]
    starts = np.cumsum([0] + [group.item_BS.shape[1] for group, _ in sequences])
    assert [group.item_BS.shape[1] for group in merged.groups] == [8, 16]
    for index, (group, sequence), start in zip(ordered, sequences, starts[:-1], strict=True):
        user, entries = histories[index]
        count = len(entries)
        assert group.item_BS[sequence, :count].tolist() == [item for item, _ in entries]
        assert group.is_record_BS[sequence, :count].tolist() == [behaviour == RECORD for _, behaviour in entries]
        assert group.is_entry_BS[sequence].sum() == count + 1
        assert group.is_hidden_BS[sequence].nonzero().tolist() == [[count]]
        row, column = packed.packing.row[index], packed.packing.item_column[index]
        places = merged.slot_RL[row, column : column + len(user.items)] - start
        events = [place for place, (_, behaviour) in enumerate(entries) if behaviour == ITEM]
        assert places.tolist() == [count, *events]
