"""A gated recurrent unit over entries that lie step after step (`Steps`), with its backward pass in one loop.

torch's own layer records each small operation of each step for autograd, which takes three times as long on a CPU.

Shapes: P places, D width, H hidden width, C histories that have an entry at a step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.utils.rnn import PackedSequence

from reeltalk.losses import widened
from reeltalk.models.steps import slices


def gru_states(gru: nn.GRU, x_PD: Tensor, counts: list[int]) -> Tensor:
    """The states after each entry, from zero ones: [P, H], what the layer makes of a packed sequence; zeros behind it.

    gru: without biases. On a CPU the recurrence is in float32 where autocast asks for less, or in float64 where x is.
    """
    if x_PD.is_cuda:  # cuDNN has all steps in one kernel
        states: Tensor = gru(PackedSequence(x_PD[: sum(counts)], torch.tensor(counts)))[0].data
        return nn.functional.pad(states, (0, 0, 0, len(x_PD) - len(states)))
    for layer in range(gru.num_layers):
        inputs, recurrent = (getattr(gru, f"weight_{kind}_l{layer}") for kind in ("ih", "hh"))
        gate_PX = widened(nn.functional.linear(x_PD.to(inputs.dtype), inputs))
        x_PD = _GRU.apply(gate_PX, recurrent.to(gate_PX.dtype), counts)  # type: ignore[no-untyped-call]
    return x_PD


class _GRU(torch.autograd.Function):
    """h_t = u h_t-1 + (1 - u) n, n = tanh(W x + r (U h_t-1)); gates in torch's order: r, u, n."""

    @staticmethod
    def forward(ctx: FunctionCtx, gate_PX: Tensor, weight_XH: Tensor, counts: list[int]) -> Tensor:
        hidden = weight_XH.shape[1]
        # product: U h, of the new state. both: the gates r and u.
        state_PH, new_PH, before_PH, product_PH = (gate_PX.new_zeros(len(gate_PX), hidden) for _ in range(4))
        both_PX = gate_PX.new_zeros(len(gate_PX), 2 * hidden)
        product_CX = gate_PX.new_empty(counts[0], 3 * hidden)
        for now, going_on in zip(slices(counts), [*counts[1:], 0], strict=True):
            gate_CX, both_CX = gate_PX[now], both_PX[now]
            torch.mm(before_PH[now], weight_XH.t(), out=product_CX[: len(gate_CX)])
            product_PH[now] = product_CX[: len(gate_CX), 2 * hidden :]
            torch.add(gate_CX[:, : 2 * hidden], product_CX[: len(gate_CX), : 2 * hidden], out=both_CX)
            reset_CH, update_CH = both_CX.sigmoid_().chunk(2, dim=1)
            torch.addcmul(gate_CX[:, 2 * hidden :], reset_CH, product_PH[now], out=new_PH[now])
            torch.lerp(new_PH[now].tanh_(), before_PH[now], update_CH, out=state_PH[now])
            before_PH[now.stop : now.stop + going_on] = state_PH[now][:going_on]
        ctx.save_for_backward(weight_XH, before_PH, both_PX, new_PH, product_PH)
        ctx.counts = counts  # type: ignore[attr-defined]
        return state_PH

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_state_PH: Tensor) -> tuple[Tensor | None, ...]:
        weight_XH, before_PH, both_PX, new_PH, product_PH = ctx.saved_tensors  # type: ignore[attr-defined]
        counts: list[int] = ctx.counts  # type: ignore[attr-defined]
        hidden = weight_XH.shape[1]
        reset_PH, update_PH = both_PX.chunk(2, dim=1)
        # what does not depend on later steps: each gate's argument by the state, that of r by the argument of n
        by_reset_PH = product_PH * reset_PH * (1 - reset_PH)
        by_update_PH = (before_PH - new_PH) * update_PH * (1 - update_PH)
        by_new_PH = (1 - update_PH) * (1 - new_PH * new_PH)
        d_gate_PX, d_product_PX = (d_state_PH.new_zeros(len(d_state_PH), 3 * hidden) for _ in range(2))  # W x, U h
        d_later_CH = None
        for now in reversed(list(slices(counts))):
            d_CH = d_state_PH[now].clone()
            if d_later_CH is not None:
                d_CH[: len(d_later_CH)] += d_later_CH
            d_reset_CH, d_update_CH, d_new_CH = d_gate_PX[now].chunk(3, dim=1)
            torch.mul(d_CH, by_update_PH[now], out=d_update_CH)
            torch.mul(d_CH, by_new_PH[now], out=d_new_CH)
            torch.mul(d_new_CH, by_reset_PH[now], out=d_reset_CH)
            if now.start:
                d_product_CX = d_product_PX[now]
                d_product_CX[:, : 2 * hidden] = d_gate_PX[now, : 2 * hidden]
                torch.mul(d_new_CH, reset_PH[now], out=d_product_CX[:, 2 * hidden :])
                d_later_CH = torch.addmm(d_CH.mul_(update_PH[now]), d_product_CX, weight_XH)
        return d_gate_PX, d_product_PX.t() @ before_PH, None
