"""FusedDropoutNorm: FusedDropout and the normalisation after it in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigmodel_ext import functional
from bigmodel_ext.functional import ACTIVATIONS, NORMS


class FusedDropoutNorm(nn.Module):
    """``h = residual + dropout(act(x + bias))`` and ``y = norm(h) * weight + norm_bias`` (see
    :func:`functional.fused_dropout_norm`); in eval mode nothing is dropped.

    Args:
        num_features: length of x's last dimension, over which h is normalised; at least 1.
        p: probability of dropping an element, in [0, 1].
        activation: none, relu, leaky_relu, gelu, silu, sigmoid, tanh or softplus.
        norm: "layer" (as nn.LayerNorm) or "rms" (as nn.RMSNorm).
        eps: added under the root; None: the epsilon of float32 (of float64 for float64), as nn.RMSNorm has it.
        bias: whether to have a ``bias`` Parameter (zeros) that is added to x.
        weight, norm_bias: whether to have these Parameters (ones; zeros).

    forward(x, residual=None) -> (y, h), both like x: [..., num_features], residual of x's shape and dtype.

    Raises:
        ValueError: p, activation, norm, eps or num_features is not one of those above.
    """

    bias: nn.Parameter | None
    weight: nn.Parameter | None
    norm_bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        p: float = 0.5,
        activation: str = "none",
        norm: str = "layer",
        eps: float | None = 1e-5,
        bias: bool = False,
        weight: bool = True,
        norm_bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for condition, message in (
            (num_features >= 1, f"num_features must be at least 1, got {num_features}"),
            (0.0 <= p <= 1.0, f"p must be in [0, 1], got {p}"),
            (activation in ACTIVATIONS, f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}"),
            (norm in NORMS, f"norm must be one of {', '.join(NORMS)}, got {norm!r}"),
            (eps is None or eps >= 0.0, f"eps must not be negative, got {eps}"),
        ):
            if not condition:
                raise ValueError(message)
        self.num_features, self.p, self.activation, self.norm, self.eps = num_features, p, activation, norm, eps
        for name, wanted, start in (("bias", bias, 0.0), ("weight", weight, 1.0), ("norm_bias", norm_bias, 0.0)):
            values = torch.full((num_features,), start, device=device, dtype=dtype) if wanted else None
            self.register_parameter(name, None if values is None else nn.Parameter(values))

    @classmethod
    def from_norm(
        cls, norm: nn.LayerNorm | nn.RMSNorm, p: float = 0.5, activation: str = "none", bias: nn.Parameter | None = None
    ) -> FusedDropoutNorm:
        """A layer that ends in `norm`, with its Parameters themselves, its eps and its mode; `bias` is added to x.

        Raises:
            TypeError: norm is not an nn.LayerNorm or nn.RMSNorm.
            ValueError: norm normalises over more than the last dimension, or as the constructor says.
        """
        if not isinstance(norm, (nn.LayerNorm, nn.RMSNorm)):
            raise TypeError(f"norm must be an nn.LayerNorm or nn.RMSNorm, got {type(norm).__name__}")
        if len(norm.normalized_shape) != 1:
            raise ValueError(f"norm must normalise the last dimension only, got {list(norm.normalized_shape)}")
        kind = "layer" if isinstance(norm, nn.LayerNorm) else "rms"
        layer = cls(norm.normalized_shape[0], p, activation, kind, norm.eps, False, False, False)
        layer.weight, layer.norm_bias, layer.bias = norm.weight, getattr(norm, "bias", None), bias
        return layer.train(norm.training)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        eps = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps if self.eps is None else self.eps
        return functional.fused_dropout_norm(
            x, self.p, self.training, self.bias, self.activation, residual, self.weight, self.norm_bias, self.norm, eps
        )

    def extra_repr(self) -> str:
        held = ", ".join(name for name in ("bias", "weight", "norm_bias") if getattr(self, name) is not None)
        settings = f"p={self.p}, activation={self.activation!r}, norm={self.norm!r}, eps={self.eps}"
        return f"{self.num_features}, {settings}" + (f", {held}" if held else "")
