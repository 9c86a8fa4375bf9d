"""Decays assigned by a score per module, which is measured while training waits or in the background."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch.distributed as dist
from torch import nn

from alphadecay.analysis import SCORES, Measurement, Measuring, SpectrumRecord
from alphadecay.assign import Assignment
from alphadecay.background import BackgroundMeasurement
from alphadecay.groups import multiplier_of
from alphadecay.matrices import MIN_EIGENVALUES, whole_number
from alphadecay.schedule import DecaySchedule
from alphadecay.spectra import WindowShape
from alphadecay.wording import NONE_DECAYED, far_off


class AlphaDecay(DecaySchedule):
    """Weaker decay for modules whose spectrum has a heavier tail, refreshed every `interval` optimizer steps.

    Construct it after the optimizer and before any learning-rate scheduler; the training loop stays as it is. Before
    each step it writes weight_decay = base decay x multiplier into the optimizer's groups. The base decay is the
    `weight_decay` that a group had (a schedule of it writes the group's `base_weight_decay`). Let s be the score of a
    module, by default the exponent alpha of its spectrum's tail. The default rule is

        multiplier = low + (s - s_min) / (s_max - s_min) x (high - low)

    so the module with the heaviest tail gets `low` and the one with the lightest tail gets `high`.

    This rule increases the total decay. Weighted by parameters, the mean multiplier is about 2.5 for ViT-tiny and 2.2
    for LLaMA's shapes at initialisation; `budget="matched"` keeps it at 1. At initialisation alpha depends on the shape
    of a matrix (about 2.1 for a square one, 3.5 for 4:1), not on what it has learned. Compare with `budget="matched"`
    and `control="shuffle"` before you trust a gain.

    A matrix without a usable tail (all or half of its eigenvalues are zero) keeps its base decay and does not count
    for s_min and s_max; its record's `note` says why. The only matrix of a model keeps its base decay too.

    All state is in the optimizer's groups: to resume, construct the schedule, then load the optimizer's state dict.

    Args:
        model: The model that the optimizer trains, wrapped or not.
        optimizer: Any torch optimizer with `weight_decay`, wrapped or not; its groups are split where needed, so that
            each matrix has its own. Code that sets a learning rate must then set it in every group; a learning rate
            that is a tensor is copied for each group.
        interval: Optimizer steps between refreshes, at least 1. The first refresh comes before the first step.
        low: Smallest multiplier of the linear rule, at least 0; published: 2 / 3.
        high: Largest multiplier of the linear rule, at least `low`; published: 3.
        rule: How scores become multipliers. "linear": onto [low, high]; "sqrt" and "log2": root or logarithm of the
            score, divided by its mean over all modules; "sigmoid": 2 / (1 + exp(-4 z)) with z the score standardised
            over the modules of its block, which is the part of the name up to the last number, such as blocks.0.
        budget: "free": multipliers as the rule gives them. "matched": divided by their mean weighted by parameters
            times static multipliers, so that the total decay of all scored modules equals the uniform one's.
        control: An ablation that changes the assignment, for comparison only. None; "invert": the largest score gets
            the smallest multiplier; "shuffle": other modules get the multipliers, by one permutation for the whole run;
            "by-type": each module gets the mean of its role.
        seed: Seed of the permutation of "shuffle".
        metric: The score of a module: "alpha", "alpha_hat", "spectral_norm", "largest_eigenvalue", "frobenius_norm",
            "squared_frobenius_norm", "stable_rank", "entropy", "grad_norm" or "grad_to_weight" (norm of the gradient /
            largest eigenvalue); see `SpectrumRecord`. Higher scores get more decay.
        fit: How the tail is found. "median": from the middle of the spectrum on, as published; "paper": exactly the
            paper's formula; "goodness-of-fit": where the KS distance of the fit is smallest; "fix-finger": the same
            near the peak of the histogram, as published; "fix-finger-corrected": the same without the published error.
        xmin_pos: For `median`: the tail begins at index int(n / xmin_pos) of the ascending spectrum. Above 1.
        window: None: spectra of whole matrices. "farms": alpha is of the pooled spectrum of evenly spaced square
            windows, so that it does not depend on the matrix' shape. (rows, columns): of windows of that shape.
        filter_zeros: Drop eigenvalues of at most 1e-5 before the fit, an option of the published program; the result
            depends on the weights' scale.
        frozen: Keep the first assignment for the whole run.
        lag: Steps between measuring and writing, below `interval`. 0: training waits while spectra are measured.
            Above 0: before the step at which a refresh is due, the weights are copied to CPU memory, and a thread
            measures the copies in the background. Its result is written `lag` steps later, however long it took.
            Training always waits for the first refresh. `state_dict()` of the optimizer waits for the thread.
        exclude: Globs of modules to skip, such as "blocks.0.*"; they keep their base decay.
        include: Any of "stem", "head" and "frozen": adapt these too.
        min_eigenvalues: Skip matrices with fewer eigenvalues; at least 1.
        ranking: "optimizer": skip matrices that this optimizer does not hold. "model": measure and score them too, for
            a model whose matrices are divided among several optimizers.
        cautious: Decay only entries that the update does not push away from zero (cautious weight decay, arXiv
            2510.12402). Needs an optimizer that decays by learning rate x decay x weight, such as AdamW. Its groups
            then have weight_decay 0, and the decay is applied after its step.
        on_refresh: Called with this object after each refresh, before the step is taken.
        process_group: Ranks that share the measuring, as in `analyze`; all ranks of a distributed run by default.

    Attributes:
        multipliers: Module name -> its current multiplier.
        records: What the last refresh measured, one `SpectrumRecord` per matrix; prints as a table. Empty before it.
        scores: Module name -> its score at the last refresh.
        step: Optimizer steps taken so far.
        next_refresh: The step, counted from 0, before which the next refresh is due; None: never.
        seconds: Wall-clock time that training waited for refreshes.

    Raises:
        ValueError: For impossible values, a model in which no matrix can be adapted, an optimizer without weight
            decay or with another schedule, or groups that would have to be split under a learning-rate scheduler.

    Source: AlphaDecay (arXiv 2506.14562), algorithm 1, eq. 3 and appendix A.3. Unlike there, only the weight matrix of
    a module is adapted, not its bias, and skipped modules keep their own group's decay.

    Example:
        >>> import torch, alphadecay
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 256), torch.nn.Linear(256, 64))
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        >>> decay = alphadecay.AlphaDecay(model, optimizer, interval=500)
        >>> model(torch.ones(8, 64)).square().mean().backward()
        >>> optimizer.step()  # measures spectra and writes decays before this first step
        >>> [round(multiplier, 2) for multiplier in (decay.multipliers["0"], max(decay.multipliers.values()))]
        [0.67, 3.0]
        >>> [record.name for record in decay.records]
        ['0', '1', '2']
    """

    strategy = "alphadecay"

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
        if not isinstance(metric, str) or metric not in SCORES:
            raise ValueError(f"metric={metric!r} is unknown; choose from {', '.join(SCORES)}")
        if isinstance(lag, bool) or not hasattr(lag, "__index__") or not 0 <= lag < interval:
            raise ValueError(
                f"lag must be a whole number of steps, at least 0 and below the interval of {interval}; got {lag}"
            )
        self.metric, self.frozen, self.lag = metric, frozen, lag
        self.measuring = Measuring(fit, xmin_pos, window, filter_zeros)
        self.assignment = Assignment(rule, low, high, budget, control, seed)
        super().__init__(
            model, optimizer, interval, exclude=exclude, include=include, min_eigenvalues=min_eigenvalues,
            ranking=ranking, cautious=cautious, on_refresh=on_refresh,
        )  # fmt: skip
        self._own_process_group, self._measuring_from = process_group, 0
        self._background = BackgroundMeasurement(self.process_group) if lag else None
        if not any(m.may_be_adapted for m in self._membership.matrices):
            self._warn_once("none decayed", f"{type(self).__name__} has no effect: {NONE_DECAYED}")

    @property
    def process_group(self) -> Any:
        """The ranks that share the measuring; None for one process."""
        if self._own_process_group is None and dist.is_available() and dist.is_initialized():
            return dist.group.WORLD
        return self._own_process_group

    @property
    def next_refresh(self) -> int | None:
        """The step, counted from 0, before which the next automatic refresh is due; None: never."""
        return None if self.frozen and self._wrote_multipliers else super().next_refresh

    def _measure(self) -> tuple[list[SpectrumRecord], dict[str, float]]:
        if self.frozen and self.step > 0 and self._wrote_multipliers:
            return self.records, self.multipliers
        records, multipliers, self.scores = self._assigned(self._measurement().run())
        return records, multipliers

    def _measurement(self, copied: bool = False) -> Measurement:
        self._membership.update()  # only a search of the model finds weights that were tied or reshaped in place
        measurement = Measurement(self._membership.matrices, self.measuring, self.process_group, copied=copied)
        scale = getattr(self.optimizer, "grad_scale", None)
        if scale is not None:  # GradScaler has not unscaled the gradients: the optimizer's fused kernel will
            norms = measurement.gradient_norms
            measurement.gradient_norms = {name: norm / float(scale) for name, norm in norms.items()}
        return measurement

    def _assigned(
        self, records: list[SpectrumRecord]
    ) -> tuple[list[SpectrumRecord], dict[str, float], dict[str, float]]:
        """Records, with notes on modules that keep their base decay; multipliers of the other modules; scores."""
        scores = {r.name: score for r in records if not r.note and (score := SCORES[self.metric](r)) is not None}
        if not scores and any(not r.note for r in records):
            why = f"no {self.metric} to score by: it needs a gradient" if "grad" in self.metric else "no score"
            return [r if r.note else replace(r, note=why) for r in records], {}, scores
        if len(set(scores.values())) < 2:
            why = "the only matrix with a score" if len(scores) == 1 else "all scores are equal"
            return [replace(r, note=why) if r.name in scores else r for r in records], {}, scores
        scored = [r for r in records if r.name in scores]
        unscored = f"no {self.metric}: {'no gradient' if 'grad' in self.metric else 'no score'}"
        records = [r if r.note or r.name in scores else replace(r, note=unscored) for r in records]
        statics = self.statics
        multipliers = self.assignment.multipliers(
            scores,
            blocks={r.name: block_of(r.name) for r in scored},
            roles={r.name: r.role for r in scored},
            sizes={r.name: r.parameters * statics.get(r.name, 1.0) for r in scored},
        )
        if self.assignment.rule == "linear" and self.assignment.control in (None, "invert"):
            self._warn_once("far off", far_off(scores, multipliers, self.metric))
        return records, multipliers, scores

    def _act(self, step: int) -> None:
        if self._background is None or self.frozen or step == 0 or not self._wrote_multipliers or self._due:
            super()._act(step)
        elif step % self.interval == 0:
            began = time.perf_counter()
            self._drop_measurement()
            self._measuring_from = step
            self._background.start(self._measurement(copied=True))
            self._adapted_then = self._membership.adapted
            self.seconds += time.perf_counter() - began
        elif step % self.interval == self.lag:
            self._take_next()

    def refresh(self) -> None:
        """Measure now and write the new decays; runs by itself when due. Drops a measurement in the background."""
        self._drop_measurement()
        super().refresh()

    def loaded(self) -> None:
        """Take over the last refresh of a loaded state; without `lag`, drop multipliers that it has not written yet."""
        super().loaded()
        if self._background is None:
            self._drop_measurement()

    def _drop_measurement(self) -> None:
        """Drop multipliers that were measured in the background and are not written yet."""
        if self._background:
            self._background.forget()
        for group in self.optimizer.param_groups:
            group.pop("decay_next", None)

    def settle(self) -> None:
        """Wait for the measurement in the background, if any, and note its multipliers in the groups."""
        super().settle()
        measured = self._background.result() if self._background else None
        if measured is None:
            return
        records, multipliers, scores = self._assigned(measured)
        by_name = {record.name: asdict(record) for record in records}
        for group in self.optimizer.param_groups:
            name = group["decay_name"]
            if name in by_name or "decay_members" in group:
                multiplier = multiplier_of(group, multipliers, self._membership.matrices)
                group["decay_next"] = {
                    "at": self._measuring_from, "multiplier": multiplier, "score": scores.get(name),
                    "record": by_name.get(name),
                }  # fmt: skip

    def _take_next(self) -> None:
        """Write the multipliers that were measured `lag` steps ago."""
        began = time.perf_counter()
        self.settle()
        self.saved()
        measured = {g["decay_name"]: g.pop("decay_next") for g in self.optimizer.param_groups if "decay_next" in g}
        if not measured:  # the state was saved with another lag
            return
        self.scores = {name: values["score"] for name, values in measured.items() if values["score"] is not None}
        self.measured_at = next(iter(measured.values())).get("at", self.step - self.lag)
        records = self._records({name: values["record"] for name, values in measured.items() if values["record"]})
        self._took(records, {name: values["multiplier"] for name, values in measured.items()}, began)

    def check_state(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """Refuse a state of other groups or another strategy; drop a measurement in the background."""
        checked = super().check_state(state)
        if self._background:
            self._background.forget()
        return checked

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles; a process group cannot be copied."""
        if self._own_process_group is not None or (self._background and self._background.several):
            raise TypeError(
                f"{type(self).__name__} with a process group of its own, or with lag in several processes, cannot be "
                "copied or pickled: copy model and optimizer after detach(), and construct it again"
            )
        return super().__getstate__()


def block_of(name: str) -> str:
    """The block of a module: its name up to the last number, such as blocks.0; "" without a number."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1]) if numbers else ""
