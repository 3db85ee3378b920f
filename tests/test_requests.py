"""Asking a trained system: users of the dataset, and histories written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from test_training import small_settings, write_text_table
from toy import with_tables

from reeltalk.data.dataset import Dataset
from reeltalk.data.hot import Leaders
from reeltalk.errors import DataError
from reeltalk.objectives import item_objective
from reeltalk.text.table import TextTable
from reeltalk.training import requests
from reeltalk.training.finetune import finetune
from reeltalk.training.requests import (
    LAST_MOMENT,
    History,
    _feed,
    recommend_comments,
    recommend_items,
    user_vectors,
)
from reeltalk.training.settings import finetune_settings
from reeltalk.training.system import System


@pytest.fixture(scope="module")
def toy_text(toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> TextTable:
    return write_text_table(toy_dataset, tmp_path_factory.mktemp("toy") / "text")


def test_requests_of_known_and_unseen_users(
    toy_dataset: Dataset, toy_text: TextTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = finetune(toy_dataset, text=toy_text, settings=small_settings("item", epochs=10), out=tmp_path / "i")
    by_hand = History(items=["v00", "v04", "v08", "v12"], comments=["c002"])
    best = recommend_items(items, by_hand, k=5)
    assert best.columns == ["item_key", "title", "score"]
    assert best["score"].is_sorted(descending=True)
    assert not set(best["item_key"]) & {"v00", "v04", "v08", "v12"}
    assert len(recommend_items(items, History(), k=100)) == toy_dataset.num_items
    # a user of the dataset, written out by hand, gets the same scores
    events = toy_dataset.item_events.filter(pl.col("user_id") == toy_dataset.user_ids["u00"]).sort("time")
    keys = toy_dataset.items["item_key"].gather(events["item_id"] - 1).to_list()
    as_user = History(items=keys, item_times=events["time"].to_list())
    hot = _feed(items, as_user, LAST_MOMENT)[0].histories.hot_comment
    assert hot.tolist() == events["hot_comment_id"].to_list() and hot.any()
    written, told = (recommend_items(items, user, k=5) for user in (as_user, "u00"))
    np.testing.assert_allclose(written["score"].to_numpy(), told["score"].to_numpy(), rtol=1e-5)
    vectors = user_vectors(items, ["u00", "u01"])
    whole = items.dataset.users["user_key"].to_list()
    monkeypatch.setattr(requests, "WINDOWS_A_BATCH", 3)
    torch.testing.assert_close(user_vectors(items, whole)[:2], vectors, rtol=1e-4, atol=1e-5)
    known = recommend_items(items, "u01", k=3, exclude_seen=False)
    ids = toy_dataset.items.filter(pl.col("item_key").is_in(known["item_key"].to_list()))["item_id"].to_numpy()
    expected = (items.item_vectors()[ids - 1] @ vectors[1]).sort(descending=True).values
    np.testing.assert_allclose(known["score"].to_numpy(), expected.numpy(), rtol=1e-4)
    with pytest.raises(DataError, match="nobody"):
        recommend_items(items, "nobody")
    with pytest.raises(DataError, match="comment task"):
        recommend_comments(items, by_hand, item="v00")

    comments = finetune(toy_dataset, text=toy_text, settings=small_settings("comment"), out=tmp_path / "c")
    talk = recommend_comments(comments, by_hand, item="v04", k=3)
    assert talk.columns == ["comment_key", "text", "score"]
    assert len(talk) == 3
    assert recommend_comments(comments, by_hand, item="v05").is_empty()
    with pytest.raises(DataError, match="trained for the comment task"):
        comments.item_vectors()


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "lsvcr"])
def test_answers_follow_the_weights(toy_dataset: Dataset, toy_text: TextTable, name: str) -> None:
    chosen = finetune_settings(name, "item").model_validate({"model": {"dim": 16, "num_heads": 2}})
    system = System.new(toy_dataset, text=toy_text, settings=chosen)
    first = {key: value.clone() for key, value in system.state_dict().items()}
    before = recommend_items(system.eval(), "u01")
    assert system.vectors_of_items() is system.vectors_of_items()
    system.item_vectors().mul_(0.0)  # the caller's own
    assert recommend_items(system, "u01").equals(before)

    system.train()
    optimizer = torch.optim.AdamW(system.parameters(), lr=0.1, fused=True)
    batch, wanted = system.feed.item_batch(system.training_windows())
    total, count = item_objective(system.recommender, batch, wanted)["softmax"]
    (total / count).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    fresh = System.new(toy_dataset, text=toy_text, settings=chosen)
    fresh.load_state_dict(system.state_dict())
    after = recommend_items(system, "u01")
    assert system.training
    assert after.equals(recommend_items(fresh.eval(), "u01"))
    assert not after.equals(before)

    system.eval()
    for assign in (False, True):
        system.load_state_dict(fresh.state_dict())
        recommend_items(system, "u01")
        system.load_state_dict(first, assign=assign)
        assert recommend_items(system, "u01").equals(before)


def written_out(dataset: Dataset, user: str) -> History:
    """A user of the dataset, as one would write it by hand."""
    user_id = dataset.user_ids[user]
    events = dataset.item_events.filter(pl.col("user_id") == user_id)
    talked = dataset.comment_records.filter(pl.col("user_id") == user_id).select("record_id")
    talked = talked.join(dataset.comment_events, on="record_id").sort("time", maintain_order=True)
    return History(
        items=dataset.items["item_key"].gather(events["item_id"] - 1).to_list(),
        comments=dataset.comments["comment_key"].gather(talked["comment_id"] - 1).to_list(),
        item_times=events["time"].to_list(),
        comment_times=talked["time"].to_list(),
    )


def new_system(dataset: Dataset, text: TextTable, task: str, **data: Any) -> System:
    settings = finetune_settings("lsvcr", task).model_validate({"model": {"dim": 16, "num_heads": 2}, "data": data})  # type: ignore[arg-type]
    return System.new(dataset, text=text, settings=settings).eval()


@pytest.mark.parametrize("task", ["item", "comment"])
def test_a_history_written_by_hand_is_read_as_the_logs(toy_dataset: Dataset, toy_text: TextTable, task: str) -> None:
    """Records are the dataset's: consecutive comments of an item are one, a comment turned to again counts once."""
    events = toy_dataset.comment_events
    again = events.filter(pl.col("record_id") % 2 == 0).with_columns(time=pl.col("time") + 1)
    events = pl.concat([events, again]).sort("record_id", "time")
    ends = events.group_by("record_id", maintain_order=True).agg(pl.col("time").max())
    records = toy_dataset.comment_records.with_columns(end=ends["time"])
    repeated = with_tables(toy_dataset, comment_events=events, comment_records=records)
    watched = toy_dataset.item_events
    moment, item = (watched[name].to_numpy().astype(np.int64) for name in ("time", "item_id"))
    hot = watched.with_columns(hot_comment_id=Leaders.of(repeated).before(moment, item)).cast(watched.schema)
    repeated = with_tables(repeated, item_events=hot)
    system, lengths = new_system(repeated, toy_text, task), []
    for user in ("u01", "u05", "u13", "u39"):
        mine = _feed(system, written_out(repeated, user), LAST_MOMENT)[0].histories
        of_log, user_id = system.feed.histories, repeated.user_ids[user]
        rows = slice(of_log.record_offsets[user_id], of_log.record_offsets[user_id + 1])
        for name in ("record_item", "start", "end"):
            assert np.array_equal(getattr(mine, name), getattr(of_log, name)[rows]), name
        expected = [of_log.comments_of(row) for row in range(rows.start, rows.stop)]
        assert [mine.comments_of(row) for row in range(len(mine.record_item))] == expected
        lengths += [len(comments) for comments in expected]
        if task == "item":
            best, told = (recommend_items(system, each) for each in (written_out(repeated, user), user))
            assert best["score"].to_list() == pytest.approx(told["score"].to_list(), rel=1e-5)
    assert max(lengths) > 1


def test_a_history_by_hand_is_read_as_far_as_the_system_was_trained_to(
    toy_dataset: Dataset, toy_text: TextTable
) -> None:
    system = new_system(toy_dataset, toy_text, "item", comments=False)
    by_hand = History(items=["v00", "v04"], comments=["c002"])
    with_talk, without = (recommend_items(system, each) for each in (by_hand, replace(by_hand, comments=())))
    assert with_talk.equals(without)


def test_keys_without_times_run_beside_those_with(toy_dataset: Dataset, toy_text: TextTable) -> None:
    system = new_system(toy_dataset, toy_text, "item")
    history = History(items=["v00", "v04", "v08"], comments=["c002", "c010"], comment_times=[1_000, 9_000])
    written = _feed(system, history, LAST_MOMENT)[0].histories
    assert written.time.tolist() == [1_000, 5_000, 9_000]
    assert written.start.tolist() == [1_000, 9_000]


@pytest.mark.parametrize("model", ["lsvcr", "hstu"])
def test_a_history_without_times_ends_now(toy_dataset: Dataset, toy_text: TextTable, model: str) -> None:
    """HSTU reads how long ago an entry was."""
    settings = finetune_settings(model, "item").model_validate({"model": {"dim": 16, "num_heads": 2}})
    system = System.new(toy_dataset, text=toy_text, settings=settings).eval()
    now = int(toy_dataset.item_events["time"].max()) + 1  # type: ignore[arg-type]
    history = History(items=["v00", "v04", "v08"])
    spread = replace(history, item_times=[now - 1_000_000, now - 500_001, now - 1])
    best = recommend_items(system, history, now=now)
    assert best.equals(recommend_items(system, spread, now=now)), model
    assert best.equals(recommend_items(system, history, now=now + 10**10))
    assert _feed(system, History(items=["v00"]), now)[0].histories.time.tolist() == [now - 1]


def test_a_request_without_a_time_comes_right_after_the_log(toy_dataset: Dataset, toy_text: TextTable) -> None:
    """As it decides what is fresh."""
    system = new_system(toy_dataset, toy_text, "comment", candidate_features=True)
    last = max(*toy_dataset.comment_events["time"], *toy_dataset.comments["created"])
    untimed, timed = (recommend_comments(system, "u01", item="v04", **now) for now in ({}, {"now": last + 1}))
    assert untimed.equals(timed)
    later = recommend_comments(system, "u01", item="v04", now=last + 10**10)
    assert not untimed["score"].equals(later["score"])


def test_an_entry_without_a_time_is_told_with_what_was_hot_by_now(toy_dataset: Dataset, toy_text: TextTable) -> None:
    system = new_system(toy_dataset, toy_text, "item")
    created = toy_dataset.comments["created"].to_numpy()
    now = int(np.median(created))
    hot = _feed(system, History(items=list(toy_dataset.item_ids)), now)[0].histories.hot_comment
    assert hot.any() and (created[hot[hot > 0] - 1] < now).all()


def test_item_vectors_move_with_the_weights(toy_dataset: Dataset, toy_text: TextTable) -> None:
    system = new_system(toy_dataset, toy_text, "item")
    system.vectors_of_items()
    assert system.double().vectors_of_items() is not system.float().vectors_of_items()
    assert system.to("meta")._item_vectors is None


def test_times_of_any_array(toy_dataset: Dataset, toy_text: TextTable) -> None:
    system, timed = new_system(toy_dataset, toy_text, "item"), History(["v00", "v04"], ["c002"], [5, 9], [7])
    best = recommend_items(system, timed)
    for made in (np.array, pl.Series):
        assert recommend_items(system, replace(timed, item_times=made([5, 9]), comment_times=made([7]))).equals(best)
        untimed = replace(timed, item_times=None, comment_times=made([7]))
        assert recommend_items(system, untimed).equals(recommend_items(system, replace(untimed, comment_times=[7])))


def test_what_cannot_be_asked_is_told(toy_dataset: Dataset, toy_text: TextTable) -> None:
    system = new_system(toy_dataset, toy_text, "item")
    two = History(["v00", "v04"])
    asked: list[tuple[History, dict[str, Any], str]] = [
        (replace(two, item_times=[1]), {}, "holds 1 times for 2 keys"),
        (replace(two, item_times=[9, 5]), {}, "go back at place 1; give oldest first"),
        (replace(two, item_times=[5, 1_700_000_000_000_000]), {}, "give milliseconds"),
        (History("v00"), {}, "items is 'v00', one key; give a list"),
        (two, {"now": -1}, "no item existed at now=-1"),
        (two, {"k": -1}, "k is -1"),
    ]
    for user, options, told in asked:
        with pytest.raises(DataError, match=told):
            recommend_items(system, user, **options)
    with pytest.raises(DataError, match="users is 'u00', one key"):
        user_vectors(system, "u00")
    assert user_vectors(system, []).shape == (0, 16)
