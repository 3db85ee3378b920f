"""What a stage trains for: recommender and batch in, loss terms as (sum, count) out.

Terms stay apart as sums and counts, so that accumulation, many processes and logging all divide by the same number
once.

Shapes: T targets, C candidates, R rows, L positions, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reeltalk.data.batch import Batch, CommentTargets, ItemTargets
from reeltalk.losses import full_softmax, sampled_softmax, widened
from reeltalk.models.recommender import Recommender, Step

Terms = dict[str, tuple[Tensor, int]]


def target_preferences(recommender: Recommender, batch: Batch, targets: ItemTargets) -> Tensor:
    """The item preference from which each target is predicted: [T, D]; zeros where there is no history and no start."""
    return _at_targets(recommender.item_preferences(batch), targets)


def comment_scores(
    recommender: Recommender, features: nn.Module | None, batch: Batch, targets: CommentTargets
) -> tuple[Tensor, Tensor]:
    """Scores of each target's candidates, and which of them are candidates: [T, C] twice.

    The score is preference times vector, plus what candidate features add where they are in use.
    """
    step = recommender.comment_step(batch, targets.position_T, targets.item_T, regularise=False)
    return _scores(step, features, targets)


def item_objective(recommender: Recommender, batch: Batch, targets: ItemTargets, *, regularise: bool = False) -> Terms:
    """Eq 17 (both terms of eq 18 with `regularise`): the next item among all that existed, at every position."""
    step = recommender.item_step(batch, regularise=regularise)
    is_fresh_T = targets.item_T > targets.first_T  # a target that is itself outdated is not trained on
    preference_TD = _at_targets(step.preferences, targets)[is_fresh_T]
    loss = full_softmax(
        preference_TD,
        step.vectors,
        targets.item_T[is_fresh_T],
        first_T=targets.first_T[is_fresh_T] + 1,  # row 0 belongs to no item
        existing_T=targets.existing_T[is_fresh_T] + 1,
    )
    return _terms(loss, len(preference_TD), step)


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


def _at_targets(preference_RLD: Tensor, targets: ItemTargets) -> Tensor:
    preference_TD = F.embedding(targets.position_T.clamp(min=0), preference_RLD.flatten(0, 1))
    return preference_TD * (targets.position_T >= 0)[:, None]


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
