"""Decay that differs from entry to entry of a weight, applied beside an optimizer that is told to decay nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from alphadecay.groups import Group, effective_decay
from alphadecay.sharing import local_part, power_sums

SHARPNESS = 4.0  # of AdaDecay's sigmoid
LEAST_VARIANCE = 1e-5  # of the squared mean; less is rounding


class EntryDecay:
    """Decays weights after each step by learning rate x decay x a factor of each entry x the weight before the step.

    Factors are 0 where `cautious` finds that the update pushes a weight away from zero (the update and the weight have
    opposite signs), and AdaDecay's where `by_gradient` is set. All work is elementwise and in torch's
    foreach kernels; `by_gradient` reads two norms a tensor on the host, at one synchronisation a step.

    Sources: cautious weight decay, arXiv 2510.12402; AdaDecay, arXiv 1907.08931. The update is what the optimizer
    did to the weight as stored; one that was too small to change it counts as agreeing.
    """

    def __init__(self, cautious: bool, by_gradient: bool) -> None:
        self.cautious, self.by_gradient = cautious, by_gradient
        self._weights: list[Tensor] = []
        self._gradients: list[Any] = []
        self._rates: list[float] = []
        self._before: list[Tensor] = []

    @torch.no_grad()
    def remember(self, groups: Sequence[Group]) -> None:
        """Keep the weights as they are before a step, and what each is to be decayed by."""
        self._weights, self._gradients, self._rates = [], [], []
        for group in groups:
            rate = float(group["lr"]) * effective_decay(group)
            for p in group["params"]:
                if rate and p.grad is not None:  # optimizers leave weights without a gradient alone
                    self._weights.append(local_part(p.detach()))
                    self._gradients.append(p.grad)
                    self._rates.append(rate)
        if [b.shape for b in self._before] != [w.shape for w in self._weights]:
            self._before = [torch.empty_like(weight) for weight in self._weights]
        if self._weights:
            torch._foreach_copy_(self._before, self._weights)

    @torch.no_grad()
    def apply(self, optimizer: Optimizer) -> None:
        """Decay what was remembered; nothing if the optimizer was told on the device to skip the step."""
        weights, gradients, rates = self._weights, self._gradients, self._rates
        self._weights, self._gradients, self._rates = [], [], []
        if not weights:
            return
        skipped = getattr(optimizer, "found_inf", None)
        decays = list(torch._foreach_mul(self._before, rates))
        if self.by_gradient:
            factors = adadecay_factors(gradients, skipped)
            if factors is None:
                return
            torch._foreach_mul_(decays, factors)
        elif skipped is not None:
            torch._foreach_mul_(decays, (skipped == 0).to(weights[0].dtype).reshape(()))
        if self.cautious:
            torch._foreach_mul_(decays, agreeing(self._before, weights))
        torch._foreach_sub_(weights, decays)


def agreeing(before: list[Tensor], after: list[Tensor]) -> list[Tensor]:
    """1 where a step moved an entry towards zero or not at all, 0 where it moved it away."""
    found = list(torch._foreach_sub(before, after))
    torch._foreach_sign_(found)
    torch._foreach_mul_(found, list(torch._foreach_sign(before)))  # signs: products of small numbers could vanish
    torch._foreach_add_(found, 1)
    torch._foreach_clamp_max_(found, 1)
    return found


def adadecay_factors(gradients: Sequence[Tensor], skipped: Tensor | None = None) -> list[Tensor] | None:
    """2 / (1 + exp(-4 z)) of each entry, where z is its gradient's magnitude, standardised over its tensor.

    Args:
        gradients: Of whole tensors, or DTensors.
        skipped: Above 0 where the step was skipped, or None.

    Returns:
        Factors between 0 and 2 of the entries (of a DTensor's local ones), 1 where all magnitudes are equal; None
        if the step was skipped.
    """
    local = [_precise(local_part(gradient)) for gradient in gradients]
    sums = torch.stack([power_sums(gradients, 1), power_sums(gradients, 2)])
    flag = sums.new_zeros(1) if skipped is None else skipped.reshape(1).to(sums)
    *numbers, was_skipped = torch.cat([sums.flatten(), flag]).tolist()
    if was_skipped:
        return None
    sizes = [g.numel() for g in gradients]
    means = [total / size for total, size in zip(numbers, sizes, strict=False)]
    variances = [square / n - mean**2 for square, n, mean in zip(numbers[len(sizes) :], sizes, means, strict=True)]
    found = list(torch._foreach_abs(local))
    torch._foreach_sub_(found, means)
    spread = [v > LEAST_VARIANCE * mean**2 for v, mean in zip(variances, means, strict=True)]
    torch._foreach_mul_(found, [SHARPNESS * v**-0.5 if s else 0.0 for v, s in zip(variances, spread, strict=True)])
    torch._foreach_sigmoid_(found)
    torch._foreach_mul_(found, 2.0)
    return found


def _precise(gradient: Tensor) -> Tensor:
    """Dense, and in at least float32: 4 / standard deviation of small gradients is too large for float16."""
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    return dense.float() if dense.dtype in (torch.float16, torch.bfloat16) else dense
