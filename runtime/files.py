"""Files in folders that others may have filled: no pipe is waited for, and no link is written through."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from runtime.errors import UserError

MOST_BYTES, MOST_ROWS_BYTES = 16 << 20, 1 << 30  # of an object, of a file of rows


def open_regular(path: str | bytes | Path, most: int | None = None) -> IO[bytes]:
    """A regular file to read, of at most so many bytes; None: of any size.

    Raises:
        OSError: If it is larger, or a pipe, a device or a socket, at which a reader could wait for ever.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise OSError("it is no regular file")
    if most is not None and status.st_size > most:
        file.close()
        raise OSError(f"it has {status.st_size} bytes, more than {most}")
    return file


def content_of(path: Path, most: int = MOST_BYTES) -> bytes:
    """What a regular file holds; OSError as of `open_regular`."""
    with open_regular(path, most) as file:
        return file.read(most)


def json_of(path: Path) -> Any:
    """What a JSON file of moderate size holds; OSError, ValueError or RecursionError if it cannot be read."""
    return json.loads(content_of(path).decode())


def lines_of(path: Path) -> list[bytes]:
    """The lines of a file of rows, none where there is no file.

    Raises:
        UserError: If it cannot be read, or is no regular file of moderate size.
    """
    try:
        return content_of(path, MOST_ROWS_BYTES).splitlines() if path.exists() else []
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """A text file to write that takes the place of `path` when it is whole and on the disk, and never before.

    A link at `path`, or where the new file is written meanwhile, is replaced, not followed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with open(temporary, "x") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave it empty under its name
    temporary.replace(path)
