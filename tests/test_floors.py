"""The floors against loops over the past, and against the future that they must not know."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import polars as pl
import pytest
from scipy import stats
from toy import at_rows, candidate_lists, with_tables

from reeltalk.artifacts import read_manifest
from reeltalk.data.dataset import Dataset, Split, Task
from reeltalk.data.ragged import Ragged
from reeltalk.evaluation.floors import floors
from reeltalk.evaluation.item_to_item import EASESettings, ItemKNNSettings
from reeltalk.evaluation.protocol import evaluate
from reeltalk.evaluation.ranker import CatalogueRanker, Ranker, Scores
from reeltalk.evaluation.settings import EvaluationSettings
from reeltalk.experiments.floors import TRIED, chosen_on_validation, measure_floors
from reeltalk.text.lookup import TextLookup
from reeltalk.text.table import TextTable
from reeltalk.training.settings import TrainSettings

TASKS: tuple[Task, ...] = ("item", "comment")


def lookup(dataset: Dataset) -> TextLookup:
    """Random text vectors; two titles and a comment are empty."""
    rng = np.random.default_rng(5)
    title_rows, comment_rows = np.arange(-1, dataset.num_items), np.arange(-1, dataset.num_comments) // 2
    title_rows[[1, 9]] = comment_rows[4] = -1
    vectors = rng.standard_normal((max(dataset.num_items, dataset.num_comments), 6)).astype(np.float16)
    return TextLookup(cast(TextTable, SimpleNamespace(vectors=vectors)), title_rows, comment_rows)


def all_floors(dataset: Dataset, task: Task) -> dict[str, Ranker]:
    return floors(dataset, task, texts=lookup(dataset))


@pytest.mark.parametrize("protocol", ["sampled", "full"])
def test_item_knn_and_ease_are_chosen_on_validation(toy_dataset: Dataset, tmp_path: Path, protocol: str) -> None:
    settings = EvaluationSettings(bootstrap_samples=0, item_knn=ItemKNNSettings(shrinkage=1000.0))
    train = TrainSettings(monitor="ndcg@5", monitor_protocol=protocol)
    chosen = chosen_on_validation(toy_dataset, settings, train)
    for name, of_floor in TRIED.items():
        ((field, values),) = of_floor.items()
        values = sorted({*values, getattr(getattr(settings, name), field)})
        reached = []
        for value in values:
            given = settings.model_copy(update={name: getattr(settings, name).model_copy(update={field: value})})
            ranker = floors(toy_dataset, "item", settings=given)[name]
            report = evaluate(toy_dataset, {name: ranker}, split=Split.VALID, settings=given)[name]
            reached.append(report.metrics[protocol]["ndcg@5"].mean)
        assert len(set(reached)) > 1
        assert chosen[name] == {field: values[int(np.argmax(reached))]}
    measure_floors(toy_dataset, "item", text=None, settings=settings, train=train, out=tmp_path / "floors", parents={})
    assert read_manifest(tmp_path / "floors", "floors").facts["chosen"] == chosen
    tuned = settings.model_copy(update={"item_knn": ItemKNNSettings(**chosen["item_knn"])})
    ranker = floors(toy_dataset, "item", settings=tuned)["item_knn"]
    expected = evaluate(toy_dataset, {"item_knn": ranker}, settings=settings)["item_knn"].per_user
    assert pl.read_parquet(tmp_path / "floors" / "item_knn.parquet").equals(expected)
    no_ease = settings.model_copy(update={"ease": EASESettings(max_items=3)})
    assert list(chosen_on_validation(toy_dataset, no_ease, train)) == ["item_knn"]


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> Iterator[Task]:
    yield request.param


def test_floors_score_a_candidate_alike_wherever_it_stands(toy_dataset: Dataset, task: Task) -> None:
    targets, candidates = candidate_lists(toy_dataset, task)
    order = np.concatenate([np.arange(a, b)[::-1] for a, b in pairwise(candidates.offsets)])
    turned = Ragged(values=candidates.values[order], offsets=candidates.offsets)
    for name, ranker in all_floors(toy_dataset, task).items():
        if name == "random":
            continue
        usual = ranker.candidate_scores(targets, candidates)
        assert usual.dtype == np.float32
        assert ranker.candidate_scores(targets, turned) == pytest.approx(usual[order], abs=1e-6), name
        alone = ranker.candidate_scores(targets[3:4], candidates.rows(3, 4))
        assert alone == pytest.approx(usual[candidates.offsets[3] : candidates.offsets[4]], abs=1e-6), name


def test_catalogue_scores_are_candidate_scores(toy_dataset: Dataset) -> None:
    half_unknown = toy_dataset.items.with_columns(
        created=pl.when(pl.col("item_id") <= 30).then(0).otherwise(pl.col("created"))
    )
    targets = toy_dataset.candidates("item", Split.TEST)
    everything = np.tile(np.arange(1, toy_dataset.num_items + 1, dtype=np.int32), len(targets))
    candidates = Ragged(values=everything, offsets=np.arange(len(targets) + 1) * toy_dataset.num_items)
    for dataset in (toy_dataset, with_tables(toy_dataset, items=half_unknown)):
        for name, ranker in all_floors(dataset, "item").items():
            assert isinstance(ranker, CatalogueRanker)
            if name != "random":
                flat = ranker.candidate_scores(targets, candidates)
                assert ranker.catalogue_scores(targets).numpy().reshape(-1) == pytest.approx(flat, abs=1e-5), name


def test_counting_floors_are_loops_over_the_past(toy_dataset: Dataset) -> None:
    targets, candidates = candidate_lists(toy_dataset, "item")
    times = targets["time"].to_numpy()[candidates.owners].tolist()
    events = toy_dataset.item_events.select("item_id", "time").rows()
    of_item = all_floors(toy_dataset, "item")
    pairs = list(zip(candidates.values.tolist(), times, strict=True))
    expected = [sum(i == item and at < now for i, at in events) for item, now in pairs]
    assert of_item["popularity"].candidate_scores(targets, candidates).tolist() == expected

    unknown = with_tables(toy_dataset, items=toy_dataset.items.with_columns(created=pl.lit(0, pl.Int64)))
    last = [max((at for i, at in events if i == item and at < now), default=0) for item, now in pairs]
    ranked = floors(unknown, "item")["most_recent"].candidate_scores(targets, candidates)
    assert stats.rankdata(ranked).tolist() == stats.rankdata(last).tolist()
    created = toy_dataset.items["created"].to_numpy()[candidates.values - 1]
    ranked = of_item["most_recent"].candidate_scores(targets, candidates)
    assert stats.rankdata(ranked).tolist() == stats.rankdata(created).tolist()

    targets, candidates = candidate_lists(toy_dataset, "comment")
    times = targets["time"].to_numpy()[candidates.owners].tolist()
    events = toy_dataset.comment_events.select("comment_id", "time").rows()
    pairs = list(zip(candidates.values.tolist(), times, strict=True))
    expected = [sum(c == comment and at < now for c, at in events) for comment, now in pairs]
    of_comment = all_floors(toy_dataset, "comment")
    assert of_comment["hot_comments"].candidate_scores(targets, candidates).tolist() == expected
    ages = toy_dataset.comments["created"].to_numpy()[candidates.values - 1]
    newest = of_comment["most_recent"].candidate_scores(targets, candidates)
    assert stats.rankdata(newest).tolist() == stats.rankdata(ages).tolist()
    assert (of_comment["oldest_first"].candidate_scores(targets, candidates) == -newest).all()


def unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector


def test_text_similarity_is_a_loop_over_texts(toy_dataset: Dataset) -> None:
    texts = lookup(toy_dataset)
    title = [unit(v) for v in texts.titles().double().numpy()]
    comment = [unit(v) for v in texts.comments(np.arange(toy_dataset.num_comments + 1)).double().numpy()]
    targets, candidates = candidate_lists(toy_dataset, "item")
    found = floors(toy_dataset, "item", texts=texts)["text_similarity"].candidate_scores(targets, candidates)
    events = toy_dataset.item_events.select("user_id", "item_id", "time").rows()
    profile = [
        unit(sum((title[i] for u, i, at in events if u == user and at < now), np.zeros(6)))
        for user, now in targets.select("user_id", "time").rows()
    ]
    expected = [profile[o] @ title[i] for o, i in zip(candidates.owners, candidates.values, strict=True)]
    assert found == pytest.approx(expected, abs=1e-5)

    targets, candidates = candidate_lists(toy_dataset, "comment")
    found = floors(toy_dataset, "comment", texts=texts)["text_similarity"].candidate_scores(targets, candidates)
    records = toy_dataset.comment_records.select("record_id", "user_id", "item_id", "start").rows()
    user_of = {record: user for record, user, _, _ in records}
    events = [
        (user_of[r], c, at) for r, c, at in toy_dataset.comment_events.select("record_id", "comment_id", "time").rows()
    ]
    profile = []
    for user, item, now in targets.select("user_id", "item_id", "time").rows():
        history = sum((comment[c] for u, c, at in events if u == user and at < now), np.zeros(6))
        history = history + sum((title[i] for _, u, i, at in records if u == user and at < now), np.zeros(6))
        profile.append(unit(unit(history) + title[item]))
    expected = [profile[o] @ comment[c] for o, c in zip(candidates.owners, candidates.values, strict=True)]
    assert found == pytest.approx(expected, abs=1e-5)


def with_another_future(dataset: Dataset, now: int) -> Dataset:
    """Everything that happened at `now` or later happens to other items and comments, and most of it three times."""

    def changed(events: pl.DataFrame, time: str, **ids: int) -> pl.DataFrame:
        past, future = events.filter(pl.col(time) < now), events.filter(pl.col(time) >= now)
        moved = future.with_columns(
            (1 + (pl.col(name) * 7 + 3) % num).cast(pl.Int32).alias(name) for name, num in ids.items()
        )
        return pl.concat([past, moved, moved[1:], moved[2:]])

    records = changed(dataset.comment_records, "start", item_id=dataset.num_items).unique("record_id").sort("record_id")
    later = pl.when(pl.col("created") >= now).then(pl.col("created") * 2 - now + 12345).otherwise(pl.col("created"))
    return with_tables(
        dataset,
        item_events=changed(dataset.item_events, "time", item_id=dataset.num_items).sort("user_id", "time"),
        comment_events=changed(dataset.comment_events, "time", comment_id=dataset.num_comments).sort(
            "record_id", "time"
        ),
        comment_records=records,
        items=dataset.items.with_columns(created=later),
        comments=dataset.comments.with_columns(created=later),
    )


def test_the_future_changes_no_score(toy_dataset: Dataset, task: Task) -> None:
    targets, candidates = candidate_lists(toy_dataset, task)
    now = int(targets["time"].sort()[len(targets) // 2])
    other = with_another_future(toy_dataset, now)
    assert not other.item_events.equals(toy_dataset.item_events)
    rows = np.flatnonzero(targets["time"].to_numpy() <= now)
    assert len(rows) > 3
    after, moved = all_floors(other, task), targets if task == "comment" else at_rows(other, targets)
    for name, ranker in all_floors(toy_dataset, task).items():
        for row in rows.tolist():
            later_row = (targets if name == "random" else moved)[row : row + 1]  # which is by the number
            asked = (ranker, targets[row : row + 1]), (after[name], later_row)
            before, later = (r.candidate_scores(one, candidates.rows(row, row + 1)) for r, one in asked)
            assert order_of(before) == order_of(later), (name, row)
            if isinstance(ranker, CatalogueRanker) and name != "random":
                existing = int((toy_dataset.items["created"] < now).sum())
                whole = (cast(CatalogueRanker, r).catalogue_scores(one)[0, :existing] for r, one in asked)
                before, later = (scores.numpy() for scores in whole)
                assert order_of(before) == order_of(later), (name, row)


def order_of(scores: Scores) -> list[float]:
    """Ranks with ties, by which alone scores matter."""
    return cast(list[float], stats.rankdata(scores.round(5)).tolist())


def test_random_order_is_chance_and_the_oracle_is_there_only_for_simulated_data(
    toy_dataset: Dataset, task: Task
) -> None:
    names = set(floors(toy_dataset, task))
    assert "oracle" not in names
    assert "text_similarity" not in names
    settings = EvaluationSettings(bootstrap_samples=400, confidence=0.9999)
    report = evaluate(toy_dataset, {"random": floors(toy_dataset, task)["random"]}, settings=settings)["random"]
    found = report.metrics["sampled"]["recall@5"]
    chance = np.minimum(1, 5 / report.per_user["sampled.candidates"].to_numpy()).mean()
    assert found.low is not None
    assert found.high is not None
    assert found.low <= float(chance) <= found.high
