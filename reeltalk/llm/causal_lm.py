"""Any Hugging Face causal LM, and the BERT family as one; its head apart from its backbone, LoRA on the backbone.

Shape suffixes: N tokens, E width of the LLM, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reeltalk.errors import ConfigError
from reeltalk.llm.attention import use_products
from reeltalk.models.attention import Dropout
from reeltalk.text.checkpoint import OFFLINE, Checkpoint, Precision, load_checkpoint


class LLMSettings(BaseModel):
    """Which LLM, and what of it is trained; LoRA's defaults are those of the paper's reference implementation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(OFFLINE, description="minilm (offline), a folder, or the id of a Hugging Face causal LM")
    lora_rank: int = Field(8, gt=0)
    lora_alpha: int = Field(32, gt=0)
    lora_dropout: float = Field(0.1, ge=0, lt=1)
    gradient_checkpointing: bool = Field(False, description="less memory for about a third more work")
    precision: Precision = Field("auto", description="auto: bf16 where the processor multiplies it natively")
    trust_remote_code: bool = Field(False, description="run code that comes with the model")


def load_causal_lm(settings: LLMSettings, *, device: str, stays_on_cpu: bool = False) -> Checkpoint:
    """The causal LM, frozen; with `stays_on_cpu` not on the device yet.

    A head whose weights the checkpoint lacks, as text encoders do, becomes the word embeddings. Raises ConfigError
    where the model cannot be loaded, lacks other weights, or has a head that this cannot be done to.
    """
    loaded = load_checkpoint(
        settings.name,
        as_causal_lm=True,
        precision=settings.precision,
        device=device,
        trust_remote_code=settings.trust_remote_code,
        stays_on_cpu=stays_on_cpu,
    )
    llm = loaded.model.requires_grad_(False)
    missing = [key for key in loaded.missing if key.startswith(f"{llm.base_model_prefix}.")]
    if missing:
        raise ConfigError(
            f"LLM {settings.name!r} lacks the weights of {', '.join(missing[:3])} ({len(missing)} in all)"
        )
    if loaded.missing:
        _tie_head(llm, settings.name)
    if settings.gradient_checkpointing:
        llm.activation_checkpointing_enable({"use_reentrant": False, "context_fn": _rereading(llm)})
    use_products(llm, loaded.device)
    return loaded


def add_lora(llm: Any, settings: LLMSettings) -> Any:
    """LoRA on every linear layer of the backbone, in place; the result is peft's LoraModel around the same LLM.

    New layers change nothing before they are trained. They are float32 whatever the LLM is, and alone have gradients.
    """
    import peft
    from peft.tuners.lora import LoraLayer
    from transformers.pytorch_utils import Conv1D

    backbone = f"{llm.base_model_prefix}."
    config = peft.LoraConfig(
        base_model_name_or_path=settings.name,
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=[
            name
            for name, layer in llm.named_modules()
            if name.startswith(backbone) and isinstance(layer, nn.Linear | Conv1D)
        ],
    )
    lora = peft.LoraModel(llm, config, "default")
    for layer in lora.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False  # autocast multiplies in bf16: no float32 copies of what comes in
            layer.lora_dropout["default"] = Dropout(settings.lora_dropout)
    for parameter in lora.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return lora


def _rereading(llm: Any) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """For activation checkpoints: what is read again in the backward pass is read as in the forward pass."""
    is_made_causal = getattr(llm.config, "is_decoder", False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        looks_ahead = is_made_causal and not llm.config.is_decoder
        return nullcontext(), both_ways(llm) if looks_ahead else nullcontext()

    return contexts


@contextmanager
def both_ways(llm: Any) -> Iterator[None]:
    """Within it a model of the BERT family that was made causal reads as the encoder that it is."""
    layers = read_both_ways(llm)
    try:
        yield
    finally:
        llm.config.is_decoder = True
        for layer in layers:
            layer.is_causal = True


def read_both_ways(llm: Any) -> list[Any]:
    """The same for good; the layers that changed."""
    layers = [layer for layer in llm.modules() if getattr(layer, "is_causal", False) is True]
    llm.config.is_decoder = False
    for layer in layers:
        layer.is_causal = False
    return layers


def logits(llm: Any, hidden_NE: Tensor) -> Tensor:
    """What the causal LM makes of last hidden states, with any scale or cap of its own: [N, V]. No backbone runs."""
    head = copy.copy(llm)
    head._modules = {**llm._modules, llm.base_model_prefix: _Given()}
    logits_NV: Tensor = head(inputs_embeds=hidden_NE[None], use_cache=False).logits[0]
    return logits_NV


class _Given(nn.Module):
    """Stands for a backbone whose last hidden states are known already."""

    @property
    def decoder(self) -> _Given:
        """OPT calls this part of its backbone."""
        return self

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


def _tie_head(llm: Any, name: str) -> None:
    """Put the word embeddings in the place of the head."""
    words = llm.get_input_embeddings().weight
    heads = [child for child, _ in llm.named_children() if child != llm.base_model_prefix]
    if len(heads) != 1 or words.shape[1] != llm.config.hidden_size:
        raise ConfigError(
            f"LLM {name!r} lacks the weights of its head, and its word embeddings cannot stand in; give another model"
        )
    head = nn.Linear(words.shape[1], words.shape[0], bias=False, device="meta")
    head.weight = words
    setattr(llm, heads[0], head)
