"""Weights on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, for whoever may read the folder; the library leaves its file to the owner alone."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: weight.cpu().contiguous() for name, weight in weights.items()}, path)
    path.chmod(mode)
