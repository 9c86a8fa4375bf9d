"""Decay that differs between entries of a weight, applied after the step of an optimizer whose own decay is 0."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from alphadecay.groups import Group, effective_decay
from alphadecay.sharing import local_part, power_sums

SHARPNESS = 4.0  # slope of AdaDecay's sigmoid
LEAST_VARIANCE = 1e-5  # as a share of the squared mean; a smaller variance is rounding error


class EntryDecay:
    """Decays weights after each step by learning rate x decay x a factor per entry x the weight before the step.

    With `cautious`, the factor is 0 where the update pushes an entry away from zero (the update and the weight have
    opposite signs). With `by_gradient`, factors are those of AdaDecay. All work is elementwise and uses torch's foreach
    kernels; `by_gradient` reads two norms per tensor on the host, which costs one synchronisation per step.

    Sources: cautious weight decay, arXiv 2510.12402; AdaDecay, arXiv 1907.08931. The update is the change of the stored
    weight; an update too small to change the stored weight counts as one towards zero.
    """

    def __init__(self, cautious: bool, by_gradient: bool) -> None:
        self.cautious, self.by_gradient = cautious, by_gradient
        self._weights: list[Tensor] = []  # this rank's parts of the weights, any shape
        self._gradients: list[Any] = []  # gradients of the same weights
        self._rates: list[float] = []  # learning rate x decay of each weight
        self._before: list[Tensor] = []  # copies of the weights before the step

    @torch.no_grad()
    def remember(self, groups: Sequence[Group]) -> None:
        """Copy the weights before a step, and note learning rate x decay of each."""
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
        """Decay the remembered weights; does nothing if GradScaler made the optimizer skip the step (`found_inf`)."""
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
    """1 where a step moved an entry towards zero or not at all, 0 where it moved it away (arXiv 2510.12402).

    Args:
        before: Weights before the step, any shapes.
        after: Weights after the step, same shapes.

    Returns:
        The masks, same shapes and dtypes.
    """
    masks = list(torch._foreach_sub(before, after))
    torch._foreach_sign_(masks)
    torch._foreach_mul_(masks, list(torch._foreach_sign(before)))  # signs: products of small numbers can underflow
    torch._foreach_add_(masks, 1)
    torch._foreach_clamp_max_(masks, 1)
    return masks


def adadecay_factors(gradients: Sequence[Tensor], skipped: Tensor | None = None) -> list[Tensor] | None:
    """2 / (1 + exp(-4 z)) per entry, where z is its gradient's magnitude standardised over its tensor.

    Args:
        gradients: Tensors or DTensors, any shapes.
        skipped: Scalar, or one entry, above 0 if the optimizer skips the step; None: it does not.

    Returns:
        Factors between 0 and 2, in the shapes of the local gradients and at least float32; 1 where all magnitudes are
        equal. None if the step was skipped.

    Source: AdaDecay, Nakamura and Hong (arXiv 1907.08931).
    """
    local = [_precise(local_part(gradient)) for gradient in gradients]
    sums = torch.stack([power_sums(gradients, 1), power_sums(gradients, 2)])  # shape (2, number of tensors)
    flag = sums.new_zeros(1) if skipped is None else skipped.reshape(1).to(sums)  # shape (1,)
    *numbers, was_skipped = torch.cat([sums.flatten(), flag]).tolist()
    if was_skipped:
        return None
    sizes = [g.numel() for g in gradients]
    means = [total / size for total, size in zip(numbers, sizes, strict=False)]
    variances = [square / n - mean**2 for square, n, mean in zip(numbers[len(sizes) :], sizes, means, strict=True)]
    factors = list(torch._foreach_abs(local))
    torch._foreach_sub_(factors, means)
    varied = [v > LEAST_VARIANCE * mean**2 for v, mean in zip(variances, means, strict=True)]
    torch._foreach_mul_(factors, [SHARPNESS * v**-0.5 if s else 0.0 for v, s in zip(variances, varied, strict=True)])
    torch._foreach_sigmoid_(factors)
    torch._foreach_mul_(factors, 2.0)
    return factors


def _precise(gradient: Tensor) -> Tensor:
    """A gradient of any shape, dense and at least float32: 4 / its standard deviation can be too large for float16."""
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    return dense.float() if dense.dtype in (torch.float16, torch.bfloat16) else dense
