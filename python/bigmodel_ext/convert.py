"""Converting a model in place: what to do with each linear layer is a config, which layers is a filter.

Both functions look at the whole model first and build every new layer before they exchange any, so if anything raises
(the filter included) the model is as it was.

A layer is left dense, and :func:`explain` says why, if it is a subclass of nn.Linear, has hooks (pruning and weight
norm by hooks included: remove them first), belongs to an nn.MultiheadAttention, or shares a parameter with another
module (tied embeddings: its conversion would untie them). A module that is used in several places is converted once,
and the same new module stands in all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from bigmodel_ext._explain import Explanation, LayerReport, explain
from bigmodel_ext._fuse import fuse_dropout_
from bigmodel_ext._surgery import Changes, Survey, nbytes
from bigmodel_ext.formats import block_sparse, two_four
from bigmodel_ext.nn import BlockSparseLinear, Int8Linear, Int8SparseLinear, SemiSparseLinear, SparseLinear
from bigmodel_ext.nn._linear import CompressedLinear

Model = TypeVar("Model", bound=nn.Module)
Filter = Callable[[nn.Module, str], bool]


def _require_sparsity(sparsity: float | None) -> None:
    if sparsity is None:
        return
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)):
        raise TypeError(f"sparsity must be a number in [0, 1) or None, got {sparsity!r}")
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")


@dataclass(frozen=True)
class Int8DynamicActivationInt8WeightConfig:
    """:class:`nn.Int8Linear`: int8 weights with a scale per output, activations quantized per row on the fly."""


@dataclass(frozen=True)
class UnstructuredSparseWeightConfig:
    """:class:`nn.SparseLinear`. sparsity in [0, 1): set this share of each layer's weights to zero, the smallest
    magnitudes first. None: keep what is zero already, in the layers that get smaller by it."""

    sparsity: float | None = None

    def __post_init__(self) -> None:
        _require_sparsity(self.sparsity)


@dataclass(frozen=True)
class Int8BlockSparseWeightConfig:
    """:class:`nn.Int8SparseLinear`: int8 weights in 1x4 blocks. sparsity in [0, 1): zero this share of each layer's
    blocks, those with the smallest sum of squares first. None: leave out the blocks that are zero already."""

    sparsity: float | None = None

    def __post_init__(self) -> None:
        _require_sparsity(self.sparsity)


@dataclass(frozen=True)
class BlockSparseWeightConfig:
    """:class:`nn.BlockSparseLinear`: square blocks of blocksize (16, 32 or 64), dense inside. sparsity in [0, 1): drop
    this share of each layer's blocks, those with the smallest sum of squares first. None: leave out the blocks that are
    zero already, in the layers that get smaller by it."""

    blocksize: int = block_sparse.BLOCKSIZE
    sparsity: float | None = None

    def __post_init__(self) -> None:
        block_sparse.require_blocksize(self.blocksize)
        _require_sparsity(self.sparsity)


@dataclass(frozen=True)
class SemiSparseWeightConfig:
    """:class:`nn.SemiSparseLinear`: two of every four neighbouring weights of a row. prune: set the two of smallest
    magnitude to zero; otherwise only layers are converted whose weights are in that form already."""

    prune: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.prune, bool):
            raise TypeError(f"prune must be True or False, got {self.prune!r}")


def _largest(score: Tensor, sparsity: float) -> Tensor:
    """bool, score's shape: all but the round(sparsity * numel) smallest (of equal ones, the first stay)."""
    keep = score.numel() - round(sparsity * score.numel())
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    mask[score.flatten().argsort(descending=True, stable=True)[:keep]] = True
    return mask.view(score.shape)


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """bool [N,K]: the weights that stay when the given share, of smallest magnitude, is set to zero."""
    return _largest(weight.detach().abs(), sparsity)


def block_mask(weight: Tensor, sparsity: float) -> Tensor:
    """bool [N,K]: the 1x4 blocks that stay when the given share, of smallest sum of squares, is set to zero."""
    k = weight.shape[1]
    blocks = nn.functional.pad(weight.detach().float(), (0, -k % 4)).view(weight.shape[0], -(-k // 4), 4)
    return _largest(blocks.square().sum(-1), sparsity).repeat_interleave(4, dim=1)[:, :k]


def square_block_mask(weight: Tensor, sparsity: float, blocksize: int) -> Tensor:
    """bool [N,K]: the square blocks that stay when the given share, of smallest sum of squares, is set to zero."""
    (n, k), s = weight.shape, blocksize
    padded = nn.functional.pad(weight.detach().float(), (0, -k % s, 0, -n % s))
    scores = padded.square().view(-(-n // s), s, -(-k // s), s).sum((1, 3))
    return _largest(scores, sparsity).repeat_interleave(s, 0).repeat_interleave(s, 1)[:n, :k]


def two_four_mask(weight: Tensor) -> Tensor:
    """bool [N,K]: of every four neighbours in a row the two of largest magnitude (of equal ones, the first)."""
    n, k = weight.shape
    # Padding comes last, behind zeros. NaN counts as the largest, so that it is not pruned silently.
    size = nn.functional.pad(weight.detach().abs().float().nan_to_num(torch.inf, torch.inf), (0, -k % 4), value=-1.0)
    a, b, c, d = size.view(n, -(-k // 4), 4).permute(2, 0, 1).contiguous()  # comparing strided numbers is slow
    ab, ac, ad, bc, bd, cd = a >= b, a >= c, a >= d, b >= c, b >= d, c >= d  # the first of equal ones wins
    # Of three comparisons with the others at least two are won.
    kept = (_two_of(ab, ac, ad), _two_of(~ab, bc, bd), _two_of(~ac, ~bc, cd), _two_of(~ad, ~bd, ~cd))
    return torch.stack(kept, -1).view(n, -1)[:, :k].contiguous()


def _two_of(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (a & b) | (a & c) | (b & c)


def _quantized(linear: nn.Linear, config: object) -> nn.Module:
    return Int8Linear.from_float(linear)


def _sparse(linear: nn.Linear, config: UnstructuredSparseWeightConfig) -> nn.Module | str:
    if config.sparsity is not None:
        return SparseLinear.from_dense(linear, magnitude_mask(linear.weight, config.sparsity))
    layer = SparseLinear.from_dense(linear)
    if nbytes(layer) >= nbytes(linear):
        return f"it would not get smaller ({layer.nnz} of {linear.weight.numel()} weights are not zero)"
    return layer


def _block_sparse(linear: nn.Linear, config: Int8BlockSparseWeightConfig) -> nn.Module:
    mask = None if config.sparsity is None else block_mask(linear.weight, config.sparsity)
    return Int8SparseLinear.from_dense(linear, mask)


def _square_blocks(linear: nn.Linear, config: BlockSparseWeightConfig) -> nn.Module | str:
    size = config.blocksize
    if config.sparsity is not None:
        mask = square_block_mask(linear.weight, config.sparsity, size)
        return BlockSparseLinear.from_dense(linear, mask, size)
    layer = BlockSparseLinear.from_dense(linear, blocksize=size)
    if nbytes(layer) >= nbytes(linear):
        blocks = -(-linear.out_features // size) * -(-linear.in_features // size)
        return f"it would not get smaller ({layer.col.shape[0]} of {blocks} blocks of {size} are not zero)"
    return layer


def _two_four(linear: nn.Linear, config: SemiSparseWeightConfig) -> nn.Module | str:
    if config.prune:
        return SemiSparseLinear.from_dense(linear, two_four_mask(linear.weight))
    problem = two_four.violation(linear.weight.detach() != 0)
    return SemiSparseLinear.from_dense(linear) if problem is None else f"its weight is not 2:4: {problem}"


_QUANTIZE: dict[type, Callable[..., nn.Module | str]] = {Int8DynamicActivationInt8WeightConfig: _quantized}
_SPARSIFY: dict[type, Callable[..., nn.Module | str]] = {
    UnstructuredSparseWeightConfig: _sparse,
    Int8BlockSparseWeightConfig: _block_sparse,
    BlockSparseWeightConfig: _square_blocks,
    SemiSparseWeightConfig: _two_four,
}


def _convert(
    model: Model, config: object, filter_fn: Filter | None, makers: dict[type, Callable[..., nn.Module | str]]
) -> Model:
    if type(config) not in makers:
        allowed = " or ".join(cls.__name__ for cls in makers)
        raise TypeError(f"config must be an instance of {allowed}, got {config!r}")
    make = makers[type(config)]
    survey = Survey(model)
    if type(model) is nn.Linear:
        raise ValueError(
            "model is itself an nn.Linear, which can't be exchanged in place: "
            "use nn.Int8Linear.from_float(model) or nn.SparseLinear.from_dense(model), or wrap it in an nn.Sequential"
        )
    changes, left = Changes(), []
    with torch.no_grad():
        for place in survey.linears():
            if filter_fn is not None and not filter_fn(place.module, place.fqn):
                continue
            refusal = survey.why_not_linear(place)
            made = refusal if refusal is not None else make(place.module, config)
            if isinstance(made, str):
                left.append(f"{place.fqn}: {made}")
            else:
                changes.replace(place, made)
    if not changes.swaps and not any(isinstance(place.module, CompressedLinear) for place in survey.linears()):
        reasons = "; ".join(left) or ("filter_fn chose none" if filter_fn else "the model has no nn.Linear")
        warnings.warn(f"no layer was converted: {reasons}", UserWarning, stacklevel=3)
    changes.apply(model)
    return model


def quantize_(model: Model, config: Int8DynamicActivationInt8WeightConfig, filter_fn: Filter | None = None) -> Model:
    """Exchange the model's linear layers, in place, for quantized ones; see the module's notes on what is left.

    Args:
        model: any module but a bare nn.Linear.
        config: Int8DynamicActivationInt8WeightConfig().
        filter_fn: filter_fn(module, fqn) -> bool chooses among the model's nn.Linear; default: all.

    Returns:
        model. A UserWarning is given if nothing was converted.

    Raises:
        TypeError: config is of another class.
        ValueError: model is itself an nn.Linear.
    """
    return _convert(model, config, filter_fn, _QUANTIZE)


def sparsify_(
    model: Model,
    config: UnstructuredSparseWeightConfig
    | Int8BlockSparseWeightConfig
    | BlockSparseWeightConfig
    | SemiSparseWeightConfig,
    filter_fn: Filter | None = None,
) -> Model:
    """Exchange the model's linear layers, in place, for sparse ones; arguments, result and errors as in
    :func:`quantize_`. What is pruned by `sparsity` is zeroed in the new layer, not in the old one."""
    return _convert(model, config, filter_fn, _SPARSIFY)


__all__ = [
    "BlockSparseWeightConfig",
    "Explanation",
    "Int8BlockSparseWeightConfig",
    "Int8DynamicActivationInt8WeightConfig",
    "LayerReport",
    "SemiSparseWeightConfig",
    "UnstructuredSparseWeightConfig",
    "block_mask",
    "explain",
    "fuse_dropout_",
    "magnitude_mask",
    "quantize_",
    "sparsify_",
    "square_block_mask",
    "two_four_mask",
]
