"""Item-kNN and EASE against loops written from their equations, and toys worked by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import sparse
from toy import at_rows, candidate_lists, with_tables

from reeltalk.data.dataset import Dataset, Split
from reeltalk.errors import ConfigError
from reeltalk.evaluation import item_to_item
from reeltalk.evaluation.floors import floors
from reeltalk.evaluation.item_to_item import (
    EASE,
    EASESettings,
    ItemKNN,
    ItemKNNSettings,
    ease_weights,
    nearest_items,
    training_interactions,
)
from reeltalk.evaluation.protocol import evaluate
from reeltalk.evaluation.settings import EvaluationSettings

KNN = ItemKNNSettings(neighbours=4, shrinkage=0.5)
EASE_SETTINGS = EASESettings(regularisation=3.0)


def interactions(*users: list[int], num_items: int = 3) -> sparse.csr_array:
    """What each user turned to, as columns from 0."""
    dense = np.zeros((len(users), num_items), dtype=np.float32)
    for row, items in enumerate(users):
        dense[row, items] = 1
    return sparse.csr_array(dense)


def random_interactions(seed: int, *, num_users: int = 50, num_items: int = 23) -> sparse.csr_array:
    """A few popular items, one that nobody turned to, users without any, and many equal counts."""
    rng = np.random.default_rng(seed)
    dense = rng.random((num_users, num_items)) < rng.power(0.5, num_items) * 0.5
    dense[:3], dense[:, 5] = False, False
    return sparse.csr_array(dense.astype(np.float32))


def similarity_loop(interactions_UN: sparse.csr_array, neighbours: int, shrinkage: float) -> np.ndarray:
    dense = interactions_UN.toarray()
    users_of = [set(np.flatnonzero(column).tolist()) for column in dense.T]
    found = np.zeros((len(users_of), len(users_of)))
    for i, of_i in enumerate(users_of):
        values = {
            j: len(of_i & of_j) / (np.sqrt(len(of_i) * len(of_j)) + shrinkage)
            for j, of_j in enumerate(users_of)
            if j != i and of_i & of_j
        }
        for j in sorted(values, key=lambda j: (-np.float32(values[j]), j))[:neighbours]:
            found[i, j] = values[j]
    return found


def ridge_loop(interactions_UN: sparse.csr_array, regularisation: float) -> np.ndarray:
    """What EASE solves: each item's column regressed on all others, one at a time."""
    x_UN = interactions_UN.toarray().astype(np.float64)
    num_items = x_UN.shape[1]
    weights_NN = np.zeros((num_items, num_items))
    for item in range(num_items):
        others = np.delete(np.arange(num_items), item)
        x = x_UN[:, others]
        gram = x.T @ x + regularisation * np.eye(len(others))
        weights_NN[others, item] = np.linalg.solve(gram, x.T @ x_UN[:, item])
    return weights_NN


def test_item_knn_by_hand() -> None:
    # users a: 1, b: 2, c: 1; a and b share one, b and c share one, a and c none
    x_UN = interactions([0, 1], [1, 2])
    cosine = 1 / np.sqrt(2)
    found = nearest_items(x_UN, neighbours=2, shrinkage=0).toarray()
    assert found == pytest.approx(np.array([[0, cosine, 0], [cosine, 0, cosine], [0, cosine, 0]]))
    found = nearest_items(x_UN, neighbours=1, shrinkage=1).toarray()  # 1 / (sqrt(2) + 1) = sqrt(2) - 1
    value = np.sqrt(2) - 1
    assert found == pytest.approx(np.array([[0, value, 0], [value, 0, 0], [0, value, 0]]))  # of equal ones, the first


def test_ease_by_hand() -> None:
    # X^T X + I = [[2, 1, 0], [1, 3, 1], [0, 1, 2]], its inverse [[5, -2, 1], [-2, 4, -2], [1, -2, 5]] / 8
    found = ease_weights(interactions([0, 1], [1, 2]), regularisation=1)
    assert found == pytest.approx(np.array([[0, 0.5, -0.2], [0.4, 0, 0.4], [-0.2, 0.5, 0]]))
    # two items: a regression of one column on the other, c / (n + lambda)
    found = ease_weights(interactions([0, 1], [0, 1], [0], num_items=2), regularisation=1)
    assert found == pytest.approx(np.array([[0, 2 / 4], [2 / 3, 0]]))


@pytest.mark.parametrize("neighbours", [1, 4, 100])
@pytest.mark.parametrize("shrinkage", [0.0, 7.5])
@pytest.mark.parametrize("at_once", [1, 90, 1 << 24])
def test_item_knn_is_a_loop_over_sets(
    neighbours: int, shrinkage: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_to_item, "PAIRS_AT_ONCE", at_once)
    for seed in range(3):
        x_UN = random_interactions(seed)
        found = nearest_items(x_UN, neighbours=neighbours, shrinkage=shrinkage)
        assert found.dtype == np.float32
        assert found.toarray() == pytest.approx(similarity_loop(x_UN, neighbours, shrinkage), abs=1e-6)


@pytest.mark.parametrize(("regularisation", "tolerance"), [(500.0, 1e-6), (2.0, 1e-5), (1e-3, 1e-4), (1e-6, 1e-4)])
@pytest.mark.parametrize("at_once", [7, 512])
def test_ease_is_a_regression_of_each_item_on_the_others(
    regularisation: float, tolerance: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last two are beyond what float32 can invert."""
    monkeypatch.setattr(item_to_item, "ROWS_AT_ONCE", at_once)
    for seed in range(3):
        x_UN = random_interactions(seed)
        found = ease_weights(x_UN, regularisation=regularisation)
        assert found.dtype == np.float32
        assert found == pytest.approx(ridge_loop(x_UN, regularisation), abs=tolerance)


def test_a_regularisation_too_small_for_float64_is_told() -> None:
    with pytest.raises(ConfigError, match=r"ease\.regularisation=1e-30 is too small"):
        ease_weights(interactions([0, 1], [0, 1]), regularisation=1e-30)


def test_they_are_fitted_on_training_events_alone(toy_dataset: Dataset) -> None:
    x_UN = training_interactions(toy_dataset).toarray()
    events = toy_dataset.item_events.select("user_id", "item_id", "split").rows()
    expected = {(user - 1, item - 1) for user, item, split in events if split == Split.TRAIN}
    assert {tuple(cell) for cell in np.argwhere(x_UN == 1).tolist()} == expected
    assert x_UN.sum() == len(expected)


def test_scores_are_a_loop_over_the_history(toy_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything before the target counts once: also what came after training, and what came twice."""
    twice = toy_dataset.item_events.sort("user_id", "time")
    dataset = with_tables(
        toy_dataset, item_events=pl.concat([twice, twice.filter(pl.col("item_id") % 3 == 0)]).sort("user_id", "time")
    )
    x_UN = training_interactions(dataset)
    targets, candidates = candidate_lists(dataset, "item")
    targets = at_rows(dataset, targets)
    events = dataset.item_events.select("user_id", "item_id", "time").rows()
    histories = [
        {item for user, item, at in events if user == of and at < now}
        for of, now in targets.select("user_id", "time").rows()
    ]
    monkeypatch.setattr(item_to_item, "BLOCK_BYTES", 4 * dataset.num_items * 5)
    for ranker, weights_NN in (
        (ItemKNN.of(dataset, KNN), similarity_loop(x_UN, KNN.neighbours, KNN.shrinkage)),
        (EASE.of(dataset, EASE_SETTINGS), ridge_loop(x_UN, EASE_SETTINGS.regularisation)),
    ):
        found = ranker.candidate_scores(targets, candidates)
        expected = [
            sum(weights_NN[i - 1, item - 1] for i in histories[owner])
            for owner, item in zip(candidates.owners, candidates.values, strict=True)
        ]
        assert found == pytest.approx(expected, abs=1e-5), ranker.name
        assert len(np.unique(found.round(4))) > 20


def test_the_next_item_of_pairs_is_found(toy_dataset: Dataset) -> None:
    """Everyone who turned to item i of a pair also turned to the other, but for the user who is asked."""
    users = np.repeat(np.arange(1, 31), 2)
    first = 2 * (np.arange(30) % 10) + 1
    items = np.stack([first, first + 1], axis=1).reshape(-1)
    is_last = np.tile([False, True], 30) & (users > 20)
    events = pl.DataFrame(
        {
            "user_id": users,
            "item_id": items,
            "time": np.tile([10, 20], 30),
            "split": np.where(is_last, Split.TEST, Split.TRAIN),
        }
    ).cast({"user_id": pl.Int32, "item_id": pl.Int32, "split": pl.UInt8})
    dataset = with_tables(toy_dataset, item_events=events)
    targets = pl.DataFrame({"target": np.flatnonzero(is_last)})
    for ranker in (ItemKNN.of(dataset, ItemKNNSettings()), EASE.of(dataset, EASESettings())):
        best = ranker.catalogue_scores(targets).argmax(1).numpy() + 1
        assert (best == items[is_last]).all(), ranker.name


def test_too_many_items_leave_ease_out(toy_dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    num_items = toy_dataset.num_items
    settings = EvaluationSettings(ease=EASESettings(max_items=num_items), bootstrap_samples=0)
    found = floors(toy_dataset, "item", settings=settings)
    assert {"item_knn", "ease"} <= set(found)
    assert "left out" not in capsys.readouterr().err
    reached = evaluate(toy_dataset, found, settings=settings)["ease"].metrics
    assert reached["sampled"]["mrr"].mean > 0
    assert reached["full"]["mrr"].mean > 0
    fewer = floors(toy_dataset, "item", settings=EvaluationSettings(ease=EASESettings(max_items=num_items - 1)))
    assert set(found) - set(fewer) == {"ease"}
    assert f"ease is left out: {num_items} items are more than ease.max_items=59" in capsys.readouterr().err
    assert "ease" not in floors(toy_dataset, "comment")
    assert "left out" not in capsys.readouterr().err
