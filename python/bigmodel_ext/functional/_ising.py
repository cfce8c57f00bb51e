"""Weights as spins: the search for the codes and scales of least energy."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bigmodel_ext.functional._registered import call, ops

_ising_start = ops.ising_start.default
_ising_descend = ops.ising_descend.default


def ising_decode(codes: Tensor, alpha: Tensor, group_size: int) -> Tensor:
    """The weights that codes stand for: ``v[n, k] = sum_b alpha[n, k // group_size, b] * s_b``, s_b = +1 where bit b of
    ``codes[n, k]`` is set and else -1.

    Args:
        codes: uint8 [N,K], below 2^bits.
        alpha: float16 [N, ceil(K / group_size), bits].

    Returns:
        float32 [N,K].
    """
    value = codes.new_zeros(codes.shape, dtype=alpha.float().dtype)
    for b in range(alpha.shape[2]):
        scale = alpha[..., b].float().repeat_interleave(group_size, 1)[:, : codes.shape[1]]
        value += scale.where((codes >> b & 1).bool(), -scale)
    return value


def ising_start(weight: Tensor, factor: Tensor, order: Tensor, alpha: Tensor, *, group_size: int) -> Tensor:
    """Codes for given scales, chosen one input after the other, each making up for the errors made so far.

    With H in the order of the inputs that `order` says, ``H[order][:, order] = L D L^T``, the energy
    ``E = (v - w)^T H (v - w)`` of a row is ``sum_k D_k (d_k + sum_{j > k} L_jk d_j)^2``, d = v - w by place: from the
    last place to the first, each takes the level that makes its own term smallest (Babai's nearest plane; GPTQ,
    Frantar et al. 2022, is the same with a uniform grid and the order reversed).

    Args:
        weight: float32 [N,K].
        factor: L, float32 [K,K], lower triangular with ones on the diagonal.
        order: int64 [K]: the input at each place.
        alpha: float16 [N, ceil(K / group_size), bits], bits in 1..4.

    Returns:
        codes uint8 [N,K]; see :func:`ising_decode`.

    Raises:
        TypeError, ValueError: dtypes or shapes are not those above, or factor has no positive diagonal.
    """
    codes: Tensor = call(_ising_start, weight, factor, order, alpha, group_size)
    return codes


def ising_descend(
    weight: Tensor,
    moments: Tensor,
    codes: Tensor,
    alpha: Tensor,
    *,
    group_size: int,
    temperatures: Sequence[float] = (0.0,),
    spins: bool = True,
    scales: bool = True,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Better codes and scales: one sweep over all weights for each temperature, of each row by itself.

    At temperature 0 each weight in turn takes the level that lowers ``E = (v - w)^T H (v - w)`` most, the others kept
    (coordinate descent): E never rises. At t > 0 it is offered one other level, drawn at random, and takes it if E
    rises by less than ``-ln(u) t E_0 / K``, u uniform, E_0 the row's energy at the call (Metropolis; Kirkpatrick et
    al., "Optimization by simulated annealing", 1983). The scales of each group are then set by least squares, rounded
    to float16, where that lowers E. Without heat to come, rows that gain less than a thousandth in a sweep may end.

    Args:
        weight: float32 [N,K].
        moments: H, float32 [K,K], symmetric, positive definite (``X^T X / M`` and some of the identity).
        codes: uint8 [N,K]; see :func:`ising_decode`.
        alpha: float16 [N, ceil(K / group_size), bits], bits in 1..4.
        spins, scales: which of the two may change.
        seed: of the draws; row n, input k and the sweep's number say which are used.

    Returns:
        codes and alpha, new tensors; on the CPU the same for any number of threads and any instruction set.

    Raises:
        TypeError, ValueError: dtypes or shapes are not those above, a temperature is negative or not finite, a code is
            2^bits or more, or moments has no positive diagonal.
    """
    found: tuple[Tensor, Tensor] = call(
        _ising_descend, weight, moments, codes, alpha, group_size, list(temperatures), spins, scales, seed
    )
    return found
