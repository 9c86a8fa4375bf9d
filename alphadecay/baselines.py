"""Strategies that AlphaDecay is compared with, on the same base class."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from alphadecay.adaptive import AlphaDecay
from alphadecay.analysis import SpectrumRecord
from alphadecay.groups import ALL
from alphadecay.matrices import MIN_EIGENVALUES
from alphadecay.schedule import DecaySchedule
from alphadecay.sharing import power_sums
from alphadecay.spectra import NonFiniteWeight

KEPT = 0.1  # weight of the previous value in AWD's average
SMALL = 1e-8  # added to the norm of the weights, as published


class UniformDecay(DecaySchedule):
    """The baseline: every module keeps its base decay, in the same groups as under the adaptive strategies.

    All multipliers are 1. Construct it after the optimizer and before any learning-rate scheduler.

    Args:
        model: The model that the optimizer trains, wrapped or not.
        optimizer: Any torch optimizer with `weight_decay`, wrapped or not; its groups are split as `AlphaDecay` does.
        interval: Optimizer steps between calls of `on_refresh`, at least 1.
        exclude: Globs of modules that get no group of their own, such as "blocks.0.*".
        include: Any of "stem", "head" and "frozen": these get groups of their own too.
        min_eigenvalues: Matrices with fewer eigenvalues get no group of their own; at least 1.
        ranking: "optimizer" or "model"; nothing is ranked here.
        cautious: Decay only entries that the update does not push away from zero (cautious weight decay, arXiv
            2510.12402). Needs an optimizer that decays by learning rate x decay x weight, such as AdamW. Its groups
            then have weight_decay 0, and the decay is applied after its step.
        on_refresh: Called with this object every `interval` steps, before the step is taken.

    Raises:
        ValueError: For impossible values, a model in which no matrix can be adapted, an optimizer without weight
            decay or with another schedule, or groups that would have to be split under a learning-rate scheduler.

    Example:
        >>> import torch, alphadecay
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        >>> optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        >>> decay = alphadecay.UniformDecay(model, optimizer)
        >>> model(torch.ones(1, 64)).sum().backward()
        >>> optimizer.step()
        >>> decay.multipliers
        {'0': 1.0, '1': 1.0}
    """

    strategy = "uniform"
    adaptive = False

    def _measure(self) -> tuple[list[SpectrumRecord], dict[str, float]]:
        return [], {}


class AdaDecay(AlphaDecay):
    """More decay for modules with a larger gradient than the others of their block, refreshed every `interval` steps.

    The authors of AlphaDecay compare with this strategy under this name; `AdaDecayPerEntry` is the original. With |g|
    the Frobenius norm of a weight's gradient,

        multiplier = 2 / (1 + exp(-4 z)), z = (|g| - mean) / (standard deviation + 1e-8), over the modules of a block

    It is between 0 and 2. A module's block is the part of its name up to the last number, such as blocks.0.

    Args:
        model: The model that the optimizer trains, wrapped or not.
        optimizer: Any torch optimizer with `weight_decay`, wrapped or not; its groups are split where needed.
        interval: Optimizer steps between refreshes, at least 1. The first refresh comes before the first step.
        options: Other keywords of `AlphaDecay`, with the same meaning: budget, control, seed, frozen, lag, exclude,
            include, min_eigenvalues, ranking, cautious, on_refresh, process_group. metric and rule are fixed; low and
            high have no effect; fit, xmin_pos, window and filter_zeros change `records`, but no decay.

    Raises:
        ValueError: For impossible values, a model in which no matrix can be adapted, an optimizer without weight
            decay or with another schedule, or groups that would have to be split under a learning-rate scheduler.

    Source: the published program of AlphaDecay (arXiv 2506.14562, appendix A.3), after AdaDecay (arXiv 1907.08931).

    Example:
        >>> import torch, alphadecay
        >>> block = torch.nn.ModuleDict({"a": torch.nn.Linear(64, 64), "b": torch.nn.Linear(64, 64)})
        >>> model = torch.nn.ModuleList([block])
        >>> optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        >>> decay = alphadecay.AdaDecay(model, optimizer)
        >>> (block["a"](torch.ones(1, 64)).sum() + 9 * block["b"](torch.ones(1, 64)).sum()).backward()
        >>> optimizer.step()
        >>> {name: round(multiplier, 3) for name, multiplier in decay.multipliers.items()}  # z is -1 and 1
        {'0.a': 0.036, '0.b': 1.964}
    """

    strategy = "adadecay"

    def __init__(self, model: nn.Module, optimizer: Any, interval: int = 500, **options: Any) -> None:
        super().__init__(model, optimizer, interval, metric="grad_norm", rule="sigmoid", **options)


class AdaDecayPerEntry(DecaySchedule):
    """More decay for entries of a weight whose gradient is larger than that of its other entries, at every step.

    With g an entry's gradient, its decay is the base decay times

        2 / (1 + exp(-4 z)), z = (|g| - mean of |g|) / standard deviation of |g|, over its tensor

    which is between 0 and 2, and 1 where all |g| are equal. This applies to every decayed tensor. The groups'
    weight_decay is 0, and the decay is applied after the optimizer's step. `multipliers` are 1; a decay log cannot
    hold or replay this strategy.

    Args:
        model: The model that the optimizer trains, wrapped or not.
        optimizer: One that decays by learning rate x decay x weight, such as AdamW, wrapped or not; its groups are
            split as `AlphaDecay` does.
        interval: Optimizer steps between calls of `on_refresh`, at least 1; the decay is applied after every step.
        exclude: Globs of modules that get no group of their own, such as "blocks.0.*".
        include: Any of "stem", "head" and "frozen": these get groups of their own too.
        min_eigenvalues: Matrices with fewer eigenvalues get no group of their own; at least 1.
        ranking: "optimizer" or "model"; nothing is ranked here.
        cautious: Decay only entries that the update does not push away from zero (cautious weight decay, arXiv
            2510.12402).
        on_refresh: Called with this object every `interval` steps, before the step is taken.

    Raises:
        ValueError: For an optimizer that couples decay with the gradient, and for what `UniformDecay` refuses.

    Source: AdaDecay, Nakamura and Hong (arXiv 1907.08931), who use SGD; here decay is decoupled from the gradient.

    Example:
        >>> import torch, alphadecay
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        >>> decay = alphadecay.AdaDecayPerEntry(model, optimizer)
        >>> weight = model[0].weight
        >>> weight.grad = torch.zeros_like(weight)
        >>> weight.grad[:32] = 1e-12  # so small that only decay changes the weight
        >>> before = weight.detach().clone()
        >>> optimizer.step()
        >>> factors = (before - weight.detach()) / (0.1 * 0.1 * before)
        >>> round(float(factors[:32].median()), 2), round(float(factors[32:].median()), 2)  # z is 1 and -1
        (1.96, 0.04)
    """

    strategy = "adadecay per entry"
    by_entry = True

    def _measure(self) -> tuple[list[SpectrumRecord], dict[str, float]]:
        return [], {}


class AWD(DecaySchedule):
    """One multiplier for the whole network, updated at every step: an average of gradient norm / weight norm.

    With m_t the multiplier of step t, |g| the norm of all gradients as the optimizer gets them, and |w| that of all
    weights with a gradient,

        m_t = 0.1 m_(t-1) + 0.9 scale |g| / (|w| + 1e-8), where m before the first step is 0

    This costs one synchronisation with the device per step.

    Args:
        model: The model that the optimizer trains, wrapped or not.
        optimizer: Any torch optimizer with `weight_decay`, wrapped or not; its groups are split as `AlphaDecay` does.
        scale: Factor of the ratio, above 0. The published programs use 50 for ViT and 100 for LLaMA.
        exclude: Globs of modules that get no group of their own, such as "blocks.0.*"; they have the same multiplier.
        include: Any of "stem", "head" and "frozen": these get groups of their own too.
        min_eigenvalues: Matrices with fewer eigenvalues get no group of their own; at least 1.
        cautious: Decay only entries that the update does not push away from zero (cautious weight decay, arXiv
            2510.12402). Needs an optimizer that decays by learning rate x decay x weight, such as AdamW. Its groups
            then have weight_decay 0, and the decay is applied after its step.
        on_refresh: Called with this object before each step.

    Attributes:
        scores: {"(all)": |g| / |w|} of the last step.

    Raises:
        ValueError: For an impossible scale, and for what `UniformDecay` refuses; in a step, for norms that are not
            finite.

    Source: Ghiasi, Shafahi and Ardekani (arXiv 2210.00094). They average base decay x ratio; this averages the ratio,
    which is the same unless the base decay has a schedule.

    Example:
        >>> import torch, alphadecay
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        >>> optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        >>> decay = alphadecay.AWD(model, optimizer, scale=50.0)
        >>> model(torch.ones(1, 64)).square().mean().backward()
        >>> optimizer.step()
        >>> abs(decay.multipliers["0"] / (0.9 * 50.0 * decay.scores["(all)"]) - 1) < 1e-6
        True
    """

    strategy = "awd"
    metric = "gradient norm / weight norm"
    same_for_all = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        scale: float = 1.0,
        *,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        min_eigenvalues: int = MIN_EIGENVALUES,
        cautious: bool = False,
        on_refresh: Callable[[DecaySchedule], None] | None = None,
    ) -> None:
        if not isinstance(scale, int | float) or not 0 < scale < float("inf"):
            raise ValueError(f"scale must be a number above 0, got {scale!r}")
        self.scale = scale
        super().__init__(
            model, optimizer, 1, exclude=exclude, include=include, min_eigenvalues=min_eigenvalues, cautious=cautious,
            on_refresh=on_refresh,
        )  # fmt: skip

    def _measure(self) -> tuple[list[SpectrumRecord], dict[str, float]]:
        groups = self.optimizer.param_groups
        first = self.step == 0 or not self._wrote_multipliers
        multiplier = 0.0 if first else groups[0]["decay_multiplier"]
        ratio = self._ratio()
        if ratio is not None:
            multiplier = KEPT * multiplier + (1 - KEPT) * self.scale * ratio
            self.scores = {ALL: ratio}
        return [], {group["decay_name"]: multiplier for group in groups}

    @torch.no_grad()
    def _ratio(self) -> float | None:
        """|g| / (|w| + 1e-8), see above; None if no weight has a gradient."""
        trained = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not trained:
            return None
        norms = torch.stack([power_sums([p.grad for p in trained], 2).sum(), power_sums(trained, 2).sum()]).sqrt()
        grad_scale = getattr(self.optimizer, "grad_scale", None)
        if grad_scale is not None:  # GradScaler has not unscaled the gradients: the optimizer's fused kernel will
            norms[0] /= grad_scale.to(norms)
        gradient_norm, weight_norm = norms.tolist()
        ratio = gradient_norm / (weight_norm + SMALL)
        if not 0 <= ratio < float("inf"):
            raise NonFiniteWeight(f"the norm of the gradient is {gradient_norm:g}, that of the weights {weight_norm:g}")
        return ratio
