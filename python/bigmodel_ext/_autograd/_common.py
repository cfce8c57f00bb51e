"""What the families share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bigmodel_ext._ops import NAMESPACE, library

_ops = torch.ops.bigmodel_ext


def register(name: str, setup: Any, backward: Any) -> None:
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup, lib=library)


def column_sums(grad: Tensor, bias: Tensor | None) -> Tensor | None:
    """The gradient of a bias that was added to every row."""
    if bias is None:
        return None
    rows = grad.reshape(math.prod(grad.shape[:-1]), grad.shape[-1])
    return rows.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32)).to(bias.dtype)


def before(activation: str, grad: Tensor, linear: Callable[[], Tensor]) -> Tensor:
    """The gradient of z, which `linear` computes, from that of y = act(z)."""
    return grad if activation == "none" else _ops.fused_dropout_backward(grad, linear(), None, None, 0.0, activation)
