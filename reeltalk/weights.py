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
    held: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, weight in weights.items():
        place = weight.untyped_storage().data_ptr()
        is_shared = place in places  # with another layer, which safetensors refuses
        held[name] = weight.cpu().clone() if is_shared else weight.cpu().contiguous()
        places.add(place)
    save_file(held, path)
    path.chmod(mode)
