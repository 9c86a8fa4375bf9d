"""Errors that are reported to the user, and their exit statuses."""

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

    Only rank 0 prints it, except with `here_only`: then only this rank has the error, and it prints it whatever its
    number. `details`, such as a table, are printed unchanged before the line.
    """

    def __init__(self, message: str, here_only: bool = False, details: str = "") -> None:
        super().__init__(message)
        self.here_only, self.details = here_only, details


class NonFiniteError(Exception):
    """Loss or gradients are no longer finite; training stopped before anything was saved."""


class Preempted(Exception):
    """A signal requested the run to end; the message is the signal's name or says what was saved."""


class Interrupted(Preempted):
    """Ctrl-C ended the run; the message says how to resume it."""


class RankLost(Exception):
    """Another process of the run has ended or cannot be reached."""


class SelfTestFailed(Exception):
    """A self-test failed."""


class RunsFailed(Exception):
    """Some runs of a comparison have no result."""


def printable(text: str) -> str:
    """A text on one line, with control characters (which could move a terminal's cursor) replaced by escapes."""
    return "".join(c if c.isprintable() else " " if c == "\n" else repr(c)[1:-1] for c in text)


def did_you_mean(name: str, known: Iterable[str], at_most: int = 1, prefix: str = "") -> str:
    """A question that suggests known names similar to a mistyped one; "" if none is similar."""
    close = get_close_matches(name, list(known), n=at_most)
    return f"did you mean {' or '.join(prefix + match for match in close)}?" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, and the next if the first ends with a colon; its type if it is empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


ENDS: tuple[tuple[type[Exception], str, int, bool], ...] = (  # type, word, status, whether any rank prints it
    (NonFiniteError, "stopped", EXIT_NON_FINITE, False),
    (Interrupted, "interrupted", EXIT_INTERRUPTED, False),
    (Preempted, "preempted", EXIT_PREEMPTED, False),
    (RankLost, "stopped", EXIT_FAILED, True),
    (SelfTestFailed, "failed", EXIT_FAILED, False),
    (RunsFailed, "failed", EXIT_FAILED, False),
)


def exit_status(program: Callable[[], object]) -> int:
    """Run a program; print its error as one line on rank 0 and return the exit status of the process."""
    try:
        program()
    except UserError as error:
        return _say(f"error: {error}", EXIT_BAD_INPUT, error.here_only, error.details)
    except BrokenPipeError:  # the reader of standard output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno in UNWRITABLE:
            message = f"{error.filename or 'a file'} cannot be written: {error.strerror}"
        elif error.filename is not None:
            message = f"{os.fsdecode(error.filename)}: {error.strerror}"
        else:
            raise
        return _say(f"error: {message}", EXIT_BAD_INPUT, any_rank=True)
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
