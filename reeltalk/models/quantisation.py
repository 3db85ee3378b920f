"""Optimised product quantisation: a vector as a few discrete codes, one a codebook.

Paper: Ge et al., Optimized Product Quantization (CVPR 2013), the non-parametric solution: codebooks with the rotation
    fixed, then the rotation with the codes fixed (an orthogonal Procrustes problem), in turns.
Differs from the paper: starts from a random rotation; one k-means step a turn.
Checked against: a slow loop, and what random codes lose (tests/test_quantisation.py).

Shapes: N vectors, E width, M codebooks, K codes of a codebook, S width of a codebook.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TURNS = 25
MAX_FITTED = 16_384  # vectors that the codebooks are learnt from
ROWS_AT_ONCE = 1_024


@dataclass(frozen=True)
class ProductQuantiser:
    """codes = the nearest centroid of each part of (vector - mean) @ rotation; widths that do not divide are padded."""

    mean_E: Tensor
    rotation_EE: Tensor
    centroid_MKS: Tensor

    @classmethod
    def fit(cls, vectors_NE: Tensor, *, num_codebooks: int, num_codes: int) -> ProductQuantiser:
        """Learn rotation and centroids, in turns and these last, with torch's random state.

        N below num_codes gives as many codes as vectors.

        Raises ValueError where there is no vector.
        """
        if not len(vectors_NE):
            raise ValueError("a quantiser cannot be fitted to no vectors")
        chosen_N = torch.randperm(len(vectors_NE))[:MAX_FITTED]
        x_NE = _padded(vectors_NE[chosen_N], num_codebooks)
        mean_E = x_NE.mean(0)
        x_NE = x_NE - mean_E
        rotation_EE = torch.linalg.qr(torch.randn(x_NE.shape[1], x_NE.shape[1])).Q
        centroid_MKS = _parts(x_NE[:num_codes] @ rotation_EE, num_codebooks).contiguous()
        for _ in range(TURNS):
            part_MNS = _parts(x_NE @ rotation_EE, num_codebooks)
            code_MN = _nearest(part_MNS, centroid_MKS)
            centroid_MKS = _means(part_MNS, code_MN, centroid_MKS)
            told_NE = _looked_up(code_MN, centroid_MKS)
            left, _, right = torch.linalg.svd(x_NE.T @ told_NE)
            rotation_EE = left @ right
        part_MNS = _parts(x_NE @ rotation_EE, num_codebooks)
        centroid_MKS = _means(part_MNS, _nearest(part_MNS, centroid_MKS), centroid_MKS)
        return cls(mean_E, rotation_EE, centroid_MKS)

    def codes(self, vectors_NE: Tensor) -> Tensor:
        """The codes of each vector: int64 [N, M]."""
        num_codebooks = len(self.centroid_MKS)
        found = []
        for first in range(0, len(vectors_NE), ROWS_AT_ONCE):
            x_NE = (_padded(vectors_NE[first : first + ROWS_AT_ONCE], num_codebooks) - self.mean_E) @ self.rotation_EE
            found.append(_nearest(_parts(x_NE, num_codebooks), self.centroid_MKS).T)
        return torch.cat(found)

    def vectors(self, code_NM: Tensor) -> Tensor:
        """What the codes tell of the vectors: float32 [N, E], E padded to a multiple of M."""
        return _looked_up(code_NM.T, self.centroid_MKS) @ self.rotation_EE.T + self.mean_E


def _padded(x_NE: Tensor, num_codebooks: int) -> Tensor:
    return F.pad(x_NE.float(), (0, -x_NE.shape[1] % num_codebooks))


def _parts(x_NE: Tensor, num_codebooks: int) -> Tensor:
    return x_NE.view(len(x_NE), num_codebooks, -1).transpose(0, 1)


def _nearest(part_MNS: Tensor, centroid_MKS: Tensor) -> Tensor:
    """The nearest centroid of each part: [M, N]. A block of rows at a time, so that memory stays small."""
    half_M1K = centroid_MKS.square().sum(-1)[:, None] / 2
    blocks = (part_MNS[:, first : first + ROWS_AT_ONCE] for first in range(0, part_MNS.shape[1], ROWS_AT_ONCE))
    turned_MSK = centroid_MKS.transpose(1, 2)
    return torch.cat([torch.baddbmm(half_M1K, block, turned_MSK, alpha=-1).min(-1).indices for block in blocks], dim=1)


def _means(part_MNS: Tensor, code_MN: Tensor, centroid_MKS: Tensor) -> Tensor:
    """The mean of each centroid's parts; a centroid without any stays where it was."""
    num_codes = centroid_MKS.shape[1]
    row_X = (code_MN + num_codes * torch.arange(len(code_MN))[:, None]).flatten()
    count_X1 = row_X.bincount(minlength=len(code_MN) * num_codes)[:, None]
    before_XS = centroid_MKS.flatten(0, 1)
    total_XS = torch.zeros_like(before_XS).index_add_(0, row_X, part_MNS.flatten(0, 1))
    return torch.where(count_X1 > 0, total_XS / count_X1.clamp(min=1), before_XS).view_as(centroid_MKS)


def _looked_up(code_MN: Tensor, centroid_MKS: Tensor) -> Tensor:
    row_MNS = code_MN[..., None].expand(-1, -1, centroid_MKS.shape[2])
    return centroid_MKS.gather(1, row_MNS).transpose(0, 1).flatten(1)
