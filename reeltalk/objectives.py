"""What a stage trains for: recommender and batch in, loss terms as (sum, count) out.

Terms stay apart as sums and counts, so that many processes and logging divide by the same number once.

Shapes: T targets or instances, C candidates or instances of all processes, U distinct texts, E text width, R rows,
L positions, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from reeltalk.data.batch import AlignmentBatch, Batch, CommentTargets, ItemTargets
from reeltalk.losses import (
    full_softmax,
    info_nce,
    item_comment_contrast,
    sampled_softmax,
    sequential_supplemental_contrast,
    widened,
)
from reeltalk.models.lsvcr import LSVCR, AlignmentStep
from reeltalk.models.recommender import Recommender, Step

Terms = dict[str, tuple[Tensor, int]]

_FILLING, _NOBODY = 0, -1  # in place of a user: no row at all; a text that was drawn


def target_preferences(recommender: Recommender, batch: Batch, targets: ItemTargets) -> Tensor:
    """The item preference from which each target is predicted, as `at_targets` gives it."""
    return at_targets(recommender.item_preferences(batch), targets)


def comment_scores(
    recommender: Recommender, features: nn.Module | None, batch: Batch, targets: CommentTargets
) -> tuple[Tensor, Tensor]:
    """Scores of each target's candidates, and which of them are candidates: [T, C] twice.

    The score is preference times vector, plus what candidate features add where they are in use.
    """
    step = recommender.comment_step(batch, targets.position_T, targets.item_T, regularise=False)
    return _scores(step, features, targets)


def item_objective(recommender: Recommender, batch: Batch, targets: ItemTargets, *, regularise: bool = False) -> Terms:
    """Eq 17 (both terms of eq 18 with `regularise`): the next item among all that existed.

    At every position, or at those that the model predicts in this step.
    """
    step = recommender.item_step(batch, regularise=regularise)
    if step.is_predicted_RL is not None:
        targets = targets[step.is_predicted_RL.flatten()[targets.position_T]]
    loss = full_softmax(
        at_targets(step.preferences, targets),
        step.vectors,
        targets.item_T,
        first_T=targets.first_T + 1,  # row 0 belongs to no item
        existing_T=targets.existing_T + 1,
    )
    return _terms(loss, len(targets.item_T), step)


def comment_objective(
    recommender: Recommender,
    features: nn.Module | None,
    batch: Batch,
    targets: CommentTargets,
    *,
    regularise: bool = False,
) -> Terms:
    """Eq 19: the chosen comment (column 0) against sampled comments of the watched item; `regularise` adds eq 16."""
    step = recommender.comment_step(batch, targets.position_T, targets.item_T, regularise=regularise)
    score_TC, is_candidate_TC = _scores(step, features, targets)
    loss = sampled_softmax(score_TC[:, 0], score_TC[:, 1:], is_candidate_TC[:, 1:])
    return _terms(loss, int(is_candidate_TC[:, 1:].any(1).sum()), step)


def alignment_objective(recommender: LSVCR, batch: AlignmentBatch, text_UE: Tensor, supplemental_TD: Tensor) -> Terms:
    """Eq 10, 12 and 14 for this process's instances, against those of all processes: terms ssc, vcc, sr.

    A fourth, teacher, is no loss and has no gradient: eq 14 of s~, which tells how well the LLM alone would find the
    target. text_UE: as `LSVCR.alignment_step` takes it. supplemental_TD: s~ (eq 9) mapped to D. Every process must hold
    equally many instances. No negatives of each other are, in eq 14, instances with the same target text; in eq 10,
    these (eq 14 pulls their preferences to one point) and those of the same user, whose histories overlap. Eq 12 counts
    where neither history is empty: elsewhere there are no two preferences to tell apart.

    The texts that were drawn (`AlignmentBatch.negative_N`) are further candidates of eq 14 for all instances.

    A fifth, prefix, is eq 14 for every entry of the histories that has one before it, predicted from what stood before
    it: targets whose texts are read in any case. Their negatives are the others', but for the same user's.
    """
    step = recommender.alignment_step(batch, text_UE)
    shared = [widened(vectors_TD) for vectors_TD in (step.preference_TD, supplemental_TD, step.target_TD)]
    sequential_CD, supplemental_CD, target_CD = gather_with_gradient(torch.stack(shared, dim=1)).unbind(1)
    user_C, target_key_C = gather_with_gradient(torch.stack([batch.user_T, batch.target_key_T], dim=1)).unbind(1)
    count = len(batch.user_T)
    positive_T = _rank() * count + torch.arange(count, device=supplemental_TD.device)
    is_same_user_TC = batch.user_T[:, None] == user_C
    is_same_target_TC = batch.target_key_T[:, None] == target_key_C
    temperature = recommender.settings.temperature
    drawn = _of_all(step.negative_ND, torch.full_like(batch.negative_key_N, _NOBODY), batch.negative_key_N)
    candidate_CD = torch.cat([target_CD, drawn.vector_CD])
    is_no_negative_TC = torch.cat([is_same_target_TC, drawn.are_no_negatives_of(batch.target_key_T)], dim=1)
    return {
        "ssc": (
            sequential_supplemental_contrast(
                sequential_CD,
                supplemental_CD,
                positive_T,
                is_same_user_TC | is_same_target_TC,
                temperature=temperature,
            ),
            count,
        ),
        "vcc": (
            item_comment_contrast(
                supplemental_TD[batch.has_both_T],
                step.preference_TD[batch.has_both_T],
                step.other_TD[batch.has_both_T],
                temperature=temperature,
            ),
            int(batch.has_both_T.sum()),
        ),
        "sr": (
            info_nce(step.preference_TD, candidate_CD, positive_T, is_no_negative_TC, temperature=temperature),
            count,
        ),
        "teacher": (
            info_nce(
                supplemental_TD.detach(), candidate_CD.detach(), positive_T, is_no_negative_TC, temperature=temperature
            ),
            count,
        ),
        "prefix": _prefix_loss(step, batch, drawn, temperature),
    }


def _prefix_loss(
    step: AlignmentStep, batch: AlignmentBatch, drawn: _Candidates, temperature: float
) -> tuple[Tensor, int]:
    count = len(step.prefix_XD)
    targets = _of_all(step.prefix_target_XD, batch.prefix_user, batch.prefix_key)
    positive_X = _rank() * _largest(count, step.prefix_XD.device) + torch.arange(count, device=step.prefix_XD.device)
    is_left_out_XC = targets.are_no_negatives_of(batch.prefix_key) | (batch.prefix_user[:, None] == targets.user_C)
    is_left_out_XC = torch.cat([is_left_out_XC, drawn.are_no_negatives_of(batch.prefix_key)], dim=1)
    candidate_CD = torch.cat([targets.vector_CD, drawn.vector_CD])
    return info_nce(step.prefix_XD, candidate_CD, positive_X, is_left_out_XC, temperature=temperature), count


@dataclass(frozen=True)
class _Candidates:
    """Vectors of all processes, whose they are, and the keys of their texts; some fill up."""

    vector_CD: Tensor
    user_C: Tensor
    key_C: Tensor

    def are_no_negatives_of(self, key_X: Tensor) -> Tensor:
        """Where the texts are the same, and what fills up: [X, C]."""
        return (key_X[:, None] == self.key_C) | (self.user_C == _FILLING)


def _of_all(vector_XD: Tensor, user_X: Tensor, key_X: Tensor) -> _Candidates:
    filling = _largest(len(key_X), key_X.device) - len(key_X)  # processes have differently many
    own_X2 = F.pad(torch.stack([user_X, key_X], dim=1), (0, 0, 0, filling), value=_FILLING)
    user_C, key_C = gather_with_gradient(own_X2).unbind(1)
    return _Candidates(gather_with_gradient(F.pad(widened(vector_XD), (0, 0, 0, filling))), user_C, key_C)


def at_targets(preference_RLD: Tensor, targets: ItemTargets) -> Tensor:
    """The preference from which each target is predicted: [T, D]; zeros where there is no history and no start."""
    preference_TD = F.embedding(targets.position_T.clamp(min=0), preference_RLD.flatten(0, 1))
    return preference_TD * (targets.position_T >= 0)[:, None]


def gather_with_gradient(x: Tensor) -> Tensor:
    """The rows of all processes one after another; a row's gradient is the sum over the processes that used it.

    With one process, x itself. Every process must call it with the same shape.
    """
    if not _is_divided():
        return x
    gathered: Tensor = _Gathered.apply(x)  # type: ignore[no-untyped-call]
    return gathered


class _Gathered(torch.autograd.Function):
    """Instead of torch's functional `all_gather_single`: two of those at once crash gloo now and then.

    Its two threads write the last work's name to one string without a lock, and free that string's memory twice where
    the name is as long as that collective's (torch 2.13, ``ProcessGroupGloo::runLoop``).
    """

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        gathered = x.new_empty(distributed.get_world_size() * len(x), *x.shape[1:])
        distributed.all_gather_single(gathered, x.contiguous())
        return gathered

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(summed)
        return summed.chunk(distributed.get_world_size())[distributed.get_rank()]


def _largest(count: int, device: torch.device) -> int:
    """The count of the process that has most."""
    if not _is_divided():
        return count
    counts = torch.tensor(count, device=device)
    distributed.all_reduce(counts, distributed.ReduceOp.MAX)
    return int(counts)


def _rank() -> int:
    return distributed.get_rank() if _is_divided() else 0


def _is_divided() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _scores(step: Step, features: nn.Module | None, targets: CommentTargets) -> tuple[Tensor, Tensor]:
    vector_TCD = F.embedding(targets.candidate_TC, step.vectors)
    score_TC = widened(torch.bmm(vector_TCD, step.preferences.to(vector_TCD.dtype)[..., None])[..., 0])
    is_candidate_TC = targets.candidate_TC > 0
    if features is not None:
        score_TC = score_TC + widened(features(targets.feature_TCF, is_candidate_TC))
    return score_TC, is_candidate_TC


def _terms(loss: Tensor, count: int, step: Step) -> Terms:
    terms = {"softmax": (loss, count)}
    return terms if step.regularisation is None else terms | {"regularisation": step.regularisation}
