"""Results of expensive steps, kept in a file as they come, so that a killed run goes on where it was.

The run itself is a function of these results: it is simply run again, and each step that the file has is recalled
instead of computed. So a resumed run takes the same decisions and ends with the same result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Journal:
    """One JSON object a line: first what the run is (`run`), then {"name": ..., "value": ...} for each step done.

    Args:
        path: the file, created if need be; None keeps everything in memory.
        run: JSON-serializable; a file that was written for another run is refused.

    Raises:
        ValueError: the file belongs to another run (the message names what differs) or is damaged before its end.
    """

    def __init__(self, path: Path | None, run: Mapping[str, Any]) -> None:
        self.path = path
        self._run = json.loads(json.dumps(run))
        self._values: dict[str, Any] = {}
        self.recalled = 0  # steps that were not computed again
        if path is None:
            return
        lines = self._read(path)
        if not lines:
            self._append(self._run)
            return
        self._check(path, lines[0])
        for line in lines[1:]:
            if not (isinstance(line, dict) and set(line) == {"name", "value"}):
                raise ValueError(f"{path} is damaged: {line!r} is not a step")
            self._values[line["name"]] = line["value"]

    @staticmethod
    def _read(path: Path) -> list[Any]:
        """The complete lines. What a kill left of a last one is cut off."""
        if not path.exists():
            return []
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with open(path, "r+b") as file:
                file.truncate(len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    def _check(self, path: Path, run: Any) -> None:
        if not isinstance(run, dict):
            raise ValueError(f"{path} is damaged: it does not say what run it belongs to")
        names = sorted(run.keys() | self._run.keys())
        told = [f"{n} was {run.get(n)!r}, is {self._run.get(n)!r}" for n in names if run.get(n) != self._run.get(n)]
        if told:
            raise ValueError(f"{path} belongs to another run: {'; '.join(told)}. Delete it, or choose another folder")

    def _append(self, entry: Any) -> None:
        assert self.path is not None
        with open(self.path, "ab") as file:
            file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def recall(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value of this step: the one on file, or compute()'s (JSON-serializable), which is then kept."""
        if name in self._values:
            self.recalled += 1
        else:
            value = json.loads(json.dumps(compute(), allow_nan=False))  # the same whether computed or read
            if self.path is not None:
                self._append({"name": name, "value": value})
            self._values[name] = value
        return self._values[name]
