"""S3-Rec's pre-training against loops written from the paper, in float64; what is hidden; what it is worth on a toy."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from random_logs import ItemEvent, Log, User, random_log, random_model
from slow_parts import Vector, Weights, linear, norm, transformer_layer, weights_of
from test_learning import cycle_log, model_for, step
from torch import Tensor, nn

from reeltalk.data.batch import Batch, ItemTargets
from reeltalk.data.dataset import Split
from reeltalk.data.histories import Windows, target_windows, training_windows
from reeltalk.models.cloze import is_end
from reeltalk.models.recommender import Recommender
from reeltalk.models.s3rec import S3Rec
from reeltalk.objectives import item_objective, target_preferences
from reeltalk.pretraining.s3rec import (
    S3RecInPretraining,
    S3RecPretraining,
    drawn,
    drawn_segments,
    first_of_each,
    s3rec_objective,
)

LENGTH = 6
LOSSES = ("item_attribute", "history_item", "history_attribute", "history_segment")


@pytest.fixture(scope="module")
def log() -> Log:
    """Histories of up to nine events, so that some are cut into windows; items 5, 6 and 7 share a title, 3 has none."""
    log = random_log(41, num_users=16, max_items=9, dtype=np.float64)
    log.titles[[6, 7]] = log.titles[5]
    return log


@pytest.fixture(scope="module")
def model(log: Log) -> S3RecInPretraining:
    return pretrained_of(log)


def pretrained_of(log: Log) -> S3RecInPretraining:
    recommender = cast(S3Rec, random_model("s3rec", "item", log, length=LENGTH)).double()
    model = S3RecInPretraining(recommender, torch.from_numpy(log.titles)).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return model.eval()


def example(log: Log) -> tuple[Windows, Batch, ItemTargets]:
    windows = training_windows(log.histories, "item", length=LENGTH, has_start=True)
    return windows, *log.feed("item").item_batch(windows)


def only(loss: str, **settings: float) -> S3RecPretraining:
    """Settings with one loss, of weight 0.7."""
    return S3RecPretraining.model_validate(dict.fromkeys(LOSSES, 0.0) | {loss: 0.7} | settings)


def seeded(model: S3RecInPretraining, batch: Batch, targets: ItemTargets, loss: str) -> tuple[float, int]:
    torch.manual_seed(3)
    with torch.no_grad():
        terms = s3rec_objective(model, batch, targets, only(loss, hidden_share=0.4))
    assert list(terms) == [loss]
    total, count = terms[loss]
    return float(total), count


def softmax_loss(scores: list[float], positive: float) -> float:
    return float(np.log(np.sum(np.exp(np.array(scores)))) - positive)


def slow_pass(w: Weights, items: list[int], hidden: list[bool]) -> list[Vector]:
    """What the pass that looks both ways gives at each entry of one history."""
    x = []
    for place, (item, is_hidden) in enumerate(zip(items, hidden, strict=True)):
        entry = w["hidden_entry"] if is_hidden else w["recommender.item_embedding.weight"][item]
        placed = entry + w["recommender.history_encoder.positions.weight"][place]
        x.append(norm(w, "recommender.history_encoder.input_norm", placed))
    for layer in range(2):
        x = [transformer_layer(w, f"recommender.history_encoder.encoder.layers.{layer}", entry, x, 2) for entry in x]
    return x


def histories_in(segment_RL: Tensor) -> list[tuple[int, list[int]]]:
    """Each history's row and columns."""
    found = []
    for row, segments in enumerate(segment_RL.tolist()):
        for number in sorted(set(segments) - {0}):
            found.append((row, [column for column, segment in enumerate(segments) if segment == number]))
    return found


# what stands where ----------------------------------------------------------------------------------------------------


def test_all_training_events_have_a_place_and_no_other(log: Log) -> None:
    """Windows hold their last target too, on consecutive positions; held-out events are nowhere."""
    users = []
    for user in log.users:
        events = [replace(event, split=Split.TRAIN) for event in user.items]
        held_out = [ItemEvent(100 + place, 20, split=split) for place, split in enumerate((Split.VALID, Split.TEST))]
        users.append(User([*(replace(event, item=min(event.item, 19)) for event in events), *held_out]))
    held = replace(log, users=users)
    model = pretrained_of(held)
    windows, batch, targets = example(held)
    assert (windows.end - windows.begin).max() == LENGTH, "with its target one longer than the position table"
    assert Counter(windows.user.tolist()).most_common(1)[0][1] > 1
    history = model.whole(batch.items, targets)
    found = []
    for row, columns in histories_in(history.segment_RL):
        assert history.position_RL[row, columns].tolist() == list(range(len(columns)))
        found.append(tuple(history.item_RL[row, columns].tolist()))
    items = held.histories.item
    expected = [
        tuple(items[max(begin, end + 1 - LENGTH) : end + 1].tolist())
        for begin, end in zip(windows.begin, windows.end, strict=True)
    ]
    assert Counter(found) == Counter(expected)
    assert 20 not in {item for of in found for item in of}
    with_targets = [(row, column) for row, columns in histories_in(history.segment_RL) for column in columns]
    assert len(with_targets) > len(targets.item_T) - 5
    ends = [(row, columns[-1]) for row, columns in histories_in(history.segment_RL)]
    is_hidden_RL, hidden = drawn(history, targets, 1e-9)
    assert is_hidden_RL.nonzero().tolist() == [list(end) for end in ends], "the last event of each, always"
    is_hidden_RL, hidden = drawn(history, targets, 0.999999)
    assert torch.equal(history.item_RL.flatten()[hidden.position_T], hidden.item_T)
    assert not is_hidden_RL[history.segment_RL == 0].any()


def test_a_segment_is_a_stretch_of_at_most_half(log: Log, model: S3RecInPretraining) -> None:
    _, batch, targets = example(log)
    history = model.whole(batch.items, targets)
    torch.manual_seed(0)
    lengths, firsts = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for _ in range(200):
        is_segment_RL = drawn_segments(history)
        assert not is_segment_RL[history.segment_RL == 0].any()
        for row, columns in histories_in(history.segment_RL):
            inside = [place for place, column in enumerate(columns) if is_segment_RL[row, column]]
            assert inside == list(range(inside[0], inside[-1] + 1)) if inside else len(columns) == 1
            lengths[len(columns), len(inside)] += 1
            if inside:
                firsts[len(columns) - len(inside), inside[0]] += 1
    assert set(lengths) == {(size, length) for size, _ in lengths for length in range(1, size // 2 + 1) or [0]}
    assert {first for room, first in firsts if room == 5} == set(range(6)), "anywhere"
    for length in (1, 2, 3):
        assert lengths[6, length] == pytest.approx(sum(lengths[6, each] for each in (1, 2, 3)) / 3, rel=0.2)


def test_titles_that_are_the_same_are_one(log: Log) -> None:
    first_N = first_of_each(torch.from_numpy(log.titles)).tolist()
    assert first_N[:9] == [0, 1, 2, 0, 4, 5, 5, 5, 8]


# the losses -----------------------------------------------------------------------------------------------------------


def test_the_attribute_of_an_item(log: Log, model: S3RecInPretraining) -> None:
    """AAP: each item of the batch that has a title, among the distinct titles."""
    _, batch, targets = example(log)
    total, count = seeded(model, batch, targets, "item_attribute")
    w, first_N = weights_of(model), model.title_N.tolist()
    history = model.whole(batch.items, targets)
    items = sorted(set(history.item_RL[history.segment_RL > 0].tolist()))
    assert {3, 5, 6} < set(items)
    titles = sorted({first_N[item] for item in items} - {0})
    expected, counted = 0.0, 0
    for item in items:
        if first_N[item]:
            told = linear(w, "item_to_attribute", w["recommender.item_embedding.weight"][item])
            scores = {title: float(told @ linear(w, "attribute", log.titles[title])) for title in titles}
            expected += softmax_loss(list(scores.values()), scores[first_N[item]])
            counted += 1
    assert count == counted < len(items)
    np.testing.assert_allclose(total, 0.7 * expected, rtol=1e-9)


@pytest.mark.parametrize("outdated", [0, 4])
@pytest.mark.parametrize("loss", ["history_item", "history_attribute"])
def test_what_is_hidden(log: Log, model: S3RecInPretraining, loss: str, outdated: int) -> None:
    """MIP and MAP: a hidden item among all, or its title among those of the batch, that existed then, not outdated."""
    _, batch, targets = example(log)
    targets = replace(targets, first_T=(targets.item_T - 1).clamp(max=outdated))
    total, count = seeded(model, batch, targets, loss)
    history = model.whole(batch.items, targets)
    torch.manual_seed(3)
    is_hidden_RL, hidden = drawn(history, targets, 0.4)
    w, first_N = weights_of(model), model.title_N.tolist()
    there = sorted(set(history.item_RL[history.segment_RL > 0].tolist()))
    if loss == "history_item":
        number = {item: item for item in there}
        vectors = dict(enumerate(w["recommender.item_embedding.weight"]))
    else:
        number = {item: first_N[item] for item in there}
        vectors = {number[item]: linear(w, "attribute", log.titles[item]) for item in there if number[item]}
    width, expected, counted = history.item_RL.shape[1], 0.0, 0
    wanted = dict(zip(targets.position_T.tolist(), targets.existing_T.tolist(), strict=True))
    for row, columns in histories_in(history.segment_RL):
        items = history.item_RL[row, columns].tolist()
        is_hidden = is_hidden_RL[row, columns].tolist()
        told = slow_pass(w, items, is_hidden)
        for place, column in enumerate(columns):
            mine = number[items[place]]
            if is_hidden[place] and mine:
                existing = wanted[row * width + column]
                x = linear(w, loss.replace("history", "history_to"), told[place])
                first = min(outdated, mine - 1)  # however old it is; an older item may have the same title
                scores = {id_: float(x @ y) for id_, y in vectors.items() if first < id_ <= existing}
                expected += softmax_loss(list(scores.values()), scores[mine])
                counted += 1
    assert count == counted > 10
    assert len(hidden.item_T) == int(is_hidden_RL.sum())
    np.testing.assert_allclose(total, 0.7 * expected, rtol=1e-9)


def test_the_segment_of_a_history(log: Log, model: S3RecInPretraining) -> None:
    """SP: what a history without its segment says of it, among all segments but those of the same items."""
    _, batch, targets = example(log)
    total, count = seeded(model, batch, targets, "history_segment")
    history = model.whole(batch.items, targets)
    torch.manual_seed(3)
    is_segment_RL = drawn_segments(history)
    w, rests, segments, held = weights_of(model), [], [], []
    for row, columns in histories_in(history.segment_RL):
        if len(columns) > 1:
            items, inside = history.item_RL[row, columns].tolist(), is_segment_RL[row, columns].tolist()
            rests.append(linear(w, "history_to_segment", slow_pass(w, items, inside)[-1]))
            segments.append(slow_pass(w, items, [not each for each in inside])[-1])
            held.append(sorted(item for item, each in zip(items, inside, strict=True) if each))
    assert any(held.count(each) > 1 for each in held), "some hold the same items"
    expected = 0.0
    for place, rest in enumerate(rests):
        scores = [
            float(rest @ segment)
            for other, segment in enumerate(segments)
            if other == place or held[other] != held[place]
        ]
        expected += softmax_loss(scores, float(rest @ segments[place]))
    assert count == len(rests)
    np.testing.assert_allclose(total, 0.7 * expected, rtol=1e-9)


def test_validation_hides_the_entry_yet_to_come(log: Log, model: S3RecInPretraining) -> None:
    rows = np.arange(len(log.histories.item))
    batch, targets = log.feed("item").item_batch(target_windows(log.histories, "item", rows, length=LENGTH))
    with torch.no_grad():
        fast_TD = target_preferences(model, batch, targets)
    w = weights_of(model)
    before = [[event.item for event in user.items[:place]] for user in log.users for place in range(len(user.items))]
    for items, fast_D in zip(before, fast_TD, strict=True):
        items = items[-(LENGTH - 1) :]
        told = slow_pass(w, [*items, 0], [*[False] * len(items), True])[-1]
        np.testing.assert_allclose(fast_D.numpy(), linear(w, "history_to_item", told), atol=1e-11)
    assert is_end(batch.items).sum() == len(rows)


# what it is worth -----------------------------------------------------------------------------------------------------


def test_losses_fall_and_the_toy_is_then_learnt_sooner() -> None:
    """The ring of items: every loss ends well below where it began, and fine-tuning needs fewer steps."""
    log = cycle_log()
    recommender = cast(S3Rec, model_for("s3rec", "item", log))
    torch.manual_seed(0)
    model = S3RecInPretraining(recommender, torch.from_numpy(log.titles)).train()
    windows = training_windows(log.histories, "item", length=12, has_start=True)
    batch, targets = log.feed("item").item_batch(windows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    means = []
    for _ in range(300):
        terms = s3rec_objective(model, batch, targets, S3RecPretraining())
        means.append({name: float(total.detach()) / count for name, (total, count) in terms.items()})
        step(optimizer, terms)
    for name in LOSSES:
        first, last = (float(np.mean([each[name] for each in part])) for part in (means[:5], means[-5:]))
        assert last < 0.6 * first, name

    asked = target_windows(log.histories, "item", log.histories.item_offsets[2:] - 1, length=12)

    def found(of: Recommender) -> float:
        batch, wanted = log.feed("item", has_start=of.has_start).item_batch(asked)
        with torch.no_grad():
            score_TN = target_preferences(of.eval(), batch, wanted) @ of.item_vectors()[1:].T
        return float((score_TN.argmax(1) + 1 == wanted.item_T).double().mean())

    # validated as it is pre-trained: a causal pass with weights that always looked both ways tells nothing of them
    assert found(model) > 0.4 > 0.2 > found(recommender)

    def steps_to_learn(start: S3Rec) -> int:
        windows = training_windows(log.histories, "item", length=12, has_start=False)
        batch, targets = log.feed("item", has_start=False).item_batch(windows)
        optimizer = torch.optim.AdamW(start.parameters(), lr=0.003, weight_decay=0.0)
        for count in range(300):
            if step(optimizer, item_objective(start.train(), batch, targets)) < 0.3:
                return count
        return 300

    torch.manual_seed(0)
    fresh = steps_to_learn(cast(S3Rec, model_for("s3rec", "item", log)))
    torch.manual_seed(0)
    assert steps_to_learn(recommender) < fresh < 200
