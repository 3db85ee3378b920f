"""Product quantisation: codes against a slow loop, and how much they keep of vectors."""

from __future__ import annotations

import pytest
import torch

from reeltalk.models import quantisation
from reeltalk.models.quantisation import ProductQuantiser


def correlated(count: int, width: int) -> torch.Tensor:
    """Vectors whose width is mostly a few hidden directions, as text vectors are."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, width, generator=generator) * 0.7 ** torch.arange(width)
    turned: torch.Tensor = hidden @ torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    return turned + 2


def fitted(vectors_NE: torch.Tensor, **sizes: int) -> ProductQuantiser:
    torch.manual_seed(0)
    return ProductQuantiser.fit(vectors_NE, **sizes)


def test_codes_are_the_nearest_centroids(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors_NE = correlated(50, 10)  # which 4 does not divide
    quantiser = fitted(vectors_NE, num_codebooks=4, num_codes=5)
    found = quantiser.codes(vectors_NE)
    for row, vector in enumerate(vectors_NE):
        turned = (torch.cat([vector, torch.zeros(2)]) - quantiser.mean_E) @ quantiser.rotation_EE
        for book, centroids in enumerate(quantiser.centroid_MKS):
            distances = [float((turned[3 * book : 3 * book + 3] - centroid).norm()) for centroid in centroids]
            assert distances[int(found[row, book])] <= min(distances) + 1e-5
    monkeypatch.setattr(quantisation, "ROWS_AT_ONCE", 7)
    assert torch.equal(quantiser.codes(vectors_NE), found)
    told = quantiser.vectors(found)
    expected = [quantiser.centroid_MKS[book, found[3, book]] for book in range(4)]
    torch.testing.assert_close(told[3], torch.cat(expected) @ quantiser.rotation_EE.T + quantiser.mean_E)


def test_the_rotation_pays() -> None:
    """It stays a rotation, and codes keep more than those of the same codebooks without it would."""
    vectors_NE = correlated(3_000, 16)
    quantiser = fitted(vectors_NE, num_codebooks=4, num_codes=16)
    turn = quantiser.rotation_EE
    torch.testing.assert_close(turn @ turn.T, torch.eye(16), atol=1e-4, rtol=0)

    def lost(of: ProductQuantiser) -> float:
        return float((of.vectors(of.codes(vectors_NE)) - vectors_NE).square().sum() / (vectors_NE - 2).square().sum())

    shuffled = ProductQuantiser(quantiser.mean_E, torch.linalg.qr(torch.randn(16, 16)).Q, quantiser.centroid_MKS)
    assert lost(quantiser) < 0.12
    assert lost(shuffled) > 3 * lost(quantiser)


def test_few_vectors_are_kept_whole() -> None:
    vectors_NE = correlated(6, 8)
    quantiser = fitted(vectors_NE, num_codebooks=2, num_codes=256)
    torch.testing.assert_close(quantiser.vectors(quantiser.codes(vectors_NE)), vectors_NE, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="no vectors"):
        fitted(vectors_NE[:0], num_codebooks=2, num_codes=4)
