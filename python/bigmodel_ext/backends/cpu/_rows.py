"""The output of a linear layer."""

from __future__ import annotations

from torch import Tensor


def output_rows(x: Tensor, n: int, n_name: str = "out_features") -> Tensor:
    if n < 0:
        raise ValueError(f"{n_name} must not be negative, got {n}")
    if x.dim() == 0:
        raise ValueError("x must have at least 1 dimension, got a 0-d tensor")
    return x.new_empty((*x.shape[:-1], n))
