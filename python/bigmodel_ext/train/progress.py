"""Progress for people: live bars (rich) on a terminal, a few plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

Advance = Callable[[int, float], None]  # (epochs done, mean loss), as loop.fit's on_epoch


class Progress(Protocol):
    """Where a job tells what it does."""

    def note(self, text: str) -> None:
        """One line."""

    def stage(self, name: str, epochs: int) -> Any:
        """A context manager around one training run that gives its :data:`Advance`."""


class Silent:
    """Tells nothing."""

    def note(self, text: str) -> None:
        pass

    @contextmanager
    def stage(self, name: str, epochs: int) -> Iterator[Advance]:
        yield lambda done, loss: None


class PlainLines:
    """About four lines a stage, for logs."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def note(self, text: str) -> None:
        print(text, file=self._file, flush=True)

    @contextmanager
    def stage(self, name: str, epochs: int) -> Iterator[Advance]:
        start = time.perf_counter()
        marks = {-(-epochs * quarter // 4) for quarter in range(1, 5)}

        def advance(done: int, loss: float) -> None:
            if done in marks:
                self.note(f"{name}: epoch {done}/{epochs}, loss {loss:.4f}, {time.perf_counter() - start:.0f} s")

        yield advance


class Bars:
    """One live bar a stage; finished ones stay on the screen."""

    def __init__(self, file: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=file, highlight=False)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False)

    @contextmanager
    def stage(self, name: str, epochs: int) -> Iterator[Advance]:
        from rich import progress

        columns = (
            progress.TextColumn("{task.description:<22}"),
            progress.BarColumn(bar_width=28),
            progress.MofNCompleteColumn(),
            progress.TextColumn("loss {task.fields[loss]}", style="cyan"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("[dim]left"),
            progress.TimeRemainingColumn(compact=True),
        )
        with progress.Progress(*columns, console=self._console) as bars:
            bar = bars.add_task(name, total=epochs, loss="-     ")
            yield lambda done, loss: bars.update(bar, completed=done, loss=f"{loss:.4f}")


def for_stream(file: TextIO | None = None) -> Progress:
    """Bars if file (default: standard output) is a terminal, plain lines otherwise."""
    file = sys.stdout if file is None else file
    return Bars(file) if file.isatty() else PlainLines(file)
