"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def _create(folder: int, name: str) -> tuple[int, bool]:
    """(descriptor, whether it has no name yet): a new file that needs a name only once it is whole, so that nothing
    stays behind even if the process is killed; or `name` where the file system can't do that."""
    with contextlib.suppress(AttributeError, OSError):
        return os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o666, dir_fd=folder), True
    return os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666, dir_fd=folder), False


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` once it is whole and on the disk."""
    temporary = f".{path.name}.{secrets.token_hex(8)}.tmp"
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        descriptor, unnamed = _create(folder, temporary)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if unnamed:  # given a src_dir_fd, os.link follows the symbolic link that /proc has
                os.link(f"/proc/self/fd/{descriptor}", temporary, src_dir_fd=folder, dst_dir_fd=folder)
        os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        raise
    finally:
        os.close(folder)
