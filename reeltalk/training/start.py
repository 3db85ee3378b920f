"""Fine-tuning from an aligned start: the weights of the sequential model that `reeltalk align` wrote."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from reeltalk.artifacts import Manifest, read_manifest
from reeltalk.errors import ArtifactError, ConfigError
from reeltalk.models.lsvcr import LSVCRSettings
from reeltalk.text.table import TextTable
from reeltalk.training.settings import FinetuneSettings
from reeltalk.training.system import System

ALIGNED = "aligned"
CONFIG = "config.yaml"
SEQUENTIAL = "sequential.safetensors"
_OF_THE_START = ("dim", "num_layers", "num_heads", "inner_dim", "text_dim", "text_map")


def start_settings(settings: FinetuneSettings, aligned: Path, text: TextTable | None) -> FinetuneSettings:
    """The settings with sizes as they are in the aligned model, and no text map where the vectors went through it.

    Raises ConfigError where the settings ask for other sizes (a default asks for nothing) or another model,
    ArtifactError where the text was not encoded for this start.
    """
    manifest = read_manifest(aligned, ALIGNED)
    model = settings.model
    if not isinstance(model, LSVCRSettings):
        raise ConfigError(f"model {settings.name!r} has no aligned start; lsvcr has")
    given = LSVCRSettings.model_validate(manifest.config["model"])
    sizes = {name: getattr(given, name) for name in _OF_THE_START}
    if _is_mapped(manifest, aligned, text):
        sizes["text_map"] = "none"
    for name, size in sizes.items():
        if getattr(model, name) not in (size, LSVCRSettings.model_fields[name].default):
            raise ConfigError(
                f"model.{name}={getattr(model, name)!r}, but it starts from {aligned}, where it is {sizes[name]!r}; "
                "leave it out"
            )
    return settings.model_copy(update={"model": model.model_copy(update=sizes)})


def start_from(system: System, aligned: Path) -> str:
    """Put the aligned weights into a new system; ID embeddings and what else alignment has not keep theirs.

    A position table that is longer than the aligned one keeps its own rows behind it. Returns the digest of the start.
    """
    manifest = read_manifest(aligned, ALIGNED)
    own = system.recommender.state_dict()
    weights = load_file(aligned / SEQUENTIAL)
    new: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name not in own:
            continue  # a text map that the vectors went through
        if name.startswith("positions.") and len(value) < len(own[name]):
            value = torch.cat([value, own[name][len(value) :]])
        elif value.shape != own[name].shape:
            raise ConfigError(
                f"{aligned / SEQUENTIAL} holds {name} of shape {list(value.shape)}, the model has "
                f"{list(own[name].shape)}" + ("; raise data.history_length" if name.startswith("positions.") else "")
            )
        new[name] = value
    system.recommender.load_state_dict(own | new)
    return manifest.digest


def _is_mapped(manifest: Manifest, aligned: Path, text: TextTable | None) -> bool:
    """Whether the vectors went through the start's text map; raises ArtifactError where they are none of its."""
    if text is not None:
        if text.manifest.config.get("weights") == manifest.digest:
            return bool(text.manifest.config.get("is_mapped"))
        if text.encoding == manifest.parents["text"] and not manifest.facts["trained_encoder"]:
            return False
    raise ArtifactError(
        f"{'no text is given, and none' if text is None else text.path} was not encoded by {aligned}; run `reeltalk "
        f"encode` on the dataset with --encoder {aligned}, and give its folder as --text"
    )
