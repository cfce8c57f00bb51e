"""Every op's schema and fake, in one place; their argument checks are in _checks/."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bigmodel_ext import _checks as checks
from bigmodel_ext._checks import require

NAMESPACE = "bigmodel_ext"

library = torch.library.Library(NAMESPACE, "DEF")


def _rows(x: Tensor, n: int, dtype: torch.dtype | None = None) -> Tensor:
    return x.new_empty((*x.shape[:-1], n), dtype=dtype)


def _wide(x: Tensor, *shape: Any) -> Tensor:
    """Of the dtype that sums of x are kept in."""
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))


def _image(x: Tensor, n: int, *window: Any) -> Tensor:
    """A convolution's output: channels last if x is (and is not also contiguous)."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    shape = checks.conv2d_shape(x, n, *window)
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=order)


def _packed(weight: Tensor, mask: Tensor | None, panel: int, sort: bool) -> tuple[Tensor, ...]:
    """How many entries are stored is not known before they are counted."""
    stored, segments = torch.library.get_ctx().new_dynamic_size(), -(-weight.shape[1] // panel) * weight.shape[0]
    index = weight.new_empty((segments + 1,), dtype=torch.int32)
    col = weight.new_empty((stored,), dtype=torch.uint8)
    return weight.new_empty((stored,)), index, col, index.new_empty((segments if sort else 0,))


_WINDOW = "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups"
_INDICES = "Tensor crow, Tensor col"

# name -> (schema, check, fake's result)
OPS: dict[str, tuple[str, Callable[..., None], Callable[..., Any]]] = {
    "quantize_rows": (
        "(Tensor x) -> (Tensor q, Tensor scale)",
        checks.check_quantize_rows,
        lambda x: (x.new_empty(x.shape, dtype=torch.int8), x.new_empty((x.shape[0],), dtype=torch.float32)),
    ),
    "int8_mm": (
        "(Tensor a, Tensor b) -> Tensor",
        checks.check_int8_mm,
        lambda a, b: _rows(a, b.shape[0], torch.int32),
    ),
    "int8_linear": (
        "(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, str activation='none', Tensor? input_scale=None)"
        " -> Tensor",
        checks.check_int8_linear,
        lambda x, weight, weight_scale, *_: _rows(x, weight_scale.shape[0]),
    ),
    "int8_weight_only_linear": (
        "(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, str activation='none') -> Tensor",
        checks.check_int8_weight_only_linear,
        lambda x, weight, weight_scale, *_: _rows(x, weight_scale.shape[0]),
    ),
    "binary_coded_linear": (
        "(Tensor x, Tensor packed, Tensor scales, Tensor? bias, SymInt out_features, int group_size,"
        " str activation='none') -> Tensor",
        checks.check_binary_coded_linear,
        lambda x, packed, scales, bias, out_features, *_: _rows(x, out_features),
    ),
    "int8_conv2d": (
        f"(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, {_WINDOW}) -> Tensor",
        checks.check_int8_conv2d,
        lambda x, weight, weight_scale, bias, *window: _image(x, weight_scale.shape[0], *window),
    ),
    "pack_panel_csr": (
        "(Tensor weight, Tensor? mask, int panel, bool sort) -> (Tensor values, Tensor crow, Tensor col, Tensor order)",
        checks.check_pack_panel_csr,
        _packed,
    ),
    "sparse_linear": (
        f"(Tensor x, Tensor values, {_INDICES}, Tensor? bias, SymInt out_features, int panel,"
        " Tensor? order=None, str activation='none') -> Tensor",
        checks.check_sparse_linear,
        lambda x, values, crow, col, bias, out_features, *_: _rows(x, out_features),
    ),
    "sparse_conv2d": (
        f"(Tensor x, Tensor values, {_INDICES}, Tensor? bias, {_WINDOW}, SymInt out_channels, int panel) -> Tensor",
        checks.check_sparse_conv2d,
        lambda x, values, crow, col, bias, *rest: _image(x, rest[-2], *rest[:-2]),
    ),
    "sparse_linear_grad_input": (
        f"(Tensor grad, Tensor values, {_INDICES}, SymInt in_features, int panel, Tensor? order=None) -> Tensor",
        checks.check_sparse_linear_grad_input,
        lambda grad, values, crow, col, in_features, panel, order=None: _rows(grad, in_features),
    ),
    "sparse_linear_grad_values": (
        f"(Tensor grad, Tensor x, {_INDICES}, int panel, Tensor? order=None) -> Tensor",
        checks.check_sparse_linear_grad_values,
        lambda grad, x, crow, col, panel, order=None: grad.new_empty(col.shape),
    ),
    "block_sparse_linear": (
        f"(Tensor x, Tensor values, {_INDICES}, Tensor? bias, SymInt out_features) -> Tensor",
        checks.check_block_sparse_linear,
        lambda x, values, crow, col, bias, out_features: _rows(x, out_features),
    ),
    "block_sparse_linear_grad_input": (
        f"(Tensor grad, Tensor values, {_INDICES}, SymInt in_features) -> Tensor",
        checks.check_block_sparse_linear_grad_input,
        lambda grad, values, crow, col, in_features: _rows(grad, in_features),
    ),
    "block_sparse_linear_grad_values": (
        f"(Tensor grad, Tensor x, {_INDICES}, int blocksize) -> Tensor",
        checks.check_block_sparse_linear_grad_values,
        lambda grad, x, crow, col, blocksize: grad.new_empty((col.shape[0], blocksize, blocksize)),
    ),
    "semi_sparse_linear": (
        "(Tensor x, Tensor values, Tensor index, Tensor? bias, SymInt out_features) -> Tensor",
        checks.check_semi_sparse_linear,
        lambda x, values, index, bias, out_features: _rows(x, out_features),
    ),
    "semi_sparse_linear_grad_input": (
        "(Tensor grad, Tensor values, Tensor index, SymInt in_features) -> Tensor",
        checks.check_semi_sparse_linear_grad_input,
        lambda grad, values, index, in_features: _rows(grad, in_features),
    ),
    "semi_sparse_linear_grad_values": (
        "(Tensor grad, Tensor x, Tensor index) -> Tensor",
        checks.check_semi_sparse_linear_grad_values,
        lambda grad, x, index: grad.new_empty((*index.shape[:2], 8, 2, 32)),
    ),
    "ising_start": (
        "(Tensor weight, Tensor factor, Tensor order, Tensor alpha, int group_size) -> Tensor",
        checks.check_ising_start,
        lambda weight, *_: weight.new_empty(weight.shape, dtype=torch.uint8),
    ),
    "ising_descend": (
        "(Tensor weight, Tensor moments, Tensor codes, Tensor alpha, int group_size, float[] temperatures,"
        " bool spins, bool scales, int seed) -> (Tensor codes, Tensor alpha)",
        checks.check_ising_descend,
        lambda weight, moments, codes, alpha, *_: (
            codes.new_empty(codes.shape),
            alpha.new_empty(alpha.shape),
        ),
    ),
    "int8_sparse_linear": (
        f"(Tensor x, Tensor values, {_INDICES}, Tensor weight_scale, Tensor row_sum, Tensor? bias, int panel,"
        " Tensor? order=None, str activation='none') -> Tensor",
        checks.check_int8_sparse_linear,
        lambda x, values, crow, col, weight_scale, *_: _rows(x, weight_scale.shape[0]),
    ),
    "int8_semi_sparse_linear": (
        "(Tensor x, Tensor values, Tensor index, Tensor weight_scale, Tensor? bias, str activation='none') -> Tensor",
        checks.check_int8_semi_sparse_linear,
        lambda x, values, index, weight_scale, *_: _rows(x, weight_scale.shape[0]),
    ),
    "dropout_seed": (
        "(Tensor x) -> Tensor",
        checks.check_dropout_seed,
        lambda x: x.new_empty((), dtype=torch.int64),
    ),
    "fused_dropout": (
        "(Tensor x, Tensor? bias, Tensor? residual, Tensor? seed, float p, str activation) -> Tensor",
        checks.check_fused_dropout,
        lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
    ),
    "fused_dropout_backward": (
        "(Tensor grad, Tensor x, Tensor? bias, Tensor? seed, float p, str activation) -> Tensor",
        checks.check_fused_dropout_backward,
        lambda grad, x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
    ),
    "fused_dropout_backward_bias": (
        "(Tensor grad, Tensor x, Tensor bias, Tensor? seed, float p, str activation) -> (Tensor dx, Tensor dbias)",
        checks.check_fused_dropout_backward,
        lambda grad, x, *_: (torch.empty_like(x, memory_format=torch.contiguous_format), _wide(x, x.shape[-1])),
    ),
    "fused_dropout_norm": (
        "(Tensor x, Tensor? bias, Tensor? residual, Tensor? seed, Tensor? weight, Tensor? norm_bias, float p,"
        " str activation, str norm, float eps) -> (Tensor y, Tensor h, Tensor mean, Tensor rstd)",
        checks.check_fused_dropout_norm,
        lambda x, bias, residual, seed, weight, norm_bias, p, activation, norm, eps: (
            *(torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2)),
            _wide(x, x.numel() // x.shape[-1] if norm == "layer" else 0),
            _wide(x, x.numel() // x.shape[-1]),
        ),
    ),
    "fused_dropout_norm_backward": (
        "(Tensor grad_y, Tensor? grad_h, Tensor h, Tensor mean, Tensor rstd, Tensor x, Tensor? bias, Tensor? seed,"
        " Tensor? weight, float p, str activation, str norm) -> (Tensor dx, Tensor dh, Tensor sums)",
        checks.check_fused_dropout_norm_backward,
        lambda grad_y, grad_h, h, mean, rstd, x, bias, *_: (
            *(torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2)),
            _wide(x, 2 if bias is None else 3, x.shape[-1]),
        ),
    ),
}

# Drawing the seed advances torch's generator: the compiler may neither drop nor repeat it.
_TAGS: dict[str, tuple[torch.Tag, ...]] = {"dropout_seed": (torch.Tag.nondeterministic_seeded,)}


def _fake(check: Callable[..., None], result: Callable[..., Any]) -> Callable[..., Any]:
    def fake(*args: Any) -> Any:
        # A call that mixes in a meta tensor ends here too, and would return memory that nobody wrote.
        devices = {a.device.type for a in args if isinstance(a, Tensor)}
        require(len(devices) == 1, lambda: f"all tensors must be on one device, got {', '.join(sorted(devices))}")
        check(*args)
        return result(*args)

    return fake


for _name, (_schema, _check, _result) in OPS.items():
    library.define(_name + _schema, tags=_TAGS.get(_name, ()))
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake(_check, _result), lib=library)
