"""Seeded augmentations of image batches, by name: ``Augment({"rotate": 12.0, "noise": 0.05}, seed=0)(images)``.

Flips move pixels exactly. Other geometric changes are drawn as one 3x3 matrix an image and multiplied together, so that
an image is resampled once however many apply (each resampling blurs, and an 8x8 scan has little to lose). All
parameters come from a generator of our own: the global one is neither read nor moved. kornia does the warping and the
changes of brightness, contrast and sharpness, and is imported on first use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

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


def _crop(n: int, fraction: float, generator: torch.Generator) -> Tensor:
    """A window whose side is 1 - fraction to 1 of the image's, anywhere inside it."""
    side = _uniform(n, 1 - fraction, 1.0, generator)
    matrix = _identity(n)
    matrix[:, 0, 0] = matrix[:, 1, 1] = side
    matrix[:, 0, 2] = (1 - side) * _uniform(n, -1.0, 1.0, generator)
    matrix[:, 1, 2] = (1 - side) * _uniform(n, -1.0, 1.0, generator)
    return matrix


def _flipped(images: Tensor, probability: float, generator: torch.Generator, dim: int) -> Tensor:
    chosen = torch.rand(len(images), generator=generator) < probability
    return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(dim), images)


def _brightness(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    from kornia.enhance import adjust_brightness

    shift = _uniform(len(images), -strength, strength, generator)
    return adjust_brightness(images, shift, clip_output=True)


def _contrast(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    from kornia.enhance import adjust_contrast

    factor = _uniform(len(images), 1 - strength, 1 + strength, generator)
    return adjust_contrast(images, factor, clip_output=True)


def _sharpness(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    from kornia.enhance import sharpness

    if min(images.shape[-2:]) < 3:
        raise ValueError(f"images must be at least 3x3 for sharpness, got {list(images.shape)}")
    return sharpness(images, _uniform(len(images), 1 - strength, 1 + strength, generator))


def _noise(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return (images + sigma * _normal(images.shape, images, generator)).clamp(0, 1)


def _normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) in the dtype and on the device of `like`, where whole images of it are best drawn."""
    if not like.is_cpu:
        seed = int(torch.randint(2**62, (), generator=generator))
        generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, device=like.device).to(like.dtype)


def colour_axes(images: Tensor) -> Tensor:
    """``V sqrt(L)`` [C,C] of the covariance ``V L V^T`` of the channels' values over all pixels of images [B,C,H,W]:
    a column is a principal axis of their colours, as long as their standard deviation along it."""
    pixels = images.detach().float().movedim(1, 0).flatten(1)
    centred = pixels - pixels.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(centred @ centred.T / max(1, centred.shape[1]))
    return vectors * values.clamp_min(0).sqrt()


def _pca_noise(images: Tensor, sigma: float, generator: torch.Generator, axes: Tensor | None = None) -> Tensor:
    """Each image shifted by ``V sqrt(L) a``, a ~ N(0, sigma^2) for each axis (Krizhevsky, Sutskever & Hinton 2012,
    who weight axes by L itself; its root, as is usual now, keeps strengths meaningful in any unit)."""
    axes = colour_axes(images) if axes is None else axes.to(images.device)
    if len(axes) != images.shape[1]:
        raise ValueError(f"images must have {len(axes)} channels as colours has, got {list(images.shape)}")
    drawn = torch.randn(len(images), images.shape[1], generator=generator)
    shift = sigma * drawn.to(axes.device) @ axes.T
    return (images + shift.to(images.dtype)[:, :, None, None]).clamp(0, 1)


FLIPS: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "horizontal_flip": partial(_flipped, dim=-1),  # probability
    "vertical_flip": partial(_flipped, dim=-2),  # probability
}
GEOMETRIC: dict[str, Callable[[int, float, torch.Generator], Tensor]] = {
    "rotate": _rotation,  # degrees
    "translate": _translation,  # fraction of the image's side
    "scale": _scaling,  # fraction of 1, per axis
    "shear": _shear,  # slope
    "perspective": _perspective,  # change of depth across half the image
    "crop": _crop,  # fraction of the side that may be cut off; the rest fills the image
}
PIXEL: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "brightness": _brightness,  # shift of values in [0, 1]
    "contrast": _contrast,  # fraction of 1, multiplied with values
    "pca_noise": _pca_noise,  # standard deviation, in those of the colours along their principal axes
    "sharpness": _sharpness,  # fraction of 1: below it blurred, above it sharpened
    "noise": _noise,  # standard deviation
}
NAMES = (*FLIPS, *GEOMETRIC, *PIXEL)
ALIASES = {
    "flip": ("horizontal_flip",),
    "lighting": ("brightness", "contrast", "pca_noise"),
    "viewpoint": ("perspective",),
    "position": ("translate",),
}
# The largest strengths that mean something: probabilities, shares that leave something over, and of the perspective
# what keeps every point of an image before the camera.
LIMITS = {
    "horizontal_flip": 1.0, "vertical_flip": 1.0, "scale": 0.99, "crop": 0.99, "perspective": 0.49, "contrast": 1.0,
    "sharpness": 1.0,
}  # fmt: skip


def _named(strengths: Mapping[str, float]) -> dict[str, float]:
    """The strengths with aliases spelled out, all checked."""
    found: dict[str, float] = {}
    for given, strength in strengths.items():
        for name in ALIASES.get(given, (given,)):
            if name not in NAMES:
                raise ValueError(f"augmentation must be one of {', '.join((*NAMES, *ALIASES))}, got {given!r}")
            if not (math.isfinite(strength) and 0 <= strength <= LIMITS.get(name, math.inf)):
                limit = f"in [0, {LIMITS[name]:g}]" if name in LIMITS else "finite and >= 0"
                raise ValueError(f"strength of {given} must be {limit}, got {strength}")
            if name in found:
                raise ValueError(f"{name} is given twice: by its own name and by an alias, in {', '.join(strengths)}")
            found[name] = strength
    return found


class Augment:
    """Random changes to a batch, the same ones for the same seed and sequence of calls, on the batch's device.

    Args:
        strengths: name -> strength, each drawn uniformly up to it (see FLIPS, GEOMETRIC and PIXEL for units, LIMITS
            for the largest ones); applied in the order of NAMES. "flip" stands for horizontal_flip, "viewpoint" for
            perspective, "position" for translate, and "lighting" for brightness, contrast and pca_noise together.
        seed: of this object's own generator.
        colours: images [B,C,H,W], usually all those to train on, whose colours are the axes of pca_noise; None: those
            of the batch at hand. With one channel the only axis is brightness: one shift of N(0, strength^2) standard
            deviations of the pixels for each image.

    Raises:
        ValueError: an unknown name, one given twice, or a strength that is negative, not finite or too large.
    """

    def __init__(self, strengths: Mapping[str, float], seed: int, colours: Tensor | None = None) -> None:
        chosen = {name: strength for name, strength in _named(strengths).items() if strength}
        self._flips = [(FLIPS[n], chosen[n]) for n in FLIPS if n in chosen]
        self._geometric = [(GEOMETRIC[n], chosen[n]) for n in GEOMETRIC if n in chosen]
        self._pixel = [(PIXEL[n], chosen[n]) for n in PIXEL if n in chosen]
        if colours is not None and "pca_noise" in chosen:
            _check(colours, "colours")
            at = [n for n in PIXEL if n in chosen].index("pca_noise")
            self._pixel[at] = (partial(_pca_noise, axes=colour_axes(colours)), chosen["pca_noise"])
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor) -> Tensor:
        """[B,C,H,W] in [0,1] -> the same shape, changed; the argument is left alone.

        Raises:
            TypeError: images are not floating point.
            ValueError: images are not [B,C,H,W], have other channels than `colours`, or are smaller than sharpness'
                window of 3x3.
        """
        if not (self._flips or self._geometric or self._pixel):
            return images
        _check(images, "images")
        for flip, probability in self._flips:
            images = flip(images, probability, self._generator)
        if self._geometric:
            matrix = _identity(len(images))
            for draw, strength in self._geometric:
                matrix = matrix @ draw(len(images), strength, self._generator)
            images = _warp(images, matrix.to(images))
        for change, strength in self._pixel:
            images = change(images, strength, self._generator)
        return images

    def state(self) -> dict[str, Tensor]:
        """Where the generator is, for :meth:`restore`."""
        return {"generator": self._generator.get_state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on as the Augment did whose state this is."""
        self._generator.set_state(state["generator"])


def _check(images: Tensor, name: str) -> None:
    if not images.is_floating_point():
        raise TypeError(f"{name} must be floating point with values in [0, 1], got {images.dtype}")
    if images.dim() != 4:
        raise ValueError(f"{name} must be [batch, channels, height, width], got {list(images.shape)}")


def _warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Sample each image at ``matrix @ (x, y, 1)``, coordinates from -1 to 1; outside is 0."""
    from kornia.geometry.transform import homography_warp

    size = (images.shape[-2], images.shape[-1])
    return homography_warp(images, matrix, size, align_corners=False)
