"""Errors meant for the person at the keyboard, and the exit status of each."""

import errno
import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_NON_FINITE = 3
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: try again
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
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


class Interrupted(Preempted):
    """Ctrl-C ended the run; its message says how to go on."""


class RankLost(Exception):
    """Another process of the run is gone, or cannot be reached."""


class SelfTestFailed(Exception):
    """What a self-test was to show does not hold."""


class RunsFailed(Exception):
    """Some of a comparison's runs have no result."""


def printable(text: str) -> str:
    """A text on one line, with control characters, such as those that move a terminal's cursor, written out."""
    return "".join(c if c.isprintable() else " " if c == "\n" else repr(c)[1:-1] for c in text)


def did_you_mean(name: str, known: Iterable[str], at_most: int = 1, prefix: str = "") -> str:
    """A question with the known names that are close to a mistyped one; "" if none is."""
    close = get_close_matches(name, list(known), n=at_most)
    return f"did you mean {' or '.join(prefix + each for each in close)}?" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, and the next where it ends with a colon; its kind if it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


ENDS: tuple[tuple[type[Exception], str, int, bool], ...] = (  # kind, word, status, whether any rank says it
    (NonFiniteError, "stopped", EXIT_NON_FINITE, False),
    (Interrupted, "interrupted", EXIT_INTERRUPTED, False),
    (Preempted, "preempted", EXIT_PREEMPTED, False),
    (RankLost, "stopped", EXIT_FAILED, True),
    (SelfTestFailed, "failed", EXIT_FAILED, False),
    (RunsFailed, "failed", EXIT_FAILED, False),
)


def exit_status(program: Callable[[], object]) -> int:
    """Run a program; print its error as one line on rank 0 and return the process' exit status."""
    try:
        program()
    except UserError as error:
        return _say(f"error: {error}", EXIT_BAD_INPUT, error.here_only, error.details)
    except BrokenPipeError:  # whoever read what is printed, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno in UNWRITABLE:
            said = f"{error.filename or 'a file'} cannot be written: {error.strerror}"
        elif error.filename is not None:
            said = f"{os.fsdecode(error.filename)}: {error.strerror}"
        else:
            raise
        return _say(f"error: {said}", EXIT_BAD_INPUT, any_rank=True)
    except KeyboardInterrupt:
        return _say("interrupted", EXIT_INTERRUPTED)
    except tuple(kind for kind, *_ in ENDS) as error:
        _, word, status, any_rank = next(end for end in ENDS if isinstance(error, end[0]))
        return _say(f"{word}: {error}", status, any_rank)
    return 0


def _say(message: str, status: int, any_rank: bool = False, details: str = "") -> int:
    if any_rank or os.environ.get("RANK", "0") == "0":
        sys.stderr.write((details + "\n" if details else "") + printable(message) + "\n")
    return status
