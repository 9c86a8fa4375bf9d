"""Decays that are assigned by a score of each module, measured while training waits or beside it."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import torch.distributed as dist
from torch import nn

from alphadecay.analysis import SCORES, Measurement, Measuring, SpectrumRecord
from alphadecay.assign import assign
from alphadecay.matrices import MIN_EIGENVALUES, whole_number
from alphadecay.schedule import DecaySchedule
from alphadecay.spectra import WindowShape
from alphadecay.wording import far_off


class AlphaDecay(DecaySchedule):
    """Weaker decay for modules whose spectrum has a heavier tail, refreshed every `interval` optimizer steps.

    Construct it after the optimizer and before any learning-rate scheduler; the training loop stays as it is.
    A matrix without a usable tail (all or half its eigenvalues zero) keeps its base decay and does not count
    among the others' minimum and maximum; its record's `note` says why. So does the only matrix of a model.

    Args:
        model: The model the optimizer trains, wrapped or not.
        optimizer: Any torch optimizer with `weight_decay`; groups are split where needed.
        interval: Optimizer steps between refreshes, at least 1. The first one comes before the first step.
        low: Smallest multiplier of the base decay.
        high: Largest multiplier of the base decay.
        rule, budget, control, seed: As in `alphadecay.assign`.
        metric: What scores a module; one of `alphadecay.analysis.SCORES`. Higher scores get more decay.
        fit, xmin_pos, window, filter_zeros, exclude, include: As in `alphadecay.analyze`.
        frozen: Keep the first assignment for ever.
        lag: Steps between measuring and writing, below `interval`. 0: training waits while spectra are measured.
            Above: before the step at which a refresh is due the weights are copied to CPU memory, a thread measures
            the copies while training goes on, and its result holds from `lag` steps later on, whenever the thread
            was done. The first refresh is always waited for. `state_dict()` of the optimizer waits for the thread.
        cautious: As in `DecaySchedule`.
        on_refresh: Called with this object after each refresh.
        process_group: As in `alphadecay.analyze`; all ranks of a distributed run by default.

    Raises:
        ValueError: For impossible values, a model in which no matrix takes part, an optimizer without weight
            decay, or groups that would have to be split under a learning-rate scheduler.

    Source: AlphaDecay (arXiv 2506.14562), algorithm 1. Unlike there, only the weight matrix of a module is
    adapted, not its bias, and what takes no part keeps its own group's decay.
    """

    kind = "alphadecay"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        interval: int = 500,
        low: float = 2 / 3,
        high: float = 3.0,
        *,
        rule: str = "linear",
        budget: str = "free",
        control: str | None = None,
        seed: int = 0,
        metric: str = "alpha",
        fit: str = "median",
        xmin_pos: float = 2.0,
        window: str | WindowShape | None = None,
        filter_zeros: bool = False,
        frozen: bool = False,
        lag: int = 0,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        min_eigenvalues: int = MIN_EIGENVALUES,
        ranking: str = "optimizer",
        cautious: bool = False,
        on_refresh: Callable[[DecaySchedule], None] | None = None,
        process_group: Any = None,
    ) -> None:
        whole_number("interval", interval, "optimizer steps")
        if metric not in SCORES:
            raise ValueError(f"metric={metric!r} is unknown; choose from {', '.join(SCORES)}")
        if not hasattr(lag, "__index__") or not 0 <= lag < interval:
            raise ValueError(
                f"lag must be a whole number of steps, at least 0 and below the interval of {interval}; got {lag}"
            )
        self.metric, self.frozen, self.lag = metric, frozen, lag
        self.measuring = Measuring(fit, xmin_pos, window, filter_zeros)
        self.assignment: dict[str, Any] = {
            "rule": rule, "low": low, "high": high, "budget": budget, "control": control, "seed": seed,
        }  # fmt: skip
        probe = {"a": 1.0, "b": 2.0}  # impossible settings are refused here, not at the first step
        assign(
            probe,
            blocks=dict.fromkeys(probe, ""),
            roles=dict.fromkeys(probe, ""),
            sizes=dict.fromkeys(probe, 1),
            **self.assignment,
        )
        super().__init__(
            model, optimizer, interval, exclude=exclude, include=include, min_eigenvalues=min_eigenvalues,
            ranking=ranking, cautious=cautious, on_refresh=on_refresh,
        )  # fmt: skip
        self._own_process_group = process_group
        self._beside = Beside(self.process_group) if lag else None

    @property
    def process_group(self) -> Any:
        """The ranks that share the measuring; None for one process."""
        if self._own_process_group is None and dist.is_available() and dist.is_initialized():
            return dist.group.WORLD
        return self._own_process_group

    @property
    def next_refresh(self) -> int | None:
        """Before which step, counted from 0, the next refresh is due by itself; None: never."""
        return None if self.frozen and self._wrote_multipliers else super().next_refresh

    def _measure(self) -> tuple[list[SpectrumRecord], dict[str, float]]:
        if self.frozen and self.step > 0 and self._wrote_multipliers:
            return self.records, self.multipliers
        records, multipliers, self.scores = self._assigned(self._measurement().run())
        return records, multipliers

    def _measurement(self, copied: bool = False) -> Measurement:
        found = Measurement(self._membership.matrices, self.measuring, self.process_group, copied=copied)
        scale = getattr(self.optimizer, "grad_scale", None)
        if scale is not None:  # gradients that GradScaler leaves to a fused kernel to unscale
            found.gradient_norms = {name: norm / float(scale) for name, norm in found.gradient_norms.items()}
        return found

    def _assigned(
        self, records: list[SpectrumRecord]
    ) -> tuple[list[SpectrumRecord], dict[str, float], dict[str, float]]:
        """The records with notes on modules that keep their base decay, the multipliers of the others, the scores."""
        scores = {r.name: score for r in records if not r.note and (score := SCORES[self.metric](r)) is not None}
        if not scores and any(not r.note for r in records):
            why = f"no {self.metric} to score by: it needs a gradient" if "grad" in self.metric else "no score"
            return [r if r.note else replace(r, note=why) for r in records], {}, scores
        if len(set(scores.values())) < 2:
            why = "the only matrix with a score" if len(scores) == 1 else "all scores are equal"
            return [replace(r, note=why) if r.name in scores else r for r in records], {}, scores
        scored = [r for r in records if r.name in scores]
        multipliers = assign(
            scores,
            blocks={r.name: block_of(r.name) for r in scored},
            roles={r.name: r.role for r in scored},
            sizes={r.name: r.parameters for r in scored},
            **self.assignment,
        )
        if self.assignment["rule"] == "linear" and self.assignment["control"] in (None, "invert"):
            self._warn_once("far off", far_off(scores, multipliers, self.metric))
        return records, multipliers, scores

    def _act(self, step: int) -> None:
        if self._beside is None or self.frozen or step == 0 or not self._wrote_multipliers or self._due:
            if self._beside and self._due:
                self._drop_measurement()
            super()._act(step)
        elif step % self.interval == 0:
            began = time.perf_counter()
            self._drop_measurement()
            self._beside.start(self._measurement(copied=True))
            self.seconds += time.perf_counter() - began
        elif step % self.interval == self.lag:
            self._take_next()

    def _drop_measurement(self) -> None:
        """Forget what was measured beside training and holds not yet."""
        if self._beside:
            self._beside.forget()
        for group in self.optimizer.param_groups:
            group.pop("decay_next", None)

    def settle(self) -> None:
        """Wait for the measurement under way, if any, and note in the groups what comes next."""
        super().settle()
        measured = self._beside.result() if self._beside else None
        if measured is None:
            return
        records, multipliers, scores = self._assigned(measured)
        by_name = {record.name: asdict(record) for record in records}
        for group in self.optimizer.param_groups:
            name = group["decay_name"]
            if name in by_name or "decay_members" in group:
                multiplier = self._membership.multiplier_of(group, multipliers)
                group["decay_next"] = {
                    "multiplier": multiplier, "score": scores.get(name), "record": by_name.get(name)
                }  # fmt: skip

    def _take_next(self) -> None:
        """Let what was measured `lag` steps ago hold from now on."""
        began = time.perf_counter()
        self.settle()
        self.saved()
        coming = {g["decay_name"]: g.pop("decay_next") for g in self.optimizer.param_groups if "decay_next" in g}
        if not coming:  # a state that was saved with another lag
            return
        self.scores = {name: each["score"] for name, each in coming.items() if each["score"] is not None}
        self.measured_at = self.step - self.lag
        records = self._records({name: each["record"] for name, each in coming.items() if each["record"]})
        self._took(records, {name: each["multiplier"] for name, each in coming.items()}, began)

    def check_state(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """As every schedule; what is measured beside training is of the state before."""
        checked = super().check_state(state)
        if self._beside:
            self._beside.forget()
        return checked

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles; a process group has none."""
        if self._own_process_group is not None or (self._beside and self._beside.several):
            raise TypeError(
                f"{type(self).__name__} with a process group of its own, or with lag in several processes, cannot be "
                "copied or pickled: copy model and optimizer after detach(), and construct it again"
            )
        return super().__getstate__()


class Beside:
    """Measures in a thread while training goes on; ranks exchange what they find in a group of their own.

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
        """Whether ranks exchange what they find."""
        return self._results_group is not None

    def __getstate__(self) -> dict[str, Any]:
        return {"_job": None}  # nothing that is under way goes along

    def __setstate__(self, _: dict[str, Any]) -> None:
        self._thread, self._job, self._results_group = _one_thread(), None, None

    def start(self, measurement: Measurement) -> None:
        """Begin; `measurement` holds copies of the weights."""
        self._job = self._thread.submit(measurement.run, self._results_group)

    def result(self) -> list[SpectrumRecord] | None:
        """Wait for what was begun last and hand it out once; raises what it raised. None if nothing was begun."""
        job, self._job = self._job, None
        return None if job is None else job.result()

    def forget(self) -> None:
        """Drop what is under way."""
        self._job = None


def _one_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="alphadecay")


def block_of(name: str) -> str:
    """The block a module belongs to: its name up to the last number, such as blocks.0."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1]) if numbers else ""
