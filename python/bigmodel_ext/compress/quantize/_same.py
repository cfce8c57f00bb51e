"""That a change of a model's weights did not change what its layers compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext.train.loop import evaluating

Call = tuple[tuple[Any, ...], dict[str, Any]]


@contextmanager
def first_call(model: nn.Module) -> Iterator[list[Call]]:
    """The list gets the arguments of the first call of the model inside the block, if there is one."""
    calls: list[Call] = []

    def seen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not calls:
            calls.append((args, kwargs))

    hook = model.register_forward_pre_hook(seen, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def outputs_in(model: nn.Module, call: Call | None, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """By name, what each layer gives in this call of the model; nothing if there is no call."""
    found: dict[str, Tensor] = {}
    if call is None:
        return found

    def seen(layer: nn.Module, args: Any, output: Tensor) -> None:
        found[names[layer]] = output.detach().clone()

    names = {layer: fqn for fqn, layer in layers.items()}
    hooks = [layer.register_forward_hook(seen) for layer in layers.values()]
    try:
        with evaluating(model):
            model(*call[0], **call[1])
    finally:
        for hook in hooks:
            hook.remove()
    return found


def require_same(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Raises ValueError if an output differs by more than rounding does."""
    for fqn, y in before.items():
        allowed = 1000 * torch.finfo(y.dtype).eps if y.dtype is torch.float32 else 8 * torch.finfo(y.dtype).eps
        error, size = float((after[fqn].float() - y.float()).norm()), float(y.float().norm())
        if not error <= allowed * size:
            raise ValueError(f"smoothing would change what {fqn} computes (by {error / max(size, 1e-30):.1e})")
