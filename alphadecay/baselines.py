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
    """The baseline: every module keeps its base decay, in the same groups and frame as the adaptive kinds."""

    kind = "uniform"
    adaptive = False

    def _measure(self) -> tuple[list[SpectrumRecord], dict[str, float]]:
        return [], {}


class AdaDecay(AlphaDecay):
    """More decay for modules with a larger gradient than the others of their block, refreshed every `interval` steps.

    This is what the authors of AlphaDecay compare with under this name: multipliers 2 / (1 + exp(-4 z)), where z is the
    norm of a weight's gradient, standardised over the modules of a block. `AdaDecayPerEntry` is the original.

    Args:
        model, optimizer, interval: As in `AlphaDecay`.
        options: Its other options, but for metric, rule, low and high.

    Source: the published program of AlphaDecay (arXiv 2506.14562, appendix A.3).
    """

    kind = "adadecay"

    def __init__(self, model: nn.Module, optimizer: Any, interval: int = 500, **options: Any) -> None:
        super().__init__(model, optimizer, interval, metric="grad_norm", rule="sigmoid", **options)


class AdaDecayPerEntry(DecaySchedule):
    """More decay for entries of a weight whose gradient is larger than that of the others, at every step.

    Multipliers are 2 / (1 + exp(-4 z)), where z is the magnitude of an entry's gradient, standardised over its tensor.
    Every decayed tensor takes part. Needs an optimizer with decoupled decay; the groups' weight_decay is 0, and the
    decay is applied after the optimizer's step. No ledger can hold or replay it.

    Source: Nakamura and Hong, arXiv 1907.08931, with SGD; here the decay is decoupled from the gradient.
    """

    kind = "adadecay per entry"
    by_entry = True

    def _measure(self) -> tuple[list[SpectrumRecord], dict[str, float]]:
        return [], {}


class AWD(DecaySchedule):
    """One multiplier for the whole network, renewed at every step: an average of gradient norm / weight norm.

    multiplier = 0.1 x the last one (0 at first) + 0.9 x scale x |g| / |w|, over all parameters with a gradient, as the
    optimizer gets it. At the price of one synchronisation with the device a step.

    Args:
        model: The model the optimizer trains, wrapped or not.
        optimizer: Any torch optimizer with `weight_decay`.
        scale: What the ratio is multiplied with, above 0. The published programs take 50 for ViT, 100 for LLaMA.
        exclude, include, cautious, on_refresh: As in `DecaySchedule`.

    Raises:
        ValueError: As `DecaySchedule`, or for an impossible scale.

    Source: Ghiasi, Shafahi and Ardekani, arXiv 2210.00094. There the average is of base x ratio; here of the ratio,
    which is the same unless the base has a schedule.
    """

    kind = "awd"
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
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale must be a number above 0, got {scale}")
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
