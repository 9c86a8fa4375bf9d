"""The runs of a comparison on this machine, with the board that shows them."""

import queue
import threading
from collections.abc import Sequence
from contextlib import suppress

from comparison.board import Board
from comparison.results import Run
from comparison.running import POLL, Event, Place, Stopping, run_all
from runtime.errors import Preempted, UserError
from runtime.tables import say


def run_here(todo: Sequence[Run], where: Sequence[Place], board: Board) -> None:
    """Take the runs to their end, as many at a time as there are places.

    Whatever ends the wait (Ctrl-C, a signal) first lets the runs that go on save and end; a second Ctrl-C kills them.

    Raises:
        UserError: Of the first run whose folder could not be worked in, once the others have ended.
    """
    events: queue.Queue[Event] = queue.Queue()
    stopping = Stopping()
    errors: list[UserError] = []
    work = threading.Thread(target=lambda: errors.extend(run_all(todo, where, stopping, events)), name="runs")
    try:
        with board:
            work.start()
            while work.is_alive() or not events.empty():
                _show(events, board)
    except BaseException:
        stopping.stop()
        try:
            with suppress(OSError):  # nobody may be left to read it
                say("stopping: the runs that go on save first; the same command then goes on with them")
            work.join()
        except (KeyboardInterrupt, Preempted):
            stopping.kill()
            work.join()
        raise
    if errors:
        raise errors[0]


def _show(events: "queue.Queue[Event]", board: Board) -> None:
    try:
        what, run = events.get(timeout=POLL)
    except queue.Empty:
        return
    (board.begins if what == "begins" else board.ends)(run)
