"""Errors that are reported to the user, and their exit statuses."""

import errno
import os
import sys
import traceback
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

    Rank 0 prints it; with `here_only` any rank that has it does. Inside a process group `runtime.processes` finds out
    which ranks have it, unless `agreed` says that all ranks raise it. `details`, such as a table, are printed unchanged
    before the line.
    """

    agreed = False

    def __init__(self, message: str, here_only: bool = False, details: str = "") -> None:
        super().__init__(message)
        self.here_only, self.details = here_only, details


class EndedTogether(Exception):
    """An end that all ranks come to alike; the main process says it."""

    agreed = True


class NonFiniteError(EndedTogether):
    """Loss or gradients are no longer finite; training stopped before anything was saved."""


class Preempted(EndedTogether):
    """A signal requested the run to end; the message is the signal's name or says what was saved."""


class Interrupted(Preempted):
    """Ctrl-C ended the run; the message says how to resume it."""


class RankLost(Exception):
    """Another process of the run has ended or cannot be reached."""


class SelfTestFailed(EndedTogether):
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
    """Run a program; print its error as one line and return the exit status of the process.

    Rank 0 prints what all ranks raise; a rank that alone has an error prints it, with its number and host. If the error
    left a process group open, nothing may wait for other ranks: the process ends here, after its writer has finished.
    """
    status = _exit_status(program)
    distributed = sys.modules.get("torch.distributed")
    if status and distributed is not None and distributed.is_available() and distributed.is_initialized():
        _end_now(status)
    return status


def _end_now(status: int) -> None:
    writer = sys.modules.get("runtime.writer")
    if writer is not None:
        writer.finish_all()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _exit_status(program: Callable[[], object]) -> int:
    try:
        program()
    except UserError as error:
        return _say(error, f"error: {error}", EXIT_BAD_INPUT, error.here_only, error.details)
    except BrokenPipeError:  # the reader of standard output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno in UNWRITABLE:
            message = f"{error.filename or 'a file'} cannot be written: {error.strerror}"
        elif error.filename is not None:
            message = f"{os.fsdecode(error.filename)}: {error.strerror}"
        else:
            return _unexpected(error)
        return _say(error, f"error: {message}", EXIT_BAD_INPUT, any_rank=True)
    except KeyboardInterrupt as error:
        return _say(error, "interrupted", EXIT_INTERRUPTED)
    except tuple(kind for kind, *_ in ENDS) as error:
        _, word, status, any_rank = next(end for end in ENDS if isinstance(error, end[0]))
        return _say(error, f"{word}: {error}", status, any_rank)
    except Exception as error:
        return _unexpected(error)
    return 0


def _unexpected(error: Exception) -> int:
    """A mistake of ours, or a machine's: raised as it is, but in a process group its traceback is printed at once."""
    if not hasattr(error, "where"):
        raise error
    if error.where is not None:
        traceback.print_exception(error)
    return _say(error, f"failed: {type(error).__name__}: {first_line(error)}", EXIT_FAILED)


def _say(error: BaseException, message: str, status: int, any_rank: bool = False, details: str = "") -> int:
    """Print a message unless another rank prints it: `where`, which `runtime.processes` notes, is None then."""
    where = getattr(error, "where", "" if any_rank or os.environ.get("RANK", "0") == "0" else None)
    if where is not None:
        word, _, rest = message.partition(": ")
        message = f"{word}: {where}: {rest}" if where and rest else message
        sys.stderr.write((details + "\n" if details else "") + printable(message) + "\n")
        sys.stderr.flush()
    getattr(error, "printed", lambda: None)()
    return status
