"""Fitting a pruned model's layers to what they gave before: layer by layer least squares over calibration data (He et
al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks")."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext.compress.calibrate import ForwardLoop, rows_of
from bigmodel_ext.compress.prune.structured.graph import as_it_was

_DAMPING = 1e-3  # of the mean of the moments' diagonal: how strongly weights are held where data say little
Values = dict[tuple[str, str], Tensor]  # (module, tensor) -> new value
Rows = Callable[[int], list[int]]


@contextmanager
def _calibrating(model: nn.Module, backward: bool) -> Iterator[None]:
    """Eval mode; with gradients only if the loop calls backward, and those that were there are put back."""
    before = [(p, p.grad) for p in model.parameters()]
    with as_it_was(model), torch.set_grad_enabled(backward):
        model.eval()
        for parameter, _ in before:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, grad in before:
                parameter.grad = grad


@dataclass
class _Sums:
    """Over all rows: ``X^T X`` [groups, K + 1, K + 1] of the smaller layer's inputs and a constant 1, and ``X^T Y``
    [groups, K + 1, n] with the outputs wanted, float64."""

    inputs: Tensor | None = None
    both: Tensor | None = None
    rows: int = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """x [groups, M, K], y [groups, M, n]."""
        x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        inputs, both = (x.mT @ x).double().cpu(), (x.mT @ y).double().cpu()
        self.inputs = inputs if self.inputs is None else self.inputs + inputs
        self.both = both if self.both is None else self.both + both
        self.rows += x.shape[1]


def refit(
    model: nn.Module,
    smaller: nn.Module,
    forward_loop: ForwardLoop,
    layers: Mapping[str, list[int] | None],
    norm_after: Mapping[str, str],
    backward: bool = False,
) -> Values:
    """One after the other, give layers of the smaller model the weights with which their outputs are nearest to the
    model's: ``min sum |x V^T + c - y|^2``, x the layer's inputs in the smaller model as fitted so far, y its outputs in
    the model, the constant c going to the bias or to the running mean of the BatchNorm after it.

    Args:
        smaller: a copy with units taken out; it is changed.
        layers: names of nn.Linear and nn.Conv2d in the order in which they are called, with the indices of the outputs
            that the smaller model kept (None: all).
        norm_after: the BatchNorm that takes a convolution's output, by the convolution.
        backward: whether forward_loop calls backward.

    Returns:
        what was changed, by module and tensor, in the smaller model's shapes.

    Raises:
        ValueError: the loop did not call the model, or never reached one of the layers; inputs are not finite.
    """
    values: Values = {}
    for fqn, kept in layers.items():
        sums = _pass(model, smaller, forward_loop, fqn, kept, backward)
        for (owner, name), value in _solved(smaller, fqn, sums, norm_after.get(fqn)).items():
            tensor = getattr(smaller.get_submodule(owner), name)
            tensor.data.copy_(value)
            values[owner, name] = tensor.detach().clone()
    return values


def _pass(
    model: nn.Module, smaller: nn.Module, loop: ForwardLoop, fqn: str, kept: list[int] | None, backward: bool
) -> _Sums:
    sums, wanted, found = _Sums(), list[Tensor](), list[Tensor]()
    layer = smaller.get_submodule(fqn)

    def see_output(module: nn.Module, args: Any, output: Tensor) -> None:
        wanted.append(output.detach())

    def see_input(module: nn.Module, args: Any, output: Tensor) -> None:
        found.append(args[0].detach())

    def follow(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        with torch.no_grad():
            smaller(*args, **kwargs)
        for x, y in zip(found, wanted, strict=True):
            sums.add(*_rows(layer, x, y, kept))
        found.clear()
        wanted.clear()

    with _calibrating(model, backward):
        hooks = [
            layer.register_forward_hook(see_input),
            model.get_submodule(fqn).register_forward_hook(see_output),
            model.register_forward_hook(follow, with_kwargs=True),
        ]
        try:
            smaller.eval()
            loop(model)
        finally:
            for hook in hooks:
                hook.remove()
    if not sums.rows:
        raise ValueError(f"forward_loop gave {fqn} no data: it must call the model, and the model this layer")
    return sums


def _rows(layer: nn.Module, x: Tensor, y: Tensor, kept: list[int] | None) -> tuple[Tensor, Tensor]:
    """Inputs [groups, M, K] and the outputs wanted [groups, M, n] of one call."""
    rows = rows_of(layer, x)
    y = y.movedim(1, -1) if isinstance(layer, nn.Conv2d) else y
    y = y.flatten(0, -2).float()
    y = y if kept is None else y[:, kept]
    groups = rows.shape[1] if rows.dim() == 3 else 1
    rows = rows.transpose(0, 1) if rows.dim() == 3 else rows.unsqueeze(0)
    return rows, y.unflatten(1, (groups, -1)).transpose(0, 1)


def _solved(smaller: nn.Module, fqn: str, sums: _Sums, norm_name: str | None) -> Values:
    layer: Any = smaller.get_submodule(fqn)
    assert sums.inputs is not None
    assert sums.both is not None
    h, both = sums.inputs / sums.rows, sums.both / sums.rows
    if not bool(h.isfinite().all() and both.isfinite().all()):
        raise ValueError(f"the calibration data of {fqn} are not all finite")
    groups, k = h.shape[0], h.shape[1] - 1
    norm: Any = smaller.get_submodule(norm_name) if norm_name is not None else None
    if norm is not None and norm.running_mean is None:
        norm = None
    weight = layer.weight.detach().double().cpu().flatten(1).unflatten(0, (groups, -1))
    old = torch.zeros(weight.shape[0] * weight.shape[1]) if layer.bias is None else layer.bias.detach()
    old = old.double().cpu().view(groups, -1, 1)
    if layer.bias is not None or norm is not None:
        weight = torch.cat([weight, old], -1)
    else:
        h, both = h[:, :k, :k], both[:, :k]
    held = torch.diagonal(h[:, :k, :k], dim1=1, dim2=2).mean(1).clamp(min=1e-12) * _DAMPING
    damped = h.clone()
    torch.diagonal(damped[:, :k, :k], dim1=1, dim2=2).add_(held[:, None])
    change = torch.linalg.solve(damped, both - h @ weight.mT).mT
    fitted = weight + change
    values = {(fqn, "weight"): fitted[..., :k].flatten(0, 1).view(layer.weight.shape)}
    if layer.bias is not None:
        values[fqn, "bias"] = fitted[..., k].flatten()
    elif norm is not None:  # it takes the mean off: what is not there it must not take off
        values[str(norm_name), "running_mean"] = norm.running_mean.double().cpu() - fitted[..., k].flatten()
    return values
