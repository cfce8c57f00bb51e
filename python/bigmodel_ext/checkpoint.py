"""save_model and load_model: one safetensors file that holds the tensors and how the model was converted.

Layers whose ``coding`` is "rans" have tensors that are stored entropy-coded (``formats.coded``; uint8, named
``<name>:rans``); the manifest then also has, for each of these, `coded`: dtype, shape and the SHA-256 of the stream.

The file's metadata are `format`, `version`, `manifest` and `checksum`. The manifest is JSON: the plan (one entry for
each converted module) and, for each name of the state dict, under which name it is stored and the SHA-256 of its dtype,
shape and bytes (equal tensors, tied ones among them, are stored once); the checksum is the manifest's SHA-256. Nothing
in it is code, and nothing is unpickled. Any safetensors reader can read the tensors.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bigmodel_ext._files import replacing
from bigmodel_ext._plan import coded_names, describe, replay
from bigmodel_ext._pruned import surgery
from bigmodel_ext._surgery import SIMULATED, Survey
from bigmodel_ext.formats import coded

Model = TypeVar("Model", bound=nn.Module)

FORMAT = "bigmodel_ext"
VERSION = "1"

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def _bytes(tensor: Tensor) -> memoryview:
    """A contiguous CPU tensor's memory; the tensor must outlive it."""
    size = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B") if size else memoryview(b"")


def _digest(tensor: Tensor) -> str:
    sha = hashlib.sha256(f"{_DTYPES[tensor.dtype]} {list(tensor.shape)} ".encode())
    sha.update(_bytes(tensor))
    return sha.hexdigest()


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU, contiguous."""
    state = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"state {name!r} is a {type(tensor).__name__}; only tensors can be saved")
        if tensor.is_meta:
            raise ValueError(f"state {name!r} is on the meta device and holds no data")
        if tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
            raise TypeError(f"state {name!r} is {tensor.dtype}, {tensor.layout}, which can't be saved")
        if name == "__metadata__":
            raise ValueError("state '__metadata__' can't be saved: safetensors keeps that name for itself")
        state[name] = tensor.detach().cpu().contiguous()
    return state


def _code(stored: dict[str, Tensor], names: set[str], manifest: dict[str, Any]) -> None:
    """Exchange those of the stored tensors that get smaller by it for their streams, and say so in the manifest."""
    entries: dict[str, Any] = {}
    for name in sorted(names & set(stored)):
        tensor, key = stored[name], f"{name}:rans"
        stream = coded.encode(tensor) if key not in stored and coded.can(tensor) else tensor
        if stream.numel() < tensor.numel() * tensor.element_size():
            stored[key] = stream
            del stored[name]
            entries[key] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "digest": _digest(stream),
            }
    renamed = {key.removesuffix(":rans"): key for key in entries}
    for entry in manifest["tensors"].values():
        entry[0] = renamed.get(entry[0], entry[0])
    if entries:
        manifest["coded"] = entries


def _header(stored: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in stored.items():
        end = offset + tensor.numel() * tensor.element_size()
        entry = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        header[name] = entry
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the model's state dict and its conversions to one file, atomically: if this raises or the process is
    killed, the previous file is as it was and no other is left. (One exception: a kill between the two system calls
    that name and move the finished file leaves it, complete, as `.<name>.<random>.tmp` beside the other.)

    Args:
        model: any module, converted or not, on any device.
        path: the file; its folder must exist. A symbolic link is followed.

    Raises:
        TypeError: the state dict holds something else than plain tensors.
        ValueError: a tensor is on the meta device, or layers are prepared for quantization-aware training: a file does
            not hold how these round. Convert them first, or keep the state dict.
        ImportError: a layer's ``coding`` is "rans" and the package constriction is missing.
        OSError: the file can't be written.
    """
    target = Path(os.path.realpath(path))
    prepared = {fqn for fqn, module in model.named_modules() if getattr(type(module), SIMULATED, False)}
    if prepared:
        raise ValueError(
            f"{_some(prepared)} are prepared for quantization-aware training, and a file does not hold how they round: "
            "convert them first (compress.quantize.convert), or keep the state dict"
        )
    plan, state = describe(model), _state(model)
    manifest: dict[str, Any] = {"plan": plan, "tensors": {}}
    first: dict[str, str] = {}  # digest -> the name it is stored under
    for name, tensor in state.items():
        digest = _digest(tensor)
        manifest["tensors"][name] = [first.setdefault(digest, name), digest]
    stored = {name: state[name] for name in first.values()}
    _code(stored, coded_names(plan), manifest)
    # The largest alignment first, so that every tensor is aligned.
    stored = dict(sorted(stored.items(), key=lambda item: -item[1].element_size()))
    text = json.dumps(manifest, sort_keys=True, allow_nan=False)
    metadata = {"format": FORMAT, "version": VERSION, "manifest": text, "checksum": _checksum(text)}
    with replacing(target) as file:
        file.write(_header(stored, metadata))
        for tensor in stored.values():
            file.write(_bytes(tensor))


def _checksum(manifest: str) -> str:
    return hashlib.sha256(f"{FORMAT} {VERSION} {manifest}".encode()).hexdigest()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _some(names: set[str]) -> str:
    shown = sorted(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _manifest(metadata: dict[str, str] | None) -> dict[str, Any]:
    metadata = metadata or {}
    _require(metadata.get("format") == FORMAT, f"it was not written by save_model (format {metadata.get('format')!r})")
    version = metadata.get("version")
    _require(version == VERSION, f"its version is {version!r}, this release reads version {VERSION!r}")
    text = metadata.get("manifest", "")
    _require(metadata.get("checksum") == _checksum(text), "its manifest is damaged (wrong checksum)")
    manifest = json.loads(text)
    valid = (
        isinstance(manifest, dict)
        and set(manifest) - {"coded"} == {"plan", "tensors"}
        and isinstance(manifest["tensors"], dict)
        and isinstance(manifest.get("coded", {}), dict)
    )
    _require(valid, "its manifest is malformed")
    return dict(manifest)


def _decode(stored: dict[str, Tensor], entries: dict[str, Any], room: int) -> None:
    """Exchange streams for the tensors coded in them, together of at most `room` elements: a stream of a few bytes may
    stand for any number."""
    for key, entry in entries.items():
        fits = (
            key in stored
            and isinstance(entry, dict)
            and set(entry) == {"dtype", "shape", "digest"}
            and isinstance(entry["shape"], list)
            and all(type(size) is int and size > 0 for size in entry["shape"])
        )
        _require(fits, f"its manifest is malformed at {key!r}")
        room -= math.prod(entry["shape"])
        _require(room >= 0, f"{key!r} of shape {entry['shape']} is more than the model could hold")
        dtype = next((dtype for dtype, name in _DTYPES.items() if name == entry["dtype"]), torch.bool)
        stream = stored[key]
        sound = stream.dtype == torch.uint8 and stream.dim() == 1 and _digest(stream) == entry["digest"]
        _require(sound, f"tensor {key!r} is damaged (wrong checksum)")
        try:
            stored[key] = coded.decode(stream, dtype, entry["shape"])
        except ValueError as error:
            raise ValueError(f"tensor {key!r}: {error}") from error


def _read(path: Path, room: int) -> tuple[list[Any], dict[str, Tensor], dict[str, str]]:
    """(plan, tensors, their digests) of a file, with all that can be told without a model checked; `room` is how many
    elements coded tensors may have."""
    with safe_open(path, framework="pt") as file:
        manifest = _manifest(file.metadata())
        held, wanted, digests = set(file.keys()), {}, {}
        for name, entry in manifest["tensors"].items():
            shaped = isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
            _require(shaped, f"its manifest is malformed at {name!r}")
            wanted[name], digests[name] = entry
        missing, extra = set(wanted.values()) - held, held - set(wanted.values())
        _require(not missing, f"it lacks the tensors {_some(missing)}")
        _require(not extra, f"it has unexpected tensors: {_some(extra)}")
        stored = {name: file.get_tensor(name) for name in held}
        _decode(stored, manifest.get("coded", {}), room)
    found = {name: _digest(tensor) if tensor.dtype in _DTYPES else "" for name, tensor in stored.items()}
    for name, source in wanted.items():
        _require(found[source] == digests[name], f"tensor {source!r} is damaged (wrong checksum)")
    return manifest["plan"], {name: stored[source] for name, source in wanted.items()}, digests


def _check_fit(expected: dict[str, Tensor], tensors: dict[str, Tensor], digests: dict[str, str]) -> None:
    missing, extra = set(expected) - set(tensors), set(tensors) - set(expected)
    _require(not missing, f"it lacks tensors of the model: {_some(missing)}")
    _require(not extra, f"it has tensors that the model has not: {_some(extra)}")
    shared: dict[tuple[object, ...], str] = {}
    for name, target in expected.items():
        _require(not target.is_meta, f"the model's {name} is on the meta device: call model.to_empty(device=...) first")
        have, want = (f"{t.dtype} {list(t.shape)}" for t in (tensors[name], target))
        _require(have == want, f"{name} is {have} in the file and {want} in the model")
        if target.numel():
            place = (target.device, target.data_ptr(), tuple(target.shape), target.stride())
            other = shared.setdefault(place, name)
            same = digests[other] == digests[name]
            _require(same, f"{other} and {name} are one tensor in the model and two different ones in the file")


def _fill(model: nn.Module, new: dict[str, nn.Module], tensors: dict[str, Tensor], digests: dict[str, str]) -> None:
    expected = model.state_dict()
    _check_fit(expected, tensors, digests)
    for fqn, layer in new.items():  # these can be tried without touching the model
        own = {name.removeprefix(fqn + "."): t for name, t in tensors.items() if name.startswith(fqn + ".")}
        try:
            layer.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
    before = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    state = type(expected)(tensors)
    state._metadata = getattr(expected, "_metadata", None)  # type: ignore[attr-defined]
    try:
        model.load_state_dict(state, strict=True)
    except BaseException as error:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        if isinstance(error, RuntimeError):
            raise ValueError(str(error)) from error
        raise


def load_model(fresh_model: Model, path: str | os.PathLike[str]) -> Model:
    """Prune and convert a model, in place, to the form in which `path` holds it, and load its tensors. Outputs are
    then equal to the saved model's bit for bit (same machine, threads and mode; train or eval mode is not part of the
    file).

    Args:
        fresh_model: the model as its own code builds it, in the dtype it was saved in.
        path: a file written by :func:`save_model`.

    Returns:
        fresh_model; if anything raises it is as it was.

    Raises:
        ValueError: the file is damaged, foreign, of another version, or does not fit the model; the message names the
            file and what is wrong.
        ImportError: it holds entropy-coded tensors and the package constriction is missing.
        OSError: the file can't be read.
    """
    Survey(fresh_model)  # that it is a module
    with contextlib.ExitStack() as stack:
        try:
            with open(path, "rb"):  # OSErrors as such, before they are taken for damage
                pass
            # Padding to blocks of four can make four of one.
            room = 4 * sum(tensor.numel() for tensor in fresh_model.state_dict().values() if isinstance(tensor, Tensor))
            plan, tensors, digests = _read(Path(path), room)
            _require(isinstance(plan, list), f"the plan is not a list: {plan!r}")
            pruning = surgery(fresh_model, plan)
            pruning.apply()
            stack.callback(pruning.revert)
            changes, new = replay(Survey(fresh_model), plan)
            changes.apply(fresh_model)
            stack.callback(changes.revert)
            _fill(fresh_model, new, tensors, digests)
        except (ValueError, SafetensorError, OverflowError, RecursionError) as error:
            raise ValueError(f"{os.fspath(path)!r} can't be loaded: {error}") from error
        stack.pop_all()
    return fresh_model
