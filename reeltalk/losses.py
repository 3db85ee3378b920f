"""Losses as pure functions; every one returns a sum, so that batches can be added up and divided once.

Shapes: T targets, N items, C candidates of one target or of all, D width, M pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

ALIGN = 64
# 16 MiB of bf16 scores: what one block of the softmax holds, whatever the number of targets or items
BLOCK_ELEMENTS = 1 << 23
# exp() of scores below this neither overflows float32 nor vanishes beside the largest, so rows need no shift
SAFE_SCORE = 60.0
NUM_SUM_COLUMNS = 16


class _SoftmaxSum(torch.autograd.Function):
    """Sum of -log softmax(preference @ item.T)[target], with its gradients made in the same walk over the blocks."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        preference_TD: Tensor,
        item_ND: Tensor,
        target_T: Tensor,
        first_T: Tensor,
        existing_T: Tensor,
        dtype: torch.dtype,
        block: int,
    ) -> Tensor:
        num_targets, width = preference_TD.shape
        num_items = item_ND.shape[0]
        wants_gradient = any(ctx.needs_input_grad[:2])  # type: ignore[attr-defined]
        # Zero rows fill targets and items up: matrix libraries like aligned rows, and keep a kernel for every shape.
        num_padded, num_columns = _aligned(num_targets), _aligned(num_items)
        preference = F.pad(preference_TD.detach().to(dtype), (0, 0, 0, num_padded - num_targets))
        # Row sums come out of the product that makes the gradient: extra indicator columns, several because each
        # result is rounded to `dtype` and the rounding averages out.
        item_and_sums = torch.empty(num_columns, width + NUM_SUM_COLUMNS, dtype=dtype, device=item_ND.device)
        item = item_and_sums[:, :width]
        item[:num_items].copy_(item_ND.detach())
        item[num_items:].zero_()
        indicator = torch.eye(NUM_SUM_COLUMNS, dtype=dtype, device=item.device)
        item_and_sums[:, width:] = indicator.repeat(num_columns // NUM_SUM_COLUMNS, 1)

        exact = torch.promote_types(dtype, torch.float32)
        is_safe = bool(_longest(preference_TD) * _longest(item_ND) < SAFE_SCORE)
        target_score = (preference[:num_targets].to(exact) * item[target_T].to(exact)).sum(1)
        loss = torch.zeros((), dtype=exact, device=item.device)
        rows = max(1, min(num_padded, block // num_columns))
        rows = rows // ALIGN * ALIGN or rows
        weights = torch.empty(rows * num_columns, dtype=dtype, device=item.device)
        d_preference = torch.empty(num_padded, width, dtype=exact, device=item.device)
        d_item = torch.zeros(num_columns, width, dtype=exact, device=item.device)
        first_T, existing_T = (
            torch.cat([bound, bound[-1:].expand(num_padded - num_targets)]) for bound in (first_T, existing_T)
        )
        for start in range(0, num_targets, rows):
            chunk = preference[start : start + rows]
            begin, end = first_T[start : start + rows], existing_T[start : start + rows]
            # beyond them no row of the block has a competitor
            lowest, highest = int(begin.min()) // ALIGN * ALIGN, _aligned(int(end.max()))
            used = slice(lowest, highest)
            buffer = weights[: len(chunk) * (highest - lowest)].view(len(chunk), -1)
            weight = torch.mm(chunk, item[used].t(), out=buffer)
            if int(begin.max()) > lowest:
                is_outdated = torch.arange(lowest, int(begin.max()), device=item.device) < begin[:, None]
                weight[:, : is_outdated.shape[1]].masked_fill_(is_outdated, -torch.inf)
            if int(end.min()) < highest:
                is_to_come = torch.arange(int(end.min()), highest, device=item.device) >= end[:, None]
                weight[:, -is_to_come.shape[1] :].masked_fill_(is_to_come, -torch.inf)
            shift = target_score.new_zeros(chunk.shape[0]) if is_safe else weight.amax(1).to(exact)
            if not is_safe:
                weight -= shift.to(dtype)[:, None]
            mixed = torch.mm(weight.exp_(), item_and_sums[used]).to(exact)
            total = mixed[:, width:].sum(1)
            own = target_score[start : start + rows]
            loss += ((total.log() + shift)[: len(own)] - own).sum()
            if wants_gradient:
                d_preference[start : start + rows] = mixed[:, :width] / total[:, None]
                d_item[used] += torch.mm(weight.t(), (chunk.to(exact) / total[:, None]).to(dtype))
        if wants_gradient:
            d_preference = d_preference[:num_targets].sub_(item[target_T])
            d_item.index_add_(0, target_T, preference[:num_targets].to(exact), alpha=-1)
            ctx.save_for_backward(d_preference.to(preference_TD.dtype), d_item[:num_items].to(item_ND.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_preference, d_item = ctx.saved_tensors  # type: ignore[attr-defined]
        return d_preference * d_loss, d_item * d_loss, None, None, None, None, None


def _aligned(count: int) -> int:
    return -(-count // ALIGN) * ALIGN


def _longest(vectors: Tensor) -> Tensor:
    longest: Tensor = torch.linalg.vector_norm(vectors.detach(), dim=1).max()
    return longest


def full_softmax(
    preference_TD: Tensor,
    item_ND: Tensor,
    target_T: Tensor,
    *,
    first_T: Tensor | None = None,
    existing_T: Tensor | None = None,
    block: int = BLOCK_ELEMENTS,
) -> Tensor:
    """Sum over targets of the exact cross-entropy over all items; memory does not grow with targets x items.

    Paper: LSVCR eq 17 (InfoNCE over the entire set of items), SASRec with cross-entropy. Temperature and cosine
    similarity belong into the inputs: pass normalised vectors, one side divided by the temperature.

    target_T holds rows of item_ND (0-based). Of the items, which are ordered by creation, the rows first_T up to
    existing_T compete with a target: those that existed at its time, and were not outdated; all of them where None.
    Products are made in autocast's type where it is on, else (and of float64) in the inputs' own; sums are accumulated
    in float32 or better.
    """
    if preference_TD.shape[0] == 0:
        return preference_TD.sum() * 0.0
    device, dtype = preference_TD.device.type, torch.promote_types(preference_TD.dtype, item_ND.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    first_T = torch.zeros_like(target_T) if first_T is None else first_T
    existing_T = torch.full_like(target_T, len(item_ND)) if existing_T is None else existing_T
    if (existing_T != existing_T[0]).any():  # in order of time, so that the targets of a block share most competitors
        existing_T, order_T = existing_T.sort()
        preference_TD, target_T, first_T = preference_TD[order_T], target_T[order_T], first_T[order_T]
    with torch.autocast(device, enabled=False):
        loss: Tensor = _SoftmaxSum.apply(preference_TD, item_ND, target_T, first_T, existing_T, dtype, block)  # type: ignore[no-untyped-call]
    return loss


def sampled_softmax(positive_T: Tensor, negative_TC: Tensor, is_negative_TC: Tensor) -> Tensor:
    """Sum over targets of -log softmax of the positive's score among itself and its own negatives.

    Paper: LSVCR eq 19. `is_negative_TC` is False at padding; a target without negatives adds nothing.
    """
    negative = negative_TC.masked_fill(~is_negative_TC, -torch.inf)
    return (torch.logsumexp(torch.cat([positive_T[:, None], negative], dim=1), dim=1) - positive_T).sum()


def id_text_regularisation(
    id_MD: Tensor, text_MD: Tensor, item_M: Tensor, negative_C: Tensor, *, temperature: float
) -> Tensor:
    """Sum over pairs of InfoNCE between ID and text embeddings, half each way, against sampled pairs of the batch.

    Paper: LSVCR eq 16; both directions as in its reference settings. `negative_C` holds rows of the batch that serve
    all pairs as negatives, except those of the same item.
    """
    identity, text = unit(widened(id_MD)), unit(widened(text_MD))
    positive = (identity * text).sum(1) / temperature
    is_negative = item_M[negative_C][None, :] != item_M[:, None]
    one_way = sampled_softmax(positive, identity @ text[negative_C].T / temperature, is_negative)
    other_way = sampled_softmax(positive, text @ identity[negative_C].T / temperature, is_negative)
    return (one_way + other_way) / 2


def info_nce(x_TD: Tensor, y_CD: Tensor, positive_T: Tensor, is_same_TC: Tensor, *, temperature: float) -> Tensor:
    """Sum over anchors of -log of the positive's share of exp(cosine / temperature) among the candidates.

    Paper: LSVCR eq 11; with preferences and target texts, eq 14. positive_T holds rows of y_CD. `is_same_TC` marks
    candidates that mean the same as the anchor's positive: left out, they would be false negatives. The positive itself
    always counts; an anchor without negatives adds nothing.
    """
    with torch.autocast(x_TD.device.type, enabled=False):
        score_TC = unit(widened(x_TD)) @ unit(widened(y_CD)).T / temperature
    is_left_out_TC = is_same_TC.scatter(1, positive_T[:, None], False)
    return F.cross_entropy(score_TC.masked_fill(is_left_out_TC, -torch.inf), positive_T, reduction="sum")


def sequential_supplemental_contrast(
    sequential_CD: Tensor, supplemental_CD: Tensor, positive_T: Tensor, is_same_TC: Tensor, *, temperature: float
) -> Tensor:
    """Sum over the rows positive_T of InfoNCE between both preferences of an instance, half each way.

    Paper: LSVCR eq 10. `is_same_TC` as in `info_nce`: instances whose preferences need not differ.
    """
    sequential_TD, supplemental_TD = sequential_CD[positive_T], supplemental_CD[positive_T]
    one_way = info_nce(sequential_TD, supplemental_CD, positive_T, is_same_TC, temperature=temperature)
    other_way = info_nce(supplemental_TD, sequential_CD, positive_T, is_same_TC, temperature=temperature)
    return (one_way + other_way) / 2


def item_comment_contrast(supplemental_TD: Tensor, own_TD: Tensor, other_TD: Tensor, *, temperature: float) -> Tensor:
    """Sum over instances of -log of the own history's share: the LLM's preference is nearer to it than to the other.

    Paper: LSVCR eq 12. own_TD and other_TD are read from the two fused histories by the same function, F_o of the
    instance's task.
    """
    supplemental_TD = unit(widened(supplemental_TD))
    own_T, other_T = ((supplemental_TD * unit(widened(read_TD))).sum(1) for read_TD in (own_TD, other_TD))
    return F.softplus((other_T - own_T) / temperature).sum()


def widened(x: Tensor) -> Tensor:
    """In float32, or float64 where it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(vectors: Tensor) -> Tensor:
    """Each vector divided by its length, so that dot products are cosines; zeros stay zeros."""
    return vectors * torch.rsqrt(vectors.square().sum(-1, keepdim=True) + 1e-12)
