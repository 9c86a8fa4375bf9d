"""Runs jobs in the background, one at a time, and raises their errors in the training thread."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

_unfinished: set[Future[Any]] = set()  # of all writers, also of those that an error has let go of


def finish_all() -> None:
    """Return when all jobs that were started are done, whatever they raise."""
    wait(list(_unfinished))


class BackgroundWriter:
    """Runs jobs in one thread, in order. A started job is finished even if the program ends with an error."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._job: Future[Any] | None = None

    def submit(self, job: Callable[[], Any]) -> None:
        """Start a job after the previous one is done; raises that one's error."""
        self.wait()
        self._job = self._thread.submit(job)
        _unfinished.add(self._job)
        self._job.add_done_callback(_unfinished.discard)

    def check(self) -> None:
        """Raise the last job's error, if it is done; does not wait."""
        if self._job is not None and self._job.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last job is done; raises its error."""
        job, self._job = self._job, None
        if job is not None:
            job.result()
