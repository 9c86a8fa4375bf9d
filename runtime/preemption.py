"""SIGTERM, SIGUSR1 and Ctrl-C end a run in order: every rank learns of a signal at the same place, then all save and
leave."""

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from runtime.errors import Preempted
from runtime.processes import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SAME_SIGNAL = 3.0  # seconds in which signals count as one: torchrun repeats them, a terminal sends them to all
Item = TypeVar("Item")


class Preemption:
    """Whether the run has been told to end. All ranks must call `check` in the same places.

    A check starts an exchange between the ranks that the next check reads, so that none waits for another: a
    signal acts at the check after the one that saw it. The exchange is between CPUs and never waits for a GPU.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._group = ranks.control
        self._received = 0  # number of the signal, 0 for none
        self._since = 0.0
        self._exchange: tuple[torch.Tensor, Any] | None = None

    def check(self) -> None:
        """Raise Preempted, on all ranks alike, if any of them has received a signal."""
        agreed = self._received if self._group is None else self._agree()
        if agreed:
            raise Preempted(signal.Signals(agreed).name)

    def watched(self, items: Iterable[Item], checks: int) -> Iterator[Item]:
        """The items, with a check after each and, where a rank has fewer, as many checks as on the others."""
        done = 0
        for item in items:
            yield item
            self.check()
            done += 1
        for _ in range(done, checks):
            self.check()

    def note(self, number: int, _: Any = None) -> None:
        """Remember a signal; the run goes on to the next place where it can stop. A later one ends it at once."""
        now = time.monotonic()
        if self._received and now - self._since > SAME_SIGNAL:
            os.write(2, f"{signal.Signals(number).name} again: ended at once, without saving\n".encode())
            os._exit(128 + number)
        if not self._received:
            self._received, self._since = number, now

    def _agree(self) -> int:
        agreed = 0
        if self._exchange is not None:
            highest, work = self._exchange
            work.wait()
            agreed = int(highest)
        mine = torch.tensor(self._received)
        self._exchange = (mine, dist.all_reduce(mine, dist.ReduceOp.MAX, group=self._group, async_op=True))
        return agreed


@contextmanager
def preemption(ranks: Ranks) -> Iterator[Preemption]:
    """Note the signals instead of dying of them; what they did before is put back on leaving."""
    noted = Preemption(ranks)
    # A shell without job control lets its background jobs ignore Ctrl-C, which is meant for another program.
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, noted.note) for number in heard}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def outlive_signals(_: int) -> None:
    """For a loader process: only its trainer's own SIGTERM ends it, not one that goes to the whole process group.

    Else the trainer would find its loaders dead before it has saved. A loader whose trainer is gone ends by itself.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(trainer: int) -> None:
    while True:
        received = signal.sigwaitinfo(SIGNALS)
        if (received.si_signo, received.si_pid) == (signal.SIGTERM, trainer):
            os._exit(0)
