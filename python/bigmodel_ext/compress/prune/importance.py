"""How important each weight of a layer is: the scores that every way of pruning ranks by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from bigmodel_ext.compress.calibrate import ForwardLoop, observe, rows_of

Layers = Mapping[str, nn.Module]


def scores(
    model: nn.Module, layers: Layers, importance: str, forward_loop: ForwardLoop | None = None
) -> dict[str, Tensor]:
    """The importance of each weight, at least 0, float32 of the weight's shape. That of a unit (1x4 block, neuron,
    channel, head) is the sum over its weights.

    ==============  ====================================================================================================
    "magnitude"     ``w^2``: single weights rank as by ``|w|``, a unit by its Euclidean norm (Zhu & Gupta 2017)
    "activation"    ``mean |y_n|`` of the layer's own outputs, before whatever follows
    "apoz"          ``1 - APoZ_n``, the share of the layer's own outputs above 0: a ReLU after the layer makes the
                    others zeros, of which APoZ is the average percentage (Hu et al. 2016). GELU and SiLU, nearly 0
                    there, are judged alike; for a layer that no such function follows it means little.
    "taylor"        the mean over backward passes of ``|w * dL/dw|``: the first-order change of the loss L when w goes
                    (Molchanov et al. 2019)
    "wanda"         ``|w_nk| * rms(x_k)`` with x_k the inputs that w_nk multiplies (Sun et al. 2023; the norm there is
                    this root mean square times a constant of the layer)
    ==============  ====================================================================================================

    "activation" and "apoz" are known for outputs n only and are spread evenly over the weights of their row or channel.

    Args:
        model: in eval mode while it runs; mode, gradients and weights are as before afterwards.
        layers: the model's nn.Linear and nn.Conv2d to be scored, by name (``calibrate.layers_of``).
        forward_loop: runs the model on calibration data; for "taylor" it also calls ``loss.backward()`` for each batch,
            for "magnitude" it is not needed.

    Raises:
        ValueError: importance is not one of those above; forward_loop is needed and missing, or never reached a layer
            (or, for "taylor", its weight's gradient); a score is NaN or infinite. The message names the layers.
        TypeError: a layer is neither nn.Linear nor nn.Conv2d with a weight of its own.
    """
    require(importance, forward_loop)
    if not layers:
        raise ValueError("layers must name at least one layer, got none")
    for fqn, layer in layers.items():
        if not isinstance(layer, (nn.Linear, nn.Conv2d)) or layer._parameters.get("weight") is None:
            raise TypeError(f"{fqn} must be an nn.Linear or nn.Conv2d with a weight, got {type(layer).__name__}")
    found = IMPORTANCES[importance](model, layers, forward_loop or _nothing)
    for fqn, score in found.items():
        if not bool(score.isfinite().all()):
            bad = score.numel() - int(score.isfinite().sum())
            raise ValueError(f"{bad} of {score.numel()} {importance} scores of {fqn} are NaN or infinite")
    return found


def require(importance: str, forward_loop: ForwardLoop | None) -> None:
    """Raises ValueError: there is no such importance, or it needs calibration data."""
    if importance not in IMPORTANCES:
        raise ValueError(f"importance must be one of {', '.join(IMPORTANCES)}, got {importance!r}")
    if forward_loop is None and importance != "magnitude":
        raise ValueError(f"importance {importance!r} needs a forward_loop that runs the model on calibration data")


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().float()


def _nothing(model: nn.Module) -> None:
    """A forward_loop for an importance that needs none."""


def _magnitude(model: nn.Module, layers: Layers, forward_loop: ForwardLoop) -> dict[str, Tensor]:
    return {fqn: _weight(layer).square() for fqn, layer in layers.items()}


class _Mean:
    """The mean over all rows [M, ...] that are added, for each layer."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, fqn: str, rows: Tensor) -> None:
        self.sums[fqn] = rows.sum(0) + self.sums.get(fqn, 0.0)
        self.counts[fqn] = self.counts.get(fqn, 0) + rows.shape[0]

    def of(self, fqn: str) -> Tensor:
        if not self.counts[fqn]:
            raise ValueError(f"forward_loop gave {fqn} 0 rows of data")
        return self.sums[fqn].clone() / self.counts[fqn]  # a clone, as those made in inference mode can't be trained on


def _by_output(
    of: Callable[[Tensor], Tensor], model: nn.Module, layers: Layers, forward_loop: ForwardLoop
) -> dict[str, Tensor]:
    """The mean of a function of each output, spread over the weights that make it."""
    means = _Mean()

    def add(fqn: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        rows = y.movedim(-3, -1) if isinstance(layer, nn.Conv2d) else y
        means.add(fqn, of(rows.flatten(0, -2).float()))

    observe(model, forward_loop, layers, add)

    def spread(mean: Tensor, weight: Tensor) -> Tensor:
        return (mean / weight[0].numel()).view(-1, *[1] * (weight.dim() - 1)).expand_as(weight).clone()

    return {fqn: spread(means.of(fqn), _weight(layer)) for fqn, layer in layers.items()}


def _positive(outputs: Tensor) -> Tensor:
    return torch.where(outputs.isnan(), outputs, (outputs > 0).float())


def _wanda(model: nn.Module, layers: Layers, forward_loop: ForwardLoop) -> dict[str, Tensor]:
    means = _Mean()

    def add(fqn: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        means.add(fqn, rows_of(layer, x).square())

    observe(model, forward_loop, layers, add)

    def weighted(rms: Tensor, weight: Tensor) -> Tensor:
        by_group = weight.reshape(rms.shape[0] if rms.dim() == 2 else 1, -1, weight[0].numel())  # [groups, N/groups, K]
        return (by_group.abs() * rms.view(by_group.shape[0], 1, -1)).reshape(weight.shape)

    return {fqn: weighted(means.of(fqn).sqrt(), _weight(layer)) for fqn, layer in layers.items()}


@contextmanager
def _differentiable(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Eval mode with gradients for these weights, and no gradients kept; everything as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    grads = [(p, p.grad) for p in model.parameters()]
    wanted = {fqn: weight.requires_grad for fqn, weight in weights.items()}
    try:
        model.eval()
        for p, _ in grads:
            p.grad = None
        for weight in weights.values():
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for fqn, weight in weights.items():
            weight.requires_grad_(wanted[fqn])
        for p, grad in grads:
            p.grad = grad


def _taylor(model: nn.Module, layers: Layers, forward_loop: ForwardLoop) -> dict[str, Tensor]:
    weights = {fqn: layer.get_parameter("weight") for fqn, layer in layers.items()}
    means = _Mean()

    def seen(fqn: str, gradient: Tensor) -> None:
        means.add(fqn, (weights[fqn].detach() * gradient).abs().float().unsqueeze(0))

    with _differentiable(model, weights):
        # A leaf's hook sees each backward pass's own gradient, whether or not the loop clears those it accumulates in.
        hooks = [weight.register_hook(partial(seen, fqn)) for fqn, weight in weights.items()]
        try:
            forward_loop(model)
        finally:
            for hook in hooks:
                hook.remove()
    missed = [fqn for fqn in layers if fqn not in means.counts]
    if missed:
        raise ValueError(
            f"no gradient reached {', '.join(missed)}: for importance 'taylor' forward_loop must call backward()"
        )
    return {fqn: means.of(fqn) for fqn in layers}


IMPORTANCES: dict[str, Callable[[nn.Module, Layers, ForwardLoop], dict[str, Tensor]]] = {
    "magnitude": _magnitude,
    "activation": partial(_by_output, torch.abs),
    "apoz": partial(_by_output, _positive),
    "taylor": _taylor,
    "wanda": _wanda,
}
BY_OUTPUT = ("activation", "apoz")  # known for outputs only: all weights of a row have the same score
