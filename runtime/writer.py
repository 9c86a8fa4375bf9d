"""Work behind the training's back: one job at a time, its errors raised where the training can act on them."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class BackgroundWriter:
    """Runs jobs in one thread, in order. A job that was begun is finished, also when the program ends by an error."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._job: Future[Any] | None = None

    def submit(self, job: Callable[[], Any]) -> None:
        """Start a job once the one before is done; raises what that one raised."""
        self.wait()
        self._job = self._thread.submit(job)

    def check(self) -> None:
        """Raise what the last job raised, if it is done; does not wait."""
        if self._job is not None and self._job.done():
            self.wait()

    def wait(self) -> None:
        """Return when the last job is done; raises what it raised."""
        job, self._job = self._job, None
        if job is not None:
            job.result()
