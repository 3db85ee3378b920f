"""Stage 1 without its language model: equations 10 to 12 and 14 against loops in float64, and over two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import exp, log, sqrt
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from random_logs import Log, Record, User, random_log, random_model, settings_of
from slow_parts import mixture, unit
from test_instances import batch_rows, stream_of
from test_lsvcr import Slow
from torch import Tensor

from reeltalk.data.batch import AlignmentBatch
from reeltalk.data.dataset import Split
from reeltalk.data.instances import InstanceBatch
from reeltalk.losses import info_nce, item_comment_contrast, sequential_supplemental_contrast
from reeltalk.models import build
from reeltalk.models.lsvcr import LSVCR, AlignmentStep
from reeltalk.objectives import Terms, alignment_objective, gather_with_gradient

T, C, D, TAU = 6, 9, 5, 0.07
LENGTH = 4
Vector = NDArray[np.float64]


# losses ---------------------------------------------------------------------------------------------------------------


def cosine(x: Vector, y: Vector) -> float:
    return float(x @ y) / sqrt(float(x @ x) * float(y @ y))


def slow_info_nce(x: Vector, positive: Vector, candidates: list[Vector]) -> float:
    """Eq 11; the candidates hold the positive."""
    total = sum(exp(cosine(x, y) / TAU) for y in candidates)
    return -log(exp(cosine(x, positive) / TAU) / total)


def random_vectors(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_eq_11_info_nce() -> None:
    """Candidates that mean the same as the positive are left out, and the positive never is."""
    x_TD, y_CD = random_vectors(T, D), random_vectors(C, D, seed=1)
    positive_T = torch.tensor([2, 0, 8, 3, 3, 5])
    is_same_TC = torch.rand(T, C, generator=torch.Generator().manual_seed(2)) < 0.3
    is_same_TC[1] = True
    expected = 0.0
    for x, positive, is_same in zip(x_TD.numpy(), positive_T.tolist(), is_same_TC, strict=True):
        candidates = [y for j, y in enumerate(y_CD.numpy()) if j == positive or not is_same[j]]
        expected += slow_info_nce(x, y_CD.numpy()[positive], candidates)
    found = info_nce(x_TD, y_CD, positive_T, is_same_TC, temperature=TAU)
    assert found.item() == pytest.approx(expected, rel=1e-10)
    assert info_nce(x_TD[1:2], y_CD, positive_T[1:2], is_same_TC[1:2], temperature=TAU).item() == 0


def test_eq_10_sequential_supplemental_contrast() -> None:
    s, s_tilde = random_vectors(C, D), random_vectors(C, D, seed=1)
    positive_T = torch.tensor([3, 4, 5])
    is_same_TC = torch.zeros(3, C, dtype=torch.bool)
    is_same_TC[0, [3, 7]] = True
    expected = 0.0
    for i in (3, 4, 5):
        kept = [j for j in range(C) if not (i == 3 and j == 7)]
        for one, other in ((s.numpy(), s_tilde.numpy()), (s_tilde.numpy(), s.numpy())):
            expected += slow_info_nce(one[i], other[i], [other[j] for j in kept]) / 2
    found = sequential_supplemental_contrast(s, s_tilde, positive_T, is_same_TC, temperature=TAU)
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_eq_12_item_comment_contrast() -> None:
    s_tilde, own, other = (random_vectors(T, D, seed=seed) for seed in range(3))
    expected = sum(
        slow_info_nce(x, y, [y, z]) for x, y, z in zip(s_tilde.numpy(), own.numpy(), other.numpy(), strict=True)
    )
    found = item_comment_contrast(s_tilde, own, other, temperature=TAU)
    assert found.item() == pytest.approx(expected, rel=1e-10)
    assert item_comment_contrast(own, own, -own, temperature=TAU).item() < 1e-9
    torch.testing.assert_close(item_comment_contrast(s_tilde, own, own, temperature=TAU).item(), T * log(2))


def test_agreeing_preferences_have_a_low_contrast() -> None:
    """And the gradients go both ways, to preferences and to their negatives."""
    s = random_vectors(C, 64)
    everything, nothing = torch.arange(C), torch.zeros(C, C, dtype=torch.bool)
    agreeing, opposed = (
        sequential_supplemental_contrast(s, sign * s, everything, nothing, temperature=TAU).item() for sign in (1, -1)
    )
    assert agreeing < 0.01 * C < C * log(C) < opposed
    inputs = random_vectors(C, D).requires_grad_(), random_vectors(C, D, seed=1).requires_grad_()
    loss = sequential_supplemental_contrast(inputs[0], inputs[1], everything[:1], nothing[:1], temperature=TAU)
    for gradient in torch.autograd.grad(loss, inputs):
        assert (gradient.norm(dim=1) > 0).all()


def test_losses_in_half_precision() -> None:
    """Inside autocast too, sums and cosines are made in float32."""
    s, s_tilde = random_vectors(C, D).float(), random_vectors(C, D, seed=1).float()
    everything, nothing = torch.arange(C), torch.zeros(C, C, dtype=torch.bool)
    expected = info_nce(s, s_tilde, everything, nothing, temperature=TAU)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(s, s_tilde, everything, nothing, temperature=TAU), expected)
    assert info_nce(s.bfloat16(), s_tilde.bfloat16(), everything, nothing, temperature=TAU).dtype == torch.float32


# the SR model ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def some_log() -> Log:
    """Without comment 1, whose text is blank."""
    drawn = random_log(8, num_users=14, max_items=9, max_records=7, dtype=np.float64)
    users = [
        User(
            [replace(event, hot=0 if event.hot == 1 else event.hot) for event in user.items],
            [replace(record, comments=tuple(c for c in record.comments if c != 1)) for record in user.records],
        )
        for user in drawn.users
    ]
    return replace(drawn, users=users)


@pytest.fixture(scope="module")
def model(some_log: Log) -> LSVCR:
    return cast(LSVCR, random_model("lsvcr", "item", some_log, length=10, use_item_ids=False, use_recency=False))


def text_vectors(log: Log, texts: list[str]) -> Tensor:
    """The log's vectors of t1, c1, ..; zeros of the empty text."""
    tables = {"t": log.titles, "c": log.comments}
    vectors = [tables[text[0]][int(text[1:])] if text else np.zeros(log.titles.shape[1]) for text in texts]
    return torch.from_numpy(np.stack(vectors))


class SlowAlignment(Slow):
    """Section 4.3: entries without ID embeddings, on drawn positions."""

    def __init__(self, model: LSVCR, log: Log, positions: NDArray[np.int64]) -> None:
        super().__init__(model, log)
        self.w = self.w | {"id_gate": np.zeros(())}
        for which in range(2):
            self.w[f"positions.{which}.weight"] = self.w[f"positions.{which}.weight"][positions[which]]

    def identity(self, item: int) -> Vector:
        return np.zeros(len(self.w["starts.0"]))

    def window(self, user: User, row: int, *, is_item: bool) -> tuple[list[Any], list[Record], int]:
        """Both histories before a target, and its time."""
        if is_item:
            items, time = user.items[:row][-LENGTH:], user.items[row].time
            records = [record for record in user.records if record.end < time][-LENGTH:]
        else:
            records, time = user.records[:row][-LENGTH:], user.records[row].start
            items = [event for event in user.items if event.time < time][-LENGTH:]
        return items, records, time

    def both(self, user: User, row: int, *, is_item: bool) -> tuple[Vector, Vector]:
        """F_o of the task over its own history, and over the other one."""
        items, records, time = self.window(user, row, is_item=is_item)
        fused_items = self.fused_items(items, records, [*(event.time for event in items), time])
        fused_records = self.fused_records(items, records, [*(record.start for record in records), time])
        own, other = (fused_items, fused_records) if is_item else (fused_records, fused_items)
        watched = None if is_item else user.records[row].item
        return self.read(own, watched), self.read(other, watched)

    def prefixes(self, user: User, row: int, *, is_item: bool, user_id: int) -> Iterator[tuple[Vector, Vector, str]]:
        """s, e and the name of the text of each entry that has another before it, as if it were the target."""
        items, records, _ = self.window(user, row, is_item=is_item)
        for place, event in list(enumerate(items))[1:]:
            if not self.log.titles[event.item].any():
                continue  # there is no text to predict
            moments = [event.time for event in items[: place + 1]]
            s = self.read(self.fused_items(items[:place], records, moments), None)
            yield s, self.title(event.item), f"t{event.item}"
        for place, record in list(enumerate(records))[1:]:
            told = list(dict.fromkeys(record.comments[::-1]))[:3]
            created, author = self.log.pool.created, self.log.pool.author
            there = [each for each in told if each != 1 and created[each] < record.start and author[each] != user_id]
            if there:
                moments = [record.start for record in records[: place + 1]]
                s = self.read(self.fused_records(items, records[:place], moments), record.item)
                yield s, self.text(self.log.comments[there[0]]), f"c{there[0]}"

    def read(self, fused: list[Vector], watched: int | None) -> Vector:
        """Eq 7, or eq 8 where something is watched."""
        return mixture(self.alpha(fused) if watched is None else self.beta(fused, watched), fused)


@dataclass(frozen=True)
class Case:
    """All instances of a log in one batch, with the places of their targets, and an s~ for each."""

    told: InstanceBatch
    batch: AlignmentBatch
    text_UE: Tensor
    supplemental_TD: Tensor
    owners: list[tuple[User, int, bool]]


@pytest.fixture(scope="module")
def case(some_log: Log) -> Case:
    return case_of(some_log)


def case_of(some_log: Log, *, num_negatives: int = 0) -> Case:
    stream = stream_of(some_log, history=0.0, num_negatives=num_negatives)
    told = stream.batch(0, batch_size=len(stream.targets))
    log = some_log.histories
    owners = []
    for user_id, row, is_item in zip(told.user, batch_rows(stream, told), told.is_item, strict=True):
        first = (log.item_offsets if is_item else log.record_offsets)[user_id]
        owners.append((some_log.users[user_id - 1], int(row - first), bool(is_item)))
    supplemental_TD = random_vectors(len(owners), 8)
    return Case(told, AlignmentBatch.of(told), text_vectors(some_log, told.texts), supplemental_TD, owners)


@pytest.fixture(scope="module")
def slow(model: LSVCR, some_log: Log, case: Case) -> SlowAlignment:
    return SlowAlignment(model, some_log, case.told.positions)


def test_both_preferences_of_an_instance(model: LSVCR, slow: SlowAlignment, case: Case) -> None:
    """Eq 1 to 8 on drawn positions, and what F_o reads of the other history for eq 12; users with one history too."""
    with torch.no_grad():
        step = model.alignment_step(case.batch, case.text_UE)
    assert not case.batch.has_both_T.all() and case.batch.has_both_T.any()
    assert case.told.positions.tolist() != [list(range(LENGTH))] * 2
    for (user, row, is_item), own_D, other_D in zip(case.owners, step.preference_TD, step.other_TD, strict=True):
        own, other = slow.both(user, row, is_item=is_item)
        np.testing.assert_allclose(own_D.numpy(), unit(own) / TAU, atol=1e-10)
        np.testing.assert_allclose(other_D.numpy(), unit(other) / TAU, atol=1e-10)
    targets = [slow.text(vector.numpy()) for vector in case.text_UE[case.batch.target_T]]
    np.testing.assert_allclose(step.target_TD.numpy(), np.stack(targets), atol=1e-12)


@pytest.mark.parametrize("num_negatives", [0, 2])
def test_alignment_objective(model: LSVCR, slow: SlowAlignment, some_log: Log, num_negatives: int) -> None:
    """Eq 10, 12, 14 from the lists: negatives are of other users and other target texts, or of other target texts.

    Those of eq 14 also what was drawn.
    """
    case = case_of(some_log, num_negatives=num_negatives)
    drawn = [(case.told.texts[row], slow.text(case.text_UE[row].numpy())) for row in case.told.negative]
    assert (len(drawn) > 20) == (num_negatives > 0)
    both = [slow.both(user, row, is_item=is_item) for user, row, is_item in case.owners]
    s_tilde, instances = list(case.supplemental_TD.numpy()), case.told.instances
    e = [slow.text(vector.numpy()) for vector in case.text_UE[case.batch.target_T]]
    users = case.told.user.tolist()
    ssc = vcc = sr = teacher = prefix = 0.0
    found = [
        (user, *one)
        for user, (owner, row, is_item) in zip(users, case.owners, strict=True)
        for one in slow.prefixes(owner, row, is_item=is_item, user_id=user)
    ]
    for user, s, target, name in found:
        others = [e for other, _, e, text in found if other != user and text != name]
        prefix += slow_info_nce(s, target, [target, *others, *(e for text, e in drawn if text != name)])
    assert len({name[0] for *_, name in found}) == 2 and len(found) > len(both)
    for i, (own, other) in enumerate(both):
        unlike = [j for j in range(len(both)) if j == i or instances[j].target != instances[i].target]
        strangers = [j for j in unlike if j == i or users[j] != users[i]]
        ssc += slow_info_nce(own, s_tilde[i], [s_tilde[j] for j in strangers]) / 2
        ssc += slow_info_nce(s_tilde[i], own, [both[j][0] for j in strangers]) / 2
        candidates = [e[j] for j in unlike] + [vector for text, vector in drawn if text != instances[i].target]
        sr += slow_info_nce(own, e[i], candidates)
        teacher += slow_info_nce(s_tilde[i], e[i], candidates)
        if instances[i].items and instances[i].records:
            vcc += slow_info_nce(s_tilde[i], own, [own, other])
    has_repeats = len({instance.target for instance in instances}) < len(instances)
    assert has_repeats and len(set(users)) < len(users)
    terms = alignment_objective(model, case.batch, case.text_UE, case.supplemental_TD)
    counts = {"ssc": len(both), "vcc": int(case.batch.has_both_T.sum()), "sr": len(both), "teacher": len(both)}
    assert {name: count for name, (_, count) in terms.items()} == counts | {"prefix": len(found)}
    for name, expected in (("ssc", ssc), ("vcc", vcc), ("sr", sr), ("teacher", teacher), ("prefix", prefix)):
        np.testing.assert_allclose(terms[name][0].item(), expected, rtol=1e-9)


def test_what_is_held_out_is_no_target(case: Case) -> None:
    """Where a history holds an entry of another split, it is read, but not predicted from what stood before it."""
    histories = case.told.histories
    for name, left in (("item_split", "prefix_answer_Q"), ("record_split", "prefix_title_P")):
        held_out = replace(histories, **{name: np.full_like(getattr(histories, name), Split.TEST)})
        batch = AlignmentBatch.of(replace(case.told, histories=held_out))
        assert len(batch.prefix_title_P) + len(batch.prefix_answer_Q) == len(batch.prefix_key)
        assert len(batch.prefix_key) == len(getattr(batch, left)) == len(getattr(case.batch, left)) > 0


def one_out(log: Log) -> Log:
    """The last item event and the last record of each user are held out."""
    return replace(
        log,
        users=[
            User(
                [*user.items[:-1], *(replace(event, split=Split.TEST) for event in user.items[-1:])],
                [*user.records[:-1], *(replace(record, split=Split.TEST) for record in user.records[-1:])],
            )
            for user in log.users
        ],
    )


def split_texts(log: Log, split: Split) -> tuple[set[str], set[str]]:
    """Titles and comments that were chosen in events of a split."""
    titles = {f"t{event.item}" for user in log.users for event in user.items if event.split == split}
    records = [record for user in log.users for record in user.records if record.split == split]
    return titles, {f"c{comment}" for record in records for comment in record.comments}


@pytest.mark.parametrize("history", [0.0, 1.0])
def test_with_leave_one_out_what_is_held_out_of_the_other_kind_is_read_and_no_target(history: float) -> None:
    """What losses have for targets: eq 13 and 14 an instance's own, those of prefixes entries, eq 10 and 12 no text."""
    log = one_out(random_log(8, num_users=150, num_items=300, max_items=4))
    stream = stream_of(log, history=history)
    told = stream.batch(0, batch_size=len(stream.targets))
    batch = AlignmentBatch.of(told)
    held_out, trained = split_texts(log, Split.TEST), split_texts(log, Split.TRAIN)
    titles, comments = held_out[0] - trained[0], held_out[1] - trained[1]
    by_the_llm = {
        text
        for instance in told.instances
        for entry in ([*instance.records] if instance.task == "item" else [*instance.items])
        for text in (entry.title, *entry.comments)
    }
    assert by_the_llm & titles and by_the_llm & comments
    assert {told.texts[row] for row in told.histories.comment} & comments
    assert {told.texts[row] for row in told.histories.item} & titles
    rows = torch.cat([batch.target_T, batch.prefix_title_P, batch.prefix_answer_Q])
    targets = {instance.target for instance in told.instances} | {told.texts[row] for row in rows.tolist()}
    assert len(batch.prefix_answer_Q) and len(targets) > 20
    assert not targets & (titles | comments)


def total(terms: Terms) -> Tensor:
    """Eq 15 without L_LM, as sums: lambda = 1, mu = 0.5; and eq 14 of the prefixes."""
    return terms["sr"][0] + terms["prefix"][0] + 0.5 * (terms["ssc"][0] + terms["vcc"][0])


def test_gradients_reach_texts_and_both_preferences(model: LSVCR, case: Case) -> None:
    """Every text that is read, every s~, and every parameter of the model."""
    text_UE, supplemental_TD = (x.clone().requires_grad_() for x in (case.text_UE, case.supplemental_TD))
    model.zero_grad()
    total(alignment_objective(model, case.batch, text_UE, supplemental_TD)).backward()  # type: ignore[no-untyped-call]
    assert text_UE.grad is not None and supplemental_TD.grad is not None
    read = [
        part.flatten() for side in (case.batch.items, case.batch.records) for part in (side.item_RL, side.comment_RLK)
    ]
    assert (text_UE.grad[torch.cat([*read, case.batch.target_T])].norm(dim=1) > 0).all()
    assert (supplemental_TD.grad.norm(dim=1) > 0).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        if name.startswith("positions"):  # of the rows that were not drawn nothing is learnt
            drawn = np.isin(np.arange(len(parameter)), case.told.positions[int(name.split(".")[1])])
            assert (parameter.grad.norm(dim=1).numpy()[~drawn] == 0).all()


def test_an_instance_alone_is_what_it_is_in_a_batch(model: LSVCR, some_log: Log) -> None:
    """So the way a batch is divided changes no preference."""
    stream = stream_of(some_log, history=1.0, entry=1.0)
    step_of_all, parts = _step(model, some_log, stream.batch(0, batch_size=12)), []
    for rank in range(12):
        parts.append(_step(model, some_log, stream.batch(0, batch_size=1, rank=rank, num_ranks=12)))
    for name in ("preference_TD", "other_TD", "target_TD"):
        whole = getattr(step_of_all, name)
        torch.testing.assert_close(whole, torch.cat([getattr(part, name) for part in parts]), atol=1e-11, rtol=0)


@torch.no_grad()
def _step(model: LSVCR, log: Log, told: InstanceBatch) -> AlignmentStep:
    return model.alignment_step(AlignmentBatch.of(told), text_vectors(log, told.texts))


def test_alignment_has_no_item_ids(some_log: Log, case: Case) -> None:
    with_ids = cast(LSVCR, random_model("lsvcr", "item", some_log, length=10))
    with pytest.raises(ValueError, match="use_item_ids=False"):
        with_ids.alignment_step(case.batch, case.text_UE)


@pytest.mark.parametrize("learnt", [("sr", "ssc", "vcc"), ("prefix",)])
def test_the_objective_can_be_learnt(learnt: tuple[str, ...], some_log: Log) -> None:
    """From fresh weights and an s~ that is free to move, every part falls from above chance to nearly nothing."""
    told = stream_of(some_log, history=0.0).batch(0, batch_size=24)
    batch, text_UE = AlignmentBatch.of(told), text_vectors(some_log, told.texts)
    settings = settings_of("lsvcr", dim=32, inner_dim=64, text_dim=32, use_item_ids=False, use_recency=False)
    model = build("lsvcr", "item", settings, titles=text_UE, history_length=10, seed=0).double()
    supplemental_TD = random_vectors(24, 32).requires_grad_()
    optimizer = torch.optim.Adam([*model.parameters(), supplemental_TD], lr=0.01)
    means = []
    for _ in range(50 if learnt == ("prefix",) else 200):
        optimizer.zero_grad()
        terms = alignment_objective(cast(LSVCR, model), batch, text_UE, supplemental_TD)
        torch.stack([terms[name][0] for name in learnt]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        means.append({name: value.item() / count for name, (value, count) in terms.items()})
    assert all(means[0][name] > log({"vcc": 2}.get(name, 24)) for name in learnt)
    for name in learnt:  # many users begin alike, and go on differently
        assert means[-1][name] < (0.8 * means[0][name] if name == "prefix" else 0.1), (means[0], means[-1])


# two processes --------------------------------------------------------------------------------------------------------


def rank_result(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Loss and gradients of one process's share of a batch of 24."""
    drawn = random_log(8, num_users=14, max_items=9, max_records=7, dtype=np.float64)
    model = cast(LSVCR, random_model("lsvcr", "item", drawn, length=10, use_item_ids=False, use_recency=False))
    stream = stream_of(drawn, history=1.0, entry=0.5, num_negatives=2)
    told = stream.batch(1, batch_size=24 // num_ranks, rank=rank, num_ranks=num_ranks)
    text_UE = text_vectors(drawn, told.texts)
    supplemental_TD = random_vectors(24, 8)[rank::num_ranks].clone().requires_grad_()
    terms = alignment_objective(model, AlignmentBatch.of(told), text_UE, supplemental_TD)
    total(terms).backward()  # type: ignore[no-untyped-call]
    gradients = {name: cast(Tensor, parameter.grad) for name, parameter in model.named_parameters()}
    losses = {f"loss {name}": value.detach() for name, (value, _) in terms.items()}
    counts = {f"count {name}": torch.tensor(count) for name, (_, count) in terms.items()}
    return gradients | losses | counts | {"s~": cast(Tensor, supplemental_TD.grad)}


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Negatives are gathered with their gradients: sums over the processes are those of the whole batch."""
    whole = rank_result(0, 1)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "GLOO_SOCKET_IFNAME": "lo"}
    running = [
        subprocess.Popen([sys.executable, __file__, str(tmp_path), str(rank)], env=environment) for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    supplemental_TD = torch.stack([part.pop("s~") for part in parts], dim=1).flatten(0, 1)
    torch.testing.assert_close(supplemental_TD, whole.pop("s~"), rtol=1e-10, atol=1e-12)
    for name, expected in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], expected, rtol=1e-9, atol=1e-10)
    assert parts[0]["loss sr"] != parts[1]["loss sr"]


def test_one_process_gathers_itself() -> None:
    x = torch.randn(3, 2)
    assert gather_with_gradient(x) is x


def _as_one_of_two(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(rank_result(rank, 2), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _as_one_of_two(Path(sys.argv[1]), int(sys.argv[2]))
