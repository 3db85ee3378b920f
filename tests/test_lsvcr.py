"""Every equation of LSVCR's sequential model, and SASRec, against loops over one user's plain lists in float64.

The loops share the weights with the models and none of their code: no packing, no masks, no batches.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import cast

import numpy as np
import pytest
import torch
from random_logs import Log, Record, User, packed_batch, preferences, random_log, random_model, settings_of
from slow_parts import (
    Vector,
    causal_encoder,
    each_target,
    gelu,
    linear,
    mixture,
    norm,
    slow_history_encoder,
    softmax,
    transformer_layer,
    unit,
    weights_of,
)

from reeltalk.data.batch import Batch
from reeltalk.data.dataset import Task
from reeltalk.data.histories import target_windows, training_windows
from reeltalk.losses import id_text_regularisation
from reeltalk.models import build
from reeltalk.models.lsvcr import LSVCR, Texts
from reeltalk.models.sasrec import SASRec
from reeltalk.objectives import comment_objective, item_objective

LENGTH = 9


# LSVCR, written from the equations ------------------------------------------------------------------------------------


class Slow:
    """Section 4.1 for one user at a time."""

    def __init__(self, model: LSVCR, log: Log) -> None:
        self.w = weights_of(model)
        self.log = log
        self.num_heads = model.settings.num_heads
        self.temperature = model.settings.temperature

    def text(self, vector: Vector) -> Vector:
        """LLM(x): the two-layer GELU map, then to d."""
        hidden = gelu(linear(self.w, "text_map.0", vector))
        return linear(self.w, "text_adapter", linear(self.w, "text_map.2", hidden))

    def title(self, item: int) -> Vector:
        return self.text(self.log.titles[item])

    def identity(self, item: int) -> Vector:
        """e_id; nothing was learnt for an item without a training event."""
        embedding: Vector = self.w["item_embedding.weight"][item] * self.log.known[item]
        return embedding

    def z(self, item: int, comments: list[int]) -> Vector:
        """Eq 1 (one hot comment) and eq 2 (the record's comments); an absent comment is the text of a zero vector."""
        texts = [self.text(self.log.comments[comment]) for comment in comments or [0]]
        mean = np.sum(texts, axis=0) / len(texts)
        return linear(self.w, "merge_text", np.concatenate([self.title(item), mean]))

    def entries(self, which: int, events: list[tuple[int, list[int]]]) -> list[Vector]:
        """Z + P with ID embeddings (section 4.4.1), the whole position table in order (eq 3), after a start entry."""
        inputs = [self.w[f"starts.{which}"]]
        for place, (item, comments) in enumerate(events):
            inputs.append(
                self.z(item, comments)
                + self.w["id_gate"] * self.identity(item)
                + self.w[f"positions.{which}.weight"][place]
            )
        return [norm(self.w, f"input_norms.{which}", x) for x in inputs]

    def fused_items(self, items: list, records: list[Record], moments: list[int]) -> list[Vector]:  # type: ignore[type-arg]
        """Eq 4 and 5; moments[i] is the time of what follows entry i; only records that ended before it are known."""
        h_v = self.encoded_items(items)
        h_c = self.encoded_records(records)
        fused = []
        for own, moment in zip(h_v, moments, strict=True):
            known = [h_c[0]] + [h for h, record in zip(h_c[1:], records, strict=True) if record.end < moment]
            other = transformer_layer(self.w, "item_fusion", own, known, self.num_heads)
            fused.append(linear(self.w, "merge_items", np.concatenate([own, other])))
        return fused

    def fused_records(self, items: list, records: list[Record], moments: list[int]) -> list[Vector]:  # type: ignore[type-arg]
        """Eq 4 and 6."""
        h_v = self.encoded_items(items)
        h_c = self.encoded_records(records)
        fused = []
        for own, moment in zip(h_c, moments, strict=True):
            known = [h_v[0]] + [h for h, event in zip(h_v[1:], items, strict=True) if event.time < moment]
            other = transformer_layer(self.w, "record_fusion", own, known, self.num_heads)
            fused.append(linear(self.w, "merge_records", np.concatenate([own, other])))
        return fused

    def encoded_items(self, items: list) -> list[Vector]:  # type: ignore[type-arg]
        events = [(event.item, [event.hot] if event.hot else []) for event in items]
        return causal_encoder(self.w, "item_encoder", self.entries(0, events), self.num_heads)

    def encoded_records(self, records: list[Record]) -> list[Vector]:
        events = [(record.item, list(record.comments[-3:])) for record in records]
        return causal_encoder(self.w, "record_encoder", self.entries(1, events), self.num_heads)

    def alpha(self, fused: list[Vector]) -> list[float]:
        scores = []
        for place, h in enumerate(fused):
            hidden = gelu(norm(self.w, "item_weight.1", linear(self.w, "item_weight.0", h)))
            ago = len(fused) - 1 - place
            recency = float(self.w["recency"][ago]) if "recency" in self.w else 0.0
            scores.append(float(linear(self.w, "item_weight.3", hidden)[0]) + recency)
        return softmax(scores)

    def beta(self, fused: list[Vector], watched: int) -> list[float]:
        query = linear(self.w, "watched_query", self.title(watched))
        scores = [float(query @ linear(self.w, "record_key", h)) / sqrt(len(h)) for h in fused]
        return softmax(scores)

    def preference(self, weights: list[float], fused: list[Vector]) -> Vector:
        """Eq 7 and 8; cosine similarity and temperature of InfoNCE are already in it."""
        return unit(mixture(weights, fused)) / self.temperature

    def item_vector(self, item: int) -> Vector:
        return unit(self.identity(item) + self.title(item))

    def comment_vector(self, comment: int) -> Vector:
        return unit(self.text(self.log.comments[comment]))


def slow_item(slow: Slow, user: User, place: int) -> tuple[list[float], Vector]:
    """Alpha and the preference right before item event `place`."""
    before, moments = user.items[:place], [event.time for event in user.items[: place + 1]]
    records = [record for record in user.records if record.end < moments[-1]]
    fused = slow.fused_items(before, records, moments)
    alpha = slow.alpha(fused)
    return alpha, slow.preference(alpha, fused)


def slow_comment(slow: Slow, user: User, place: int) -> tuple[list[float], Vector]:
    """Beta and the preference right before record `place`."""
    before, moments = user.records[:place], [record.start for record in user.records[: place + 1]]
    items = [event for event in user.items if event.time < moments[-1]]
    fused = slow.fused_records(items, before, moments)
    beta = slow.beta(fused, user.records[place].item)
    return beta, slow.preference(beta, fused)


@pytest.fixture(scope="module")
def log() -> Log:
    return random_log(21, num_users=10, max_items=LENGTH, max_records=6, dtype=np.float64)


@pytest.fixture(scope="module", params=[False, True], ids=["paper", "recency"])
def model(log: Log, request: pytest.FixtureRequest) -> LSVCR:
    return cast(LSVCR, random_model("lsvcr", "item", log, length=LENGTH, use_recency=request.param))


@pytest.mark.parametrize(("task", "slow_one"), [("item", slow_item), ("comment", slow_comment)])
def test_preferences(
    log: Log, model: LSVCR, task: Task, slow_one: Callable[[Slow, User, int], tuple[list[float], Vector]]
) -> None:
    """Eq 1 to 8: the preference before every event of every user, users without one history or both among them."""
    slow = Slow(model, log)
    rows, fast_TD = preferences(model, log, training_windows(log.histories, task, length=LENGTH, has_start=True), task)
    targets = each_target(log, task)
    assert rows.tolist() == list(range(len(targets)))
    expected = np.stack([slow_one(slow, user, place)[1] for user, place in targets])
    np.testing.assert_allclose(fast_TD.numpy(), expected, rtol=0, atol=1e-11)


def test_eq_1_2_text_features(log: Log, model: LSVCR) -> None:
    slow = Slow(model, log)
    texts = Texts(model._text(model.title_vectors_NE), None, model._text(torch.from_numpy(log.comments)))
    entries = [(4, [2]), (5, []), (3, [1]), (7, [3, 1, 4]), (9, [5, 6])]
    comments = torch.zeros(len(entries), 3, dtype=torch.int64)
    for row, (_, chosen) in enumerate(entries):
        comments[row, : len(chosen)] = torch.tensor(chosen)
    item_M = torch.tensor([item for item, _ in entries])
    expected = np.stack([slow.z(item, chosen) for item, chosen in entries])
    for rows, width in ((5, 3), (3, 1)):
        mean_MD = texts.comments(comments[:rows, :width])
        z_MD = model.merge_text(torch.cat([texts.titles(item_M[:rows]), mean_MD], dim=1))
        np.testing.assert_allclose(z_MD.detach().numpy(), expected[:rows], atol=1e-12)


def test_eq_3_the_whole_position_table_in_order(log: Log, model: LSVCR) -> None:
    """Entry k of a full history stands on row k of its own history's table, whatever lies beside it in its row."""
    windows = training_windows(log.histories, "item", length=LENGTH, has_start=True)
    packed, batch = packed_batch(log, windows, "item")
    for history, begin, end, column in (
        (batch.items, windows.begin, windows.end, packed.packing.item_column),
        (batch.records, windows.other_begin, windows.other_end, packed.packing.record_column),
    ):
        for window in range(len(windows)):
            first, length = int(column[window]), int(end[window] - begin[window])
            found = history.position_RL[int(packed.packing.row[window]), first : first + 1 + length]
            assert found.tolist() == list(range(-1, length))
    assert int(batch.items.position_RL.max()) == max(len(user.items) for user in log.users) - 2
    tables = [cast(torch.nn.Embedding, table).weight for table in model.positions]
    assert [len(table) for table in tables] == [LENGTH, LENGTH]


@pytest.mark.parametrize("task", ["item", "comment"])
def test_eq_7_8_explanation_weights(log: Log, model: LSVCR, task: Task) -> None:
    """They are those of the loop, sum to one, and are zero on what comes later and on other users."""
    slow = Slow(model, log)
    windows = training_windows(log.histories, task, length=LENGTH, has_start=True)
    packed, batch = packed_batch(log, windows, task)
    rows, window = packed.target_rows()
    position = packed.target_positions(rows, window, task)
    history = batch.items if task == "item" else batch.records
    length = history.segment_RL.shape[1]
    with torch.no_grad():
        if task == "item":
            weight_RLL = model.item_attention(batch)
            is_padding = batch.items.segment_RL == 0
            weight_TL = weight_RLL.flatten(0, 1)[torch.from_numpy(position)]
            torch.testing.assert_close(weight_RLL.sum(-1), torch.ones_like(weight_RLL[..., 0]))
            assert (weight_RLL[~is_padding][:, -1] >= 0).all()
        else:
            watched = torch.from_numpy(log.histories.record_item[rows])
            weight_TL = model.comment_attention(batch, torch.from_numpy(position), watched)
    slow_one = slow_item if task == "item" else slow_comment
    for weight, place, row, owner in zip(weight_TL.numpy(), position, rows, window, strict=True):
        column = (packed.packing.item_column if task == "item" else packed.packing.record_column)[owner]
        user, index = each_target(log, task)[row]
        expected = np.zeros(length)
        expected[column : column + index + 1] = slow_one(slow, user, index)[0]
        assert place % length == column + index
        np.testing.assert_allclose(weight, expected, atol=1e-12)
        assert (weight[expected == 0] == 0).all()
        assert abs(weight.sum() - 1) < 1e-12


def test_eq_16_regularisation(log: Log, model: LSVCR) -> None:
    """Both ways, against all pairs of the batch that are of other items, on both histories."""
    slow = Slow(model, log)
    windows = training_windows(log.histories, "item", length=LENGTH, has_start=True)
    _, batch = packed_batch(log, windows, "item")
    extra = model.item_step(batch, regularise=True).regularisation
    assert extra is not None
    assert model.settings.num_regularisation_negatives > max(len(pairs(batch, which)) for which in (0, 1))
    expected, count = 0.0, 0
    for which in (0, 1):
        events = [(item, comments) for item, comments in pairs(batch, which) if log.known[item]]
        ids = [unit(slow.identity(item)) for item, _ in events]
        texts = [unit(slow.z(item, comments)) for item, comments in events]
        for i, (item, _) in enumerate(events):
            others = [j for j, (other, _) in enumerate(events) if other != item]
            for one, many in ((ids, texts), (texts, ids)):
                scores = [float(one[i] @ many[j]) / slow.temperature for j in [i, *others]]
                expected += -np.log(softmax(scores)[0]) / 2
        count += len(events)
    assert extra[1] == count
    np.testing.assert_allclose(extra[0].item(), expected, rtol=1e-9)


def pairs(batch: Batch, which: int) -> list[tuple[int, list[int]]]:
    """Item and comments of every event in the batch."""
    history = (batch.items, batch.records)[which]
    ids = batch.comment_U[history.comment_RLK].flatten(0, 1).tolist()
    items = history.item_RL.flatten().tolist()
    return [(item, [c for c in chosen if c]) for item, chosen in zip(items, ids, strict=True) if item]


def test_eq_16_with_few_negatives_averages_to_a_uniform_draw(log: Log) -> None:
    """Each pair as often a negative as any other."""
    model = cast(LSVCR, random_model("lsvcr", "item", log, length=LENGTH, num_regularisation_negatives=4))
    _, batch = packed_batch(log, training_windows(log.histories, "item", length=LENGTH, has_start=True), "item")
    torch.manual_seed(0)
    with torch.no_grad():
        steps = [model.item_step(batch, regularise=True) for _ in range(5)]
    assert len({step.regularisation[0].item() for step in steps if step.regularisation}) == 5
    id_MD, text_MD = torch.randn(6, 3), torch.randn(6, 3)
    item_M = torch.tensor([1, 2, 3, 4, 5, 6])
    one = id_text_regularisation(id_MD, text_MD, item_M, torch.tensor([2]), temperature=0.5)
    scores = torch.nn.functional.cosine_similarity
    expected = 0.0
    for i in range(6):
        for left, right in ((id_MD, text_MD), (text_MD, id_MD)):
            own, other = (scores(left[i], right[j], dim=0) / 0.5 for j in (i, 2))
            expected += 0.0 if i == 2 else float(torch.log(1 + torch.exp(other - own))) / 2
    assert one.item() == pytest.approx(expected, rel=1e-5)


def test_eq_17_item_objective(log: Log, model: LSVCR) -> None:
    """The next item's share among all items that existed at its time, at every position of every history."""
    slow = Slow(model, log)
    windows = training_windows(log.histories, "item", length=LENGTH, has_start=True)
    terms = item_objective(model, *log.feed("item").item_batch(windows))
    vectors = [slow.item_vector(item) for item in range(1, log.num_items + 1)]
    expected = 0.0
    for user, place in each_target(log, "item"):
        preference = slow_item(slow, user, place)[1]
        event = user.items[place]
        scores = [
            float(preference @ vector)
            for vector, created in zip(vectors, log.created, strict=True)
            if created <= event.time
        ]
        expected += -np.log(softmax(scores)[event.item - 1])
    loss, count = terms["softmax"]
    assert count == len(each_target(log, "item"))
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-9)


def test_eq_19_comment_objective(log: Log, model: LSVCR) -> None:
    """The chosen comment's share among sampled comments of the item; a target without any negative adds nothing.

    A user's own comments are no targets.
    """
    ids = {id(user): number for number, user in enumerate(log.users, 1)}
    slow = Slow(model, log)
    windows = training_windows(log.histories, "comment", length=LENGTH, has_start=True)
    batch, targets = log.feed("comment").comment_batch(windows, rng=np.random.default_rng(4))
    candidates = batch.comment_U[targets.candidate_TC].tolist()
    offsets = log.histories.record_offsets
    owners = [(user, place) for user, place in each_target(log, "comment")]
    chosen = [
        (user, place, comment)
        for user, place in owners
        for comment in user.records[place].comments
        if log.pool.created[comment] < user.records[place].start and log.pool.author[comment] != ids[id(user)]
    ]
    assert len(chosen) == len(candidates) > 10 and offsets[-1] == len(owners)
    expected, count = 0.0, 0
    for (user, place, positive), (first, *negatives) in zip(chosen, candidates, strict=True):
        assert first == positive
        preference = slow_comment(slow, user, place)[1]
        scores = [float(preference @ slow.comment_vector(c)) for c in [positive, *(c for c in negatives if c)]]
        expected += -np.log(softmax(scores)[0])
        count += any(negatives)
    loss, found = comment_objective(model, None, batch, targets)["softmax"]
    assert found == count
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-9)


def test_without_item_ids_text_alone_speaks(log: Log) -> None:
    """An item never seen in training has a vector that its title alone decides, and there is nothing to regularise."""
    model = cast(LSVCR, random_model("lsvcr", "item", log, length=LENGTH, use_item_ids=False))
    slow = Slow(model, log)
    vectors_ND = model.item_vectors().detach().numpy()
    np.testing.assert_allclose(vectors_ND[5], unit(slow.title(5)), atol=1e-12)
    _, batch = packed_batch(log, training_windows(log.histories, "item", length=LENGTH, has_start=True), "item")
    assert model.item_step(batch, regularise=True).regularisation is None


@pytest.mark.parametrize(("text_map", "width"), [("mlp", 10), ("linear", 10), ("none", 12)])
def test_text_maps(log: Log, text_map: str, width: int) -> None:
    model = cast(LSVCR, random_model("lsvcr", "item", log, length=LENGTH, text_map=text_map))
    assert model.text_adapter.weight.shape == (8, width)
    assert model.item_vectors().shape == (log.num_items + 1, 8)


def test_sasrec(log: Log) -> None:
    """SASRec's preference before every event but a user's first."""
    model = cast(SASRec, random_model("sasrec", "item", log, length=LENGTH))
    w = weights_of(model)
    rows, fast_TD = preferences(
        model, log, training_windows(log.histories, "item", length=LENGTH, has_start=False), "item"
    )
    targets = each_target(log, "item")
    assert sorted(rows.tolist()) == [row for row, (_, place) in enumerate(targets) if place]
    for row, fast_D in zip(rows, fast_TD, strict=True):
        user, place = targets[row]
        entries = [w["item_embedding.weight"][event.item] for event in user.items[:place]]
        expected = slow_history_encoder(w, "history_encoder", entries, 2)
        np.testing.assert_allclose(fast_D.numpy(), expected, atol=1e-11)


def test_long_histories_are_read_from_their_last_events(log: Log, model: LSVCR) -> None:
    """With 4 events of each history: what the loop says of users who have no others."""
    slow = Slow(model, log)
    for task in ("item", "comment"):
        targets = each_target(log, task)
        rows = np.arange(len(targets))
        windows = target_windows(log.histories, task, rows, length=4)
        _, fast_TD = preferences(model, log, windows, task)
        for (user, place), fast_D in zip(targets, fast_TD, strict=True):
            first = max(0, place - 4)
            if task == "item":
                records = [record for record in user.records if record.end < user.items[place].time][-4:]
                alone, slow_one = User(user.items[first : place + 1], records), slow_item
            else:
                items = [event for event in user.items if event.time < user.records[place].start][-4:]
                alone, slow_one = User(items, user.records[first : place + 1]), slow_comment
            np.testing.assert_allclose(fast_D.numpy(), slow_one(slow, alone, place - first)[1], atol=1e-11)


def test_what_recency_learns_is_not_lost_in_half_precision() -> None:
    """Each of its weights serves thousands of pairs of entries, whose gradients add up."""
    length = 40
    log = random_log(8, num_users=400, max_items=length)
    titles, known = torch.from_numpy(log.titles), torch.from_numpy(log.known)
    settings = settings_of("lsvcr", use_recency=True)
    windows = training_windows(log.histories, "item", length=length, has_start=True)
    batch, targets = log.feed("item").item_batch(windows)
    gradients = []
    for is_half in (False, True):
        model = build("lsvcr", "item", settings, titles=titles, known_items=known, history_length=length, seed=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            item_objective(model, batch, targets)["softmax"][0].backward()  # type: ignore[no-untyped-call]
        gradient = cast(LSVCR, model).recency.grad
        assert gradient is not None
        gradients.append(gradient)
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()
