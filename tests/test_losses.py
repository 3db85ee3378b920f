"""Losses against torch's own and against loops."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reeltalk.losses import BLOCK_ELEMENTS, full_softmax, id_text_regularisation, sampled_softmax, unit

T, N, D = 23, 37, 6


def scores_and_target(
    scale: float, dtype: torch.dtype, *, rows: int = T, items: int = N
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    preference_TD = torch.randn(rows, D, generator=generator, dtype=torch.float64) * scale
    item_ND = torch.randn(items, D, generator=generator, dtype=torch.float64)
    target_T = torch.randint(items, (rows,), generator=generator)
    return preference_TD.to(dtype).requires_grad_(), item_ND.to(dtype).requires_grad_(), target_T


def with_gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def reference(
    preference_TD: Tensor,
    item_ND: Tensor,
    target_T: Tensor,
    first_T: Tensor | None = None,
    existing_T: Tensor | None = None,
) -> list[Tensor]:
    """The same through the whole matrix of scores, in float64."""
    preference, item = preference_TD.detach().double().requires_grad_(), item_ND.detach().double().requires_grad_()
    score_TN = preference @ item.T
    if first_T is not None and existing_T is not None:
        item_N = torch.arange(len(item))
        is_out_TN = (item_N < first_T[:, None]) | (item_N >= existing_T[:, None])
        score_TN = score_TN.masked_fill(is_out_TN, -torch.inf)
    return with_gradients(F.cross_entropy(score_TN, target_T, reduction="sum"), preference, item)


@pytest.mark.parametrize("block", [1, N, 3 * N, 10 * N + 5, T * N, BLOCK_ELEMENTS])
@pytest.mark.parametrize("scale", [0.1, 1.0, 200.0])
def test_full_softmax_is_cross_entropy(block: int, scale: float) -> None:
    """Loss and both gradients, from one row a block to everything in one, on the path without a shift and with one."""
    inputs = scores_and_target(scale, torch.float64)
    found = with_gradients(full_softmax(*inputs, block=block), *inputs[:2])
    for actual, expected in zip(found, reference(*inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("block", [1, 4 * N, BLOCK_ELEMENTS])
@pytest.mark.parametrize("scale", [0.1, 200.0])
@pytest.mark.parametrize("has_outdated", [False, True])
def test_only_items_that_existed_and_are_not_outdated_compete(block: int, scale: float, has_outdated: bool) -> None:
    preference_TD, item_ND, target_T = scores_and_target(scale, torch.float64)
    generator = torch.Generator().manual_seed(1)
    existing_T = (target_T + 1 + torch.randint(0, N, (T,), generator=generator)).clamp(max=N)
    first_T = (target_T - torch.randint(0, N, (T,), generator=generator)).clamp(min=0)
    first_T = first_T if has_outdated else torch.zeros_like(first_T)
    loss = full_softmax(preference_TD, item_ND, target_T, first_T=first_T, existing_T=existing_T, block=block)
    found = with_gradients(loss, preference_TD, item_ND)
    for actual, expected in zip(found, reference(preference_TD, item_ND, target_T, first_T, existing_T), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(1, 1), (1, N), (T, 1), (4, 3)])
def test_full_softmax_of_few(shape: tuple[int, int]) -> None:
    inputs = scores_and_target(1.0, torch.float64, rows=shape[0], items=shape[1])
    found = with_gradients(full_softmax(*inputs), *inputs[:2])
    for actual, expected in zip(found, reference(*inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_full_softmax_survives_scores_beyond_exp() -> None:
    preference_TD, item_ND, target_T = scores_and_target(5_000.0, torch.float32)
    found = with_gradients(full_softmax(preference_TD, item_ND, target_T), preference_TD, item_ND)
    assert float((preference_TD @ item_ND.T).detach().max()) > 1_000
    for actual, expected in zip(found, reference(preference_TD, item_ND, target_T), strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize(("length", "tolerance"), [(1.0, 0.01), (14.3, 0.02), (200.0, 0.04)])
def test_full_softmax_in_bf16(length: float, tolerance: float) -> None:
    """Within 0.5 % of the loss, and 2 % of the gradients' length at cosines over a temperature of 0.07.

    Scores of 200 are rounded to whole numbers in bf16, and shifted before exp: 4 %.
    """
    generator = torch.Generator().manual_seed(0)
    item_ND = unit(torch.randn(2_000, 64, generator=generator)).requires_grad_()
    target_T = torch.randint(2_000, (300,), generator=generator)
    preference_TD = unit(item_ND.detach()[target_T] + 0.3 * torch.randn(300, 64, generator=generator)) * length
    preference_TD.requires_grad_()
    rounded = [value.detach().bfloat16().float() for value in (preference_TD, item_ND)]
    with torch.autocast("cpu", torch.bfloat16):
        found = full_softmax(preference_TD, item_ND, target_T)
    loss, *gradients = with_gradients(found, preference_TD, item_ND)
    expected, *expected_gradients = reference(rounded[0], rounded[1], target_T)
    assert float(loss) == pytest.approx(float(expected), rel=0.005, abs=1.0)
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        assert float((actual.double() - wanted).norm() / wanted.norm()) < tolerance
        assert actual.dtype == torch.float32


@pytest.mark.parametrize("is_double", [False, True])
def test_autocast_decides_what_products_are_made_in_but_of_float64(is_double: bool) -> None:
    inputs = scores_and_target(1.0, torch.float64 if is_double else torch.float32)
    exact = full_softmax(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = full_softmax(*inputs)
    assert torch.equal(exact, mixed) == is_double


def test_full_softmax_without_targets() -> None:
    preference_TD = torch.zeros(0, D, requires_grad=True)
    loss = full_softmax(preference_TD, torch.randn(N, D), torch.zeros(0, dtype=torch.int64))
    assert loss.item() == 0
    loss.backward()  # type: ignore[no-untyped-call]


def test_full_softmax_scales_its_gradients() -> None:
    inputs = scores_and_target(1.0, torch.float64)
    loss = full_softmax(*inputs)
    once, thrice = (torch.autograd.grad(loss * factor, inputs[:2], retain_graph=True) for factor in (1, 3))
    for one, three in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * one, three)


PEAK = """
import resource, sys, torch
from reeltalk.losses import full_softmax
torch.set_num_threads(1)
targets = int(sys.argv[1])
item = torch.randn(20_000, 32, requires_grad=True)
preference = torch.randn(20_000, 32, requires_grad=True)
chosen = torch.randint(20_000, (20_000,))
full_softmax(preference[:2], item, chosen[:2]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
full_softmax(preference[:targets], item, chosen[:targets]).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_targets_times_items() -> None:
    """4,000 targets by 20,000 items would be 160 MB of scores in bf16; the workspace is one block and its buffers."""
    added = subprocess.run([sys.executable, "-c", PEAK, "4000"], capture_output=True, text=True, check=True)
    assert int(added.stdout) < 80 * 1024


def test_sampled_softmax_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    positive_T = torch.randn(8, generator=generator, dtype=torch.float64)
    negative_TC = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    is_negative_TC = torch.rand(8, 5, generator=generator) < 0.6
    is_negative_TC[3] = False
    negative_TC[~is_negative_TC] = 1e6
    expected = 0.0
    for positive, negatives, keep in zip(positive_T, negative_TC, is_negative_TC, strict=True):
        total = positive.exp() + sum(value.exp() for value, kept in zip(negatives, keep, strict=True) if kept)
        expected += float(-(positive.exp() / total).log())
    assert sampled_softmax(positive_T, negative_TC, is_negative_TC).item() == pytest.approx(expected, rel=1e-12)
    assert sampled_softmax(positive_T[3:4], negative_TC[3:4], is_negative_TC[3:4]).item() == 0


def test_sampled_softmax_of_all_others_is_the_full_one() -> None:
    preference_TD, item_ND, target_T = scores_and_target(1.0, torch.float64)
    score_TN = preference_TD @ item_ND.T
    positive_T = score_TN.gather(1, target_T[:, None])[:, 0]
    is_other_TN = torch.arange(N) != target_T[:, None]
    sampled = sampled_softmax(positive_T, score_TN, is_other_TN)
    torch.testing.assert_close(sampled, full_softmax(preference_TD, item_ND, target_T))


def test_regularisation_is_least_where_id_and_text_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    text_MD = torch.randn(12, 8, generator=generator, dtype=torch.float64)
    item_M, negative_C = torch.arange(12) // 2, torch.arange(12)
    agreeing, opposed = (
        id_text_regularisation(sign * text_MD, text_MD, item_M, negative_C, temperature=0.07) for sign in (1, -1)
    )
    assert 0 <= agreeing < opposed
    assert agreeing.dtype == torch.float64
    other_way = id_text_regularisation(text_MD, -text_MD, item_M, negative_C, temperature=0.07)
    torch.testing.assert_close(opposed, other_way)


def test_unit() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    torch.testing.assert_close(unit(vectors), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    unit(vectors).sum().backward()  # type: ignore[no-untyped-call]
    assert vectors.grad is not None and vectors.grad.isfinite().all()
