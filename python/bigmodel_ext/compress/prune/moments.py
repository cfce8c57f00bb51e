"""What pruning a layer must not change: moments of its inputs in the pruned model, and in the dense one beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from bigmodel_ext.compress.calibrate import ForwardLoop, observe, rows_of


class Moments:
    """Sums over rows of a layer's inputs: x as the pruned model has them, z as the dense model has them, both [M, K]
    for each group of a convolution; float64 [groups, ...]."""

    def __init__(self) -> None:
        self.rows = 0
        self.x: Tensor | float = 0.0  # [groups, K]
        self.z: Tensor | float = 0.0
        self.xx: Tensor | float = 0.0  # [groups, K, K]
        self.zx: Tensor | float = 0.0

    def add(self, x: Tensor, z: Tensor | None = None) -> None:
        """x, z: what `rows_of` gives; z is x by default."""
        x = x.transpose(0, 1) if x.dim() == 3 else x.unsqueeze(0)
        xx = (x.mT @ x).double()
        self.rows += x.shape[1]
        self.x, self.xx = self.x + x.sum(1, dtype=torch.float64), self.xx + xx
        if z is None:
            self.z, self.zx = self.x, self.xx
            return
        z = z.transpose(0, 1) if z.dim() == 3 else z.unsqueeze(0)
        if z.shape != x.shape:
            raise ValueError(f"the dense model's inputs are {list(z.shape)}, the pruned model's {list(x.shape)}")
        self.z, self.zx = self.z + z.sum(1, dtype=torch.float64), self.zx + (z.mT @ x).double()

    def means(self, fqn: str, centred: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """E[x], E[z], and E[x x^T], E[z x^T], these two less the product of the means if `centred` (else the means are
        given as 0).

        Raises:
            ValueError: there were no rows, or a moment is NaN or infinite.
        """
        if not self.rows:
            raise ValueError(f"forward_loop gave {fqn} 0 rows of data")
        # Clones, as tensors made in inference mode can't take part in what follows.
        x, z, xx, zx = (torch.as_tensor(sums).clone() / self.rows for sums in (self.x, self.z, self.xx, self.zx))
        if not bool(xx.isfinite().all() and zx.isfinite().all()):
            raise ValueError(f"the inputs of {fqn} are NaN or infinite for the data of forward_loop")
        if not centred:
            return torch.zeros_like(x), torch.zeros_like(z), xx, zx
        return x, z, xx - x[:, :, None] * x[:, None, :], zx - z[:, :, None] * x[:, None, :]


def own_moments(model: nn.Module, forward_loop: ForwardLoop, layers: Mapping[str, nn.Module]) -> dict[str, Moments]:
    """The moments of all layers' inputs in one run, in the order in which the model calls them."""
    found: dict[str, Moments] = {}
    observe(
        model, forward_loop, layers, lambda fqn, layer, x, y: found.setdefault(fqn, Moments()).add(rows_of(layer, x))
    )
    return found


def moments_beside(
    model: nn.Module, dense: nn.Module, forward_loop: ForwardLoop, fqn: str, layer: nn.Module
) -> Moments:
    """The moments of a layer's inputs in `model`, and in `dense`, which sees each batch just before.

    Raises:
        ValueError: forward_loop reached the layer otherwise than by calling the model.
    """
    found, waiting = Moments(), list[Tensor]()

    def dense_first(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        waiting.clear()
        dense(*args, **kwargs)

    def add(name: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        if not waiting:
            raise ValueError(f"forward_loop must call the model itself for match='dense', and reached {fqn} otherwise")
        found.add(rows_of(module, x), waiting.pop(0))

    twin = dense.get_submodule(fqn)
    hooks: list[Callable[[], None]] = [
        twin.register_forward_pre_hook(lambda module, args: waiting.append(rows_of(module, args[0]))).remove,
        model.register_forward_pre_hook(dense_first, with_kwargs=True).remove,
    ]
    try:
        observe(model, forward_loop, {fqn: layer}, add)
    finally:
        for remove in hooks:
            remove()
    return found
