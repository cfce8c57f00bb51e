"""What the compressed linear layers share: nn.Linear's attributes without its dense weight."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bigmodel_ext.functional import ACTIVATIONS, INT8_MAX_K
from bigmodel_ext.nn._compressed import Compressed

Layer = TypeVar("Layer", bound="CompressedLinear")


def require_linear(linear: nn.Linear, name: str = "linear") -> None:
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"{name} must be an nn.Linear, got {type(linear).__name__}")


def require_int8_exact(linear: nn.Linear) -> None:
    if linear.in_features > INT8_MAX_K:
        raise ValueError(f"in_features must be at most {INT8_MAX_K} for an exact int32 sum, got {linear.in_features}")


def pruned(weight: Tensor, mask: Tensor | None) -> Tensor:
    """weight, with 0 where mask is False."""
    if mask is None:
        return weight
    if mask.shape != weight.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool {list(weight.shape)}, got {mask.dtype} {list(mask.shape)}")
    return torch.where(mask, weight, 0.0)


class CompressedLinear(Compressed, nn.Linear):
    """An nn.Linear whose weight is stored in another form. Subclasses register their tensors after this constructor."""

    @property
    def activation(self) -> str:
        """Applied to the result: none, and settable only where the class's op has an epilogue (see Activated)."""
        return "none"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)

    @classmethod
    def _like(cls: type[Layer], linear: nn.Linear, **kwargs: Any) -> Layer:
        """An unfilled layer of linear's shape, in its mode, that takes over its bias (the same Parameter)."""
        layer = cls(linear.in_features, linear.out_features, bias=False, device=linear.weight.device, **kwargs)
        layer.bias = linear.bias
        return layer.train(linear.training)

    def to_dense(self) -> nn.Linear:
        """An nn.Linear with the stored weights, in this layer's mode; its bias is a copy.

        Raises:
            ValueError: the layer also computes an activation, which no nn.Linear does: set ``activation = "none"``
                first, and apply it after the nn.Linear.
        """
        if self.activation != "none":
            raise ValueError(f"an nn.Linear can't compute this layer's activation, {self.activation}")
        weight = self.weight.detach()
        shape = (self.in_features, self.out_features)
        linear = nn.Linear(*shape, bias=self.bias is not None, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        shape = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return shape if self.activation == "none" else f"{shape}, activation={self.activation!r}"


class Activated(CompressedLinear):
    """A layer whose op applies an activation before it rounds its result. ``activation`` may be changed at any time."""

    _activation = "none"

    @property
    def activation(self) -> str:
        """none, relu, leaky_relu (slope 0.01), gelu (exact), silu, sigmoid, tanh or softplus (beta 1)."""
        return self._activation

    @activation.setter
    def activation(self, name: str) -> None:
        if name not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
        self._activation = name
