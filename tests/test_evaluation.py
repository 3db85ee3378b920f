"""The protocol, segments and significance, on the toy dataset and on hand-made frames."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from toy import candidate_lists, with_tables

from reeltalk.data.dataset import Dataset, Split, Task
from reeltalk.data.histories import Histories, target_windows
from reeltalk.data.ragged import Ragged, ranges
from reeltalk.errors import ConfigError, DataError
from reeltalk.evaluation import measure
from reeltalk.evaluation.bags import Bags
from reeltalk.evaluation.protocol import evaluate
from reeltalk.evaluation.ranker import Ranker, Scores
from reeltalk.evaluation.report import Report
from reeltalk.evaluation.segments import segments
from reeltalk.evaluation.settings import EvaluationSettings
from reeltalk.evaluation.significance import (
    bootstrap_means,
    compare,
    holm,
    p_told,
    paired_ttest,
    percentile_bounds,
    too_few,
)

QUICK = EvaluationSettings(bootstrap_samples=50)
TASKS: tuple[Task, ...] = ("item", "comment")


@dataclass
class FixedScores:
    """Scores that depend on the candidate alone, or on whether it is the target's positive."""

    task: Task
    num: int
    name: str = "fixed"
    positive_bonus: float = 0.0
    seed: int = 0

    def table(self) -> Scores:
        return np.random.default_rng(self.seed).standard_normal(self.num + 1).astype(np.float32)

    def candidate_scores(self, targets: pl.DataFrame, candidates: Ragged) -> Scores:
        scores = self.table()[candidates.values]
        if self.positive_bonus:
            wanted = [targets["positive"][int(o)] for o in candidates.owners]
            scores += np.float32(self.positive_bonus) * (candidates.values == wanted)
        return scores

    def catalogue_scores(self, targets: pl.DataFrame) -> torch.Tensor:
        scores = np.tile(self.table()[1:], (len(targets), 1))
        scores[np.arange(len(targets)), targets["positive"].to_numpy() - 1] += np.float32(self.positive_bonus)
        return torch.from_numpy(scores)


def fixed(dataset: Dataset, task: Task = "item", **settings: float) -> FixedScores:
    num = dataset.num_items if task == "item" else dataset.num_comments
    return FixedScores(task, num, **settings)  # type: ignore[arg-type]


def means(report: Report, protocol: str) -> dict[str, float]:
    return {name: found.mean for name, found in report.metrics[protocol].items()}


# the protocol


def test_a_ranker_that_knows_the_answer_reaches_one(toy_dataset: Dataset) -> None:
    report = evaluate(toy_dataset, {"knows": fixed(toy_dataset, positive_bonus=100)}, settings=QUICK)["knows"]
    for protocol in ("sampled", "full"):
        reached = {name: mean for name, mean in means(report, protocol).items() if "coverage" not in name}
        assert reached == dict.fromkeys(reached, 1.0)
        assert report.per_user[f"{protocol}.rank"].to_list() == [1] * len(report.per_user)


def test_saved_candidates_are_ranked_as_a_slow_loop_does(toy_dataset: Dataset) -> None:
    for task in TASKS:
        ranker = fixed(toy_dataset, task)
        report = evaluate(toy_dataset, {"fixed": ranker}, settings=QUICK)["fixed"]
        scores = ranker.table()
        recalls, ndcgs, reciprocals = [], [], []
        for row in toy_dataset.candidates(task, Split.TEST).iter_rows(named=True):
            positives = [row["positive"]] if task == "item" else row["positives"]
            ranked = sorted([*positives, *row["negatives"]], key=lambda candidate: -scores[candidate])
            places = [1 + ranked.index(positive) for positive in positives]
            recalls.append(sum(place <= 5 for place in places) / len(positives))
            ideal = sum(1 / math.log2(i + 2) for i in range(min(5, len(positives))))
            ndcgs.append(sum(1 / math.log2(place + 1) for place in places if place <= 5) / ideal)
            reciprocals.append(1 / min(places))
        assert report.per_user["sampled.recall@5"].to_list() == pytest.approx(recalls)
        assert report.per_user["sampled.ndcg@5"].to_list() == pytest.approx(ndcgs)
        assert means(report, "sampled")["mrr"] == pytest.approx(np.mean(reciprocals))


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_full_ranking_is_a_slow_loop_over_items_that_existed(toy_dataset: Dataset, exclude_seen: bool) -> None:
    ranker = fixed(toy_dataset)
    settings = EvaluationSettings(bootstrap_samples=0, exclude_seen=exclude_seen)
    report = evaluate(toy_dataset, {"fixed": ranker}, settings=settings)["fixed"]
    scores, created = ranker.table(), toy_dataset.items["created"].to_list()
    events = toy_dataset.item_events.select("user_id", "item_id").rows()
    ranks, candidates, covered, num_new = [], [], set(), 0
    targets = toy_dataset.candidates("item", Split.TEST)
    for row in targets.iter_rows(named=True):
        seen = {item for user, item in events[: row["target"]] if user == row["user_id"]} if exclude_seen else set()
        allowed = {i + 1 for i, at in enumerate(created) if at <= row["time"]} | {row["positive"]}
        if row["positive"] not in seen:
            allowed -= seen
            num_new += 1
        ranked = sorted(allowed, key=lambda item: -scores[item])
        ranks.append(1 + ranked.index(row["positive"]))
        candidates.append(len(allowed))
        covered |= set(ranked[:5])
    assert report.per_user["full.rank"].to_list() == ranks
    assert report.per_user["full.candidates"].to_list() == candidates
    assert 0 < num_new < len(targets) or not exclude_seen
    existing = sum(at <= targets["time"].max() for at in created)
    assert means(report, "full")["coverage@5"] == pytest.approx(len(covered) / existing)


def test_floors_read_what_models_read(toy_dataset: Dataset) -> None:
    """Of a user's events of one moment the later see the earlier."""
    events = toy_dataset.item_events.with_columns(time=pl.lit(10**12, pl.Int64))
    dataset, targets = with_tables(toy_dataset, item_events=events), toy_dataset.candidates("item", Split.TEST)
    found, offsets = Bags.of_items(dataset).at(targets)
    windows = target_windows(Histories.of(dataset), "item", targets["target"].to_numpy().astype(np.int64), length=99)
    assert np.diff(offsets).tolist() == (windows.end - windows.begin).tolist() and len(found)
    assert found.tolist() == events["item_id"].to_numpy()[ranges(windows.begin, windows.end)].tolist()
    spread = segments(dataset, "item", targets).members["history"]
    assert spread["0"].sum() == (np.diff(offsets) == 0).sum()

    records = toy_dataset.candidates("comment", Split.TEST)
    found, offsets = Bags.of_comments(toy_dataset).at(records)
    rows = toy_dataset.comment_records.select("record_id", pl.col("user_id").alias("owner"))
    events = toy_dataset.comment_events.join(rows, on="record_id", maintain_order="left")
    for number, target in enumerate(records.iter_rows(named=True)):
        mine = events.filter(pl.col("owner") == target["user_id"], pl.col("record_id") < target["target"])
        assert found[offsets[number] : offsets[number + 1]].tolist() == mine["comment_id"].to_list()
    watched, starts = Bags.of_watched(toy_dataset).at(records)
    assert len(watched) and (np.diff(starts) <= np.diff(offsets)).all()


def test_sizes_of_blocks_and_company_change_no_figure(toy_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    company: dict[str, Ranker] = {"other": fixed(toy_dataset, seed=9), "fixed": fixed(toy_dataset)}
    usual = evaluate(toy_dataset, company, settings=QUICK)["fixed"]
    monkeypatch.setattr(measure, "BLOCK_BYTES", 4 * toy_dataset.num_items * 3)
    monkeypatch.setattr(measure, "TARGETS_AT_ONCE", 2)
    alone = evaluate(toy_dataset, {"fixed": fixed(toy_dataset)}, settings=QUICK)["fixed"]
    assert alone.per_user.equals(usual.per_user)
    for protocol, found in alone.metrics.items():
        for name, interval in found.items():
            beside = usual.metrics[protocol][name]
            assert (interval.mean, interval.low, interval.high) == pytest.approx((beside.mean, beside.low, beside.high))


def test_equal_scores_rank_at_chance_in_both_protocols(toy_dataset: Dataset) -> None:
    class Constant(FixedScores):
        def table(self) -> Scores:
            return np.zeros(self.num + 1, dtype=np.float32)

    constant = Constant("item", toy_dataset.num_items)
    targets = toy_dataset.candidates("item", Split.TEST)
    found: dict[str, list[measure.Measured]] = {"sampled": [], "full": []}
    for seed in range(40):
        saved = measure.SavedCandidates("item", targets, ks=(5,), seed=seed)
        catalogue = measure.Catalogue(toy_dataset, targets, exclude_seen=True, ks=(5,), seed=seed)
        found["sampled"].append(saved.measure(constant, lambda done: None))
        found["full"].append(catalogue.measure(constant, lambda done: None))
    for runs in found.values():
        reached = np.mean([run.metrics["recall@5"] for run in runs])
        chance = np.mean(5 / runs[0].candidates)
        assert reached == pytest.approx(chance, abs=5 * math.sqrt(chance / (40 * len(targets))))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_names_ranker_and_target(toy_dataset: Dataset, value: float) -> None:
    targets, candidates = candidate_lists(toy_dataset, "item")
    target, item = targets.row(2, named=True), int(candidates.values[candidates.offsets[2] + 1])

    class Broken(FixedScores):
        def candidate_scores(self, targets: pl.DataFrame, candidates: Ragged) -> Scores:
            scores = super().candidate_scores(targets, candidates)
            scores[candidates.offsets[2] + 1] = value
            return scores

    with pytest.raises(
        DataError, match=rf"broken scores {item} as .*target {target['target']} \(user_id {target['user_id']},"
    ):
        evaluate(toy_dataset, {"broken": Broken("item", toy_dataset.num_items, "broken")}, settings=QUICK)


def test_nan_anywhere_in_the_catalogue_is_an_error(toy_dataset: Dataset) -> None:
    targets = toy_dataset.candidates("item", Split.TEST)
    target = targets.row(3, named=True)
    for column in (target["positive"] - 1, target["positive"] % 5):

        class Broken(FixedScores):
            def catalogue_scores(self, targets: pl.DataFrame, column: int = column) -> torch.Tensor:
                scores = super().catalogue_scores(targets)
                scores[3, column] = torch.nan
                return scores

        settings = EvaluationSettings(bootstrap_samples=0, exclude_seen=False)
        with pytest.raises(DataError, match=f"broken scores .* as nan for target {target['target']} "):
            evaluate(toy_dataset, {"broken": Broken("item", toy_dataset.num_items, "broken")}, settings=settings)


def test_what_cannot_be_measured_is_refused(toy_dataset: Dataset) -> None:
    item, comment = fixed(toy_dataset), fixed(toy_dataset, "comment")
    with pytest.raises(ConfigError, match=r"a \(item\), b \(comment\)"):
        evaluate(toy_dataset, {"a": item, "b": comment})
    with pytest.raises(ConfigError, match="none"):
        evaluate(toy_dataset, {})
    with pytest.raises(ConfigError, match="full_ranking"):
        evaluate(toy_dataset, {"b": comment}, settings=EvaluationSettings(full_ranking=True))
    with pytest.raises(DataError, match="no train target of the item task"):
        evaluate(toy_dataset, {"a": item}, split=Split.TRAIN)
    for wrong in ({"ks": (10, 5)}, {"ks": ()}, {"ks": (0,)}, {"confidence": 1.0}, {"kz": (5,)}):
        with pytest.raises(ValidationError):
            EvaluationSettings.model_validate(wrong)


def test_drawn_targets_keep_their_order_and_values(toy_dataset: Dataset) -> None:
    all_of_them = evaluate(toy_dataset, {"f": fixed(toy_dataset)}, settings=QUICK)["f"].per_user
    drawn = evaluate(toy_dataset, {"f": fixed(toy_dataset)}, settings=QUICK.model_copy(update={"max_targets": 7}))[
        "f"
    ].per_user
    assert len(drawn) == 7
    assert drawn["target"].is_sorted()
    assert all_of_them.join(drawn, on="target", how="semi").equals(drawn)


# segments


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> Iterator[Task]:
    yield request.param


def test_segments_match_a_loop_over_training_events(toy_dataset: Dataset, task: Task) -> None:
    targets = toy_dataset.candidates(task, Split.TEST)
    parts = segments(toy_dataset, task, targets, user_long_tail=9, item_long_tail=3, history_bins=(1, 8))
    item_events = toy_dataset.item_events.select("user_id", "item_id", "split", "time").rows()
    records = toy_dataset.comment_records.select("user_id", "item_id", "split", "start").rows()
    own, other = (item_events, records) if task == "item" else (records, item_events)
    for row, target in enumerate(targets.iter_rows(named=True)):
        item = target["positive"] if task == "item" else target["item_id"]
        of_user = sum(u == target["user_id"] and s == Split.TRAIN for u, _, s, _ in own)
        of_item = sum(i == item and s == Split.TRAIN for _, i, s, _ in own)
        is_known_user = any(u == target["user_id"] and s == Split.TRAIN for u, _, s, _ in [*own, *other])
        is_known_item = any(i == item and s == Split.TRAIN for _, i, s, _ in [*own, *other])
        length = sum(u == target["user_id"] and at < target["time"] for u, _, _, at in own)
        expected = {
            "users": {
                "cold-start": of_user == 0,
                "long-tail": 0 < of_user <= 9,
                "others": of_user > 9,
                "unseen": not is_known_user,
            },
            "items": {
                "unseen": not is_known_item,
                "long-tail": is_known_item and of_item <= 3,
                "others": of_item > 3,
            },
            "history": {"0": length == 0, "1-7": 1 <= length < 8, "8+": length >= 8},
        }
        assert {p: {n: bool(m[row]) for n, m in of.items()} for p, of in parts.members.items()} == expected


def test_default_thresholds_leave_a_fifth_of_users_and_items_out_of_the_long_tail(toy_dataset: Dataset) -> None:
    parts = segments(toy_dataset, "item", toy_dataset.candidates("item", Split.TEST))
    train = toy_dataset.item_events.filter(pl.col("split") == int(Split.TRAIN))
    for key, threshold in (("user_id", parts.user_long_tail), ("item_id", parts.item_long_tail)):
        counts = train[key].value_counts()["count"]
        assert (counts > threshold).mean() <= 0.2 + 1 / len(counts)  # type: ignore[operator]
        assert (counts >= threshold).mean() >= 0.2  # type: ignore[operator]


def test_segment_figures_are_means_over_their_targets(toy_dataset: Dataset) -> None:
    report = evaluate(toy_dataset, {"f": fixed(toy_dataset)}, settings=QUICK)["f"]
    for partition, found in report.segments.items():
        for name, segment in found.items():
            rows = report.per_user.filter(pl.col(f"segments.{partition}.{name}"))
            assert (segment.targets, segment.users) == (len(rows), rows["user_id"].n_unique())
            if len(rows):
                assert segment.metrics["full"]["ndcg@10"].mean == pytest.approx(rows["full.ndcg@10"].mean())
            else:
                assert segment.metrics == {}


# significance


def test_a_mean_is_over_targets_and_the_mean_over_users_stands_beside_it(toy_dataset: Dataset) -> None:
    report = evaluate(toy_dataset, {"f": fixed(toy_dataset)}, settings=QUICK)["f"]
    values = report.per_user.select("user_id", "sampled.mrr")
    assert report.metrics["sampled"]["mrr"].mean == pytest.approx(values["sampled.mrr"].mean())
    by_user = values.group_by("user_id").mean()["sampled.mrr"].mean()
    assert report.user_means["sampled"]["mrr"] == pytest.approx(by_user)
    assert by_user != pytest.approx(values["sampled.mrr"].mean())


def test_the_bootstrap_draws_users_with_all_their_targets() -> None:
    rng = np.random.default_rng(0)
    values, users = rng.random((400, 2)), np.arange(400)
    draws = bootstrap_means(values, users, samples=3000, seed=1)
    assert draws.mean(0) == pytest.approx(values.mean(0), abs=2e-3)
    assert draws.std(0) == pytest.approx(values.std(0) / 20, rel=0.06)
    twice = bootstrap_means(np.repeat(values, 2, axis=0), np.repeat(users, 2), samples=3000, seed=1)
    assert twice == pytest.approx(draws)
    order = rng.permutation(400)
    assert bootstrap_means(values[order], users[order], samples=3000, seed=1) == pytest.approx(draws)


def test_bounds_are_the_middle_of_the_draws() -> None:
    """Of the mean of 400 uniform values: 1.96 standard errors on either side."""
    values = np.random.default_rng(0).random((400, 1))
    draws = bootstrap_means(values, np.arange(400), samples=4000, seed=1)
    for confidence, times in ((0.95, 1.960), (0.5, 0.674)):
        (low, high), *_ = percentile_bounds(draws, confidence=confidence)
        assert low is not None and high is not None
        assert np.mean((low <= draws) & (draws <= high)) == pytest.approx(confidence, abs=1e-3)
        assert [low, high] == pytest.approx(values.mean() + np.array([-times, times]) * values.std() / 20, abs=2e-3)


def test_the_bootstrap_weighs_users_by_their_targets() -> None:
    users = np.repeat(np.arange(20), [3, 1] * 10)
    values = np.repeat([[1.0], [0.0]] * 10, [3, 1] * 10, axis=0)  # three targets of 1 here, one of 0 there
    draws = bootstrap_means(values, users, samples=4000, seed=0)
    assert set((1 / draws[:, 0]).round(4).tolist()) <= {round(1 + (20 - n) / (3 * n), 4) for n in range(1, 21)}
    assert draws.mean() == pytest.approx(0.75, abs=0.02)


def test_too_few_users_have_neither_bounds_nor_tests(toy_dataset: Dataset) -> None:
    """False alarms of a level of .05: .86 where one of twenty users has all but 38 of 238 targets."""
    one_of_many, alike = np.repeat(np.arange(20), [200, *[2] * 19]), np.repeat(np.arange(10), 3)
    values = np.random.default_rng(0).random((300, 1))
    for users, few in ((one_of_many, True), (alike[:27], True), (alike, False), (np.zeros(8, np.int64), True)):
        assert too_few(users) == few
        assert (paired_ttest(values[: len(users), 0], users) is None) == few
        assert len(bootstrap_means(values[: len(users)], users, samples=7, seed=0)) == (0 if few else 7)
    run = evaluate(toy_dataset, {"f": fixed(toy_dataset)}, settings=QUICK)["f"].per_user
    first = run.filter(pl.col("user_id").is_in(run["user_id"].unique().sort()[:5].implode()))
    found = compare(first, first)["sampled"]["mrr"]
    assert (found.low, found.high, found.p_ttest, found.p_bootstrap) == (None, None, None, None)


def test_the_ttest_is_scipys_with_one_target_a_user_and_ignores_repeated_targets() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random(60), rng.random(60)
    expected = float(stats.ttest_rel(a, b).pvalue)
    users = np.arange(60)
    assert paired_ttest(a - b, users) == pytest.approx(expected)
    assert paired_ttest(np.repeat(a - b, 5), np.repeat(users, 5)) == pytest.approx(expected)
    assert paired_ttest(np.zeros(60), users) == 1.0
    assert paired_ttest(a - b, np.zeros(60, dtype=np.int64)) is None


def test_the_ttest_holds_its_level_where_targets_of_a_user_are_alike() -> None:
    rng = np.random.default_rng(4)
    users = np.repeat(np.arange(50), 8)
    p_values = [
        paired_ttest(rng.standard_normal(50)[users] + 0.1 * rng.standard_normal(400), users) for _ in range(400)
    ]
    rejected = np.mean([p is not None and p < 0.05 for p in p_values])
    assert 0.02 < rejected < 0.09  # the plain t-test over targets rejects about a half


def test_holm_by_hand_and_as_other_libraries_have_it() -> None:
    # .005 x 4, .01 x 3, .03 x 2, .04 x 1, which must not fall below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.3, None, 0.6, 0.0]) == [0.6, None, 0.6, 0.0]
    assert holm([0.2]) == [0.2]
    assert holm([None]) == [None]
    assert holm([]) == []


def test_a_p_value_is_never_told_to_be_0() -> None:
    assert [p_told(p) for p in (1.0, 0.0123, 3.2e-37, 0.0)] == ["1", "0.012", "3.2e-37", "<1e-300"]


def test_holm_rejects_as_its_steps_do() -> None:
    """From the smallest on, until one is above its share of alpha."""
    rng = np.random.default_rng(6)
    for _ in range(200):
        p_values = (rng.random(int(rng.integers(1, 9))) ** 4).round(3).tolist()
        alpha = float(rng.choice([0.01, 0.05, 0.2]))
        rejected, left = set(), sorted(range(len(p_values)), key=lambda place: p_values[place])
        while left and p_values[left[0]] < alpha / len(left):
            rejected.add(left.pop(0))
        assert {place for place, p in enumerate(holm(p_values)) if p is not None and p < alpha} == rejected


def test_compare_finds_a_real_gain_and_none_between_equals(toy_dataset: Dataset) -> None:
    systems: dict[str, Ranker] = {"good": fixed(toy_dataset, positive_bonus=2), "bad": fixed(toy_dataset)}
    reports = evaluate(toy_dataset, systems, settings=EvaluationSettings(bootstrap_samples=500))
    found = compare(reports["good"].per_user, reports["bad"].per_user.reverse(), samples=500)
    gain = found["sampled"]["ndcg@10"]
    assert gain.difference == pytest.approx(gain.mean_a - gain.mean_b)
    assert gain.low is not None
    assert gain.low > 0
    assert gain.p_ttest is not None
    assert gain.p_bootstrap is not None
    assert gain.p_ttest < 0.001
    assert gain.p_bootstrap < 0.01
    assert reports["good"].comparisons["bad"] == found
    equal = compare(reports["bad"].per_user, reports["bad"].per_user)["full"]["mrr"]
    assert (equal.difference, equal.gain, equal.p_ttest, equal.p_bootstrap) == (0.0, 0.0, 1.0, 1.0)


def test_runs_that_do_not_match_are_not_compared(toy_dataset: Dataset) -> None:
    run = evaluate(toy_dataset, {"f": fixed(toy_dataset)}, settings=QUICK)["f"].per_user
    with pytest.raises(DataError, match=r"3 \(user_id, target\) are in the first run alone"):
        compare(run, run[3:])
    with pytest.raises(DataError, match=r"second run holds .* more than once"):
        compare(run, pl.concat([run, run[:1]]))
    with pytest.raises(DataError, match="share no metric"):
        compare(run, run.select("user_id", "target"))
    with pytest.raises(DataError, match=r"full\.candidates differs"):
        compare(run, run.with_columns(pl.col("full.candidates") + 1))
