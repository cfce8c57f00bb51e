"""torch.ops.bigmodel_ext with every backend registered, and the shortest way to call one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from bigmodel_ext import _autograd, _dispatch  # noqa: F401  (registers gradients)
from bigmodel_ext.backends import cpu, cuda, triton  # noqa: F401  (in the order in which they are tried)

ops = torch.ops.bigmodel_ext

_compiling = torch.compiler.is_dynamo_compiling
_grad = torch.is_grad_enabled
_modes = torch._C._len_torch_dispatch_stack  # fake tensors, make_fx, opcheck, flop counters
_transform = torch._C._functorch.peek_interpreter_stack  # vmap, grad, functionalize
_tracing = torch._C._is_tracing  # torch.jit.trace
_profiling = torch._C._autograd._profiler_enabled
_PLAIN = frozenset({Tensor, Parameter, type(None), int, float, str, list})


def require_features(x: Tensor, in_features: int) -> None:
    """The ops know K only rounded up to their tiles: a wrong one within them would count as zeros."""
    if x.shape[-1:] != (in_features,):
        raise ValueError(f"x must have {in_features} features in its last dimension, got shape {list(x.shape)}")


def call(op: Any, *args: Any) -> Any:
    """op(*args). The compiler sees the op itself. A call on plain CPU tensors that nothing observes (no gradient, mode,
    transform, trace or profiler) goes straight to the CPU kernel: the dispatcher and its way back into Python cost 1.5
    of 4 us. Anything else takes the op's C entry, which is the op without a Python frame (0.25 us).
    """
    if _compiling():
        return op(*args)
    unobserved = not (_grad() or _modes() or _tracing() or _profiling()) and _transform() is None
    if unobserved and args[0].is_cpu and _PLAIN.issuperset(map(type, args)):
        kernel = _dispatch.cpu_kernels.get(op)
        if kernel is not None:
            return kernel(*args)
    return op._op(*args)
