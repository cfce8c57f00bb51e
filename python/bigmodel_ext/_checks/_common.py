"""What every family's checks ask of a tensor; the errors name the argument, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = ("none", "relu", "leaky_relu", "gelu", "silu", "sigmoid", "tanh", "softplus")


def require(condition: bool, message: Callable[[], str]) -> None:
    if not condition:
        raise ValueError(message())


def require_dtype(name: str, x: Tensor, *allowed: torch.dtype) -> None:
    if x.dtype not in allowed:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in allowed)
        raise TypeError(f"{name} must be {wanted}, got {str(x.dtype).removeprefix('torch.')}")


def require_shape(name: str, x: Tensor, *shape: int) -> None:
    require(tuple(x.shape) == shape, lambda: f"{name} must have shape {list(shape)}, got {list(x.shape)}")


def require_matrix(name: str, x: Tensor) -> None:
    require(x.dim() == 2, lambda: f"{name} must have 2 dimensions, got shape {list(x.shape)}")


def require_features(x: Tensor) -> None:
    require(x.dim() >= 1, lambda: f"x must have at least 1 dimension, got shape {list(x.shape)}")


def require_bias(bias: Tensor | None, n: int) -> None:
    if bias is not None:
        require_dtype("bias", bias, *FLOATS, torch.float64)
        require_shape("bias", bias, n)


def require_activation(activation: str) -> None:
    require(activation in ACTIVATIONS, lambda: f"activation must be one of {ACTIVATIONS}, got {activation!r}")


def require_values(values: Tensor, x: Tensor) -> None:
    require_dtype("values", values, *dict.fromkeys((torch.float32, x.dtype)))


def require_pair(grad: Tensor, x: Tensor) -> None:
    """The gradient of the output and the input that it came from."""
    require_dtype("grad", grad, *FLOATS, torch.float64)
    require_dtype("x", x, grad.dtype)
    require_features(x)
    require_shape("grad", grad, *x.shape[:-1], grad.shape[-1])
