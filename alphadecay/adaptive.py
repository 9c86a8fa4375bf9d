"""Decays that are assigned by a score of each module, measured while training waits or beside it."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from alphadecay.analysis import SCORES, Measurement, Measuring, SpectrumRecord, record_without_measures
from alphadecay.assign import assign
from alphadecay.matrices import find_matrices
from alphadecay.schedule import DecaySchedule
from alphadecay.spectra import WindowShape


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
        cautious: bool = False,
        on_refresh: Callable[[DecaySchedule], None] | None = None,
        process_group: Any = None,
    ) -> None:
        if metric not in SCORES:
            raise ValueError(f"metric={metric!r} is unknown; choose from {', '.join(SCORES)}")
        if not 0 <= lag < interval:
            raise ValueError(f"lag must be at least 0 and below the interval, {interval} optimizer steps; got {lag}")
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
            model, optimizer, interval, exclude=exclude, include=include, cautious=cautious, on_refresh=on_refresh
        )
        if process_group is None and dist.is_available() and dist.is_initialized():
            process_group = dist.group.WORLD
        self.process_group = process_group
        self._beside = Beside(process_group) if lag else None
        if self._beside:
            self._hooks.append(self.optimizer.register_state_dict_pre_hook(lambda _: self._settle()))

    def _measure(self) -> tuple[list[SpectrumRecord], dict[str, float]]:
        if self.frozen and self.step > 0 and self._wrote_multipliers:
            return self.records, self.multipliers
        return self._assigned(self._measurement().run())

    def _measurement(self, copied: bool = False) -> Measurement:
        found = Measurement(
            self.model, self.measuring, **self.selection, process_group=self.process_group, copied=copied
        )
        scale = getattr(self.optimizer, "grad_scale", None)
        if scale is not None:  # gradients that GradScaler leaves to a fused kernel to unscale
            found.gradient_norms = {name: norm / float(scale) for name, norm in found.gradient_norms.items()}
        return found

    def _assigned(self, records: list[SpectrumRecord]) -> tuple[list[SpectrumRecord], dict[str, float]]:
        """The records with notes on modules that keep their base decay, and the multipliers of the others."""
        self.scores = {r.name: score for r in records if not r.note and (score := SCORES[self.metric](r)) is not None}
        if not self.scores and any(not r.note for r in records):
            why = f"no {self.metric} to score by: it needs a gradient" if "grad" in self.metric else "no score"
            return [r if r.note else replace(r, note=why) for r in records], {}
        if len(set(self.scores.values())) < 2:
            why = "the only matrix with a score" if len(self.scores) == 1 else "all scores are equal"
            return [replace(r, note=why) if r.name in self.scores else r for r in records], {}
        scored = [r for r in records if r.name in self.scores]
        multipliers = assign(
            self.scores,
            blocks={r.name: block_of(r.name) for r in scored},
            roles={r.name: r.role for r in scored},
            sizes={r.name: r.parameters for r in scored},
            **self.assignment,
        )
        return records, multipliers

    def _act(self, step: int) -> None:
        if self._beside is None or self.frozen or step == 0 or not self._wrote_multipliers:
            super()._act(step)
        elif step % self.interval == 0:
            began = time.perf_counter()
            for group in self.optimizer.param_groups:
                group.pop("decay_next", None)
            self._beside.start(self._measurement(copied=True))
            self.seconds += time.perf_counter() - began
        elif step % self.interval == self.lag:
            self._take_next()

    def _settle(self) -> None:
        """Wait for the measurement under way, if any, and note in the groups what comes next."""
        measured = self._beside.result() if self._beside else None
        if measured is None:
            return
        records, multipliers = self._assigned(measured)
        by_name = {record.name: record for record in records}
        for group in self.optimizer.param_groups:
            name = group["decay_name"]
            if name in by_name:
                score, record = self.scores.get(name), asdict(by_name[name])
                group["decay_next"] = {"multiplier": multipliers.get(name, 1.0), "score": score, "record": record}

    def _take_next(self) -> None:
        """Let what was measured `lag` steps ago hold from now on."""
        began = time.perf_counter()
        self._settle()
        coming = {g["decay_name"]: g.pop("decay_next") for g in self.optimizer.param_groups if "decay_next" in g}
        if not coming:  # a state that was saved with another lag
            return
        self.scores = {name: each["score"] for name, each in coming.items() if each["score"] is not None}
        records = {name: SpectrumRecord(**each["record"]) for name, each in coming.items()}
        self.records = [
            records.get(m.name) or record_without_measures(m, m.reason)
            for m in find_matrices(self.model, **self.selection)
        ]
        self.measured_at = self.step - self.lag
        self._take({name: each["multiplier"] for name, each in coming.items()})
        self.seconds += time.perf_counter() - began
        if self.on_refresh is not None:
            self.on_refresh(self)

    def _check_state(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        if self._beside:
            self._beside.forget()
        return super()._check_state(optimizer, state)


class Beside:
    """Measures in a thread while training goes on; ranks exchange what they find in a group of their own.

    Args:
        process_group: The ranks that share the work; None for one process.
    """

    def __init__(self, process_group: Any) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="alphadecay")
        self._job: Future[list[SpectrumRecord]] | None = None
        self._results_group = None
        if process_group is not None and dist.get_world_size(process_group) > 1:
            ranks = dist.get_process_group_ranks(process_group)
            self._results_group = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)

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


def block_of(name: str) -> str:
    """The block a module belongs to: its name up to the last number, such as blocks.0."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1]) if numbers else ""
