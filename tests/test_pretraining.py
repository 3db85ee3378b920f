"""Objectives of pre-training against loops written from the papers, in float64."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from random_logs import Log, User, packed_batch, random_log, random_model
from torch import Tensor

from reeltalk.data.batch import Batch, ItemTargets
from reeltalk.data.histories import training_windows
from reeltalk.data.ragged import Ints
from reeltalk.models.cloze import is_end
from reeltalk.models.unisrec import UniSRec
from reeltalk.models.vqrec import VQRec
from reeltalk.pretraining import vqrec
from reeltalk.pretraining.unisrec import UniSRecPretraining, unisrec_objective, without_some
from reeltalk.pretraining.vqrec import VQRecPretraining, redrawn, vqrec_objective

LENGTH = 9


@pytest.fixture(scope="module")
def log() -> Log:
    return random_log(31, num_users=14, max_items=LENGTH, dtype=np.float64)


def example(log: Log, *, active_days: float | None = None) -> tuple[Batch, ItemTargets]:
    windows = training_windows(log.histories, "item", length=LENGTH, has_start=False)
    feed = log.feed("item", has_start=False)
    batch, targets = feed.item_batch(windows)
    if active_days is not None:  # the log's clock is in milliseconds from 0: too short for days
        first_T = (targets.existing_T - 8).clamp(min=0).minimum(targets.item_T - 1)
        targets = ItemTargets(targets.position_T, targets.item_T, first_T, targets.existing_T)
    return batch, targets


def total_of(term: tuple[Tensor, int]) -> float:
    return float(term[0].detach())


def softmax_loss(scores: list[float], positive: float) -> float:
    return float(np.log(np.sum(np.exp(np.array(scores)))) - positive)


# what competes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("active_days", [None, 1.0])
def test_items_of_the_batch_compete(log: Log, active_days: float | None) -> None:
    """Each target against the distinct items of histories and targets that existed then, and were not outdated."""
    model = cast(UniSRec, random_model("unisrec", "item", log, length=LENGTH, use_item_ids=False))
    batch, targets = example(log, active_days=active_days)
    settings = UniSRecPretraining(sequence_weight=0)
    terms = unisrec_objective(model, batch, targets, settings)
    assert list(terms) == ["item"]
    with torch.no_grad():
        preference_MD = model.item_preferences(batch).flatten(0, 1)
        vector_ND = model.item_vectors()
    there = (set(batch.items.item_RL.flatten().tolist()) | set(targets.item_T.tolist())) - {0}
    expected, num_competitors = 0.0, []
    columns = (targets.position_T, targets.item_T, targets.first_T, targets.existing_T)
    for position, item, first, existing in zip(*(column.tolist() for column in columns), strict=True):
        scores = {
            other: float(preference_MD[position] @ vector_ND[other]) for other in there if first < other <= existing
        }
        expected += softmax_loss(list(scores.values()), scores[item])
        num_competitors.append(len(scores))
    assert min(num_competitors) < max(num_competitors) < log.num_items + 1
    assert terms["item"][1] == len(targets.item_T)
    np.testing.assert_allclose(total_of(terms["item"]), expected, rtol=1e-9)


def test_made_up_items_compete_too(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cast(VQRec, random_model("vqrec", "item", log, length=LENGTH))
    batch, targets = example(log)
    drawn: list[Tensor] = []

    def remembered(code_UM: Tensor, num_codes: int, share: float) -> Tensor:
        drawn.append(redrawn(code_UM, num_codes, share))
        return drawn[-1]

    monkeypatch.setattr(vqrec, "redrawn", remembered)
    torch.manual_seed(0)
    found, count = vqrec_objective(model, batch, targets, VQRecPretraining())["item"]
    with torch.no_grad():
        preference_MD = model.item_preferences(batch).flatten(0, 1)
        vector_ND = model.item_vectors()
        made_up_UD = torch.nn.functional.normalize(model.code_embeddings(drawn[0]), dim=1)
    there = sorted((set(batch.items.item_RL.flatten().tolist()) | set(targets.item_T.tolist())) - {0})
    assert len(made_up_UD) == len(there), "one for each item, none for padding"
    expected = 0.0
    for position, item, existing in zip(
        targets.position_T.tolist(), targets.item_T.tolist(), targets.existing_T.tolist(), strict=True
    ):
        scores = {other: float(preference_MD[position] @ vector_ND[other]) for other in there if other <= existing}
        made_up = (made_up_UD @ preference_MD[position]).tolist()
        expected += softmax_loss([*scores.values(), *made_up], scores[item])
    assert count == len(targets.item_T)
    np.testing.assert_allclose(float(found.detach()), expected, rtol=1e-9)


def test_codes_are_redrawn_from_their_own_codebook() -> None:
    code_UM = (torch.randint(0, 50, (3_000, 4)) + 50 * torch.arange(4)).int()
    torch.manual_seed(0)
    for share, kept in ((0.0, 1.0), (0.75, 0.25 + 0.75 / 50), (1.0, 1 / 50)):
        found = redrawn(code_UM, 50, share)
        assert torch.equal(found // 50, torch.arange(4, dtype=torch.int32).expand_as(found))
        assert abs(float((found == code_UM).double().mean()) - kept) < 0.01


# the other view of a history ------------------------------------------------------------------------------------------


def test_entries_left_out_are_as_if_they_had_not_been(log: Log) -> None:
    """The preference after what is left equals that of a user who never had the rest."""
    model = cast(UniSRec, random_model("unisrec", "item", log, length=LENGTH))
    windows = training_windows(log.histories, "item", length=LENGTH, has_start=False)
    packed, batch = packed_batch(log, windows, "item", has_start=False)
    torch.manual_seed(3)
    other, last_RL = without_some(batch.items, 0.4)
    with torch.no_grad():
        x_RLD = model.embeddings(batch.items.item_RL.flatten()).view(*batch.items.item_RL.shape, -1)
        other_RLD = model.preferences(other, x_RLD)
    num_gone = 0
    for window in range(len(windows)):
        row, first = int(packed.packing.row[window]), int(packed.packing.item_column[window])
        length = int(windows.end[window] - windows.begin[window])
        end = first + length - 1
        assert is_end(batch.items)[row, first : end + 1].tolist() == [False] * (length - 1) + [True]
        is_left = (other.segment_RL[row, first : end + 1] > 0).tolist()
        assert is_left[0], "the first always stays"
        last = max(place for place in range(length) if is_left[place])
        assert int(last_RL[row, end]) == first + last
        items = log.users[int(windows.user[window]) - 1].items[:length]
        left = [event for event, stays in zip(items, is_left, strict=True) if stays]
        alone = Log([User([*left, items[-1]])], log.created, log.known, log.pool, log.titles, log.comments)
        _, alone_batch = packed_batch(
            alone, training_windows(alone.histories, "item", length=LENGTH, has_start=False), "item", has_start=False
        )
        with torch.no_grad():
            expected = model.item_preferences(alone_batch)[0, len(left) - 1]
        torch.testing.assert_close(other_RLD[row, first + last], expected, atol=1e-11, rtol=0)
        num_gone += is_left.count(False)
    assert num_gone > 10
    whole, last_RL = without_some(batch.items, 0.0)
    assert torch.equal(whole.position_RL, batch.items.position_RL)
    assert torch.equal(whole.segment_RL, batch.items.segment_RL)


def test_sequences_against_their_other_view(log: Log) -> None:
    """One end a history; those with the same next item are no negatives."""
    model = cast(UniSRec, random_model("unisrec", "item", log, length=LENGTH, use_item_ids=False))
    batch, targets = example(log)
    torch.manual_seed(4)
    terms = unisrec_objective(model, batch, targets, UniSRecPretraining(sequence_weight=0.5, item_drop=0.4))
    torch.manual_seed(4)
    other, last_RL = without_some(batch.items, 0.4)
    with torch.no_grad():
        x_RLD = model.embeddings(batch.items.item_RL.flatten()).view(*batch.items.item_RL.shape, -1)
        whole, parts = (model.preferences(history, x_RLD) * model.temperature for history in (batch.items, other))
    ends = is_end(batch.items).nonzero().tolist()
    width = batch.items.item_RL.shape[1]
    next_item = dict(zip(targets.position_T.tolist(), targets.item_T.tolist(), strict=True))
    wanted: Ints = np.array([next_item[row * width + column] for row, column in ends])
    assert 1 < len(set(wanted)) < len(wanted), "some share their next item"
    seen = [whole[row, column] for row, column in ends]
    views = [parts[row, int(last_RL[row, column])] for row, column in ends]
    expected = 0.0
    for i, anchor in enumerate(seen):
        scores = [float(anchor @ view) / model.temperature for view in views]
        rest = [score for j, score in enumerate(scores) if j == i or wanted[j] != wanted[i]]
        expected += softmax_loss(rest, scores[i])
    assert terms["sequence"][1] == len(ends)
    np.testing.assert_allclose(total_of(terms["sequence"]), 0.5 * expected, rtol=1e-9)
