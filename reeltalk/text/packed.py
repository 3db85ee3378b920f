"""Linear layers for bf16 inference on a CPU, with weights laid out once in the order that its matrix unit reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reeltalk.precision import matmul_dtype


class PackedLinear(nn.Module):
    """A frozen `nn.Linear` that gives the same numbers faster: weights packed once, bias added within the product.

    `nn.Linear` on a CPU packs its weights in every call, and first copies the bias into each row of its result.
    """

    def __init__(self, linear: nn.Linear, *, rows: int) -> None:
        super().__init__()
        self.weight = linear.weight.new_empty(0)  # models ask it for type and device
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)

    def forward(self, values: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(values, self.packed, self.bias, "none", [], "")
        return product


@torch.inference_mode()
def pack_linears(model: nn.Module, *, rows: int) -> None:
    """Replace the linear layers of a frozen model where that pays: bf16 on a CPU that multiplies it natively.

    `rows` is the usual number of tokens in a batch. Subclasses of `nn.Linear` compute something else and stay.
    """
    if matmul_dtype("cpu") != torch.bfloat16 or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.dtype == torch.bfloat16 and child.weight.device.type == "cpu":
                setattr(parent, name, PackedLinear(child, rows=rows))
