"""The kinds of decay that the method is compared with, in the same frame."""

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

KEPT = 0.1  # share of the old value in AWD's average
SMALL = 1e-8  # added to the norm of the weights, as published


class UniformDecay(DecaySchedule):
    """The baseline: every module keeps its base decay, in the same groups and frame as the adaptive kinds.

    Multipliers are 1. Construct it after the optimizer and before any learning-rate scheduler.

    Args:
        model: The model the optimizer trains, wrapped or not.
        optimizer: Any torch optimizer with `weight_decay`, wrapped or not; its groups are split as `AlphaDecay` does.
        interval: Optimizer steps between calls of `on_refresh`, at least 1.
        exclude: Globs over module names that get no group of their own, such as "blocks.0.*".
        include: Any of "stem", "head" and "frozen": they get groups of their own as well.
        min_eigenvalues: Matrices with fewer eigenvalues get no group of their own; at least 1.
        ranking: "optimizer" or "model"; nothing is ranked here.
        cautious: Decay only entries that the update does not push away from zero (cautious weight decay, arXiv
            2510.12402). Needs an optimizer that decays by learning rate x decay x weight, such as AdamW. Its groups
            then have weight_decay 0, and the decay is applied after its step.
        on_refresh: Called with this object every `interval` steps, before the step is taken.

    Raises:
        ValueError: For impossible values, a model in which no matrix takes part, an optimizer without weight
            decay or on which another schedule acts, or groups that would have to be split under a learning-rate
            scheduler.

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

    This is what the authors of AlphaDecay compare with under this name; `AdaDecayPerEntry` is the original. With |g|
    the Frobenius norm of a weight's gradient,

        multiplier = 2 / (1 + exp(-4 z)), z = (|g| - mean) / (standard deviation + 1e-8), over the modules of a block

    It is between 0 and 2. A block is what stands in a module's name before and with its last number.

    Args:
        model: The model the optimizer trains, wrapped or not.
        optimizer: Any torch optimizer with `weight_decay`, wrapped or not; its groups are split where needed.
        interval: Optimizer steps between refreshes, at least 1. The first one comes before the first step.
        options: Other keywords of `AlphaDecay`, with their meaning there: budget, control, seed, frozen, lag, exclude,
            include, min_eigenvalues, ranking, cautious, on_refresh, process_group. metric and rule are given; low and
            high have no effect; fit, xmin_pos, window and filter_zeros change what `records` say and no decay.

    Raises:
        ValueError: For impossible values, a model in which no matrix takes part, an optimizer without weight
            decay or on which another schedule acts, or groups that would have to be split under a learning-rate
            scheduler.

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
    """More decay for entries of a weight whose gradient is larger than that of the others, at every step.

    With g an entry's gradient, its decay is the base decay times

        2 / (1 + exp(-4 z)), z = (|g| - mean of |g|) / standard deviation of |g|, over its tensor

    which is between 0 and 2, and 1 where all |g| are equal. Every decayed tensor takes part. The groups' weight_decay
    is 0, and the decay is applied after the optimizer's step. `multipliers` are 1; no decay log can hold or replay this
    kind.

    Args:
        model: The model the optimizer trains, wrapped or not.
        optimizer: One that decays by learning rate x decay x weight, such as AdamW, wrapped or not; its groups are
            split as `AlphaDecay` does.
        interval: Optimizer steps between calls of `on_refresh`, at least 1; the decay follows every step.
        exclude: Globs over module names that get no group of their own, such as "blocks.0.*".
        include: Any of "stem", "head" and "frozen": they get groups of their own as well.
        min_eigenvalues: Matrices with fewer eigenvalues get no group of their own; at least 1.
        ranking: "optimizer" or "model"; nothing is ranked here.
        cautious: Decay only entries that the update does not push away from zero (cautious weight decay, arXiv
            2510.12402).
        on_refresh: Called with this object every `interval` steps, before the step is taken.

    Raises:
        ValueError: For an optimizer that couples decay with the gradient, and as `UniformDecay`.

    Source: AdaDecay, Nakamura and Hong (arXiv 1907.08931), with SGD; here the decay is decoupled from the gradient.

    Example:
        >>> import torch, alphadecay
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        >>> decay = alphadecay.AdaDecayPerEntry(model, optimizer)
        >>> weight = model[0].weight
        >>> weight.grad = torch.zeros_like(weight)
        >>> weight.grad[:32] = 1e-12  # so small that what the step does is decay alone
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
    """One multiplier for the whole network, renewed at every step: an average of gradient norm / weight norm.

    With m the multiplier of step t, |g| the norm of all gradients as the optimizer gets them, and |w| that of all
    weights with a gradient,

        m_t = 0.1 m_(t-1) + 0.9 scale |g| / (|w| + 1e-8), m before the first step being 0

    At the price of one synchronisation with the device a step.

    Args:
        model: The model the optimizer trains, wrapped or not.
        optimizer: Any torch optimizer with `weight_decay`, wrapped or not; its groups are split as `AlphaDecay` does.
        scale: What the ratio is multiplied with, above 0. The published programs take 50 for ViT, 100 for LLaMA.
        exclude: Globs over module names that get no group of their own, such as "blocks.0.*"; the multiplier is theirs
            too.
        include: Any of "stem", "head" and "frozen": they get groups of their own as well.
        min_eigenvalues: Matrices with fewer eigenvalues get no group of their own; at least 1.
        cautious: Decay only entries that the update does not push away from zero (cautious weight decay, arXiv
            2510.12402). Needs an optimizer that decays by learning rate x decay x weight, such as AdamW. Its groups
            then have weight_decay 0, and the decay is applied after its step.
        on_refresh: Called with this object before each step.

    Attributes:
        scores: {"(all)": |g| / |w|} of the last step.

    Raises:
        ValueError: For an impossible scale, and as `UniformDecay`; in the step, for norms that are not finite.

    Source: Ghiasi, Shafahi and Ardekani (arXiv 2210.00094). There the average is of base x ratio; here of the ratio,
    which is the same unless the base has a schedule.

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
        fresh = self.step == 0 or not self._wrote_multipliers
        last = 0.0 if fresh else groups[0]["decay_multiplier"]
        ratio = self._ratio()
        if ratio is not None:
            last = KEPT * last + (1 - KEPT) * self.scale * ratio
            self.scores = {ALL: ratio}
        return [], {group["decay_name"]: last for group in groups}

    @torch.no_grad()
    def _ratio(self) -> float | None:
        """Norm of the gradient over that of the weights; None where there is no gradient."""
        held = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not held:
            return None
        norms = torch.stack([power_sums([p.grad for p in held], 2).sum(), power_sums(held, 2).sum()]).sqrt()
        scale = getattr(self.optimizer, "grad_scale", None)
        if scale is not None:  # GradScaler leaves gradients to a fused kernel to unscale
            norms[0] /= scale.to(norms)
        gradient, weight = norms.tolist()
        ratio = gradient / (weight + SMALL)
        if not 0 <= ratio < float("inf"):
            raise NonFiniteWeight(f"the norm of the gradient is {gradient:g}, that of the weights {weight:g}")
        return ratio
