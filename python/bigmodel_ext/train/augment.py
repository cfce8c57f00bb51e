"""Seeded augmentations of image batches, by name: ``Augment({"rotate": 12.0, "noise": 0.05}, seed=0)(images)``.

Geometric ones are drawn as one 3x3 matrix per image and multiplied together, so that an image is resampled once however
many apply (each resampling blurs, and an 8x8 scan has little to lose). All parameters come from a generator of our own:
the global one is neither read nor moved. kornia does the warping and the colour changes and is imported on first use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def _identity(n: int) -> Tensor:
    return torch.eye(3).repeat(n, 1, 1)


def _rotation(n: int, degrees: float, generator: torch.Generator) -> Tensor:
    angle = _uniform(n, -degrees, degrees, generator) * (math.pi / 180)
    matrix = _identity(n)
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
    matrix[:, 1, 0] = angle.sin()
    matrix[:, 0, 1] = -matrix[:, 1, 0]
    return matrix


def _translation(n: int, fraction: float, generator: torch.Generator) -> Tensor:
    matrix = _identity(n)
    matrix[:, 0, 2] = 2 * _uniform(n, -fraction, fraction, generator)  # coordinates span [-1, 1]
    matrix[:, 1, 2] = 2 * _uniform(n, -fraction, fraction, generator)
    return matrix


def _scaling(n: int, fraction: float, generator: torch.Generator) -> Tensor:
    matrix = _identity(n)
    matrix[:, 0, 0] = _uniform(n, 1 - fraction, 1 + fraction, generator)
    matrix[:, 1, 1] = _uniform(n, 1 - fraction, 1 + fraction, generator)
    return matrix


def _shear(n: int, slope: float, generator: torch.Generator) -> Tensor:
    matrix = _identity(n)
    matrix[:, 0, 1] = _uniform(n, -slope, slope, generator)
    return matrix


def _perspective(n: int, strength: float, generator: torch.Generator) -> Tensor:
    matrix = _identity(n)
    matrix[:, 2, 0] = _uniform(n, -strength, strength, generator)
    matrix[:, 2, 1] = _uniform(n, -strength, strength, generator)
    return matrix


def _brightness(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    from kornia.enhance import adjust_brightness

    shift = _uniform(len(images), -strength, strength, generator)
    return adjust_brightness(images, shift, clip_output=True)


def _contrast(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    from kornia.enhance import adjust_contrast

    factor = _uniform(len(images), 1 - strength, 1 + strength, generator)
    return adjust_contrast(images, factor, clip_output=True)


def _noise(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return (images + sigma * torch.randn(images.shape, generator=generator)).clamp(0, 1)


GEOMETRIC: dict[str, Callable[[int, float, torch.Generator], Tensor]] = {
    "rotate": _rotation,  # degrees
    "translate": _translation,  # fraction of the image's side
    "scale": _scaling,  # fraction of 1, per axis
    "shear": _shear,  # slope
    "perspective": _perspective,  # change of depth across half the image
}
PIXEL: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "brightness": _brightness,  # shift of values in [0, 1]
    "contrast": _contrast,  # fraction of 1
    "noise": _noise,  # standard deviation
}
NAMES = (*GEOMETRIC, *PIXEL)


class Augment:
    """Random changes to a batch, the same ones for the same seed and sequence of calls.

    Args:
        strengths: name -> strength, each drawn uniformly up to it (see GEOMETRIC and PIXEL for units); applied in the
            order of NAMES.
        seed: of this object's own generator.

    Raises:
        ValueError: an unknown name, or a strength that is negative or not finite.
    """

    def __init__(self, strengths: Mapping[str, float], seed: int) -> None:
        for name, strength in strengths.items():
            if name not in NAMES:
                raise ValueError(f"augmentation must be one of {', '.join(NAMES)}, got {name!r}")
            if not (math.isfinite(strength) and strength >= 0):
                raise ValueError(f"strength of {name} must be finite and >= 0, got {strength}")
        self._geometric = [(GEOMETRIC[n], strengths[n]) for n in GEOMETRIC if strengths.get(n)]
        self._pixel = [(PIXEL[n], strengths[n]) for n in PIXEL if strengths.get(n)]
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor) -> Tensor:
        """[B,C,H,W] in [0,1] -> the same shape, changed; the argument is left alone."""
        if self._geometric:
            matrix = _identity(len(images))
            for draw, strength in self._geometric:
                matrix = matrix @ draw(len(images), strength, self._generator)
            images = _warp(images, matrix)
        for change, strength in self._pixel:
            images = change(images, strength, self._generator)
        return images


def _warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Sample each image at ``matrix @ (x, y, 1)``, coordinates from -1 to 1; outside is 0."""
    from kornia.geometry.transform import homography_warp

    size = (images.shape[-2], images.shape[-1])
    return homography_warp(images, matrix, size, align_corners=False)
