"""A teacher's answers kept on disk, so that a student learns from a teacher that is not there: writing them.

Each file is written whole or not at all, the index after each shard: a run that was killed goes on with the next shard.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_ext._files import replacing
from bigmodel_ext.compress.distill.cache import (
    FORMAT,
    INDEX,
    VERSION,
    LogitCache,
    batch,
    check_inputs,
    hashed,
    length,
    read_index,
    spans,
)
from bigmodel_ext.compress.distill.capture import capture, unwrapped
from bigmodel_ext.compress.distill.losses import full
from bigmodel_ext.train.loop import NonFiniteLossError, evaluating


def cache_logits(
    teacher: nn.Module,
    inputs: Any,
    folder: str | os.PathLike[str],
    *,
    k: int,
    temperature: float = 3.0,
    output: str = "",
    batch_size: int = 256,
    shard_size: int = 8192,
    dtype: torch.dtype = torch.float32,
) -> LogitCache:
    """Run the teacher over a data set and write its answers, or what is missing of them.

    Bytes: (k * (4 + size of dtype) + size of dtype) for each example (and position, if logits are [B, T, classes]),
    against 4 * classes of all logits.

    Args:
        inputs: [n, ...], a mapping of such tensors, or a data set with ``len`` and ``[i]`` giving an input or a tuple
            that begins with one. It must be the same each time it is read: no random augmentation.
        folder: made if need be; its parent must exist.
        k: how many classes to keep, 1 to all of them.
        temperature: T; the probabilities are kept for this one.
        output: which of the teacher's outputs, as in `capture`.
        shard_size: examples in a file.
        dtype: of the log-probabilities, float32 or float16.

    Raises:
        ValueError: a setting is out of range; the folder holds answers of another data set, teacher or setting (the
            message says which).
        NonFiniteLossError: the teacher's output holds NaN or infinity; finished shards stay.
    """
    _check(k, temperature, batch_size, shard_size, dtype)
    path, count = Path(folder), length(inputs)
    settings = {
        "examples": count, "k": k, "temperature": temperature, "output": output, "shard_size": shard_size,
        "dtype": str(dtype).removeprefix("torch."), "teacher": _digest_of_model(teacher),
    }  # fmt: skip
    path.mkdir(exist_ok=True)
    index = _resumed(path, settings)
    check_inputs(index, inputs)
    for number in range(len(index["shards"]), -(-count // shard_size)):
        start, stop = number * shard_size, min(count, (number + 1) * shard_size)
        answers, seen = _answers(teacher, inputs, start, stop, index, batch_size, dtype)
        data = save(answers)
        file = f"answers-{number:05d}.safetensors"
        with replacing(path / file) as written:
            written.write(data)
        entry = {"file": file, "examples": stop - start, "sha256": hashlib.sha256(data).hexdigest(), "inputs": seen}
        index["shards"].append(entry)
        _write_index(path, index)
    return LogitCache(path)


def _check(k: int, temperature: float, batch_size: int, shard_size: int, dtype: torch.dtype) -> None:
    for name, value in (("k", k), ("batch_size", batch_size), ("shard_size", shard_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if dtype not in (torch.float32, torch.float16):
        raise ValueError(f"dtype must be torch.float32 or torch.float16, got {dtype}")


def _answers(
    teacher: nn.Module, inputs: Any, start: int, stop: int, index: dict[str, Any], batch_size: int, dtype: torch.dtype
) -> tuple[dict[str, Tensor], str]:
    """(a shard's tensors, digest of its inputs): values, classes [m, ..., k] and rest [m, ...]."""
    sha, parts = hashlib.sha256(), []
    for first, last in spans(start, stop, batch_size):
        part = batch(inputs, first, last)
        hashed(sha, part)
        with evaluating(teacher):
            logits = full(capture(teacher, (index["output"],), part, "teacher")[index["output"]])
        if not bool(torch.isfinite(logits).all()):
            raise NonFiniteLossError(f"the teacher's answers to examples {first} to {last - 1} hold NaN or infinity")
        shape = list(logits.shape[1:])
        if index.setdefault("logits", shape) != shape or len(logits) != last - first:
            wanted = [last - first, *index["logits"]]
            raise ValueError(f"the teacher's logits must be {wanted} as before, got {list(logits.shape)}")
        if index["k"] > shape[-1]:
            raise ValueError(f"k must be at most the number of classes, {shape[-1]}, got {index['k']}")
        parts.append(top_k(logits / index["temperature"], index["k"]))
    values, classes, rest = (torch.cat([found[i] for found in parts]).cpu() for i in range(3))
    return {"values": values.to(dtype), "classes": classes.int(), "rest": rest.to(dtype)}, sha.hexdigest()


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of softmax(logits), [..., classes]: the k largest log-probabilities [..., k], their classes, and the log of the
    mass of the rest [...]: -inf if there is none."""
    logs = F.log_softmax(logits, dim=-1)
    values, classes = logs.topk(k, dim=-1)
    return values, classes, logs.scatter(-1, classes, -torch.inf).logsumexp(-1)


def _digest_of_model(model: nn.Module) -> str:
    sha = hashlib.sha256()
    for name, value in unwrapped(model).state_dict().items():
        if isinstance(value, Tensor):
            sha.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _write_index(path: Path, index: dict[str, Any]) -> None:
    with replacing(path / INDEX) as file:
        file.write(json.dumps(index, indent=1).encode())


def _resumed(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The folder's index with the shards that are whole, or a new one.

    Raises:
        ValueError: it was written with other settings.
    """
    if not (path / INDEX).exists():
        return {"format": FORMAT, "version": VERSION, **settings, "shards": []}
    index = read_index(path)
    for name, wanted in settings.items():
        if index[name] != wanted:
            had = f"{path} holds answers with {name} {index[name]!r}, asked for {wanted!r}"
            raise ValueError(f"{had}: use another folder or delete it")
    for i, entry in enumerate(index["shards"]):
        try:
            data = (path / entry["file"]).read_bytes()
        except OSError:
            data = b""
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            del index["shards"][i:]  # written again
            break
    return index
