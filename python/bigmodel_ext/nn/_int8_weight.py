"""Int8 weights: from float ones to them, and the linear layers that hold them packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bigmodel_ext import functional
from bigmodel_ext.formats import int8
from bigmodel_ext.nn._compressed import PackedInt8
from bigmodel_ext.nn._linear import Activated

SCALES = ("max", "mse")
_CLIPS = tuple(1.0 - i / 250 for i in range(1, 51))  # of a row's largest magnitude
_CHUNK = 1 << 20  # weights looked at together


def require_scales(scales: str) -> None:
    if scales not in SCALES:
        raise ValueError(f"weight_scales must be one of {', '.join(SCALES)}, got {scales!r}")


def quantized_weight(weight: Tensor, scales: str = "max") -> tuple[Tensor, Tensor]:
    """Symmetric int8 of a weight [N,K] with a scale for each output.

    "max": :func:`functional.quantize_rows`. "mse": of ``max_k |w| * c / 127``, c in {1, 0.996 ... 0.8}, the scale with
    the least ``sum_k (w - clamp(round(w / scale)) * scale)^2``: a few weights saturate where all others gain by it.

    Returns:
        q int8 [N,K] in [-127, 127], and scale float32 [N].

    Raises:
        ValueError: scales is neither.
    """
    require_scales(scales)
    weight = weight.detach()
    q, scale = functional.quantize_rows(weight)
    if scales == "mse" and weight.numel():
        step = max(1, _CHUNK // weight.shape[1])
        for part, own_q, own_scale in zip(weight.split(step), q.split(step), scale.split(step), strict=True):
            _search(part.float(), own_q, own_scale)
    return q, scale


def _search(weight: Tensor, q: Tensor, scale: Tensor) -> None:
    """Better q and scale in place of those for "max", where there are any."""
    largest = scale.clone()
    best = (q * scale[:, None] - weight).square_().sum(1)  # NaN where scale is: no candidate is below it
    for clip in _CLIPS:
        tried = largest * clip
        rounded = (weight / tried[:, None]).clamp_(-127, 127).round_()
        error = (rounded * tried[:, None] - weight).square_().sum(1)
        better = error < best
        q[better], scale[better], best[better] = rounded[better].to(torch.int8), tried[better], error[better]


class PackedInt8Linear(PackedInt8, Activated):  # type: ignore[override]
    """A linear layer that holds int8 weights [N,K], packed, with a scale per output. On `plain_devices` it holds them
    as they are written: what kernels there read. Moving the layer reorders them."""

    plain_devices: frozenset[str] = frozenset()  # kinds of devices

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = activation
        zeros = torch.zeros((out_features, in_features), dtype=torch.int8, device=device)
        self._register_packed(self._pack(zeros), out_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        if (self.packed.device.type in self.plain_devices) != (self.packed.dim() == 2):
            self.packed = self._pack(self.weight_q)
        return self

    @property
    def weight_q(self) -> Tensor:
        """int8 [N,K]; unpacked on each access, but on `plain_devices` the layer's own."""
        if self.packed.dim() == 2:
            return self.packed
        return int8.unpack(self.packed, self.out_features, self.in_features)

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        return self.out_features, self.in_features

    def _pack(self, weight_q: Tensor) -> Tensor:
        return weight_q.contiguous() if weight_q.device.type in self.plain_devices else int8.pack(weight_q)
