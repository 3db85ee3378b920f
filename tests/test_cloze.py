"""Training on hidden entries: what is hidden, that it does not show, and BERT4Rec against a loop in float64.

The loop shares the weights with the model and none of its code: no packing, no masks, no batches.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from random_logs import ItemEvent, Log, User, packed_batch, preferences, random_log, random_model
from slow_parts import Vector, Weights, gelu, linear, norm, transformer_layer, weights_of

from reeltalk.data.batch import Batch, PackedWindows
from reeltalk.data.histories import target_windows, training_windows
from reeltalk.losses import full_softmax
from reeltalk.models import MODELS
from reeltalk.models.bert4rec import BERT4Rec
from reeltalk.models.cloze import drawn_hidden, is_next_hidden, next_columns, places
from reeltalk.models.recommender import Recommender, Step
from reeltalk.objectives import item_objective

LENGTH = 9
cloze_models = pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if not spec.make.is_causal])


def training_batch(log: Log) -> tuple[PackedWindows, Batch]:
    return packed_batch(log, training_windows(log.histories, "item", length=LENGTH, has_start=True), "item")


def seeded_step(model: Recommender, batch: Batch, seed: int = 0) -> Step:
    torch.manual_seed(seed)
    with torch.no_grad():
        return model.item_step(batch, regularise=False)


# what stands where, and what is hidden --------------------------------------------------------------------------------


def test_the_start_entry_stands_at_the_end() -> None:
    """Histories of 3, 2 and 0 events, and padding."""
    batch = training_batch(random_log(0))[1]
    history = replace(
        batch.items,
        segment_RL=torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0], [1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]]),
        position_RL=torch.tensor(
            [[-1, 0, 1, 2, -1, 0, 1, -1], [-1, -1, -1, -1, -1, -1, -1, -1], [-1, -1, -1, -1, -1, -1, -1, -1]]
        ),
    )
    assert places(history)[0, :7].tolist() == [3, 0, 1, 2, 2, 0, 1]
    assert next_columns(history)[0, :7].tolist() == [1, 2, 3, 0, 5, 6, 4]
    assert places(history)[1, 0] == next_columns(history)[1, 0] == 0
    is_hidden_RL = history.is_start_RL
    assert is_hidden_RL.nonzero().tolist() == [[0, 0], [0, 4], [1, 0]]
    assert is_next_hidden(history, is_hidden_RL).nonzero().tolist() == [[0, 3], [0, 6], [1, 0]]


def test_a_share_of_the_events_is_hidden_and_the_end_always() -> None:
    users = [User([ItemEvent(time, 1 + time) for time in range(8)]) for _ in range(400)]  # seven entries and a target
    history = training_batch(replace(random_log(1), users=users))[1].items
    assert history.segment_RL.shape == (400, 8)
    torch.manual_seed(0)
    is_event_RL = history.position_RL >= 0
    is_hidden_RL = drawn_hidden(history, share=0.3, end_only=0.0)
    assert is_hidden_RL[history.is_start_RL].all()
    assert float(is_hidden_RL[is_event_RL].double().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(drawn_hidden(history, share=0.3, end_only=1.0), history.is_start_RL)
    is_hidden_RL = drawn_hidden(history, share=0.9, end_only=0.5)
    is_whole_R = ~(is_hidden_RL & is_event_RL).any(dim=1)
    assert float(is_whole_R.double().mean()) == pytest.approx(0.5, abs=0.08)
    assert not torch.equal(is_hidden_RL, drawn_hidden(history, share=0.9, end_only=0.5))
    few = training_batch(random_log(1))[1].items
    assert not drawn_hidden(few, share=0.9, end_only=0.0)[few.segment_RL == 0].any()


@cloze_models
def test_what_is_predicted_does_not_show(name: str) -> None:
    """Another item in the place of a hidden one changes no preference; in the place of one that shows it does."""
    log = random_log(2, num_users=30, dtype=np.float64)
    log = replace(log, users=[User(user.items) for user in log.users])  # a record of the new item would be hidden too
    model = random_model(name, "item", log, length=LENGTH, hidden_share=0.3)
    batch = training_batch(log)[1]
    step = seeded_step(model, batch)
    assert step.is_predicted_RL is not None
    hidden_RL = torch.zeros_like(step.is_predicted_RL).scatter(1, next_columns(batch.items), step.is_predicted_RL)
    hidden_RL &= batch.items.position_RL >= 0
    assert hidden_RL.sum() > 10
    others_RL = batch.items.item_RL % log.num_items + 1
    changed = replace(batch, items=replace(batch.items, item_RL=batch.items.item_RL.where(~hidden_RL, others_RL)))
    torch.testing.assert_close(seeded_step(model, changed).preferences, step.preferences)
    is_event_RL = batch.items.position_RL >= 0
    shown = replace(
        batch, items=replace(batch.items, item_RL=batch.items.item_RL.where(hidden_RL | ~is_event_RL, others_RL))
    )
    assert (seeded_step(model, shown).preferences - step.preferences).abs().max() > (
        0.001 if name == "bert4rec" else 0.01
    )


@cloze_models
def test_a_hidden_entry_is_predicted_from_both_sides(name: str) -> None:
    users = [User([ItemEvent(time, 1 + time % 7) for time in range(8)]) for _ in range(20)]
    log = replace(random_log(3, dtype=np.float64), users=users)
    model = random_model(name, "item", log, length=LENGTH, hidden_share=0.2)
    batch = training_batch(log)[1]
    step = seeded_step(model, batch)
    assert step.is_predicted_RL is not None
    later = [replace(user, items=[*user.items[:6], replace(user.items[6], item=9), *user.items[7:]]) for user in users]
    changed = seeded_step(model, training_batch(replace(log, users=later))[1])
    first_RL = (batch.items.position_RL < 3) & (batch.items.segment_RL > 0) & step.is_predicted_RL
    assert first_RL.sum() > 10
    moved = (changed.preferences - step.preferences).abs().amax(-1)[first_RL] > 1e-9
    assert moved.double().mean() > 0.5  # all but those of histories whose seventh event is hidden too


@cloze_models
def test_the_objective_trains_on_what_is_hidden_alone(name: str) -> None:
    log = random_log(4, num_users=30, dtype=np.float64)
    model = random_model(name, "item", log, length=LENGTH)
    windows = training_windows(log.histories, "item", length=LENGTH, has_start=True)
    batch, targets = log.feed("item").item_batch(windows)
    torch.manual_seed(5)
    loss, count = item_objective(model, batch, targets)["softmax"]
    step = seeded_step(model, batch, 5)
    assert step.is_predicted_RL is not None
    assert (step.preferences[~step.is_predicted_RL] == 0).all()
    kept = step.is_predicted_RL.flatten()[targets.position_T]
    assert count == kept.sum() and len(windows) < count < len(kept)
    expected = full_softmax(
        step.preferences.flatten(0, 1)[targets.position_T[kept]],
        step.vectors,
        targets.item_T[kept],
        first_T=targets.first_T[kept] + 1,
        existing_T=targets.existing_T[kept] + 1,
    )
    torch.testing.assert_close(loss, expected)


@cloze_models
def test_a_window_of_many_targets_gives_the_last_preference_and_no_other(name: str) -> None:
    """What looks both ways has no preference at entries whose next one it sees."""
    log = random_log(5, num_users=20, dtype=np.float64)
    model = random_model(name, "item", log, length=LENGTH)
    windows = training_windows(log.histories, "item", length=LENGTH, has_start=True)
    rows, many_TD = preferences(model, log, windows, "item")
    is_last = np.isin(rows, windows.end)
    assert (many_TD[torch.from_numpy(~is_last)] == 0).all() and (~is_last).sum() > 10
    alone = target_windows(log.histories, "item", rows[is_last], length=LENGTH)
    torch.testing.assert_close(many_TD[torch.from_numpy(is_last)], preferences(model, log, alone, "item")[1])


# BERT4Rec -------------------------------------------------------------------------------------------------------------


def slow_bert4rec(w: Weights, items: list[int], hidden: set[int]) -> list[Vector]:
    """Eq 7 before E: what stands at each place, the last place being that of the item yet to come."""
    x = []
    for place, item in enumerate([*items, 0]):
        entry = w["hidden_entry"] if place in hidden or place == len(items) else w["item_embedding.weight"][item]
        x.append(norm(w, "input_norm", entry + w["position_embedding.weight"][place]))
    for layer in range(2):
        x = [transformer_layer(w, f"encoder.layers.{layer}", entry, x, 2) for entry in x]
    return [norm(w, "output_norm", gelu(linear(w, "out", entry))) for entry in x]


def test_bert4rec_ranks_as_the_paper_does() -> None:
    """One hidden entry, after the last event."""
    log = random_log(6, dtype=np.float64)
    model = cast(BERT4Rec, random_model("bert4rec", "item", log, length=LENGTH))
    w = weights_of(model)
    rows = np.arange(len(log.histories.item))
    _, fast_TD = preferences(model, log, target_windows(log.histories, "item", rows, length=LENGTH), "item")
    histories = [[event.item for event in user.items[:place]] for user in log.users for place in range(len(user.items))]
    vectors_ND = model.item_vectors().detach()
    for items, fast_D in zip(histories, fast_TD, strict=True):
        expected = slow_bert4rec(w, items[-LENGTH:], set())[-1]
        np.testing.assert_allclose(fast_D[:-1].numpy(), expected, atol=1e-11)
        scores = w["item_embedding.weight"] @ expected + w["item_bias"][:, 0]
        np.testing.assert_allclose((vectors_ND @ fast_D).numpy(), scores, atol=1e-11)


def test_bert4rec_fills_in_what_is_hidden() -> None:
    log = random_log(7, num_users=20, dtype=np.float64)
    model = cast(BERT4Rec, random_model("bert4rec", "item", log, length=LENGTH, hidden_share=0.4))
    w = weights_of(model)
    packed, batch = training_batch(log)
    step = seeded_step(model, batch)
    assert step.is_predicted_RL is not None
    num_checked = 0
    for index in range(len(packed.windows)):
        row, column = packed.packing.row[index], packed.packing.item_column[index]
        count = int(packed.windows.end[index] - packed.windows.begin[index])
        cells = slice(column, column + count + 1)
        is_predicted = step.is_predicted_RL[row, cells].tolist()
        items = batch.items.item_RL[row, cells].tolist()[1:]
        expected = slow_bert4rec(w, items, {place for place in range(count) if is_predicted[place]})
        for place, fast_D in enumerate(step.preferences[row, cells, :-1]):  # of what stands at `place`
            assert is_predicted[place] or place < count
            if is_predicted[place]:
                np.testing.assert_allclose(fast_D.numpy(), expected[place], atol=1e-11)
                num_checked += 1
    assert num_checked > 2 * len(packed.windows)
