"""Files in folders that others can write to: reading never waits for a pipe, writing never follows a link."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from runtime.errors import UserError

MOST_BYTES, MOST_ROWS_BYTES = 16 << 20, 1 << 30  # of a JSON object, of a file of rows


def open_regular(path: str | bytes | Path, most: int | None = None) -> IO[bytes]:
    """Open a regular file of at most `most` bytes for reading; None: of any size.

    Raises:
        OSError: If it is larger, or a pipe, device or socket, for which a reader could wait forever.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise OSError("it is not a regular file")
    if most is not None and status.st_size > most:
        file.close()
        raise OSError(f"it has {status.st_size} bytes, more than {most}")
    return file


def content_of(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file; raises OSError as `open_regular`."""
    with open_regular(path, most) as file:
        return file.read(most)


def json_of(path: Path) -> Any:
    """The value in a JSON file of at most MOST_BYTES; raises OSError, ValueError or RecursionError."""
    return json.loads(content_of(path).decode())


def lines_of(path: Path) -> list[bytes]:
    """The lines of a file of rows; none if the file does not exist.

    Raises:
        UserError: If it cannot be read, is not a regular file, or has more than MOST_ROWS_BYTES.
    """
    try:
        return content_of(path, MOST_ROWS_BYTES).splitlines() if path.exists() else []
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """A text file for writing that replaces `path` once it is complete and on the disk.

    A link at `path`, or at the temporary file's path, is replaced, not followed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with open(temporary, "x") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())  # else a power cut could leave an empty file at `path`
    temporary.replace(path)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
