"""BinaryCodedLinear: a weight of a few bits, as sign planes with scales per group of inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigmodel_ext import functional
from bigmodel_ext.formats import binary_coded, binary_coded_fit
from bigmodel_ext.formats.binary_coded import binary_words, require_binary_code
from bigmodel_ext.nn._compressed import Repacked
from bigmodel_ext.nn._linear import Activated, require_int8_exact, require_linear

BITS, GROUP_SIZE = 3, 128


class BinaryCodedLinear(Repacked, Activated):
    """``y = act(x W^T + bias)`` with ``W[n,k] = sum_b alpha[n, k // group_size, b] * s[n,b,k]``, s in {-1, +1}, on
    activations quantized per row to int8 (see :func:`functional.binary_coded_linear`).

    Resident are buffers in the kernel's order: ``packed`` (a bit per weight and plane) and ``scales`` float16 (16 /
    group_size more). The state dict is independent of it: ``signs`` uint8 [N, bits, ceil(K/8)], ``alpha`` float16
    [N, ceil(K/group_size), bits] (see ``formats.binary_coded``) and ``bias`` [N].
    Casts (``.to(torch.bfloat16)``, ``.half()``) change the bias only. The bias and the input get gradients; so do the
    scales after ``layer.scales.requires_grad_()``, to be given to an optimizer by hand.

    x: [..., K] float32, bfloat16 or float16; the result is [..., N] in x's dtype, under autocast too.

    Raises:
        ValueError: bits is not in [1, 8], or group_size is not a positive multiple of 8.
    """

    float_buffers = ("scales",)
    written = ("signs", "alpha")
    packed: Tensor
    scales: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bits: int = BITS,
        group_size: int = GROUP_SIZE,
        activation: str = "none",
    ) -> None:
        require_binary_code(bits, group_size)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.bits, self.group_size, self.activation = bits, group_size, activation
        panels, groups = -(-out_features // 64), -(-in_features // group_size)
        words = binary_words(in_features, group_size)
        packed = torch.zeros((panels, words, bits, 64, 2), dtype=torch.uint8, device=device)
        scales = torch.zeros((panels, groups, bits, 64), dtype=torch.float16, device=device)
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    @classmethod
    def from_codes(
        cls, linear: nn.Linear, spins: Tensor, alpha: Tensor, group_size: int | None = None
    ) -> BinaryCodedLinear:
        """Take given codes for linear's weight. linear is not changed; its bias is shared.

        Args:
            spins: int8 [N, bits, K] of -1 and +1.
            alpha: [N, G, bits], rounded to float16.
            group_size: needed only where G and K leave it open.

        Raises:
            TypeError: linear is not an nn.Linear, or spins not int8, or alpha not of a floating dtype.
            ValueError: shapes do not match, a spin is not -1 or +1, group_size can't be told, an alpha exceeds
                float16's range, or in_features exceeds 131071.
        """
        require_linear(linear)
        require_int8_exact(linear)
        n, k = linear.out_features, linear.in_features
        if not alpha.is_floating_point():
            raise TypeError(f"alpha must have a floating dtype, got {alpha.dtype}")
        if spins.dim() != 3 or alpha.dim() != 3 or tuple(spins.shape[::2]) != (n, k):
            got = f"{list(spins.shape)} and {list(alpha.shape)}"
            raise ValueError(f"spins must be [{n}, bits, {k}] and alpha [{n}, G, bits], got {got}")
        size = _group_size(k, alpha.shape[1]) if group_size is None else group_size
        layer: BinaryCodedLinear = cls._like(linear, bits=spins.shape[1], group_size=size)
        codes = binary_coded.pack(spins.to(linear.weight.device))
        half = alpha.detach().to(linear.weight.device, torch.float16)
        if bool((half.isinf() & alpha.to(half.device).isfinite()).any()):
            raise ValueError(f"alpha must be within float16's range, got {alpha.abs().max().item()}")
        problem = layer._problem(codes, half)
        if problem:
            raise ValueError(problem)
        layer._take(codes, half, assign=True)
        return layer

    @classmethod
    def from_float(
        cls, linear: nn.Linear, bits: int = BITS, group_size: int = GROUP_SIZE, iterations: int = 10
    ) -> BinaryCodedLinear:
        """Code the weight without data, greedily and then by alternating least squares (``formats.binary_coded_fit``,
        after Xu et al. 2018). A group with NaN or infinity yields NaN outputs. linear is not changed; its bias is
        shared.

        Raises:
            TypeError: linear is not an nn.Linear.
            ValueError: bits, group_size or in_features is out of range, or a weight exceeds float16's.
        """
        require_linear(linear)
        spins, alpha = binary_coded_fit.fit(linear.weight, bits, group_size, iterations)
        return cls.from_codes(linear, spins, alpha, group_size)

    @property
    def signs(self) -> Tensor:
        """uint8 [N, bits, ceil(K/8)], unpacked on each access."""
        return binary_coded.from_panels(self.packed, self.out_features, self.in_features, self.group_size)

    @property
    def alpha(self) -> Tensor:
        """float16 [N, ceil(K/group_size), bits], a copy made on each access."""
        return binary_coded.scales_from_panels(self.scales, self.out_features)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The decoded weight, computed on each access; read-only. In the bias's dtype, else float32."""
        weight = binary_coded.decode(self.signs, self.alpha, self.in_features, self.group_size)
        return weight.to(self.float_dtype)

    def reset_parameters(self) -> None:
        """Zero the scales and the bias; the signs stay."""
        with torch.no_grad():
            for tensor in (self.scales, *self.parameters()):
                tensor.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return functional.binary_coded_linear(
            x,
            self.packed,
            self.scales,
            self.bias,
            out_features=self.out_features,
            group_size=self.group_size,
            activation=self._activation,
            in_features=self.in_features,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}, group_size={self.group_size}"

    def _problem(self, *tensors: Tensor) -> str:
        n, k = self.out_features, self.in_features
        shapes = ((n, self.bits, -(-k // 8)), (n, -(-k // self.group_size), self.bits))
        for name, tensor, dtype, shape in zip(self.written, tensors, (torch.uint8, torch.float16), shapes, strict=True):
            cast = name == "alpha" and tensor.is_floating_point()  # a state dict that was cast as a whole
            if (tensor.dtype != dtype and not cast) or tuple(tensor.shape) != shape:
                return f"{name} must be {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}"
        return ""

    def _take(self, *tensors: Tensor, assign: bool) -> None:
        signs, alpha = tensors
        packed = binary_coded.to_panels(signs, self.in_features, self.group_size)
        scales = binary_coded.scales_to_panels(alpha.detach().to(torch.float16))
        if assign:
            self.packed, self.scales = packed, scales
        else:
            with torch.no_grad():
                self.packed.copy_(packed)
                self.scales.copy_(scales)


def _group_size(k: int, groups: int) -> int:
    """The multiple of 8 that cuts K inputs into so many groups.

    Raises:
        ValueError: none does, or several do.
    """
    if groups == 1:
        return -(-k // 8) * 8
    sizes = [size for size in range(8, k + 8, 8) if -(-k // size) == groups]
    even = [size for size in sizes if size * groups == k]
    if len(even) != 1 and len(sizes) != 1:
        raise ValueError(f"group_size must be given: {groups} groups of {k} inputs may be of {sizes or 'no size'}")
    return (even or sizes)[0]
