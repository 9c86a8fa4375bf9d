"""The runs of a comparison on this machine, with the board that shows them."""

import queue
import threading
from collections.abc import Sequence

from comparison.board import Board
from comparison.results import Run
from comparison.running import POLL, Event, Place, Stopping, run_all
from runtime.tables import say


def run_here(todo: Sequence[Run], where: Sequence[Place], board: Board) -> None:
    """Take the runs to their end, as many at a time as there are places.

    Whatever ends the wait (Ctrl-C, a signal) first lets the runs that go on save and end; a second Ctrl-C kills them.
    """
    events: queue.Queue[Event] = queue.Queue()
    stopping = Stopping()
    work = threading.Thread(target=run_all, args=(todo, where, stopping, events), name="runs")
    try:
        with board:
            work.start()
            while work.is_alive() or not events.empty():
                _show(events, board)
    except BaseException:
        say("stopping: the runs that go on save first; the same command then goes on with them")
        stopping.stop()
        try:
            work.join()
        except KeyboardInterrupt:
            stopping.kill()
            work.join()
        raise


def _show(events: "queue.Queue[Event]", board: Board) -> None:
    try:
        what, run = events.get(timeout=POLL)
    except queue.Empty:
        return
    (board.begins if what == "begins" else board.ends)(run)
