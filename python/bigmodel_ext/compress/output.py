"""The output folder: checked before any work, and changed only once all results are there."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def usable_folder(path: Path) -> Path:
    """Create the folder if need be and see that a file can be made in it.

    Raises:
        ValueError: it is a file, or can't be created or written; the message says which and why.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"out must be a folder that can be written, got {str(path)!r}: {error.strerror}") from error
    return path


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A hidden folder inside `out` to write results in. They take their places in `out` when the block ends well, each
    by one rename; if anything is raised in it, Ctrl-C included, it vanishes and earlier results stay as they were."""
    folder = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=out))
    try:
        yield folder
        with _uninterrupted():
            for file in sorted(folder.iterdir()):
                os.replace(file, out / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_files(folder: Path, *names: str) -> None:
    """These files, and the folder if nothing else is in it."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back for the moment that renaming takes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
