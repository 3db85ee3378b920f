"""The simulator: a log without contradictions, drawn from a truth that can be asked again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import ValidationError

from reeltalk.artifacts import write_manifest
from reeltalk.data.dataset import Dataset, Split
from reeltalk.data.prepare import PrepareSettings, prepare
from reeltalk.data.raw import RAW_TABLES, RawLog
from reeltalk.data.simulator import Oracle, Platform, SimulatorSettings, simulate
from reeltalk.data.simulator.platform import DAY, START, TOPIC_WIDTH, draw_ranked
from reeltalk.data.simulator.texts import write_titles
from reeltalk.errors import ArtifactError

SMALL = SimulatorSettings(
    num_users=500, num_items=400, num_comments=3_000, num_item_events=8_000, num_comment_events=5_000, seed=5
)
Rows = npt.NDArray[np.int64]


class Known:
    """A simulated log as arrays of rows, beside the truth."""

    def __init__(self, log: RawLog) -> None:
        assert log.oracle is not None
        arrays = dict(log.oracle)
        self.keys = {name: arrays.pop(name) for name in ("user_key", "item_key", "comment_key")}
        self.platform = Platform(**arrays)
        self.items, self.comments = log.items.collect(), log.comments.collect()
        self.item_events, self.comment_events = log.item_events.collect(), log.comment_events.collect()

    def rows(self, table: pl.DataFrame, name: str) -> Rows:
        found = np.searchsorted(self.keys[name], table[name].to_numpy().astype(str))
        assert (self.keys[name][found] == table[name].to_numpy()).all()
        return found


@pytest.fixture(scope="module")
def log() -> RawLog:
    return simulate(SMALL, progress=False)


@pytest.fixture(scope="module")
def known(log: RawLog) -> Known:
    return Known(log)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    settings = PrepareSettings(source=SMALL.model_dump(), test_days=3, valid_days=1)
    return prepare("simulator", raw=None, out=tmp_path_factory.mktemp("simulated") / "dataset", settings=settings)


def ndcg(scores: npt.NDArray[Any]) -> float:
    """NDCG@10 of the first column among the rest; ties count as half won."""
    rank = (scores[:, 1:] > scores[:, :1]).sum(axis=1) + 0.5 * (scores[:, 1:] == scores[:, :1]).sum(axis=1)
    return float(np.where(rank < 10, 1 / np.log2(rank + 2), 0.0).mean())


def test_the_log_has_the_raw_schema_and_the_size_asked_for(log: RawLog, known: Known) -> None:
    for name, schema in RAW_TABLES.items():
        if name != "impressions":
            assert dict(getattr(log, name).collect_schema()) == {column: kind() for column, kind in schema.items()}
    assert len(known.items) == SMALL.num_items
    assert len(known.comments) == SMALL.num_comments
    for events, asked in (
        (known.item_events, SMALL.num_item_events),
        (known.comment_events, SMALL.num_comment_events),
    ):
        assert 0.99 * asked <= len(events) <= asked
        assert events["time"].is_sorted()
        assert events["time"].is_between(START, START + SMALL.days * DAY, closed="left").all()


def test_nothing_happens_before_what_it_needs(known: Known) -> None:
    platform = known.platform
    users, items = (known.rows(known.item_events, name) for name in ("user_key", "item_key"))
    assert (platform.item_created[items] <= known.item_events["time"].to_numpy()).all()
    assert (platform.user_joined[users] <= known.item_events["time"].to_numpy()).all()
    assert not pl.DataFrame({"user": users, "item": items}).is_duplicated().any()

    created, item_of = known.comments["created"].to_numpy(), known.rows(known.comments, "item_key")
    assert (created > platform.item_created[item_of]).all()
    answers = known.comments.with_row_index("row").filter(pl.col("parent_key").is_not_null())
    rows = answers["row"].to_numpy()
    parents = np.searchsorted(known.keys["comment_key"], answers["parent_key"].to_numpy().astype(str))
    assert len(rows) > 100
    assert (created[parents] < created[rows]).all()
    assert (item_of[parents] == item_of[rows]).all()

    touched, actors = known.rows(known.comment_events, "comment_key"), known.rows(known.comment_events, "user_key")
    authors = known.rows(known.comments, "user_key")
    assert (created[touched] < known.comment_events["time"].to_numpy()).all()
    assert (authors[touched] != actors).all()
    assert not pl.DataFrame({"user": actors, "comment": touched}).is_duplicated().any()


def test_every_reply_is_a_comment_that_answers(known: Known) -> None:
    replies = known.comment_events.filter(pl.col("behaviour") == "reply").select("user_key", "comment_key", "time")
    answers = known.comments.filter(pl.col("parent_key").is_not_null()).select(
        "user_key", comment_key="parent_key", time="created"
    )
    assert_frame_equal(replies, answers, check_row_order=False)


def test_some_users_come_only_for_the_comments(known: Known) -> None:
    item_key = known.comments.select("comment_key", "item_key")
    visited = known.comment_events.join(item_key, on="comment_key").select("user_key", "item_key").unique()
    without_event = visited.join(known.item_events, on=["user_key", "item_key"], how="anti")
    assert 0.2 < len(without_event) / len(visited) < 0.9


def test_the_same_settings_give_the_same_log(log: RawLog, known: Known) -> None:
    again = simulate(SMALL, progress=False)
    for name in ("items", "item_events", "comments", "comment_events"):
        assert_frame_equal(getattr(again, name).collect(), getattr(log, name).collect())
    assert again.oracle is not None and log.oracle is not None
    assert {name: array.tobytes() for name, array in again.oracle.items()} == {
        name: array.tobytes() for name, array in log.oracle.items()
    }
    other = simulate(SMALL.model_copy(update={"seed": 6}), progress=False)
    assert not other.item_events.collect().equals(known.item_events)


def test_true_preferences_equal_a_slow_reading_of_their_definition(known: Known) -> None:
    platform, rng = known.platform, np.random.default_rng(0)
    start, length, end = (int(value) for value in platform.clock)
    for _ in range(50):
        user, item, comment = (int(rng.integers(n)) for n in (500, 400, 3_000))
        time = int(rng.integers(start + 15 * DAY, end))
        step = start + (time - start) // length * length
        angle = float(platform.user_speed[user]) * (step - start) / (end - start)
        topics = [
            math.cos(angle) * float(old) + math.sin(angle) * float(new)
            for old, new in zip(platform.user_taste[user], platform.user_new_taste[user], strict=True)
        ]
        taste = [SMALL.taste_strength * value for value in topics + [float(c) for c in platform.user_character[user]]]
        wanted = sum(t * float(v) for t, v in zip(taste, platform.item_vector[item], strict=True))
        days = (step - int(platform.item_created[item])) / DAY
        if days < 0:
            expected = -math.inf
        else:
            lived = max(days, 0.01) / float(platform.item_decay[item])
            popular = 0.03 + (1 - math.exp(-20 * lived)) * math.exp(-lived)
            expected = wanted + float(platform.item_reach[item]) + math.log(popular)
        actual = platform.true_item_preference(np.array(user), np.array(item), np.array(time))
        assert float(actual) == pytest.approx(expected, abs=1e-4)

        wanted = sum(t * float(v) for t, v in zip(taste, platform.comment_vector[comment], strict=True))
        days = (step - int(platform.comment_created[comment])) / DAY
        if days <= 0 or step > platform.comment_hidden[comment]:
            expected = -math.inf
        else:
            expected = wanted + float(platform.comment_quality[comment]) - 0.5 * math.log1p(days)
        actual = platform.true_comment_preference(np.array(user), np.array(comment), np.array(time))
        assert float(actual) == pytest.approx(expected, abs=1e-4)


def test_responses_are_drawn_from_the_softmax_of_taste(known: Known) -> None:
    platform, draws = known.platform, 20_000
    shown, time = np.array([3, 50, 120, 333, 390]), START + 9 * DAY
    weight = np.exp(platform.item_vector[shown] @ platform.taste(np.array(7), np.array(time)))
    share = weight / weight.sum()
    ranked = platform.respond(
        np.full(draws, 7), np.tile(shown, (draws, 1)), time, count=2, rng=np.random.default_rng(1)
    )
    first = (ranked[:, :1] == shown).mean(axis=0)
    # the second is drawn from what the first leaves
    second = np.array([sum(share[j] * share[i] / (1 - share[j]) for j in range(5) if j != i) for i in range(5)])
    deviation = 5 * np.sqrt(0.25 / draws)
    assert np.abs(first - share).max() < deviation
    assert np.abs((ranked[:, 1:] == shown).mean(axis=0) - second).max() < deviation


def test_what_cannot_be_chosen_is_drawn_last() -> None:
    weights = np.array([[-np.inf, 0.0, -np.inf, -90.0, -5.0]] * 1_000, dtype=np.float32)
    ranked = draw_ranked(weights, count=3, rng=np.random.default_rng(0))
    assert (np.sort(ranked, axis=1) == [1, 3, 4]).all()


def test_popularity_rises_after_the_upload_then_decays(known: Known) -> None:
    platform = known.platform
    for item in range(0, 400, 40):
        days = np.array([-1.0, 0.0, 0.5, 2.0, 40.0, 80.0])
        times = platform.item_created[item] + (days * DAY).astype(np.int64) + platform.clock[1]
        log_weight = platform.item_popularity(np.array(item), times)
        assert log_weight[0] == -np.inf
        assert log_weight[1] < log_weight[2]
        assert log_weight[3] > log_weight[4] > log_weight[5]
    items = known.rows(known.item_events, "item_key")
    late = known.item_events["time"].to_numpy() > START + 20 * DAY
    age = (known.item_events["time"].to_numpy() - platform.item_created[items]) / DAY
    in_five_days = [int(((age >= low) & (age < low + 5) & late).sum()) for low in (0, 5, 15)]
    assert in_five_days[0] > in_five_days[1] > in_five_days[2] > 0


def test_tastes_drift_as_far_as_asked() -> None:
    users, last = np.arange(300), np.array(START + 30 * DAY - 1)
    for drift in (0.0, 0.5, 1.0):
        settings = SMALL.model_copy(update={"drift": drift})
        platform = Platform.create(settings, rng=np.random.default_rng(0))
        before, after = (platform.taste(users, time)[:, :TOPIC_WIDTH] for time in (np.array(START), last))
        turned = np.arccos(np.clip((before * after).sum(axis=1) / settings.taste_strength**2, -1, 1))
        assert turned.max() == pytest.approx(drift * np.pi / 2, abs=0.03)
        assert turned.mean() == pytest.approx(drift * np.pi / 4, abs=0.06)


def test_the_oracle_beats_a_taste_learnt_from_history_and_that_beats_popularity(known: Known) -> None:
    platform, rng = known.platform, np.random.default_rng(2)
    users, items = (known.rows(known.item_events, name) for name in ("user_key", "item_key"))
    times = known.item_events["time"].to_numpy()
    past = times < START + 26 * DAY
    users_left, times_left = users[~past, None], times[~past, None]
    existing = np.searchsorted(platform.item_created, times[~past], side="right")
    negatives = rng.integers(existing[:, None], size=(len(existing), 99))
    candidates = np.concatenate([items[~past, None], negatives], axis=1)
    liked = np.zeros((500, 400), dtype=bool)
    liked[users, items] = True
    is_known = liked[users_left, candidates] & (np.arange(100) > 0)  # nobody likes an item again
    history = np.zeros((500, platform.item_vector.shape[1]))
    np.add.at(history, users[past], platform.item_vector[items[past]])
    talk = np.zeros_like(history)
    told = known.comment_events["time"].to_numpy() < START + 26 * DAY
    speakers, comments = known.rows(known.comment_events, "user_key"), known.rows(known.comment_events, "comment_key")
    np.add.at(talk, speakers[told], platform.comment_vector[comments[told]])

    def quality(scores: npt.NDArray[Any]) -> float:
        return ndcg(np.where(is_known, -np.inf, scores))

    def by(profile: npt.NDArray[np.float64]) -> float:
        return quality(np.einsum("bd,bnd->bn", profile[users[~past]], platform.item_vector[candidates]))

    oracle = quality(platform.true_item_preference(users_left, candidates, times_left))
    popular = quality(np.bincount(items[past], minlength=400)[candidates])
    assert oracle > 0.45
    assert popular < 0.15
    assert popular + 0.08 < by(history) < oracle - 0.08
    # what one talks about tells what one watches
    assert popular + 0.05 < by(talk)


def test_the_oracle_ranks_comments_above_hot_order(dataset: Dataset) -> None:
    oracle = Oracle.load(dataset.path)
    targets = dataset.candidates("comment", Split.TEST)
    rows = targets.select("target", "user_id", "time", positive=pl.col("positives").list.first(), comment="negatives")
    rows = rows.explode("comment")
    columns = {name: rows[name].to_numpy() for name in ("user_id", "time", "positive", "comment")}
    count = dataset.comment_events.join(
        dataset.comment_records.filter(pl.col("split") < int(Split.TEST)), on="record_id", how="semi"
    )
    hot = np.bincount(count["comment_id"], minlength=dataset.num_comments + 1)

    def wins(positive: npt.NDArray[Any], negative: npt.NDArray[Any]) -> float:
        return float((positive > negative).mean() + 0.5 * (positive == negative).mean())

    known = wins(
        oracle.comment_scores(columns["user_id"], columns["positive"], columns["time"]),
        oracle.comment_scores(columns["user_id"], columns["comment"], columns["time"]),
    )
    by_count = wins(hot[columns["positive"]].astype(float), hot[columns["comment"]].astype(float))
    assert known > 0.85
    assert known > by_count + 0.2


def test_texts_carry_their_topic() -> None:
    rng = np.random.default_rng(0)
    cells, formats = rng.integers(48, size=2_000), rng.integers(5, size=2_000)
    titles = write_titles(cells, formats, rng=rng).to_frame("title")
    words = titles.select(
        item=pl.int_range(pl.len()), word=pl.col("title").str.to_lowercase().str.extract_all(r"[a-z'-]+")
    ).explode("word")
    words = words.unique(maintain_order=True).with_columns(weight=(2_000 / pl.len().over("word")).log())
    bag = words.pivot("word", index="item", values="weight", aggregate_function="first").sort("item").fill_null(0)
    vectors = bag.drop("item").to_numpy()
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    nearest = similarity.argmax(axis=1)
    assert (cells[nearest] // 4 == cells // 4).mean() > 0.85  # by chance: 1 in 12
    assert (formats[nearest] == formats).mean() > 0.4  # by chance: 1 in 5


def test_texts_are_varied_and_whole(known: Known) -> None:
    texts = known.comments["text"]
    assert known.items["title"].n_unique() > 0.95 * SMALL.num_items
    assert texts.n_unique() > 0.8 * len(texts)
    for column in (texts, known.items["title"]):
        assert column.null_count() == 0
        assert not column.str.contains(r"[{}]|\ba [aeiou]|  |^ | $|^$").any()
    lengths = texts.str.len_chars().to_numpy()
    assert np.quantile(lengths, 0.05) < 15 < 100 < np.quantile(lengths, 0.95)
    has_emoji = texts.str.contains(r"\p{Extended_Pictographic}").to_numpy()
    assert 0.1 < has_emoji.mean() < 0.5
    is_lowercase = (texts == texts.str.to_lowercase()).to_numpy()
    assert 0.2 < is_lowercase.mean() < 0.7


def test_the_oracle_knows_a_dataset_by_its_ids(dataset: Dataset) -> None:
    oracle = Oracle.load(dataset.path)
    targets = dataset.candidates("item", Split.TEST)
    users, times = targets["user_id"].to_numpy(), targets["time"].to_numpy()
    positives, negatives = targets["positive"].to_numpy(), np.stack(targets["negatives"].to_list())
    scores = oracle.item_scores(users[:, None], np.column_stack([positives, negatives]), times[:, None])
    assert np.isfinite(scores[:, 0]).all()
    assert ndcg(scores) > 0.45
    assert (oracle.item_scores(users, positives, times) == scores[:, 0]).all()
    row = int(dataset.items["item_key"][int(positives[0]) - 1].removeprefix("i")) - 1
    user = int(dataset.users["user_key"][int(users[0]) - 1].removeprefix("u")) - 1
    expected = oracle.platform.true_item_preference(np.array(user), np.array(row), times[:1])
    assert scores[0, 0] == expected[0]
    everything = oracle.item_scores(users[:5, None], np.arange(dataset.num_items + 1)[None], times[:5, None])
    assert everything.shape == (5, dataset.num_items + 1)
    assert (everything[:, 0] == -np.inf).all()
    assert (oracle.comment_scores(np.array(0), np.array([1, 2]), times[:1]) == -np.inf).all()


def test_an_oracle_of_another_dataset_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    write_manifest(tmp_path, kind="dataset", config={}, parents={})
    with pytest.raises(ArtifactError, match=r"no oracle\.npz"):
        Oracle.load(tmp_path)
    (tmp_path / "oracle.npz").write_bytes((dataset.path / "oracle.npz").read_bytes())
    for name in ("users", "comments", "items"):
        getattr(dataset, name).with_columns(pl.col(f"{name[:-1]}_key") + "x").write_parquet(
            tmp_path / f"{name}.parquet"
        )
    with pytest.raises(ArtifactError, match="does not know 'u"):
        Oracle.load(tmp_path)


def test_only_the_newest_comments_are_shown() -> None:
    settings = SMALL.model_copy(update={"comments_shown": 4, "num_items": 100, "num_users": 800})
    known = Known(simulate(settings, progress=False))
    touched = known.rows(known.comment_events, "comment_key")
    users, times = known.rows(known.comment_events, "user_key"), known.comment_events["time"].to_numpy()
    assert np.isfinite(known.platform.true_comment_preference(users, touched, times)).all()
    created, item = known.comments["created"].to_numpy(), known.rows(known.comments, "item_key")
    begun = known.platform.step_of(times)
    for event in range(0, len(touched), 25):
        of_item = np.flatnonzero((item == item[touched[event]]) & (created < begun[event]))
        assert touched[event] in of_item[-4:]


@pytest.mark.parametrize("silent", ["num_comments", "num_comment_events", "num_item_events"])
def test_a_platform_may_lack_a_kind_of_event(silent: str) -> None:
    settings = SimulatorSettings.model_validate(
        {
            "num_users": 30,
            "num_items": 20,
            "num_comments": 40,
            "num_item_events": 60,
            "num_comment_events": 50,
            "days": 2,
        }
        | {silent: 0}
    )
    known = Known(simulate(settings, progress=False))
    assert len(known.comments) == settings.num_comments
    assert len(known.item_events) == 0 if silent == "num_item_events" else len(known.item_events) > 30
    assert len(known.comment_events) == 0 if silent != "num_item_events" else len(known.comment_events) > 0


def test_a_platform_may_be_silent() -> None:
    settings = SimulatorSettings(num_users=2, num_items=2, num_comments=0, num_item_events=0, num_comment_events=0)
    for seed in range(5):
        known = Known(simulate(settings.model_copy(update={"seed": seed}), progress=False))
        assert len(known.items) == 2
        assert len(known.comments) == len(known.item_events) == len(known.comment_events) == 0


def test_settings_say_what_is_wrong() -> None:
    with pytest.raises(ValidationError, match="num_user"):
        SimulatorSettings.model_validate({"num_user": 3})
    with pytest.raises(ValidationError, match="a fifth of num_users x num_items: give at most 20, or more users"):
        SimulatorSettings(num_users=10, num_items=10, num_item_events=21)
