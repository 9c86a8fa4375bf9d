"""Errors meant for the person at the keyboard, and the exit status of each."""

import errno
import os
import sys
from collections.abc import Callable

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_NON_FINITE = 3
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: try again
EXIT_INTERRUPTED = 130
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # a disk that is full or read-only


class UserError(Exception):
    """Bad input: one line that names the option, file or module and its value.

    Rank 0 prints it; `here_only` says that the other ranks do not know of it, so that any rank prints it.
    `details`, such as a table, are printed as they are before the line.
    """

    def __init__(self, message: str, here_only: bool = False, details: str = "") -> None:
        super().__init__(message)
        self.here_only, self.details = here_only, details


class NonFiniteError(Exception):
    """Loss or gradients are no longer finite; training stopped before anything was saved."""


class Preempted(Exception):
    """A signal told the run to end; its message is the signal's name or what was saved."""


class RankLost(Exception):
    """Another process of the run is gone, or cannot be reached."""


class SelfTestFailed(Exception):
    """What a self-test was to show does not hold."""


class RunsFailed(Exception):
    """Some of a comparison's runs have no result."""


def exit_status(program: Callable[[], object]) -> int:
    """Run a program; print its error as one line on rank 0 and return the process' exit status."""
    try:
        program()
    except UserError as error:
        return _say(f"error: {error}", EXIT_BAD_INPUT, error.here_only, error.details)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        return _say(f"error: {error.filename or 'a file'} cannot be written: {error.strerror}", EXIT_BAD_INPUT, True)
    except NonFiniteError as error:
        return _say(f"stopped: {error}", EXIT_NON_FINITE)
    except Preempted as error:
        return _say(f"preempted: {error}", EXIT_PREEMPTED)
    except RankLost as error:
        return _say(f"stopped: {error}", EXIT_FAILED, any_rank=True)
    except (SelfTestFailed, RunsFailed) as error:
        return _say(f"failed: {error}", EXIT_FAILED)
    except KeyboardInterrupt:
        return _say("interrupted", EXIT_INTERRUPTED)
    return 0


def _say(message: str, status: int, any_rank: bool = False, details: str = "") -> int:
    if any_rank or os.environ.get("RANK", "0") == "0":
        sys.stderr.write((details + "\n" if details else "") + " ".join(message.split("\n")) + "\n")
    return status
