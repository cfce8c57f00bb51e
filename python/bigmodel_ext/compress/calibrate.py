"""What a model's layers see while calibration data run through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from bigmodel_ext.nn._compressed import Compressed
from bigmodel_ext.train.loop import evaluating

ForwardLoop = Callable[[nn.Module], Any]  # runs the model on calibration data: lambda m: [m(x) for x in batches]
Observer = Callable[[str, nn.Module, Tensor, Tensor], None]  # (fqn, layer, its input, its output)


def already_converted(model: nn.Module) -> str:
    """For the end of an error message: which layers have no float weights any more; "" if none."""
    found = [f"{fqn} ({type(m).__name__})" for fqn, m in model.named_modules() if isinstance(m, Compressed)]
    if not found:
        return ""
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f": {', '.join(found[:3])}{more} are converted already, and have no float weights left"


def is_one_of(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """It is of exactly one of these classes, or one of them that rounds like its int8 form (``quantize.prepare``)."""
    return type(module) in kinds or (getattr(type(module), "_bigmodel_simulated", False) and isinstance(module, kinds))


def layers_of(
    model: nn.Module,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d),
) -> dict[str, nn.Module]:
    """The model's layers of exactly these classes (see `is_one_of`) by name, those that filter_fn(module, fqn) chooses.

    Raises:
        ValueError: there are none.
    """
    found = {
        fqn: module
        for fqn, module in model.named_modules()
        if is_one_of(module, kinds) and (filter_fn is None or filter_fn(module, fqn))
    }
    if not found:
        names = " or ".join(f"nn.{kind.__name__}" for kind in kinds)
        none = f"filter_fn chose none of the model's {names}" if filter_fn else f"the model has no {names}"
        raise ValueError(none + already_converted(model))
    return found


def observe(model: nn.Module, forward_loop: ForwardLoop, layers: Mapping[str, nn.Module], observer: Observer) -> None:
    """Call forward_loop(model) in eval mode and without gradients, and observer(fqn, layer, input, output) at each call
    of one of the layers. The model's mode is restored and nothing stays on it, whatever is raised.

    Raises:
        ValueError: the loop never reached some of the layers, or a layer is called with its input by keyword; the
            message names them.
    """
    reached: set[str] = set()

    def seen(fqn: str, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        reached.add(fqn)
        if not args:  # a converted layer's argument may have another name
            raise ValueError(f"{fqn} is called with its input by keyword: it must be the first positional argument")
        observer(fqn, layer, args[0].detach(), output.detach())

    hooks = [layer.register_forward_hook(partial(seen, fqn)) for fqn, layer in layers.items()]
    try:
        with evaluating(model):
            forward_loop(model)
    finally:
        for hook in hooks:
            hook.remove()
    missed = [fqn for fqn in layers if fqn not in reached]
    if missed:
        raise ValueError(f"forward_loop never reached {', '.join(missed)}: nothing is known of their inputs")


def rows_of(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer's input as float32 rows [M, K], K the columns of ``layer.weight.flatten(1)``: the patches of a
    convolution of one group, [M, groups, K] of one with several."""
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros":
            raise ValueError(f"padding must be zeros, got padding_mode {layer.padding_mode!r}")
        images, padding = (x if x.dim() == 4 else x[None]).float(), layer.padding
        if isinstance(padding, str):  # "same" may pad one side more than the other
            images, padding = nn.functional.pad(images, layer._reversed_padding_repeated_twice), (0, 0)
        window = (layer.kernel_size, layer.dilation, padding, layer.stride)
        patches = nn.functional.unfold(images, *window).transpose(1, 2).flatten(0, 1)
        return patches if layer.groups == 1 else patches.unflatten(1, (layer.groups, -1))
    return x.float().flatten(0, -2)


def second_moments(model: nn.Module, forward_loop: ForwardLoop, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """``H = X^T X / M`` of each layer's input rows X [M, K] (see `rows_of`), float32 [K, K], or [groups, K, K].

    ``||X (W - V)^T||^2 / M = trace((W - V) H (W - V)^T)``: what changing a layer's weights does to its output.
    """
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def add(fqn: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        rows = rows_of(layer, x)
        rows = rows.transpose(0, 1) if rows.dim() == 3 else rows
        product = rows.mT @ rows
        sums[fqn] = sums[fqn] + product if fqn in sums else product
        counts[fqn] += rows.shape[-2]

    observe(model, forward_loop, layers, add)
    return {fqn: (total / counts[fqn]).clone() for fqn, total in sums.items()}
