"""Allows only one process to write to a run folder."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.errors import UserError
from runtime.processes import Ranks
from runtime.run_options import RunOptions
from runtime.runfolder import make_folders, remove_empty
from runtime.tables import say

LOCK = ".run.lock"  # has the writer's process id and host; removed when the writer ends
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
TAKEN = (errno.EACCES, errno.EAGAIN)


@contextmanager
def sole_writer(options: RunOptions, ranks: Ranks) -> Iterator[None]:
    """Hold the lock of a run folder. Folders made for it are removed again if they stay empty.

    The kernel releases the lock when the process ends, however it ends. On a file system without locks a warning is
    printed. --eval and --dry_run need no lock.

    Raises:
        UserError: If another process holds the lock, or the folder cannot be made.
    """
    if options.eval or options.dry_run:
        yield
        return
    folder, made = Path(options.output_dir), list[Path]()
    descriptor = ranks.from_main(lambda: _lock(folder, made))
    try:
        yield
    finally:
        if ranks.is_main:
            _unlock(folder, descriptor, made)


def _lock(folder: Path, made: list[Path]) -> int:
    """Make the folder and lock it; return the file descriptor that holds the lock."""
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output_dir {folder}: is a file")
        made += make_folders(folder)
        return _locked(folder / LOCK)
    except OSError as error:
        remove_empty(made)
        raise UserError(f"--output_dir {folder}: cannot be written: {error.strerror}") from error


def _locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process only: loaders do not inherit it
        except OSError as error:
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno in TAKEN:
                raise UserError(f"--output_dir {path.parent}: {holder or 'another process'} is writing to it") from None
            if error.errno not in UNSUPPORTED:
                raise
            say(f"warning: {path.parent} cannot be locked ({error.strerror}); no other process may write to it")
            return -1
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # else its previous holder has just removed it
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        os.close(descriptor)


def _unlock(folder: Path, descriptor: int, made: list[Path]) -> None:
    with suppress(OSError):  # the folder may be deleted
        (folder / LOCK).unlink(missing_ok=True)
    if descriptor >= 0:
        os.close(descriptor)
    remove_empty(made)
