"""The blocks of the models: dropout from bytes, and attention against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reeltalk.errors import ConfigError
from reeltalk.models.attention import Encoder, MultiHeadAttention, TransformerLayer, dropout, masked_bias


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_mean_and_drops_at_its_rate(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dropped = dropout(torch.ones(1_000, 203, dtype=dtype), probability, training=True).double()
    assert abs(float((dropped == 0).double().mean()) - probability) < 0.005  # in steps of 1/256
    assert abs(float(dropped.mean()) - 1) < 0.02
    assert len(dropped.unique()) == 2  # type: ignore[no-untyped-call]
    by_column = (dropped == 0).double().mean(0)
    assert float((by_column - by_column.mean()).abs().max()) < 0.08  # 5 standard deviations


def test_dropout_scales_by_the_rate_it_rounds_to() -> None:
    """So that the mean is exact: 0.3 is 77 of 256."""
    torch.manual_seed(0)
    kept = dropout(torch.ones(64, 64, dtype=torch.float64), 0.3, training=True).max()
    assert float(kept) == pytest.approx(256 / (256 - 77))


def test_dropout_never_drops_all() -> None:
    torch.manual_seed(0)
    dropped = dropout(torch.ones(64, 640), 0.999, training=True)
    assert 0 < float((dropped > 0).float().mean()) < 0.01
    assert float(dropped.max()) == 256


def test_dropout_is_nothing_when_off() -> None:
    x = torch.randn(5, 7)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    assert dropout(torch.zeros(0, 3), 0.5, training=True).shape == (0, 3)


def test_dropout_is_seeded_and_fresh_each_time() -> None:
    x = torch.ones(50, 50)
    torch.manual_seed(1)
    first, second = dropout(x, 0.5, training=True), dropout(x, 0.5, training=True)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.5, training=True), first)
    assert not torch.equal(first, second)


def test_dropout_gradient_is_that_of_what_was_kept() -> None:
    x = torch.ones(40, 40, requires_grad=True)
    kept = dropout(x, 0.4, training=True)
    kept.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and torch.equal(x.grad, kept.detach())


def test_attention_is_torchs() -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(12, num_heads=3, dropout=0.4).double().eval()
    query, key = torch.randn(4, 7, 12).double(), torch.randn(4, 5, 12).double()
    mask = torch.rand(4, 7, 5) < 0.7
    mask[..., 0] = True
    parts = (attention.query(query), *attention.key_value(key).chunk(2, dim=-1))
    q, k, v = (part.view(4, -1, 3, 4).transpose(1, 2) for part in parts)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None]).transpose(1, 2).reshape(4, 7, 12)
    found = attention(query, key, masked_bias(mask, torch.float64))
    torch.testing.assert_close(found, attention.out(expected))


def test_encoder_is_torchs() -> None:
    """With its own weights put into torch's layer of the same shape."""
    torch.manual_seed(0)
    layer = TransformerLayer(8, num_heads=2, inner_dim=16, dropout=0.2).double().eval()
    theirs = torch.nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, dtype=torch.float64).eval()
    pairs = {"linear1": layer.inner, "linear2": layer.outer, "norm1": layer.attention_norm, "norm2": layer.inner_norm}
    for name, part in pairs.items():
        getattr(theirs, name).load_state_dict(part.state_dict())
    projections = (layer.attention.query, layer.attention.key_value)
    theirs.self_attn.load_state_dict(
        {
            "in_proj_weight": torch.cat([part.weight for part in projections]),
            "in_proj_bias": torch.cat([part.bias for part in projections]),
            "out_proj.weight": layer.attention.out.weight,
            "out_proj.bias": layer.attention.out.bias,
        }
    )
    x, is_past = torch.randn(3, 6, 8).double(), torch.ones(6, 6, dtype=torch.bool).tril()
    expected = theirs(x, src_mask=~is_past)
    torch.testing.assert_close(layer(x, x, masked_bias(is_past.expand(3, 6, 6), torch.float64)), expected)


def test_padding_stays_finite() -> None:
    encoder = Encoder(8, num_layers=2, num_heads=2, inner_dim=16, dropout=0.0)
    nothing = torch.zeros(2, 4, 4, dtype=torch.bool)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            assert encoder(torch.randn(2, 4, 8), masked_bias(nothing, torch.float32)).isfinite().all()


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="dim=10 is not a multiple of num_heads=4"):
        MultiHeadAttention(10, num_heads=4, dropout=0.0)
