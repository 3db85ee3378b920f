"""An LLM's frozen layers divided over the processes (FSDP): each holds a part, and a layer is gathered when it runs.

What is trained, and what belongs to no layer (word embeddings, head), is whole on every process. All processes must run
equally many batches, and run the same of them again in the backward pass: each gathers every layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from reeltalk.errors import ConfigError


def shard_layers(llm: Any, device: torch.device) -> None:
    """Divide the layers, in place, one at a time: of those that are on a CPU, `device` holds no more than one whole.

    Raises ConfigError where the LLM has no layers as transformers' own models have them.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    backbone = llm.base_model
    layers = [module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(f"the layers of {type(llm).__name__} cannot be divided; leave train.shard_llm off")
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    whole = {parameter for parameter in backbone.parameters() if parameter.requires_grad}
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    # without weights of its own: the layers learn from it of one another, and when a step ends
    fully_shard(backbone, mesh=mesh, ignored_params=set(backbone.parameters()))


@contextmanager
def layers_run_again(llm: Any) -> Iterator[None]:
    """Within it, in the backward pass, several layers run again before the gradient reaches the last of them.

    FSDP knows this of single layers, and would keep all of them gathered.
    """
    backbone = llm.base_model
    backbone.reset_iter_state()  # nothing is lost: no weights that are divided have gradients
    layers = [module for module in backbone.modules() if isinstance(module, FSDPModule) and module is not backbone]
    hooks = [layer.register_forward_hook(_reshard) for layer in layers]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _reshard(layer: Any, _given: Any, _result: Any) -> None:
    layer.reshard()
