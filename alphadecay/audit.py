"""Measure what decay does to the stored weights: compare a step with the same step without decay, on a copy."""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from alphadecay.decay_log import row_of
from alphadecay.entries import agreeing
from alphadecay.groups import Group, effective_decay
from alphadecay.matrices import whole_number
from alphadecay.optimizer_copies import steps_one_by_one, unrounded_decay, weights_without_decay
from alphadecay.roles import role_of
from alphadecay.schedule import DecaySchedule
from alphadecay.sharing import joined, local_part

LOW_PRECISION = ("bfloat16", "float16")
MUCH = 0.5  # share of a weight's entries, and of all decay, of which the loss to rounding causes a warning


@dataclass(frozen=True)
class AuditRecord:
    """The effect of decay on one module's weight in one step; norms are Frobenius norms, in units of the weight.

    The decay part is the stored weight after the step minus the weight that the step without decay would have stored.
    The gradient part is the latter minus the weight before the step. If an optimizer couples decay with the gradient
    (Adam, SGD), decay of earlier steps that is in its moments counts as gradient.

    Attributes:
        step: Optimizer steps taken before.
        name: The module.
        role: What the module does in its block, such as attn.qkv.
        dtype: Of the stored weight, such as bfloat16.
        weight_norm: Norm of the weight before the step.
        decay_norm: Norm of the decay part.
        gradient_norm: Norm of the gradient part.
        ratio: decay_norm / gradient_norm; None if only decay changed the weight.
        time_constant: 1 / (learning rate x decay), in steps: decoupled decay alone shrinks weights to 1/e in this many
            steps, and so does that of SGD without momentum. Adam's coupled decay is divided by the gradient's scale;
            there the value only serves to compare modules. None if there is no decay or no gradient.
        swallowed: Share (0 to 1) of the entries that should decay whose stored value is the same as without decay:
            their decay was lost to rounding. None if no entry should decay.
        kept: Share of the decay that reached the stored weight: the component of the decay part along the unrounded
            decay, divided by the norm of the latter. 1: all, 0: none. If rounding is sometimes up and sometimes down
            (fused kernels), much decay is kept although most entries do not change. About 1 for per-entry AdaDecay,
            whose factors the unrounded decay leaves out. None if no entry should decay.
        unrounded_norm: Norm of the unrounded decay: the change that decay would make without rounding, in float64.

    Example:
        >>> import torch, alphadecay
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.5)
        >>> audit = alphadecay.DecayAudit(alphadecay.UniformDecay(model, optimizer), every=1)
        >>> model(torch.ones(1, 64)).sum().backward()
        >>> optimizer.step()
        >>> (record,) = audit.records
        >>> record.name, record.step, record.dtype, record.time_constant
        ('0', 0, 'float32', 4.0)
        >>> abs(record.decay_norm / record.weight_norm - 0.25) < 1e-5
        True
    """

    step: int
    name: str
    role: str
    dtype: str
    weight_norm: float
    decay_norm: float
    gradient_norm: float
    ratio: float | None
    time_constant: float | None
    swallowed: float | None
    kept: float | None
    unrounded_norm: float

    @property
    def figures(self) -> dict[str, float | None]:
        """The values in the decay log's rows."""
        names = (
            "decay_norm", "gradient_norm", "ratio", "time_constant", "swallowed", "kept", "unrounded_norm",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


class DecayAudit:
    """Audits every n-th optimizer step of a decay schedule; the training remains bitwise identical.

    An audited step is taken twice: on copies with all decays 0, then on the model. Until the step is done this needs
    the memory of two further sets of the audited weights, one of them in at least float32, and for a moment that of
    some copies of one module. Optimizers whose groups do not step independently (Lamb, Prodigy, Kron, ...; a trial
    finds out) are copied whole instead, with gradients and state. An audit takes one synchronisation with the device
    and a few passes over the weights in float64; on 2 CPU cores, a quarter of the time of a training step of DeiT-tiny
    with 16 images. Steps that GradScaler skips, or that make weights non-finite, are not audited. Other steps cost
    nothing.

    Args:
        decay: A decay schedule of any strategy. In a distributed run, all ranks must audit the same steps.
        every: Optimizer steps between audits, at least 1; the first audited step is number `every`.
        on_audit: Called with this object after each audited step.
        warn: Called once, with a sentence, if rounding removes most of the decay of most entries of some modules;
            Python's `warnings.warn` by default. The first step is not judged, and float32 weights are not while the
            learning rate rises.

    Attributes:
        records: One `AuditRecord` of the last audit per module with its own group. Empty before the first audit.
        seconds: Wall-clock time that audits took.

    Raises:
        ValueError: For an impossible `every`; in a step, if the optimizer cannot take one on a copy.

    Example:
        >>> import torch, alphadecay
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)).to(torch.bfloat16)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, foreach=False)
        >>> audit = alphadecay.DecayAudit(alphadecay.AlphaDecay(model, optimizer), every=1)
        >>> model(torch.ones(1, 64, dtype=torch.bfloat16)).sum().backward()
        >>> optimizer.step()
        >>> [record.name for record in audit.records if record.swallowed > 0.9]  # too small for bfloat16
        ['0', '1']
        >>> audit.detach()
    """

    def __init__(
        self,
        decay: DecaySchedule,
        every: int = 10,
        *,
        on_audit: Callable[["DecayAudit"], None] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        if not isinstance(decay, DecaySchedule):
            raise TypeError(f"decay must be a decay schedule, such as AlphaDecay, got {type(decay).__name__}")
        self.decay, self.on_audit = decay, on_audit
        self.every = whole_number("every", every, "optimizer steps")
        self.records: list[AuditRecord] = []
        self.seconds = 0.0
        self._warn, self._warned = warn or _warn, False
        self._last_rate: float | None = None
        self._one_by_one: bool | None = None  # whether a copy can step group by group; not known yet
        self._due: list[_Module] = []
        self._step = 0
        decay.watchers.append(self)

    def detach(self) -> None:
        """Stop auditing."""
        if self in self.decay.watchers:
            self.decay.watchers.remove(self)

    def before_update(self, step: int) -> None:
        """Take the step on a copy without decay, if an audit is due."""
        self._due = []
        if (step + 1) % self.every:
            return
        began = time.perf_counter()
        self._step = step
        optimizer, groups = self.decay.optimizer, [g for g in self.decay.own_groups if not is_lazy(g["params"][0])]
        if self._one_by_one is None:
            self._one_by_one = steps_one_by_one(optimizer)
        stepped = weights_without_decay(optimizer, groups, self._one_by_one)
        self._due = [
            _Module(self.decay, group, local_part(weight)) for group, weight in zip(groups, stepped, strict=True)
        ]
        self.seconds += time.perf_counter() - began

    def after_update(self) -> None:
        """Compare the two steps, if an audit is due."""
        due, self._due = self._due, []
        if not due:
            return
        began = time.perf_counter()
        records = self._compared(due)
        self.seconds += time.perf_counter() - began
        if records:
            self.records = records
            self._look_for_losses()
            if self.on_audit is not None:
                self.on_audit(self)

    def _compared(self, modules: Sequence["_Module"]) -> list[AuditRecord]:
        """Records of the step just taken; none if it was skipped on the device or a value is not finite."""
        sums = joined(torch.stack([module.sums() for module in modules], 1), [m.weight for m in modules])
        found_inf = getattr(self.decay.optimizer, "found_inf", None)
        flag = sums.new_zeros(1) if found_inf is None else found_inf.reshape(1).to(sums)
        *values, skipped = torch.cat([sums.T.flatten(), flag]).tolist()
        if skipped or not all(map(math.isfinite, values)):
            return []
        width = len(sums)
        return [m.record(self._step, values[i * width : (i + 1) * width]) for i, m in enumerate(modules)]

    def _look_for_losses(self) -> None:
        if self._warned or self._step == 0:  # Adam's first step changes all entries by the same: all round alike
            return
        rate = max((1 / r.time_constant for r in self.records if r.time_constant), default=0.0)
        message = losses_in_words(self.records, rate)
        rising, self._last_rate = self._last_rate is None or rate > self._last_rate, rate
        low = any(record.dtype in LOW_PRECISION for record in self.records)
        if message and (low or not rising):  # in warm-up, float32 rounds away decay that it does not later
            self._warned = True
            self._warn(message)


def audit_rows(audit: DecayAudit) -> list[dict[str, Any]]:
    """The decay log's rows of an audit, with the keys of `decay_log.refresh_rows`: one per module for every strategy.

    They repeat the current decays. If a step has a refresh too, its rows come first. step counts the steps before the
    audited one, weight_norm is from before it, and audit holds `AuditRecord.figures`. No spectrum is measured, so
    measured_step and score are None.
    """
    common = {"measured_step": None, "kind": audit.decay.strategy}
    groups = {group["decay_name"]: group for group in audit.decay.own_groups}
    return [
        {"step": record.step} | common | row_of(groups[record.name], None, record.weight_norm, record.figures, "")
        for record in audit.records
    ]


class _Module:
    """A module's weight before an audited step, and after the same step without decay."""

    def __init__(self, decay: DecaySchedule, group: Group, without: Tensor) -> None:
        """`without` is the weight after the step without decay: this rank's part, any shape, in the stored dtype."""
        self.name, self.weight, self.without = group["decay_name"], group["params"][0], without
        before = local_part(self.weight.detach())
        effective = effective_decay(group) if self.weight.grad is not None else 0.0
        self.rate = float(group["lr"]) * effective
        self.dtype = torch.promote_types(before.dtype, torch.float32)
        self.due = torch.zeros_like(before, dtype=self.dtype)
        if self.rate:
            self.due.copy_(local_part(unrounded_decay(decay.optimizer, group, effective)))
            if decay.cautious:
                self.due.mul_(agreeing([before], [without])[0])
        before = before.to(self.dtype)
        gradient_part = without.to(self.dtype) - before
        self.before_sums = [_product(before, before), _product(gradient_part, gradient_part)]

    def sums(self) -> Tensor:
        """Sums over this rank's entries, shape (7,), float64: the squares of the weight, the gradient part, the decay
        part and the unrounded decay; the product of the last two; how many entries should decay; and how many of them
        decay leaves unchanged as stored. Frees the copies.
        """
        after = local_part(self.weight.detach())
        part = after.to(self.dtype) - self.without.to(self.dtype)
        is_due = self.due != 0
        squares = [_product(part, part), _product(self.due, self.due), _product(part, self.due)]
        counts = [is_due.sum(), (is_due & (after == self.without)).sum()]
        self.due = self.without = after.new_empty(0)
        return torch.stack([value.to(torch.float64) for value in (*self.before_sums, *squares, *counts)])

    def record(self, step: int, sums: Sequence[float]) -> AuditRecord:
        """The module's record, from `sums` over the whole weight."""
        weight, gradient, decay, unrounded, product, due, unchanged = sums
        return AuditRecord(
            step=step,
            name=self.name,
            role=role_of(self.name),
            dtype=str(self.weight.dtype).removeprefix("torch."),
            weight_norm=math.sqrt(weight),
            decay_norm=math.sqrt(decay),
            gradient_norm=math.sqrt(gradient),
            ratio=math.sqrt(decay / gradient) if gradient else None,
            time_constant=1 / self.rate if self.rate else None,
            swallowed=unchanged / due if due else None,
            kept=product / unrounded if unrounded else None,
            unrounded_norm=math.sqrt(unrounded),
        )


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of two tensors of the same shape: scalar, summed in float64."""
    return torch.sum(a * b, dtype=torch.float64)


def losses_in_words(records: Sequence[AuditRecord], rate: float) -> str:
    """A warning if rounding removes most of the decay of some modules, else "".

    Args:
        records: Those of one audit.
        rate: The largest learning rate x decay in them.
    """
    lost = [record for record in records if record.swallowed is not None and record.swallowed > MUCH]
    unrounded = math.fsum(record.unrounded_norm**2 for record in lost)
    kept = math.fsum((record.kept or 0.0) * record.unrounded_norm**2 for record in lost)
    if not unrounded or kept > MUCH * unrounded:
        return ""
    dtype = lost[0].dtype
    share = fmean(record.swallowed or 0.0 for record in lost)
    if dtype in LOW_PRECISION:
        advice = "keep float32 weights (autocast) or use stochastic rounding"
    else:
        smallest = torch.finfo(getattr(torch, dtype)).eps / 2
        advice = (
            f"learning rate x decay is at most {rate:.1g}, and {dtype} rounds away changes of a weight below "
            f"{smallest:.1g} of it: use a larger decay"
        )
    return (
        f"decay has almost no effect on {len(lost)} of {len(records)} modules: {100 * share:.0f} % of its changes are "
        f"lost to rounding in {dtype} weights (optimizer step {lost[0].step + 1}); {advice}"
    )


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)
