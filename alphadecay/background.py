"""Measure spectra in a thread while training continues."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch.distributed as dist

from alphadecay.analysis import Measurement, SpectrumRecord


class BackgroundMeasurement:
    """Measures in a thread while training continues; ranks exchange records over a process group of their own.

    Args:
        process_group: The ranks that share the work; None for one process.
    """

    def __init__(self, process_group: Any) -> None:
        self._thread = _one_thread()
        self._job: Future[list[SpectrumRecord]] | None = None
        self._results_group = None
        if process_group is not None and dist.get_world_size(process_group) > 1:
            ranks = dist.get_process_group_ranks(process_group)
            self._results_group = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)

    @property
    def several(self) -> bool:
        """Whether several ranks exchange records."""
        return self._results_group is not None

    def __getstate__(self) -> dict[str, Any]:
        return {"_job": None}  # a running measurement is not copied

    def __setstate__(self, _: dict[str, Any]) -> None:
        self._thread, self._job, self._results_group = _one_thread(), None, None

    def start(self, measurement: Measurement) -> None:
        """Start a measurement; it holds copies of the weights."""
        self._job = self._thread.submit(measurement.run, self._results_group)

    def result(self) -> list[SpectrumRecord] | None:
        """Wait for the last measurement and return its records once; None if none was started.

        If the measurement failed, each call raises its error.
        """
        records = None if self._job is None else self._job.result()
        self._job = None
        return records

    def forget(self) -> None:
        """Drop the running measurement."""
        self._job = None


def _one_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="alphadecay")
