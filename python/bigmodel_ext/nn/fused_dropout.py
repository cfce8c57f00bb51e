"""FusedDropout: bias, activation, dropout and residual in one pass, with no mask stored."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigmodel_ext import functional
from bigmodel_ext.functional import ACTIVATIONS


class FusedDropout(nn.Dropout):
    """``residual + dropout(act(x + bias))`` (see :func:`functional.fused_dropout`); in eval mode nothing is dropped.

    Args:
        p: probability of dropping an element, in [0, 1].
        activation: none, relu, leaky_relu, gelu, silu, sigmoid, tanh or softplus.
        num_features: length of a ``bias`` Parameter (zeros) that is added to x's last dimension; None: no bias.

    forward(x, residual=None): x of any shape; a residual of another shape or dtype than x, or a number, is added by
    torch, with its broadcasting and promotion. ``inplace`` is always False: the input is never written.

    Raises:
        ValueError: p or activation is not one of those above, or num_features is negative.
    """

    def __init__(
        self,
        p: float = 0.5,
        activation: str = "none",
        num_features: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(p)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if num_features is not None and num_features < 0:
            raise ValueError(f"num_features must not be negative, got {num_features}")
        self.activation = activation
        if num_features is None:
            self.register_parameter("bias", None)
        else:
            self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))

    def forward(self, x: Tensor, residual: Tensor | float | None = None) -> Tensor:
        fits = isinstance(residual, Tensor) and residual.shape == x.shape and residual.dtype == x.dtype
        fused = residual if fits and isinstance(residual, Tensor) else None
        if self.training or self.activation != "none" or self.bias is not None:
            x = functional.fused_dropout(x, self.p, self.training, self.bias, self.activation, fused)
        elif fused is not None:
            x = x + fused
        return x if residual is None or fits else x + residual

    def extra_repr(self) -> str:
        bias = "" if self.bias is None else f", num_features={self.bias.shape[0]}"
        return f"p={self.p}, activation={self.activation!r}{bias}"


class Absorbed(nn.Identity):
    """Stands where an activation was that a FusedDropout after it now computes."""
