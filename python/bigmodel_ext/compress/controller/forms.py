"""What may become of a layer: which kernel it runs, which share of its weights is zero, how many bits they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# kind -> the granularity it is pruned at (None: it keeps all weights)
GRANULARITY: Mapping[str, str | None] = {
    "dense": None,
    "int8": None,
    "sparse": "weight",
    "int8_sparse": "1x4",
    "semi_sparse": "2:4",
    "binary_coded": None,
}
_TOLD = {"dense": "fp32", "int8": "int8", "sparse": "sparse fp32", "int8_sparse": "1x4-sparse int8"}


@dataclass(frozen=True)
class Form:
    """One form of a layer.

    Args:
        kind: "dense", "int8", "sparse", "int8_sparse" (1x4 blocks), "semi_sparse" (2:4) or "binary_coded".
        sparsity: in [0, 1): the share of weights (or blocks) that is zero; 0.5 of semi_sparse.
        bits: of binary_coded, 1 to 8.

    Raises:
        ValueError: an argument is not one of those above.
    """

    kind: str = "dense"
    sparsity: float = 0.0
    bits: int = 0

    def __post_init__(self) -> None:
        if self.kind not in GRANULARITY:
            raise ValueError(f"kind must be one of {', '.join(GRANULARITY)}, got {self.kind!r}")
        if not 0.0 <= self.sparsity < 1.0:
            raise ValueError(f"sparsity must be in [0, 1), got {self.sparsity}")
        if (self.granularity is None) != (self.sparsity == 0.0):
            raise ValueError(f"a {self.kind} layer can't have {self.sparsity:g} of its weights pruned")
        if self.kind == "semi_sparse" and self.sparsity != 0.5:
            raise ValueError(f"a semi_sparse layer has half of its weights pruned, got {self.sparsity}")
        if (1 <= self.bits <= 8) != (self.kind == "binary_coded"):
            raise ValueError(f"bits must be 1 to 8 for binary_coded and 0 for others, got {self.bits} for {self.kind}")

    @property
    def granularity(self) -> str | None:
        return GRANULARITY[self.kind]

    def __str__(self) -> str:
        if self.kind == "binary_coded":
            return f"{self.bits}-bit binary-coded"
        if self.kind == "semi_sparse":
            return "2:4 fp32"
        share = f" {self.sparsity:.0%}" if self.sparsity else ""
        return _TOLD[self.kind] + share

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "sparsity": self.sparsity, "bits": self.bits}


DENSE = Form()
RATIOS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def forms(
    kinds: Sequence[str] = ("int8", "sparse", "int8_sparse"),
    ratios: Sequence[float] = RATIOS,
    bits: Sequence[int] = (2, 3, 4),
) -> tuple[Form, ...]:
    """Dense, and each kind with each ratio or number of bits that it can have.

    Raises:
        ValueError: an unknown kind, or a ratio or number of bits out of range.
    """
    made = [DENSE]
    for kind in kinds:
        if kind == "semi_sparse":
            made.append(Form(kind, 0.5))
        elif kind == "binary_coded":
            made += [Form(kind, bits=b) for b in bits]
        elif GRANULARITY.get(kind) is not None:
            made += [Form(kind, ratio) for ratio in ratios]
        elif kind != "dense":
            made.append(Form(kind))
    return tuple(made)
