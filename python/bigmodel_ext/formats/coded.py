"""Bytes of uneven frequency as a rANS stream (Duda 2013), for files: int8 and uint8 tensors, and float32 tensors of at
most 256 different values, which are coded as a list of the values and the place of each in it.

A tensor is coded as rows [R, C], R = shape[0]. Each row (or each column, where that is smaller) belongs to a class, and
each class has a table of frequencies: rows of different spread cost their own entropy, not that of the mixture. A
stream is, with variable-length integers (7 bits to a byte, low ones first):

    flags (1: columns have the classes, 2: float32) · [number of values, the values as little-endian float32]
    lowest symbol · number of symbols A · number of classes
    per class A frequencies (a 0 is followed by how many more zeros) · the frequencies of the classes themselves
    little-endian uint32 words of the coder: first the classes, then the symbols class by class in row order

Frequencies are relative; a stream of one symbol, or a list of one class, takes no words for it. The coder is
constriction's (`pip install constriction`, in the extra "compress").
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CODABLE = (torch.int8, torch.uint8, torch.float32)
_CLASSES = (1, 2, 4, 8, 16)
_PRECISIONS = (10, 12, 15)  # log2 of what a table's frequencies sum to, about
_CHUNK = 1 << 20  # symbols coded at a time: the coder takes four bytes for each
_TRANSPOSED, _VALUES = 1, 2
_ROUNDS = 3


def _modules() -> tuple[Any, Any]:
    """numpy and constriction.stream."""
    try:
        return importlib.import_module("numpy"), importlib.import_module("constriction").stream
    except ImportError as error:
        raise ImportError(
            f"entropy-coded weights need the package constriction (pip install 'bigmodel_ext[compress]'): {error}"
        ) from error


def require_coder() -> None:
    """Raises ImportError, saying what to install, where streams can be neither written nor read."""
    _modules()


@dataclass(frozen=True)
class _Model:
    """How symbols [R, C] are coded: bits counts everything, entropy only what the frequencies make necessary."""

    transposed: bool
    low: int
    classes: Any  # int64 [R], or [C] if transposed
    tables: Any  # int64 [classes, A]
    bits: float
    entropy: float


def _cost(counts: Any, tables: Any) -> float:
    """Bits of symbols that occur counts [.., A] times under tables [.., A] of relative frequencies."""
    np, _ = _modules()
    share = tables / np.maximum(tables.sum(-1, keepdims=True), 1)
    return float(-(counts * np.log2(np.where(counts > 0, share, 1.0))).sum())


def _counts(symbols: Any, low: int, size: int) -> Any:
    """int64 [R, A]: how often each symbol occurs in each row."""
    np, _ = _modules()
    rows, columns = symbols.shape
    result = np.empty((rows, size), np.int64)
    step = max(1, _CHUNK // max(1, columns))
    for first in range(0, rows, step):
        part = symbols[first : first + step]
        place = np.arange(len(part), dtype=np.int64)[:, None] * size + part - low
        result[first : first + step] = np.bincount(place.ravel(), minlength=len(part) * size).reshape(-1, size)
    return result


def _classified(counts: Any, number: int) -> Any:
    """A class for each row: first by spread, then, a few times, the class that codes the row with least bits."""
    np, _ = _modules()
    rows, size = counts.shape
    if number == 1:
        return np.zeros(rows, np.int64)
    total = np.maximum(counts.sum(1), 1)
    mean = counts @ np.arange(size) / total
    spread = counts @ np.arange(size) ** 2 / total - mean**2
    classes = np.empty(rows, np.int64)
    classes[np.argsort(spread, kind="stable")] = np.arange(rows) * number // rows
    for _ in range(_ROUNDS):
        joint = np.stack([counts[classes == c].sum(0) for c in range(number)]) + 0.5 / size
        classes = np.argmin(-(counts @ np.log2(joint / joint.sum(1, keepdims=True)).T), axis=1)
    return np.unique(classes, return_inverse=True)[1].astype(np.int64)


def _table(counts: Any, precision: int) -> Any:
    """Relative frequencies, at least 1 where there is any."""
    np, _ = _modules()
    scaled = np.rint(counts * (2.0**precision / np.maximum(counts.sum(-1, keepdims=True), 1))).astype(np.int64)
    return np.where(counts > 0, np.maximum(scaled, 1), 0)


def _fitted(symbols: Any) -> _Model:
    np, _ = _modules()
    low = int(symbols.min())
    size, best = int(symbols.max()) - low + 1, None
    for transposed in (False, True):
        counts = _counts(symbols.T if transposed else symbols, low, size)
        for number in _CLASSES:
            if number > len(counts):
                break
            classes = _classified(counts, number)
            joint = np.stack([counts[classes == c].sum(0) for c in range(classes.max() + 1)])
            members = np.bincount(classes)
            entropy = _cost(joint, joint) + _cost(members, members)
            for precision in _PRECISIONS:
                tables = _table(joint, precision)
                bits = _cost(joint, tables) + _cost(members, members) + 8 * len(_head(low, tables, members))
                if best is None or bits < best.bits:
                    best = _Model(transposed, low, classes, tables, bits, entropy)
    assert best is not None
    return best


def _integer(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def _frequencies(table: Any) -> bytes:
    out, i, values = bytearray(), 0, [int(f) for f in table]
    while i < len(values):
        out += _integer(values[i])
        run = 1
        if values[i] == 0:
            while i + run < len(values) and values[i + run] == 0:
                run += 1
            out += _integer(run - 1)
        i += run
    return bytes(out)


def _head(low: int, tables: Any, members: Any) -> bytes:
    out = _integer(low) + _integer(tables.shape[1]) + _integer(len(tables))
    if tables.shape[1] > 1:
        out += b"".join(_frequencies(table) for table in tables)
    return out + (_frequencies(members) if len(members) > 1 else b"")


def _symbols(tensor: Tensor) -> tuple[Any, bytes]:
    """(uint8 [R, C], flags and values) of a tensor."""
    np, _ = _modules()
    if tensor.dtype not in CODABLE or not tensor.numel():
        raise TypeError(f"int8, uint8 and float32 tensors can be coded, got {tensor.dtype} {list(tensor.shape)}")
    flat, head = tensor.detach().cpu().contiguous(), b""
    if tensor.dtype == torch.float32:
        values, flat = flat.view(torch.int32).unique(return_inverse=True)
        if len(values) > 256:
            raise ValueError(f"float32 tensors can be coded if they have at most 256 values, got {len(values)}")
        head, flat = _integer(len(values)) + values.numpy().astype("<i4").tobytes(), flat.to(torch.uint8)
    symbols = flat.view(torch.uint8).reshape(_shape(tensor.shape)).numpy()
    return (symbols ^ np.uint8(128) if tensor.dtype == torch.int8 else symbols), head


def _shape(shape: Any) -> tuple[int, int]:
    """Rows and columns of a tensor's shape; one of one dimension is a row."""
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def _parts(classes: Any, tables: int, columns: int) -> Iterator[tuple[int, Any]]:
    """(class, indices of rows), in the order in which they are coded."""
    np, _ = _modules()
    step = max(1, _CHUNK // max(1, columns))
    for c in range(tables):
        members = np.nonzero(classes == c)[0]
        yield from ((c, members[i : i + step]) for i in range(0, len(members), step))


def _distribution(frequencies: Any) -> Any:
    np, stream = _modules()
    return stream.model.Categorical(frequencies.astype(np.float32), perfect=False)


def can(tensor: Tensor) -> bool:
    """Whether a tensor is one that :func:`encode` takes."""
    if tensor.dtype == torch.float32 and tensor.numel():
        return len(tensor.view(torch.int32).unique()) <= 256
    return tensor.dtype in CODABLE and tensor.numel() > 0


def entropy(tensor: Tensor) -> float:
    """Bits that the tensor's symbols take at their frequencies, in the classes that :func:`encode` gives its rows:
    ``-sum log2 p(symbol | class) - sum log2 p(class)``, p counted. Streams add their tables.

    Raises:
        TypeError: it is not int8, uint8 or float32, or empty. ValueError: more than 256 float32 values. ImportError.
    """
    return _fitted(_symbols(tensor)[0]).entropy


def encode(tensor: Tensor) -> Tensor:
    """A tensor's stream, uint8 [bytes]; the same for the same tensor. Raises as :func:`entropy`."""
    np, stream = _modules()
    symbols, values = _symbols(tensor)
    model = _fitted(symbols)
    members, coder = np.bincount(model.classes), stream.stack.AnsCoder()
    rows = symbols.T if model.transposed else symbols
    if model.tables.shape[1] > 1:
        distributions = [_distribution(table) for table in model.tables]
        for c, index in reversed(list(_parts(model.classes, len(members), rows.shape[1]))):
            coder.encode_reverse(rows[index].astype(np.int32).ravel() - np.int32(model.low), distributions[c])
    if len(members) > 1:
        coder.encode_reverse(model.classes.astype(np.int32), _distribution(members))
    flags = _TRANSPOSED * model.transposed | _VALUES * bool(values)
    head = _integer(flags) + values + _head(model.low, model.tables, members)
    return torch.frombuffer(bytearray(head + coder.get_compressed().astype("<u4").tobytes()), dtype=torch.uint8)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"malformed stream: {what}")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        _require(size <= len(self.data) - self.at, "it ends early")
        self.at += size
        return self.data[self.at - size : self.at]

    def integer(self, most: int, what: str) -> int:
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            _require(value <= most and shift <= 70, f"{what} exceeds {most}")
            if byte < 128:
                return value

    def frequencies(self, size: int) -> Any:
        np, _ = _modules()
        table, i = np.zeros(size, np.int64), 0
        while i < size:
            table[i] = self.integer(1 << 31, "a frequency")
            i += 1 if table[i] else 1 + self.integer(size - i - 1, "a run of zeros")
        _require(bool(table.sum() > 0), "a table is empty")
        return table


def decode(stream: Tensor, dtype: torch.dtype, shape: Any) -> Tensor:
    """The tensor of this dtype and shape that :func:`encode` made `stream` (uint8 [bytes]) of. Takes about one byte per
    element beside the result; the caller judges beforehand whether there may be so many.

    Raises:
        ValueError: the stream is malformed, or of another dtype or shape.
    """
    np, coding = _modules()
    if dtype not in CODABLE:
        raise ValueError(f"malformed stream: it can't hold {dtype}")
    reader = _Reader(stream.numpy().tobytes())
    flags = reader.integer(3, "flags")
    _require(bool(flags & _VALUES) == (dtype == torch.float32), f"it does not hold {dtype}")
    values = np.frombuffer(reader.take(4 * reader.integer(256, "values")), "<i4") if flags & _VALUES else None
    low = reader.integer(255, "the lowest symbol")
    size, number = reader.integer(256 - low, "symbols"), reader.integer(_CLASSES[-1], "classes")
    _require(size > 0 and number > 0, "it has no symbols")
    _require(values is None or low + size <= len(values), "it has more symbols than values")
    rows, columns = _shape(shape) if not flags & _TRANSPOSED else _shape(shape)[::-1]
    tables = [reader.frequencies(size) for _ in range(number)] if size > 1 else []
    members = reader.frequencies(number) if number > 1 else None
    words = reader.take(len(reader.data) - reader.at)
    _require(len(words) % 4 == 0, "its words are not whole")
    coder = coding.stack.AnsCoder(np.frombuffer(words, "<u4").astype(np.uint32))
    classes = np.zeros(rows, np.int64) if members is None else coder.decode(_distribution(members), rows)
    out = np.full((rows, columns), low, np.uint8)
    if size > 1:
        distributions = [_distribution(table) for table in tables]
        for c, index in _parts(classes, number, columns):
            out[index] += coder.decode(distributions[c], len(index) * columns).astype(np.uint8).reshape(-1, columns)
    _require(coder.is_empty(), "it holds more than its symbols")
    symbols = np.ascontiguousarray(out.T) if flags & _TRANSPOSED else out
    if values is not None:
        return torch.from_numpy(values.astype(np.int32)[symbols]).view(torch.float32).reshape(shape)
    return torch.from_numpy(symbols ^ np.uint8(128) if dtype == torch.int8 else symbols).view(dtype).reshape(shape)
