"""What to do with a layer, as data: the config classes of quantize_ and sparsify_."""

from __future__ import annotations

from dataclasses import dataclass, field

from bigmodel_ext.formats import block_sparse
from bigmodel_ext.nn._int8_weight import require_scales


def _require_sparsity(sparsity: float | None) -> None:
    if sparsity is None:
        return
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)):
        raise TypeError(f"sparsity must be a number in [0, 1) or None, got {sparsity!r}")
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")


@dataclass(frozen=True)
class WeightConfig:
    """What all configs have. rows: M, the numbers of activation rows at which a layer is timed in its old and its new
    form; it is converted if it gets slower at none of them. (): convert without measuring."""

    rows: tuple[int, ...] = field(default=(1, 128), kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.rows, tuple) or not all(type(m) is int for m in self.rows):
            raise TypeError(f"rows must be a tuple of int, got {self.rows!r}")
        if not all(m >= 1 for m in self.rows):
            raise ValueError(f"rows must be at least 1, got {self.rows}")


@dataclass(frozen=True)
class Int8DynamicActivationInt8WeightConfig(WeightConfig):
    """:class:`nn.Int8Linear` and :class:`nn.Int8Conv2d`: int8 weights with a scale per output, activations
    quantized per row or image on the fly. weight_scales: "max", the largest weight of an output is 127; "mse", its
    squared rounding error is least."""

    weight_scales: str = "max"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_scales(self.weight_scales)


@dataclass(frozen=True)
class UnstructuredSparseWeightConfig(WeightConfig):
    """:class:`nn.SparseLinear` and :class:`nn.SparseConv2d`. sparsity in [0, 1): set this share of each layer's weights
    to zero, the smallest magnitudes first. None: keep what is zero already, in the layers that get smaller by it."""

    sparsity: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_sparsity(self.sparsity)


@dataclass(frozen=True)
class Int8BlockSparseWeightConfig(WeightConfig):
    """:class:`nn.Int8SparseLinear`: int8 weights in 1x4 blocks. sparsity in [0, 1): zero this share of each layer's
    blocks, those with the smallest sum of squares first. None: leave out the blocks that are zero already."""

    sparsity: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_sparsity(self.sparsity)


@dataclass(frozen=True)
class BlockSparseWeightConfig(WeightConfig):
    """:class:`nn.BlockSparseLinear`: square blocks of blocksize (16, 32 or 64), dense inside. sparsity in [0, 1): drop
    this share of each layer's blocks, those with the smallest sum of squares first. None: leave out the blocks that are
    zero already, in the layers that get smaller by it."""

    blocksize: int = block_sparse.BLOCKSIZE
    sparsity: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        block_sparse.require_blocksize(self.blocksize)
        _require_sparsity(self.sparsity)


@dataclass(frozen=True)
class SemiSparseWeightConfig(WeightConfig):
    """:class:`nn.SemiSparseLinear`: two of every four neighbouring weights of a row. prune: set the two of smallest
    magnitude to zero; otherwise only layers are converted whose weights are in that form already."""

    prune: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.prune, bool):
            raise TypeError(f"prune must be True or False, got {self.prune!r}")
