"""Runs jobs in the background, one at a time, and raises their errors in the training thread."""

import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

_writers: "weakref.WeakSet[BackgroundWriter]" = weakref.WeakSet()


def finish_all() -> None:
    """Return when all jobs that were begun are done, whatever they raise."""
    for writer in list(_writers):
        with suppress(Exception):
            writer.wait()


class BackgroundWriter:
    """Runs jobs in one thread, in order. A started job is finished even if the program ends with an error."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._job: Future[Any] | None = None
        _writers.add(self)

    def submit(self, job: Callable[[], Any]) -> None:
        """Start a job after the previous one is done; raises that one's error."""
        self.wait()
        self._job = self._thread.submit(job)

    def check(self) -> None:
        """Raise the last job's error, if it is done; does not wait."""
        if self._job is not None and self._job.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last job is done; raises its error."""
        job, self._job = self._job, None
        if job is not None:
            job.result()
