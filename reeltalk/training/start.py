"""Where fine-tuning starts: the weights of a model that `reeltalk align` or `reeltalk pretrain` wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from pydantic import BaseModel
from safetensors.torch import load_file
from torch import Tensor

from reeltalk.artifacts import Manifest, file_digest, folder_kind, read_manifest, reading_file, require_parent
from reeltalk.errors import ArtifactError, ConfigError
from reeltalk.models import model_spec
from reeltalk.models.lsvcr import LSVCRSettings
from reeltalk.pretraining import PRETRAINING, pretraining_of
from reeltalk.text.table import TextTable
from reeltalk.training.settings import FinetuneSettings
from reeltalk.training.system import WEIGHTS, System

ALIGNED = "aligned"
PRETRAINED = "pretrained"
SEQUENTIAL = "sequential.safetensors"
_NOT_OF_A_START = ("item_embedding.", "id_gate", "recency")  # weights of ids and ages, which it knows nothing of
_SIZES_OF_THE_START = ("dim", "num_layers", "num_heads", "inner_dim", "text_dim")


def start_settings(settings: FinetuneSettings, start: Path, text: TextTable | None) -> FinetuneSettings:
    """The settings with sizes as they are in the start, and no text map where the vectors went through it.

    Raises ConfigError where the settings ask for other sizes (a default asks for nothing) or another model,
    ArtifactError where the folder is no start or the text was not encoded for it.
    """
    if folder_kind(start) == PRETRAINED:
        sizes = _pretrained_sizes(settings, start, text)
    else:
        sizes = _aligned_sizes(settings, start, text)
    model = settings.model
    for name in _unlike(model, sizes):
        raise ConfigError(
            f"model.{name}={getattr(model, name)!r}, but it starts from {start}, where it is {sizes[name]!r}; "
            "leave it out"
        )
    return settings.model_copy(update={"model": model.model_copy(update=dict(sizes))})


def start_sizes(name: str, *, is_pretrained: bool) -> tuple[str, ...]:
    """The settings of a model that are those of its start, pre-trained or aligned: as "model.dim"."""
    sizes = pretraining_of(name).sizes if is_pretrained else (*_SIZES_OF_THE_START, "text_map")
    return tuple(f"model.{size}" for size in sizes)


def aligned_start_problems(
    settings: FinetuneSettings, start: LSVCRSettings, *, num_positions: int, is_mapped: bool
) -> Iterator[str]:
    """What keeps a model from starting where alignment will end, which trains `start` on so many positions.

    is_mapped: text vectors will have gone through the start's text map.
    """
    if not isinstance(settings.model, LSVCRSettings):
        yield f"name={settings.name!r} has no aligned start, lsvcr has; leave out align, or run the task by itself"
        return
    if (encoder := settings.text.trained_encoder) is not None:
        yield f"text.trained_encoder={encoder!r}, but vectors will be the aligned LLM's; leave out it or align"
    sizes = {name: getattr(start, name) for name in _SIZES_OF_THE_START}
    sizes["text_map"] = "none" if is_mapped else start.text_map
    yield from _unfit(settings, sizes, ("align", "num_positions", num_positions))


def pretrained_start_problems(settings: FinetuneSettings, start: BaseModel, *, history_length: int) -> Iterator[str]:
    """What keeps a model from starting where pre-training will end, which trains `start` on such histories."""
    sizes = {name: getattr(start, name) for name in pretraining_of(settings.name).sizes}
    yield from _unfit(settings, sizes, ("pretrain", "history_length", history_length))


def _unfit(settings: FinetuneSettings, sizes: Mapping[str, object], longest: tuple[str, str, int]) -> Iterator[str]:
    """longest: the start's section, and its field of section `data` that histories must not be shorter than."""
    section, field, length = longest
    for name in _unlike(settings.model, sizes):
        yield (
            f"model.{name}={getattr(settings.model, name)!r}, but it starts from {section}, where it is "
            f"{sizes[name]!r}; leave it out"
        )
    if (given := settings.data.history_length) < length:
        yield f"data.history_length={given} is less than {section}.data.{field}={length}; raise it, or lower that too"


def _unlike(model: BaseModel, sizes: Mapping[str, object]) -> list[str]:
    """The sizes that settings ask for otherwise; a default asks for nothing."""
    fields = type(model).model_fields
    return [name for name, size in sizes.items() if getattr(model, name) not in (size, fields[name].default)]


def needs_start(settings: FinetuneSettings) -> str | None:
    """What is wrong with fresh weights to train from, where a part of them would stay as it is; None where nothing."""
    trains = PRETRAINING[settings.name].trains if settings.name in PRETRAINING else ()
    off = [name for name in trains if not getattr(settings.model, name)]
    if not off:
        return None
    return (
        f"model.{off[0]}=False keeps what was pre-trained, but nothing was: these weights would stay random; start "
        f"from a pre-trained {settings.name}, or leave it out"
    )


def start_from(system: System, start: Path) -> dict[str, str]:
    """Put the weights of the start into a new system, which keeps its own of ids and ages.

    A position table that is longer than the start's keeps its own rows behind it. Returns the parent that the start is:
    its kind and digest. Raises ConfigError where shapes differ, ArtifactError where the start is of another dataset and
    knows its items, was changed, or is of a model that the code no longer has.
    """
    if folder_kind(start) == PRETRAINED:
        kind, file = PRETRAINED, start / WEIGHTS
        manifest = read_manifest(start, kind)
        if not pretraining_of(system.settings.name).of_text_alone:
            require_parent(manifest, start, "dataset", system.dataset.manifest, system.dataset.path)
    else:
        kind, file = ALIGNED, start / SEQUENTIAL
        manifest = read_manifest(start, kind)
    if file_digest(file) != manifest.files[file.name]:
        raise ArtifactError(f"{file} was changed since it was written, or is damaged; put it back, or write it anew")
    with reading_file(file):
        weights = {name.removeprefix("recommender."): value for name, value in load_file(file).items()}
    own = system.recommender.state_dict()
    weights = {name: value for name, value in weights.items() if name in own or not name.startswith("text_map.")}
    wanted = {name for name in own if name in weights or not name.startswith(_NOT_OF_A_START)}
    if unlike := sorted(wanted ^ weights.keys()):
        raise ArtifactError(
            f"{file} does not fit {system.settings.name} as it is now (see {unlike[0]}); go back to the code it was "
            "written with, or write it anew"
        )
    new: dict[str, Tensor] = {}
    for name, value in weights.items():
        is_positions = "positions." in name
        if is_positions and len(value) < len(own[name]):
            value = torch.cat([value, own[name][len(value) :]])
        elif value.shape != own[name].shape:
            raise ConfigError(
                f"{file} holds {name} of shape {list(value.shape)}, the model has {list(own[name].shape)}"
                + ("; raise data.history_length" if is_positions else "")
            )
        new[name] = value
    system.recommender.load_state_dict(own | new)
    return {kind: manifest.digest}


def _pretrained_sizes(settings: FinetuneSettings, start: Path, text: TextTable | None) -> Mapping[str, object]:
    manifest = read_manifest(start, PRETRAINED)
    name, encoding = manifest.config["name"], manifest.parents.get("text")
    if name != settings.name:
        raise ConfigError(
            f"{start} holds a pre-trained {name}, which is no start for {settings.name}; give --model {name}"
        )
    reads_text = model_spec(name, settings.task).reads_text
    if reads_text and encoding is not None and (text is None or text.encoding != encoding):
        held = "no text is given" if text is None else f"{text.path} holds text vectors {text.encoding}"
        raise ArtifactError(
            f"{held}, but {start} was pre-trained on {encoding} ({manifest.facts['text']}); run `reeltalk encode` on "
            "the dataset as that was encoded, and give its folder as --text"
        )
    return {size: manifest.config["model"][size] for size in pretraining_of(name).sizes}


def _aligned_sizes(settings: FinetuneSettings, start: Path, text: TextTable | None) -> Mapping[str, object]:
    manifest = read_manifest(start, ALIGNED)
    if not isinstance(settings.model, LSVCRSettings):
        raise ConfigError(f"model {settings.name!r} has no aligned start; lsvcr has")
    given = LSVCRSettings.model_validate(manifest.config["model"])
    sizes = {name: getattr(given, name) for name in (*_SIZES_OF_THE_START, "text_map")}
    return sizes | ({"text_map": "none"} if _is_mapped(manifest, start, text) else {})


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
