"""Attention of an LLM in training on a CPU: plain products, whose backward pass is faster than the fused kernel's.

The weights of all pairs of tokens are held; sequences are short here, and batches bounded by a token budget.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAME = "products"


def use_products(llm: Any, device: torch.device) -> None:
    """Train the LLM with attention made of plain products where it would use the fused kernel, on a CPU."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if device.type == "cpu" and llm.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        llm.set_attn_implementation(NAME)


def attention(
    module: Any,
    query_BHTK: Tensor,
    key_BGSK: Tensor,
    value_BGSK: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: [B, T, H, K], and no weights. Without gradient the fused kernel does it.

    Shapes: B sequences, T queries, S keys, H heads, G heads of keys and values (each serves H / G), K width of a head.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch, heads, length, width = query_BHTK.shape
    is_plain = length == key_BGSK.shape[2] and all(
        options.get(name) is None for name in ("softcap", "position_bias", "cache")
    )
    if not (torch.is_grad_enabled() and is_plain) or options.get("dropout"):
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module,
            query_BHTK,
            key_BGSK,
            value_BGSK,
            attention_mask,
            scaling=scaling,
            is_causal=is_causal,
            **options,
        )
        return result
    groups = heads // key_BGSK.shape[1]
    key_MSK, value_MSK = (x.repeat_interleave(groups, dim=1).flatten(0, 1) for x in (key_BGSK, value_BGSK))
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    bias = _bias(attention_mask, is_causal=is_causal, like=query_BHTK)
    scale = width**-0.5 if scaling is None else scaling
    score_MTS = torch.baddbmm(bias, query_BHTK.flatten(0, 1), key_MSK.transpose(1, 2), alpha=scale)
    mixed_MTK = torch.bmm(score_MTS.softmax(dim=-1), value_MSK)
    return mixed_MTK.view(batch, heads, length, width).transpose(1, 2), None


def _bias(attention_mask: Tensor | None, *, is_causal: bool, like: Tensor) -> Tensor:
    """What is added to the scores, so that it broadcasts to [B * H, T, T]."""
    batch, heads, length, _ = like.shape
    if attention_mask is None:
        bias = like.new_zeros(length, length)
        return bias.fill_(-torch.inf).triu(1) if is_causal else bias
    if attention_mask.dtype == torch.bool:
        # not -inf: a row of padding alone must not become NaN
        lowest = torch.finfo(like.dtype).min / 2
        attention_mask = torch.zeros_like(attention_mask, dtype=like.dtype).masked_fill(~attention_mask, lowest)
    return attention_mask.to(like.dtype).expand(batch, heads, length, length).flatten(0, 1)
