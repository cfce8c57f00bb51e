"""What named submodules of any model put out (or take in), read by hooks that are gone again afterwards.

A name is a submodule's, as in ``named_modules()``; "" is the whole model. It may go on with ``:input``, for the first
argument instead of the output, and with items of it: ``attention[1]``, ``[logits]``, ``[hidden_states][3]``.
Wrappers (DataParallel, DistributedDataParallel, torch.compile) are looked through: names are the wrapped model's.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

_NAME = re.compile(r"(?P<fqn>[^\[\]:]*)(?P<input>:input)?(?P<items>(\[[^\[\]]+\])*)")


@dataclass(frozen=True)
class _Place:
    fqn: str
    input: bool
    items: tuple[int | str, ...]


def _place(name: str) -> _Place:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"a name must be like 'blocks.1', 'head:input' or 'attention[0]', got {name!r}")
    items = re.findall(r"\[([^\[\]]+)\]", match["items"])
    return _Place(match["fqn"], match["input"] is not None, tuple(int(i) if i.isdecimal() else i for i in items))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside data parallel and compiled wrappers."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            inner = model._orig_mod
            assert isinstance(inner, nn.Module)
            model = inner
        else:
            return model


def _compiled(model: nn.Module) -> bool:
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None


def find(model: nn.Module, names: Iterable[str], who: str) -> dict[str, nn.Module]:
    """The submodule of each name.

    Raises:
        ValueError: there is none; the message gives near names. Or the model is compiled as a whole: torch then may
            skip hooks within it, so only "" can be read (compile its submodules, which works).
    """
    inner = unwrapped(model)
    modules = dict(inner.named_modules(remove_duplicate=False))
    found = {}
    for name in names:
        fqn = _place(name).fqn
        if fqn not in modules:
            known = [n for n in modules if n]
            near = difflib.get_close_matches(fqn, known, n=4, cutoff=0.5) or known[:8]
            told = f"near: {', '.join(near)}" if near else "it has no submodules"
            raise ValueError(
                f"the {who} ({type(inner).__name__}) has no submodule {fqn!r} (asked for {name!r}); {told}"
            )
        if (fqn or ":input" in name) and _compiled(model):
            raise ValueError(
                f"the {who} is compiled as a whole, which hides {name!r}: compile its submodules, or use ''"
            )
        found[name] = modules[fqn]
    return found


def call(model: nn.Module, inputs: Any) -> Any:
    """``model(inputs)``; a mapping is given as keyword arguments, a tuple as several."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _copies(value: Any) -> Any:
    """Tensors as they are now: a later in-place ReLU must not reach them."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, (tuple, list)):
        return tuple(_copies(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _copies(item) for key, item in value.items()}
    return value


def read(value: Any, name: str, who: str) -> Tensor:
    """The tensor that the items in `name` choose from a module's output (or input); `logits` of what has them.

    Raises:
        ValueError: there is no such item; or it is no tensor, and the message says what it is.
    """
    for item in _place(name).items:
        try:
            value = getattr(value, item) if isinstance(item, str) and hasattr(value, item) else value[item]
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"the {who}'s {name!r} has no item [{item}] in {_told(value)}") from error
    if isinstance(value, Tensor):
        return value
    logits = value.get("logits") if isinstance(value, Mapping) else getattr(value, "logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError(f"the {who}'s {name!r} is {_told(value)}, not a tensor: choose an item, as in '{name}[0]'")
    return logits


def _told(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"a {kind} of {', '.join(map(str, value))}"
    return f"a {kind} of {len(value)}" if isinstance(value, (tuple, list)) else f"a {kind}"


def capture(model: nn.Module, names: Iterable[str], inputs: Any, who: str = "model") -> dict[str, Tensor]:
    """Call the model once; what each name stands for, with its gradient. No hook is left, whatever is raised.

    Args:
        inputs: see `call`.
        who: what messages call the model.

    Raises:
        ValueError: a name is not found or has no such item, is no tensor, or was called never or more than once.
    """
    return capture_with(model, names, partial(call, model, inputs), who)


def capture_with(model: nn.Module, names: Iterable[str], run: Any, who: str = "model") -> dict[str, Tensor]:
    """As `capture`, where run() calls the model and returns its output."""
    names = tuple(dict.fromkeys(names))
    seen: dict[str, list[Any]] = {name: [] for name in names}

    def after(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen[name].append(_copies(output))

    def before(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = args if args else tuple(kwargs.values())
        seen[name].append(_copies(given[0]) if given else None)

    with contextlib.ExitStack() as hooks:
        for name, module in find(model, names, who).items():
            if ":input" in name:
                handle = module.register_forward_pre_hook(partial(before, name), with_kwargs=True)
            elif _place(name).fqn:
                handle = module.register_forward_hook(partial(after, name), with_kwargs=True)
            else:
                continue
            hooks.callback(handle.remove)
        output = run()
    for name in names:
        if not (_place(name).fqn or ":input" in name):
            seen[name].append(output)
        if len(seen[name]) != 1:
            raise ValueError(f"the {who}'s {name!r} must be called once in a forward pass, got {len(seen[name])} calls")
    return {name: read(seen[name][0], name, who) for name in names}
