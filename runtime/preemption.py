"""Ends a run in order after SIGTERM, SIGUSR1 or Ctrl-C: all ranks see the signal at the same check, save and exit."""

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
SAME_SIGNAL = 3.0  # seconds in which signals count as one: torchrun passes on what a terminal has sent to all
Item = TypeVar("Item")


class Preemption:
    """Whether a signal has requested the run to end. All ranks must call `check` at the same places.

    A check starts an exchange between the ranks, and the next check reads its result, so that no rank waits for
    another: a signal takes effect one check later. The exchange uses CPUs and never waits for a GPU.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._group = ranks.cpu_group
        self._received = 0  # number of the signal, or 0
        self._since = 0.0
        self._exchange: tuple[torch.Tensor, Any] | None = None

    def check(self) -> None:
        """Raise Preempted on all ranks if any of them has received a signal."""
        agreed = self._received if self._group is None else self._agree()
        if agreed:
            raise Preempted(signal.Signals(agreed).name)

    def watched(self, items: Iterable[Item], checks: int) -> Iterator[Item]:
        """Yield the items with a check after each; after fewer than `checks` items, make the missing checks."""
        done = 0
        for item in items:
            yield item
            self.check()
            done += 1
        for _ in range(done, checks):
            self.check()

    def note(self, number: int, _: Any = None) -> None:
        """Remember a signal; the run continues to the next check. A second signal ends it immediately."""
        now = time.monotonic()
        if self._received and now - self._since > SAME_SIGNAL:
            os.write(2, f"{signal.Signals(number).name} again: ended immediately, without saving\n".encode())
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
    """Remember signals instead of ending at them; restore the previous handlers when the context ends."""
    watch = Preemption(ranks)
    # A shell without job control makes its background jobs ignore Ctrl-C: it is meant for another program.
    handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, watch.note) for number in handled}
    try:
        yield watch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def outlive_signals(_: int, trainer: int) -> None:
    """Make a loader process ignore signals, except a SIGTERM that its trainer sends.

    A signal to the whole process group would otherwise end the loaders before the trainer has saved. Loaders still end
    when their trainer ends.

    Args:
        trainer: Its process number. It is not the parent if a fork server starts the loaders.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_end_with, args=(trainer,), daemon=True).start()


def _end_with(trainer: int) -> None:
    while True:
        received = signal.sigwaitinfo(SIGNALS)
        if (received.si_signo, received.si_pid) == (signal.SIGTERM, trainer):
            os._exit(0)
