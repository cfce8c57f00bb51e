"""Is a forward function the same straight line of tensor code every time it runs? Only then may it be traced once and
replaced by its trace."""

from __future__ import annotations

import dis
import inspect
import math
import operator
import types
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

_MODULES = (torch, F, nn, math, operator)


def why_not_straight(module: nn.Module) -> str | None:
    """Why module.forward must not be traced, or None: it (or a method it calls) branches or loops, reads plain
    attributes or globals (which a trace would freeze), or takes optional arguments."""
    forward = type(module).forward
    if "forward" in vars(module) or not inspect.isfunction(forward):
        return "its forward is not a plain method"
    for p in list(inspect.signature(forward).parameters.values())[1:]:
        if p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) or p.default is not p.empty:
            return f"its forward has the optional argument {p.name}"
    return _why_not(forward, module, set())


def _why_not(function: types.FunctionType, module: nn.Module, seen: set[types.CodeType]) -> str | None:
    code = function.__code__
    if code in seen:
        return None
    seen.add(code)
    if code.co_freevars or any(isinstance(c, types.CodeType) for c in code.co_consts):
        return f"{function.__qualname__} holds or is a nested function"
    for step in dis.get_instructions(code):
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            return f"{function.__qualname__} branches or loops"
        if step.opname.startswith(("STORE_ATTR", "STORE_GLOBAL", "STORE_SUBSCR", "DELETE", "IMPORT")):
            return f"{function.__qualname__} has side effects"
        if step.opname.startswith("INPLACE_") or (step.opname == "BINARY_OP" and step.argrepr.endswith("=")):
            return f"{function.__qualname__} changes a tensor in place"  # a proxy would make a new one
        if step.opname == "LOAD_GLOBAL" and step.argval not in function.__globals__:
            return f"{function.__qualname__} calls {step.argval}"
    for name in code.co_names:
        reason = _why_not_name(name, function, module, seen)
        if reason:
            return reason
    return None


def _why_not_name(name: str, function: types.FunctionType, module: nn.Module, seen: set[types.CodeType]) -> str | None:
    if name in vars(module):
        return f"{function.__qualname__} reads the attribute {name}"
    for owner in (function.__globals__, *(vars(cls) for cls in type(module).__mro__)):
        if name not in owner:
            continue
        value = owner[name]
        if isinstance(value, types.FunctionType) and not value.__module__.startswith("torch."):
            return _why_not(value, module, seen)
        if owner is vars(nn.Module) or owner is vars(object):
            return f"{function.__qualname__} uses nn.Module.{name}" if name not in ("__call__",) else None
        known = any(value is m for m in _MODULES) or str(getattr(value, "__module__", "")).startswith("torch")
        return None if known else f"{function.__qualname__} reads {name}"
    return None


def names_in_other_methods(module: nn.Module) -> set[str]:
    """Names that methods other than those `forward` reaches use: what these do with a child is not seen in a trace."""
    seen: set[types.CodeType] = set()
    _why_not(cast(types.FunctionType, type(module).forward), module, seen)
    names: set[str] = set()
    for cls in type(module).__mro__:
        if cls is nn.Module:
            break
        for value in vars(cls).values():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if isinstance(function, types.FunctionType) and function.__name__ != "__init__":
                names |= set() if function.__code__ in seen else set(function.__code__.co_names)
    return names
