"""The type to multiply matrices in: what the processor at hand is fast at."""

from __future__ import annotations

import torch
from torch import Tensor


def matmul_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where the device multiplies it natively (AMX, AVX512-BF16, recent GPUs), float32 elsewhere."""
    device = torch.device(device)
    if device.type == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        is_native = device.type == "cpu" and any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
    return torch.bfloat16 if is_native else torch.float32


def as_factor(x: Tensor, weight: Tensor) -> Tensor:
    """x in the type that its product with the weight is made in: autocast's where it is on, else the weight's."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype)
