"""Toys with a provable answer: each model finds it within a fixed number of plain AdamW steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from random_logs import ItemEvent, Log, Record, User, settings_of
from torch import Tensor, nn

from reeltalk.data.dataset import Split
from reeltalk.data.histories import Windows, target_windows, training_windows
from reeltalk.data.pool import CommentPool
from reeltalk.data.ragged import Ragged, offsets_of, ranges
from reeltalk.models import MODELS, build
from reeltalk.models.candidate_features import NUM_FEATURES, CandidateFeatures
from reeltalk.models.recommender import Recommender
from reeltalk.objectives import Terms, comment_objective, comment_scores, item_objective, target_preferences

LENGTH = 12
NO_COMMENTS = CommentPool(*(np.zeros(0, np.int64) for _ in range(3)))


def model_for(name: str, task: str, log: Log) -> Recommender:
    titles = torch.from_numpy(log.titles if MODELS[name].reads_text else log.titles[:, :0])
    settings = settings_of(name, dim=16, inner_dim=32, hidden_dim=32, dropout=0.1)
    return build(name, task, settings, titles=titles, history_length=LENGTH, seed=0)  # type: ignore[arg-type]


def step(optimizer: torch.optim.Optimizer, terms: Terms) -> float:
    loss = torch.stack([total / count for total, count in terms.values()]).sum()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


# items ----------------------------------------------------------------------------------------------------------------


def cycle_log(num_items: int = 12, num_users: int = 60) -> Log:
    """Everyone watches the items in a ring, from anywhere in it: the next is always (i + 1) mod n."""
    rng = np.random.default_rng(0)
    users = []
    for _ in range(num_users):
        first, length = rng.integers(num_items), rng.integers(3, LENGTH)
        users.append(User([ItemEvent(time, int(first + time) % num_items + 1) for time in range(int(length))]))
    titles = rng.normal(size=(num_items + 1, 8)).astype(np.float32)
    return Log(
        users,
        np.zeros(num_items, np.int64),
        np.ones(num_items + 1, bool),
        NO_COMMENTS,
        titles,
        np.zeros((1, 8), np.float32),
    )


@pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if "item" in spec.tasks])
def test_the_next_item_of_a_ring(name: str) -> None:
    log = cycle_log()
    model = model_for(name, "item", log)
    feed = log.feed("item", has_start=model.has_start)
    windows = training_windows(log.histories, "item", length=LENGTH, has_start=model.has_start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(1, (400 - done) / 100))
    torch.manual_seed(0)
    losses = []
    for _ in range(400):
        losses.append(step(optimizer, item_objective(model.train(), *feed.item_batch(windows))))
        falling.step()
    assert losses[-1] < losses[0] / 4
    rows = ranges(windows.first_target, windows.end + 1)
    batch, targets = feed.item_batch(target_windows(log.histories, "item", rows, length=LENGTH))
    with torch.no_grad():
        preference_TD = target_preferences(model.eval(), batch, targets)
        best_T = (preference_TD @ model.item_vectors()[1:].T).argmax(1) + 1
    # What opens a history follows from nothing; who trains on hidden entries has seen no history shorter than these.
    fewest = 1 if MODELS[name].make.is_causal else int((windows.end - windows.begin).min())
    follows_T = batch.items.position_RL.flatten()[targets.position_T] >= fewest - 1
    assert follows_T.sum() > 100
    assert torch.equal(best_T[follows_T], targets.item_T[follows_T])  # Recall@1 = 1


# comments -------------------------------------------------------------------------------------------------------------

STYLES, TEXT_WIDTH = 3, 64


def style_log(*, of_user: bool, of_kind: bool, num_users: int = 240, num_items: int = 9) -> Log:
    """Three comments under each item, one of each style: the style that is answered is the user's, or the item kind's.

    With both it is the user's style for items of this kind, which differs from kind to kind: each user meets all kinds,
    in some order, before meeting one of them again, which is the last record; and a comment tells its item's kind, as
    some models know of a record nothing but its comments.
    """
    rng = np.random.default_rng(1)
    kind, style = rng.normal(size=(2, STYLES, TEXT_WIDTH))
    titles = rng.normal(0, 0.05, (num_items + 1, TEXT_WIDTH))
    titles[1:] += kind[np.arange(num_items) % STYLES]
    texts = rng.normal(0, 0.05, (STYLES * num_items + 1, TEXT_WIDTH))
    texts[1:] += np.tile(style, (num_items, 1))
    if of_user and of_kind:
        texts[1:] += np.repeat(titles[1:], STYLES, axis=0)
    offsets = offsets_of([0, *[STYLES] * num_items])
    users = []
    for user in range(num_users):
        answer = np.full(STYLES, rng.integers(STYLES)) if of_user else np.arange(STYLES)
        if of_user and of_kind:
            answer = rng.permutation(STYLES)
        kinds = [*rng.permutation(STYLES), rng.integers(STYLES)]
        records = []
        for place, wanted in enumerate(kinds):
            item = int(wanted + STYLES * rng.integers(num_items // STYLES)) + 1
            split = Split.TEST if place == STYLES and user >= num_users // 2 else Split.TRAIN
            comment = int(offsets[item] + answer[wanted]) + 1
            records.append(Record(place * 10 + 5, place * 10 + 6, item, (comment,), split))
        users.append(User([], records))
    pool = CommentPool(offsets, np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int64))
    vectors = (values.astype(np.float32) for values in (titles, texts))
    return Log(users, np.zeros(num_items, np.int64), np.ones(num_items + 1, bool), pool, *vectors)


def held_out(log: Log) -> tuple[Windows, NDArray[np.int64], Ragged]:
    """The last records of the users held out, with all comments of the item as candidates."""
    histories = log.histories
    rows = np.flatnonzero(histories.record_split == Split.TEST)
    items = histories.record_item[rows]
    candidates = (log.pool.offsets[items][:, None] + np.arange(1, STYLES + 1)).astype(np.int32)
    ragged = Ragged(candidates.reshape(-1), np.arange(len(rows) + 1) * STYLES)
    return target_windows(histories, "comment", rows, length=LENGTH), items, ragged


def comment_toys() -> list[tuple[str, bool, bool, int]]:
    """What each model can learn from what it sees: model, whether the user decides, whether the item's kind, steps."""
    toys = ((True, False, 200), (True, True, 600), (False, True, 200))
    return [
        (name, of_user, of_kind, steps)
        for name, spec in MODELS.items()
        for of_user, of_kind, steps in toys
        if "comment" in spec.tasks and of_user == spec.is_personal and of_kind <= spec.sees_watched
    ]


@pytest.mark.parametrize(("name", "of_user", "of_kind", "steps"), comment_toys())
def test_the_comment_a_user_answers(name: str, of_user: bool, of_kind: bool, steps: int) -> None:
    """Users whose last record was held out, and with it which of their styles is asked for."""
    log = style_log(of_user=of_user, of_kind=of_kind)
    model = model_for(name, "comment", log)
    feed = log.feed("comment", has_start=model.has_start)
    windows = training_windows(log.histories, "comment", length=LENGTH, has_start=model.has_start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    torch.manual_seed(0)
    losses = []
    for seed in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - seed / steps)
        batch, targets = feed.comment_batch(windows, rng=np.random.default_rng(seed))
        losses.append(step(optimizer, comment_objective(model.train(), None, batch, targets)))
    assert losses[-1] < losses[0]
    asked, items, candidates = held_out(log)
    with torch.no_grad():
        score_TC, _ = comment_scores(model.eval(), None, *feed.candidate_batch(asked, items, candidates))
    chosen = candidates.values.reshape(-1, STYLES)[np.arange(len(items)), score_TC.argmax(1).numpy()]
    answered = [user.records[-1].comments[0] for user in log.users if user.records[-1].split == Split.TEST]
    assert np.mean(chosen == answered) > 0.97


def test_candidate_features_read_how_many_are_fresher() -> None:
    generator = torch.Generator().manual_seed(0)
    feature_TCF = torch.randint(0, 4, (30, 7, NUM_FEATURES), generator=generator).float()  # with ties
    is_candidate_TC = torch.rand(30, 7, generator=generator) < 0.7
    features, read = CandidateFeatures(), list[Tensor]()
    features.linear.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    features(feature_TCF, is_candidate_TC)
    for row, column in is_candidate_TC.nonzero().tolist():
        others_CF = feature_TCF[row, is_candidate_TC[row]]
        expected_F = (others_CF < feature_TCF[row, column]).double().mean(0)
        torch.testing.assert_close(read[0][row, column, -NUM_FEATURES:].double(), expected_F)


def test_candidate_features_learn_that_the_freshest_is_answered() -> None:
    """Nothing but the age tells the candidates apart."""
    generator = torch.Generator().manual_seed(0)
    age_TC1 = torch.rand(200, 6, 1, generator=generator) * 15
    feature_TCF = torch.cat([age_TC1, torch.rand(200, 6, 1, generator=generator)], dim=2)
    is_candidate_TC = torch.rand(200, 6, generator=generator) < 0.8
    is_candidate_TC[:, 0] = True
    freshest_T = age_TC1[..., 0].masked_fill(~is_candidate_TC, torch.inf).argmin(1)
    torch.manual_seed(0)
    features = CandidateFeatures()
    optimizer = torch.optim.AdamW(features.parameters(), lr=0.02, weight_decay=0.0)
    for _ in range(150):
        score_TC = features(feature_TCF, is_candidate_TC).masked_fill(~is_candidate_TC, -torch.inf)
        optimizer.zero_grad()
        nn.functional.cross_entropy(score_TC, freshest_T).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float((score_TC.argmax(1) == freshest_T).double().mean()) > 0.97
