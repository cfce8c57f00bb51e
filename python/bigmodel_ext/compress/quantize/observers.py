"""How large a layer's inputs get: from calibration data to the one scale that quantizes them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

BINS = 4096
LEVELS = 127
OBSERVERS = ("minmax", "percentile", "mse")


@dataclass
class Magnitudes:
    """A histogram of |x| over [0, BINS * width); `width` doubles when larger values come, so nothing is stored but
    counts. Zeros are counted apart: whatever the scale, they stay zero."""

    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    width: float = 0.0
    largest: float = 0.0
    seen: int = 0

    def add(self, x: Tensor) -> None:
        """Count x, of any shape and floating dtype.

        Raises:
            ValueError: x holds NaN or infinity.
        """
        magnitudes = x.detach().float().abs().flatten()
        self.seen += magnitudes.numel()
        largest = float(magnitudes.amax()) if magnitudes.numel() else 0.0
        if not math.isfinite(largest):
            raise ValueError("the calibration data hold NaN or infinity")
        if largest == 0.0:
            return
        self.largest = max(self.largest, largest)
        if self.width == 0.0:
            self.width = largest / BINS
        while largest > self.width * BINS:
            self.counts = torch.cat([self.counts.view(-1, 2).sum(1), self.counts.new_zeros(BINS // 2)])
            self.width *= 2
        bins = magnitudes[magnitudes > 0].div_(self.width).long().clamp_(max=BINS - 1)
        self.counts += torch.bincount(bins, minlength=BINS).cpu()

    def percentile(self, percent: float) -> float:
        """The magnitude that this percentage of all values (zeros included) do not exceed, to within a bin."""
        wanted = percent / 100 * self.seen - (self.seen - float(self.counts.sum()))
        at = int(torch.searchsorted(self.counts.cumsum(0), wanted)) + 1
        return min(at * self.width, self.largest)

    def least_squares(self, candidates: int = 100) -> float:
        """The clipping magnitude c (of ``largest * i / candidates``) for which rounding to ``c / 127 * {-127 ... 127}``
        has the least mean squared error, each bin taken for its middle."""
        if self.largest == 0.0:
            return 0.0
        values = (torch.arange(BINS, dtype=torch.float64) + 0.5) * self.width
        clips = self.largest * torch.arange(1, candidates + 1, dtype=torch.float64) / candidates
        scales = (clips / LEVELS)[:, None]
        rounded = (values / scales).round().clamp(max=LEVELS) * scales
        errors = ((rounded - values) ** 2 * self.counts).sum(1)
        return float(clips[errors.argmin()])


def input_scale(magnitudes: Magnitudes, observer: str, percent: float) -> float:
    """What 1 in int8 stands for: the observer's largest magnitude over 127."""
    if observer == "minmax":
        return magnitudes.largest / LEVELS
    return (magnitudes.percentile(percent) if observer == "percentile" else magnitudes.least_squares()) / LEVELS
