"""What all compressed layers share: buffers that keep their dtype, int8 weights and patterns in a state dict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_INTEGERS = {torch.float32: torch.int32, torch.float16: torch.int16}
CODINGS = ("none", "rans")


class Compressed(nn.Module):
    """A layer whose weight is stored in another form than the class it subclasses has it."""

    float_buffers: tuple[str, ...] = ()  # buffers that keep their dtype whatever the model is cast to
    stored: tuple[str, ...] = ()  # what belongs together in a state dict: all of it is loaded, or none
    codable: tuple[str, ...] = ()  # names in the state dict that files may hold entropy-coded
    _coding = "none"
    bias: Any  # a Parameter or None

    @property
    def coding(self) -> str:
        """How ``save_model`` writes the tensors named by ``codable``: none, as they are, or rans, entropy-coded (see
        ``formats.coded``; needs constriction). Settable; whatever the weights are when saved is what is coded."""
        return self._coding

    @coding.setter
    def coding(self, name: str) -> None:
        allowed = CODINGS if self.codable else CODINGS[:1]
        if name not in allowed:
            raise ValueError(f"coding of {type(self).__name__} must be one of {', '.join(allowed)}, got {name!r}")
        self._coding = name

    @property
    def float_dtype(self) -> torch.dtype:
        """The dtype this layer is meant to compute in: its bias's, or float32."""
        return torch.float32 if self.bias is None else self.bias.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Casts leave integer tensors alone, so the float buffers go through them as integers.
        dtypes = {name: getattr(self, name).dtype for name in self.float_buffers}
        for name, dtype in dtypes.items():
            self._buffers[name] = _as(self._buffers[name], _INTEGERS[dtype])
        try:
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            for name, dtype in dtypes.items():
                self._buffers[name] = _as(self._buffers[name], dtype)

    def reset_parameters(self) -> None:
        """Zero the stored weights and the bias; a pattern stays."""
        with torch.no_grad():
            for tensor in self.parameters():
                tensor.zero_()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        dtypes = {name: getattr(self, name).dtype for name in self.float_buffers}
        keys = [prefix + name for name in self.stored]
        present = [key for key in keys if key in state_dict]
        problem = self._prepare(*(state_dict[key] for key in keys)) if len(present) == len(keys) else ""
        if problem:
            error_msgs.append(f"{prefix}{problem}")
        if problem is not None:
            state_dict = {key: value for key, value in state_dict.items() if key not in keys}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if problem is not None:
            missing_keys[:] = [key for key in missing_keys if key not in present]
        for name, dtype in dtypes.items():  # load_state_dict(assign=True) may bring any
            buffer = self._buffers[name]
            if buffer is not None:
                self._buffers[name] = buffer.to(dtype)
        if problem is None:
            self._loaded()

    def _prepare(self, *stored: Tensor) -> str | None:
        """Make room for what is to be loaded, one tensor for each name of `stored`; or what is wrong with it."""
        return None

    def _loaded(self) -> None:
        """Derive what depends on `stored`."""


class Repacked(Compressed):
    """Holds some tensors only in the kernel's order. The state dict has them as anyone would write them: `written`
    names attributes that are unpacked on each access."""

    written: tuple[str, ...] = ()

    def _problem(self, *tensors: Tensor) -> str:
        """What keeps tensors, one for each name of `written`, from being this layer's, or ""."""
        raise NotImplementedError

    def _take(self, *tensors: Tensor, assign: bool) -> None:
        """Pack them; into the buffers that are there, or, with assign, into new ones."""
        raise NotImplementedError

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.written:
            destination[prefix + name] = getattr(self, name).detach()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        keys = [prefix + name for name in self.written]
        unexpected_keys[:] = [key for key in unexpected_keys if key not in keys]
        missing = [key for key in keys if key not in state_dict]
        missing_keys += missing
        if missing:
            return
        tensors = [state_dict[key] for key in keys]
        problem = self._problem(*tensors)
        if problem:
            error_msgs.append(f"{prefix}{problem}")
        else:
            self._take(*tensors, assign=local_metadata.get("assign_to_params_buffers", False))


class PackedInt8(Repacked):
    """Holds int8 weights in the order that the kernels of its device read; the state dict has them as ``weight_q``, as
    they are written."""

    float_buffers: tuple[str, ...] = ("weight_scale",)
    codable = ("weight_q", "weight_scale")
    written = ("weight_q",)
    packed: Tensor
    weight_scale: Tensor

    def _register_packed(self, packed: Tensor, outputs: int) -> None:
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("weight_scale", torch.zeros(outputs, dtype=torch.float32, device=packed.device))

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def _pack(self, weight_q: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def weight_q(self) -> Tensor:
        """int8, unpacked on each access."""
        raise NotImplementedError

    @property
    def weight(self) -> Any:
        """weight_q * weight_scale, computed on each access; read-only. In the bias's dtype, else float32."""
        weight_q = self.weight_q
        return (weight_q.float() * self.weight_scale.view(-1, *[1] * (weight_q.dim() - 1))).to(self.float_dtype)

    def reset_parameters(self) -> None:
        with torch.no_grad():
            for tensor in (self.packed, self.weight_scale, *self.parameters()):
                tensor.zero_()

    def _problem(self, *tensors: Tensor) -> str:
        (weight_q,) = tensors
        if weight_q.dtype == torch.int8 and tuple(weight_q.shape) == self._weight_shape:
            return ""
        return f"weight_q must be torch.int8 {list(self._weight_shape)}, got {weight_q.dtype} {list(weight_q.shape)}"

    def _take(self, *tensors: Tensor, assign: bool) -> None:
        (weight_q,) = tensors
        if assign:
            self.packed = self._pack(weight_q)
        else:
            self.packed.copy_(self._pack(weight_q.to(self.packed.device)))


def _as(buffer: Tensor | None, dtype: torch.dtype) -> Tensor:
    assert buffer is not None
    return buffer.view(dtype)
