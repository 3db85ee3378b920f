"""What a stage trains for: recommender and batch in, loss terms as (sum, count) out.

Terms stay apart as sums and counts, so that accumulation, many processes and logging all divide by the same number once.

Shapes: T targets, C candidates, R rows, L positions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reeltalk.data.batch import Batch, CommentTargets, ItemTargets
from reeltalk.losses import full_softmax, sampled_softmax, widened
from reeltalk.models.recommender import Recommender

Terms = dict[str, tuple[Tensor, int]]


def target_preferences(recommender: Recommender, batch: Batch, targets: ItemTargets) -> Tensor:
    """The item preference from which each target is predicted: [T, D]; zeros where there is no history and no start."""
    preference_RLD = recommender.item_preferences(batch)
    preference_TD = preference_RLD.flatten(0, 1)[targets.position_T.clamp(min=0)]
    return preference_TD * (targets.position_T >= 0)[:, None]


def comment_scores(
    recommender: Recommender, features: nn.Module | None, batch: Batch, targets: CommentTargets
) -> tuple[Tensor, Tensor]:
    """Scores of each target's candidates, and which of them are candidates: [T, C] twice.

    The score is preference times vector, plus what candidate features add where they are in use.
    """
    preference_TD = recommender.comment_preferences(batch, targets.position_T, targets.item_T)
    vector_UD = recommender.comment_vectors(batch.comment_text_UE)
    score_TC = widened(torch.bmm(vector_UD[targets.candidate_TC], preference_TD.to(vector_UD.dtype)[..., None])[..., 0])
    is_candidate_TC = targets.candidate_TC > 0
    if features is not None:
        score_TC = score_TC + widened(features(targets.feature_TCF, is_candidate_TC))
    return score_TC, is_candidate_TC


def item_objective(recommender: Recommender, batch: Batch, targets: ItemTargets) -> Terms:
    """Eq 17 (18 with regularisation): the next item among all items, exact softmax, at every position of every history."""
    preference_TD = target_preferences(recommender, batch, targets)
    loss = full_softmax(preference_TD, recommender.item_vectors()[1:], targets.item_T - 1)
    return {"softmax": (loss, len(preference_TD))}


def comment_objective(
    recommender: Recommender, features: nn.Module | None, batch: Batch, targets: CommentTargets
) -> Terms:
    """Eq 19: the chosen comment (column 0) against sampled comments of the item being watched."""
    score_TC, is_candidate_TC = comment_scores(recommender, features, batch, targets)
    loss = sampled_softmax(score_TC[:, 0], score_TC[:, 1:], is_candidate_TC[:, 1:])
    return {"softmax": (loss, int(is_candidate_TC[:, 1:].any(1).sum()))}
