"""The contract that every registered model keeps, whatever its paper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from random_logs import MODEL_TASKS, Log, Record, User, packed_batch, preferences, random_log, random_model, settings_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from reeltalk.data.batch import Batch, CommentTargets, ItemTargets
from reeltalk.data.dataset import Task
from reeltalk.data.histories import Windows, request_windows, target_windows, training_windows
from reeltalk.data.ragged import Ints, Ragged, offsets_of, ranges
from reeltalk.models import MODELS, build
from reeltalk.models.candidate_features import CandidateFeatures
from reeltalk.models.recommender import Recommender
from reeltalk.objectives import comment_objective, comment_scores, item_objective, target_preferences

LENGTH = 10
PRECISIONS = [(np.float32, 1e-5), (np.float64, 1e-12)]
every_model = pytest.mark.parametrize(("name", "task"), MODEL_TASKS)
causal_models = pytest.mark.parametrize(
    ("name", "task"), [pair for pair in MODEL_TASKS if MODELS[pair[0]].make.is_causal]
)


def assert_same(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal to `tolerance` as unit vectors: preferences of some models are divided by a temperature."""
    assert actual.shape == expected.shape
    assert len(expected) > 0
    longest = expected.norm(dim=-1).max()
    torch.testing.assert_close(actual / longest, expected / longest, atol=tolerance, rtol=0)


def windows_of(name: str, model: Recommender, log: Log, task: Task) -> Windows:
    """Whole histories; of a model that is not causal, a window a target."""
    windows = training_windows(log.histories, task, length=LENGTH, has_start=model.has_start)
    if MODELS[name].make.is_causal:
        return windows
    return target_windows(log.histories, task, ranges(windows.first_target, windows.end + 1), length=LENGTH)


def all_preferences(name: str, model: Recommender, log: Log, task: Task) -> tuple[Ints, Tensor]:
    return preferences(model, log, windows_of(name, model, log, task), task)


@causal_models
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("seed", range(4))
def test_a_position_of_a_whole_history_equals_the_prefix_alone(
    name: str, task: Task, dtype: type[np.float32 | np.float64], tolerance: float, seed: int
) -> None:
    log = random_log(seed, dtype=dtype)
    model = random_model(name, task, log, length=LENGTH)
    rows, whole_TD = all_preferences(name, model, log, task)
    prefix = target_windows(log.histories, task, rows, length=LENGTH)
    prefix_rows, prefix_TD = preferences(model, log, prefix, task)
    assert (prefix_rows == rows).all()
    assert_same(whole_TD, prefix_TD, tolerance)
    if MODELS[name].is_personal:
        distinct = np.unique(whole_TD.numpy().round(6), axis=0)
        assert len(distinct) > 0.5 * len(rows)  # before their first words users are alike


@every_model
def test_full_windows_stand_beside_padding(name: str, task: Task) -> None:
    log = random_log(7, max_items=25, max_records=15)
    model = random_model(name, task, log, length=LENGTH)
    windows = windows_of(name, model, log, task)
    assert (windows.end - windows.begin).max() >= LENGTH
    assert preferences(model, log, windows, task)[1].isfinite().all()


@every_model
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_a_row_alone_equals_the_row_in_a_batch(
    name: str, task: Task, dtype: type[np.float32 | np.float64], tolerance: float
) -> None:
    log = random_log(5, dtype=dtype)
    model = random_model(name, task, log, length=LENGTH)
    windows = windows_of(name, model, log, task)
    packed, _ = packed_batch(log, windows, task, has_start=model.has_start)
    assert packed.packing.row.max() + 1 < len(windows)  # several users share a row, others are alone
    together_TD = preferences(model, log, windows, task)[1]
    alone_TD = torch.cat([preferences(model, log, windows[i : i + 1], task)[1] for i in range(len(windows))])
    assert_same(together_TD, alone_TD, tolerance)
    order = np.random.default_rng(0).permutation(len(windows))
    shuffled_rows, shuffled_TD = preferences(model, log, windows[order], task)
    assert_same(shuffled_TD[np.argsort(shuffled_rows)], together_TD, tolerance)


@every_model
@pytest.mark.parametrize("seed", range(4))
def test_future_events_change_nothing(name: str, task: Task, seed: int) -> None:
    """Nor do events of the other history at exactly the target's time."""
    log = random_log(seed, dtype=np.float64)
    model = random_model(name, task, log, length=LENGTH)
    rows, whole_TD = all_preferences(name, model, log, task)
    offsets = log.histories.item_offsets if task == "item" else log.histories.record_offsets
    num_equal = 0
    for row, expected_D in zip(rows.tolist(), whole_TD, strict=True):
        owner = int(np.searchsorted(offsets, row, side="right")) - 1
        user, place = log.users[owner - 1], row - int(offsets[owner])
        if task == "item":
            moment = user.items[place].time
            past = User(user.items[: place + 1], [record for record in user.records if record.end < moment])
            num_equal += sum(record.end == moment for record in user.records)
        else:
            moment = user.records[place].start
            past = User([event for event in user.items if event.time < moment], user.records[: place + 1])
            num_equal += sum(event.time == moment for event in user.items)
        alone = replace(log, users=[past])
        assert_same(all_preferences(name, model, alone, task)[1][-1:], expected_D[None], 1e-12)
    assert num_equal > 0 or seed > 0


@pytest.mark.parametrize("name", [name for name, task in MODEL_TASKS if task == "comment"])
def test_who_watches_and_what_show_in_the_preference_for_talk_where_the_registry_says_so(name: str) -> None:
    log, spec = random_log(3, dtype=np.float64), MODELS[name]
    model = random_model(name, "comment", log, length=LENGTH)
    windows = request_windows(log.histories, "comment", np.arange(3, 13), np.full(10, 1_000), length=LENGTH)
    packed, batch = packed_batch(log, windows, "comment")
    rows, window = packed.target_rows()
    position_T = torch.from_numpy(packed.target_positions(rows, window, "comment"))
    with torch.no_grad():
        under_5, under_6 = (model.comment_preferences(batch, position_T, torch.full((10,), item)) for item in (5, 6))
    assert (len(np.unique(under_5.numpy().round(9), axis=0)) > 8) == spec.is_personal
    assert (not torch.allclose(under_5, under_6)) == spec.sees_watched


@every_model
def test_the_target_itself_does_not_show(name: str, task: Task) -> None:
    """Another item, hot comment, end or comments of the target record leave its preference as it was."""
    log = random_log(3, dtype=np.float64)
    model = random_model(name, task, log, length=LENGTH)
    users = []
    for user in log.users:
        items, records = list(user.items), list(user.records)
        if items and task == "item":
            items[-1] = replace(items[-1], item=1 + items[-1].item % log.num_items, hot=4)
        if records and task == "comment":
            records[-1] = replace(records[-1], comments=(2, 5), end=records[-1].end + 9)
        users.append(User(items, records))
    rows, before_TD = all_preferences(name, model, log, task)
    rows_after, after_TD = all_preferences(name, model, replace(log, users=users), task)
    assert (rows == rows_after).all()
    assert_same(after_TD, before_TD, 1e-12)


def comment_example(model: Recommender, log: Log, *, order: Ints | None = None) -> tuple[Batch, CommentTargets, Ints]:
    """Every record of the log with all comments of its item as candidates, in another order where one is given."""
    histories = log.histories
    rows = np.arange(len(histories.record_item))
    rows = rows[histories.record_item > 2]  # items 1 and 2 have no comments
    items = histories.record_item[rows]
    first, last = log.pool.offsets[items], log.pool.offsets[items + 1]
    candidates = [np.arange(a, b) + 1 for a, b in zip(first, last, strict=True)]
    if order is not None:
        candidates = [ids[order[order < len(ids)]] for ids in candidates]
    ragged = Ragged(np.concatenate(candidates).astype(np.int32), offsets_of([len(ids) for ids in candidates]))
    windows = target_windows(histories, "comment", rows, length=LENGTH)
    feed = log.feed("comment", has_start=model.has_start)
    return *feed.candidate_batch(windows, items, ragged), ragged.lengths


@pytest.mark.parametrize("name", [name for name, task in MODEL_TASKS if task == "comment"])
@pytest.mark.parametrize("with_features", [False, True])
def test_permuted_candidates_permute_scores(name: str, with_features: bool) -> None:
    log = random_log(6, dtype=np.float64)
    model = random_model(name, "comment", log, length=LENGTH)
    features = CandidateFeatures().double() if with_features else None
    order = np.random.default_rng(1).permutation(10)
    scores = {}
    for which, given in (("sorted", None), ("permuted", order)):
        batch, targets, lengths = comment_example(model, log, order=given)
        generator = torch.Generator().manual_seed(0)
        feature_of_comment = torch.rand(len(log.comments), 2, generator=generator, dtype=torch.float64)
        targets = replace(targets, feature_TCF=feature_of_comment[batch.comment_U[targets.candidate_TC]])
        with torch.no_grad():
            scores[which], is_candidate_TC = comment_scores(model, features, batch, targets)
        assert (is_candidate_TC.sum(1).numpy() == lengths).all()
    for row, length in enumerate(lengths):
        expected = scores["sorted"][row, order[order < length]]
        torch.testing.assert_close(scores["permuted"][row, :length], expected)
    assert len(np.unique(scores["sorted"].numpy().round(5))) > 20


def train_step(model: Recommender, log: Log, task: Task) -> None:
    """Gradients of one step over all histories of the log."""
    windows = training_windows(log.histories, task, length=LENGTH, has_start=model.has_start)
    feed = log.feed(task, has_start=model.has_start)
    torch.manual_seed(0)
    if task == "item":
        batch, item_targets = feed.item_batch(windows)
        terms = item_objective(model, batch, item_targets, regularise=True)
    else:
        batch, comment_targets = feed.comment_batch(windows, rng=np.random.default_rng(0))
        terms = comment_objective(model, None, batch, comment_targets, regularise=True)
    torch.stack([total / count for total, count in terms.values()]).sum().backward()  # type: ignore[no-untyped-call]


@every_model
def test_a_step_has_the_same_gradient_every_time(name: str, task: Task) -> None:
    """With several threads, also that of text vectors: where entries are picked by index, threads may race."""
    log = random_log(9, num_users=1_500, max_items=LENGTH, max_records=LENGTH)
    model = random_model(name, task, log, length=LENGTH).train()
    of_text = [values.requires_grad_() for key, values in model.named_buffers() if key == "title_vectors_NE"]
    gradients, threads = list[list[Tensor | None]](), torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        for _ in range(4):
            for values in (*model.parameters(), *of_text):
                values.grad = None
            train_step(model, log, task)
            gradients.append([values.grad for values in (*model.parameters(), *of_text)])
    finally:
        torch.set_num_threads(threads)
    for first, *others in zip(*gradients, strict=True):
        assert all(first is other is None or torch.equal(first, other) for other in others)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    log = random_log(8, num_users=20, dtype=np.float64)
    model = random_model(name, MODELS[name].tasks[0], log, length=LENGTH).train()  # dropout is off
    for each in MODELS[name].tasks:
        train_step(model, log, each)
    without = [
        key for key, value in model.named_parameters() if value.grad is None or float(value.grad.abs().max()) < 1e-9
    ]
    assert without == []
    assert all(bool(value.grad.isfinite().all()) for value in model.parameters() if value.grad is not None)


@every_model
def test_saved_and_loaded_is_bit_equal(name: str, task: Task, tmp_path: Path) -> None:
    log = random_log(9)
    model = random_model(name, task, log, length=LENGTH, seed=1)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = random_model(name, task, log, length=LENGTH, seed=2)
    before_TD = all_preferences(name, model, log, task)[1]
    assert not torch.equal(before_TD, all_preferences(name, again, log, task)[1])
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(before_TD, all_preferences(name, again, log, task)[1])
    if task == "item":
        assert torch.equal(model.item_vectors(), again.item_vectors())


@every_model
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_empty_histories_and_texts_give_finite_numbers(name: str, task: Task, precision: torch.dtype) -> None:
    log = random_log(10, num_users=5)
    log.titles[:] = 0
    log.comments[:] = 0
    gone = [replace(record, comments=()) for record in log.users[3].records]
    users = [User(), User(log.users[1].items, []), User([], gone), User([], [Record(3, 4, 1, ())]), log.users[4]]
    log = replace(log, users=users)
    model = random_model(name, task, log, length=LENGTH)
    everyone = np.arange(1, 6)
    windows = request_windows(log.histories, task, everyone, np.full(5, 1_000), length=LENGTH)
    packed, batch = packed_batch(log, windows, task, has_start=model.has_start)
    rows, window = packed.target_rows()
    position_T = torch.from_numpy(packed.target_positions(rows, window, task))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        if task == "item":
            preference_TD = target_preferences(
                model, batch, ItemTargets(position_T, position_T, position_T, position_T)
            )
            assert (preference_TD[position_T < 0] == 0).all()
            assert model.item_vectors().isfinite().all()
        else:
            preference_TD = model.comment_preferences(batch, position_T, torch.ones(5, dtype=torch.int64))
            assert model.comment_vectors(batch.comment_text_UE).isfinite().all()
    assert preference_TD.isfinite().all()
    assert len(preference_TD) == 5


@every_model
def test_the_same_seed_gives_the_same_weights(name: str, task: Task) -> None:
    titles = torch.zeros(9, 12)
    first = build(name, task, settings_of(name), titles=titles, history_length=LENGTH, seed=3)
    torch.manual_seed(77)
    second = build(name, task, settings_of(name), titles=titles, history_length=LENGTH, seed=3)
    other = build(name, task, settings_of(name), titles=titles, history_length=LENGTH, seed=4)
    weights = [dict(model.named_parameters()) for model in (first, second, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert any(not torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


@every_model
def test_a_model_reads_what_its_spec_says(name: str, task: Task) -> None:
    log = random_log(11, dtype=np.float64)
    spec, model = MODELS[name], random_model(name, task, log, length=LENGTH)
    rows = {value.shape[0] for value in model.parameters() if value.dim()}
    assert (log.num_items + 1 in rows) == ("ids" in spec.reads)

    def differs(other: Log) -> bool:
        own, changed = (
            all_preferences(name, model if of is log else random_model(name, task, of, length=LENGTH), of, task)
            for of in (log, other)
        )
        return not torch.allclose(own[1], changed[1], rtol=0, atol=1e-9)  # rows may be packed otherwise

    without = [User([], user.records) if task == "comment" else User(user.items, []) for user in log.users]
    assert differs(replace(log, users=without)) == (("records" if task == "item" else "items") in spec.reads)
    other_texts = replace(log, titles=log.titles[::-1].copy(), comments=log.comments[::-1].copy())
    assert differs(other_texts) == spec.reads_text
