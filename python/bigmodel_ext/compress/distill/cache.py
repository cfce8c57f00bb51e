"""A teacher's answers kept on disk: reading them.

A folder holds ``index.json`` and safetensors shards. Of each example it keeps the k largest of ``softmax(t / T)`` as
log-probabilities with their classes, and the log of the mass that the others share. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

FORMAT, VERSION, INDEX = "bigmodel_ext teacher answers", 1, "index.json"
SETTINGS: dict[str, type | tuple[type, ...]] = {
    "examples": int, "k": int, "temperature": (int, float), "output": str, "dtype": str, "shard_size": int,
    "teacher": str, "logits": list, "shards": list,
}  # fmt: skip


class LogitCache:
    """A teacher's answers by example number: ``cache[numbers] -> (values, classes, rest)`` (see `top_k`).

    Args:
        folder: of a finished `cache_logits`.
        inputs: the data set to be used with it, checked against it if given.

    Raises:
        ValueError: the folder is no cache, not finished, or damaged; or the data set is another, by length or checksum.
    """

    def __init__(self, folder: str | os.PathLike[str], inputs: Any = None) -> None:
        self.folder = Path(folder)
        self._index = read_index(self.folder)
        done, wanted = sum(entry["examples"] for entry in self._index["shards"]), len(self)
        if done != wanted:
            raise ValueError(f"{self.folder} holds {done} of {wanted} examples: run cache_logits again to finish it")
        self._shards: dict[int, dict[str, Tensor]] = {}
        if inputs is not None:
            self.check(inputs)

    def __len__(self) -> int:
        return int(self._index["examples"])

    @property
    def temperature(self) -> float:
        return float(self._index["temperature"])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an example's logits: [classes], or [T, classes]."""
        return tuple(self._index["logits"])

    def check(self, inputs: Any) -> None:
        """Raises ValueError if the data set is another, by length or checksum."""
        check_inputs(self._index, inputs)

    def _shard(self, number: int) -> dict[str, Tensor]:
        if number not in self._shards:
            entry = self._index["shards"][number]
            file = self.folder / entry["file"]
            try:
                data = file.read_bytes()
                if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                    raise ValueError("wrong checksum")
                self._shards[number] = load(data)
            except (OSError, SafetensorError, ValueError) as error:
                raise ValueError(f"{file} is damaged or missing ({error}): run cache_logits again") from error
        return self._shards[number]

    def __getitem__(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        numbers = numbers.cpu()
        if len(numbers) and not (int(numbers.min()) >= 0 and int(numbers.max()) < len(self)):
            low, high = int(numbers.min()), int(numbers.max())
            raise ValueError(f"example numbers must be in 0 to {len(self) - 1}, got {low} to {high}")
        size, lead, k = self._index["shard_size"], self.shape[:-1], self._index["k"]
        values = torch.empty(len(numbers), *lead, k)
        classes = torch.empty(len(numbers), *lead, k, dtype=torch.int64)
        rest = torch.empty(len(numbers), *lead)
        for number in torch.unique(numbers // size).tolist():
            here = numbers // size == number
            rows, shard = numbers[here] - number * size, self._shard(number)
            values[here], rest[here] = shard["values"][rows].float(), shard["rest"][rows].float()
            classes[here] = shard["classes"][rows].long()
        return values, classes, rest


def read_index(path: Path) -> dict[str, Any]:
    """Raises ValueError if it is not there, damaged, or another format."""
    try:
        index = json.loads((path / INDEX).read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} holds no cached answers: it has no {INDEX}") from None
    except ValueError as error:
        raise ValueError(f"{path / INDEX} is damaged: {error}") from error
    if not isinstance(index, dict) or (index.get("format"), index.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"{path / INDEX} is not of cached answers, version {VERSION}")
    for name, kind in SETTINGS.items():
        if not isinstance(index.get(name), kind):
            raise ValueError(f"{path / INDEX} is damaged: {name} is {index.get(name)!r}")
    for entry in index["shards"]:
        whole = isinstance(entry, dict) and all(
            isinstance(entry.get(name), str) for name in ("file", "sha256", "inputs")
        )
        if not whole or not isinstance(entry.get("examples"), int) or Path(entry["file"]).name != entry["file"]:
            raise ValueError(f"{path / INDEX} is damaged: it has a shard {entry!r}")
    return index


def length(inputs: Any) -> int:
    """How many examples there are.

    Raises:
        ValueError: none, or a mapping's tensors differ in length.
    """
    counts = {len(value) for value in inputs.values()} if isinstance(inputs, Mapping) else {len(inputs)}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"inputs must be one number of examples, at least 1, got {sorted(counts)}")
    return counts.pop()


def batch(inputs: Any, start: int, stop: int) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[start:stop]
    if isinstance(inputs, Mapping):
        return {name: value[start:stop] for name, value in inputs.items()}
    items = [inputs[i] for i in range(start, stop)]
    items = [item[0] if isinstance(item, (tuple, list)) else item for item in items]
    return torch.utils.data.default_collate(items)


def hashed(sha: Any, value: Any) -> None:
    """Examples one by one, so that the digest does not depend on how they were batched."""
    columns = value if isinstance(value, Mapping) else {"": value}
    arrays = {name: tensor.detach().cpu().contiguous() for name, tensor in columns.items()}
    for i in range(length(arrays)):
        for name, tensor in arrays.items():
            sha.update(f"{name} {tensor.dtype} {list(tensor.shape[1:])} ".encode())
            sha.update(tensor[i].contiguous().flatten().view(torch.uint8).numpy().tobytes())


def spans(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, size):
        yield first, min(stop, first + size)


def check_inputs(index: Mapping[str, Any], inputs: Any) -> None:
    """Raises ValueError if the examples are others than those that the shards answer."""
    if length(inputs) != index["examples"]:
        raise ValueError(f"the cache is of {index['examples']} examples, the data set has {length(inputs)}")
    for number, entry in enumerate(index["shards"]):
        start = number * index["shard_size"]
        sha = hashlib.sha256()
        for first, last in spans(start, start + entry["examples"], 256):
            hashed(sha, batch(inputs, first, last))
        if sha.hexdigest() != entry["inputs"]:
            raise ValueError(
                f"examples {start} to {start + entry['examples'] - 1} are not those the teacher answered (checksum "
                f"{sha.hexdigest()[:12]}, cached {entry['inputs'][:12]}): another data set or order, or random changes"
            )
