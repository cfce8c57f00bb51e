"""Int8Linear: one byte per weight, activations quantized per row on the fly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext import functional
from bigmodel_ext.formats import int8
from bigmodel_ext.nn._linear import CompressedLinear, require_int8_exact, require_linear


class Int8Linear(CompressedLinear):
    """``y = (q(x) @ weight_q.T) * scale(x) * weight_scale + bias`` (see :func:`functional.int8_linear`).

    Resident are the packed weights (about one byte each), ``weight_scale`` float32 [N] and ``bias``. The state dict is
    independent of the packing: ``weight_q`` int8 [N,K], ``weight_scale`` float32 [N], ``bias`` [N].
    Casts (``.to(torch.bfloat16)``, ``.half()``) change the bias only. The bias and the input get gradients.

    x: [..., K] float32, bfloat16 or float16; the result is [..., N] in x's dtype, under autocast too.
    """

    float_buffers = ("weight_scale",)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        zeros = torch.zeros((out_features, in_features), dtype=torch.int8, device=device)
        self.packed: Tensor
        self.weight_scale: Tensor
        self.register_buffer("packed", int8.pack(zeros), persistent=False)
        self.register_buffer("weight_scale", torch.zeros(out_features, dtype=torch.float32, device=device))

    @classmethod
    def from_float(cls, linear: nn.Linear) -> Int8Linear:
        """Quantize per output: ``weight_scale = max_k |w| / 127``, ``weight_q = round_half_even(w * 127 / max_k |w|)``.
        A row with NaN or infinity yields NaN outputs (see :func:`functional.quantize_rows`). linear is not changed; its
        bias is shared.

        Raises:
            TypeError: linear is not an nn.Linear, or its weight not float32, bfloat16 or float16.
            ValueError: in_features exceeds 131071.
        """
        require_linear(linear)
        require_int8_exact(linear)
        layer: Int8Linear = cls._like(linear)
        q, scale = functional.quantize_rows(linear.weight.detach())
        layer.packed, layer.weight_scale = int8.pack(q), scale
        return layer

    @property
    def weight_q(self) -> Tensor:
        """int8 [N,K], unpacked on each access."""
        return int8.unpack(self.packed, self.out_features, self.in_features)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """weight_q * weight_scale, computed on each access; read-only. In the bias's dtype, else float32."""
        return (self.weight_q.float() * self.weight_scale[:, None]).to(self.float_dtype)

    def reset_parameters(self) -> None:
        with torch.no_grad():
            for tensor in (self.packed, self.weight_scale, *self.parameters()):
                tensor.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return functional.int8_linear(x, self.packed, self.weight_scale, self.bias)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight_q"] = self.weight_q

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._keep_float32()
        key = prefix + "weight_q"
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        if key not in state_dict:
            missing_keys.append(key)
            return
        weight_q, shape = state_dict[key], (self.out_features, self.in_features)
        if weight_q.dtype != torch.int8 or tuple(weight_q.shape) != shape:
            got = f"{weight_q.dtype} {list(weight_q.shape)}"
            error_msgs.append(f"{key} must be torch.int8 {list(shape)}, got {got}")
        elif local_metadata.get("assign_to_params_buffers", False):
            self.packed = int8.pack(weight_q)
        else:
            self.packed.copy_(int8.pack(weight_q))
