"""Prevents updates from losses or gradients that are not finite, on all ranks, and traces where they come from."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from runtime.learner import Learner
from runtime.processes import Ranks

NAMED_PARAMETERS = 10


class FiniteGate:
    """Decides before each update, on all ranks alike, whether it is allowed.

    The decision is deferred if a bad step ends the run and the optimizer's kernels can skip an update on the device
    (torch's fused kernels read `found_inf`). Then the host does not wait for the device at each step: from the first
    bad step on the kernels leave the weights unchanged, and the host learns of the bad step at its next check.
    """

    def __init__(self, learner: Learner, ranks: Ranks, policy: str, every: int) -> None:
        """`policy`: one of POLICIES in `run_options`; `every`: steps between checks by the host, if deferred."""
        self.learner, self.ranks, self.policy = learner, ranks, policy
        fused = all(group.get("fused") for group in learner.optimizer.param_groups)
        self.deferred = policy == "stop" and every > 1 and fused and host_runs_ahead(ranks.device)
        self.every = every if self.deferred else 1
        self._first = torch.full((), -1, dtype=torch.int64, device=ranks.device)  # first bad step, on the device
        self._scaler_flag: Any = None
        if self.deferred:
            # Registered after the decay schedule's own hook, which must not wait for this flag.
            learner.optimizer.register_step_pre_hook(self._close)
            learner.optimizer.register_step_post_hook(self._reopen)

    def check(self, step: int, loss: Tensor, norm: Tensor) -> int | None:
        """Check a step before its update.

        Args:
            step: Optimizer steps taken before this one.
            loss: The loss of this rank; a scalar.
            norm: The norm of the gradient; a scalar.

        Returns:
            The number of a bad step, which must not update the weights; None if the update is allowed.
        """
        # GradScaler itself skips steps with overflowed gradients: with it only the loss is checked.
        bad = ~torch.isfinite(loss if self.learner.scaler.is_enabled() else loss + norm)
        self._first = torch.where((self._first < 0) & self.ranks.any(bad), step, self._first)
        return self.first_bad_step() if (step + 1) % self.every == 0 else None

    def first_bad_step(self) -> int | None:
        """The first bad step since the last `reset`, or None; waits for the device."""
        first = int(self._first)
        return None if first < 0 else first

    def reset(self) -> None:
        """Allow updates again after a bad step was handled."""
        self._first.fill_(-1)

    def _close(self, optimizer: Any, *_: Any) -> None:
        self._scaler_flag = getattr(optimizer, "found_inf", None)  # GradScaler's, if any
        closed = (self._first >= 0).float()
        optimizer.found_inf = closed if self._scaler_flag is None else torch.maximum(closed, self._scaler_flag)

    def _reopen(self, optimizer: Any, *_: Any) -> None:
        if self._scaler_flag is None:
            del optimizer.found_inf
        else:
            optimizer.found_inf = self._scaler_flag


def host_runs_ahead(device: torch.device) -> bool:
    """Whether the host continues while the device computes, so that reading a result makes it wait."""
    return device.type != "cpu"


@dataclass
class BadValues:
    """The first values that are not finite when a bad step is repeated."""

    module: str = ""  # empty if all values were finite this time
    where: str = ""  # "input", "output" or "gradient"
    samples: list[int] = field(default_factory=list)  # indices in the micro-batch whose values are not finite
    parameters: list[str] = field(default_factory=list)  # the first few with gradients that are not finite
    micro_step: int = 0

    def __str__(self) -> str:
        return f"the {self.where} of {self.module}" if self.module else "nothing, when the step was repeated"


@contextmanager
def traced(model: nn.Module, micro_step: int, batch_size: int) -> Iterator[BadValues]:
    """Watch the forward and backward pass of a micro-batch; the result is complete when the context ends."""
    bad = BadValues(micro_step=micro_step)
    order: list[str] = []

    def watch(name: str) -> Any:
        def look(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            order.append(name)
            for where, values in (("input", inputs), ("output", (output,))):
                broken = [v for v in values if isinstance(v, Tensor) and not v.isfinite().all()]
                if broken and not bad.module:
                    bad.module, bad.where = name, where
                    bad.samples = _broken_rows(broken[0], batch_size)

        return look

    modules = [(name, module) for name, module in model.named_modules() if _owner(name) == name]
    hooks = [module.register_forward_hook(watch(name or "the model")) for name, module in modules]
    try:
        yield bad
    finally:
        for hook in hooks:
            hook.remove()
    broken = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    bad.parameters = broken[:NAMED_PARAMETERS]
    if broken and not bad.module:  # the backward pass has the reverse order: the last module in `order` is its first
        owners = {_owner(name.rpartition(".")[0]) or "the model" for name in broken}
        bad.module = next((name for name in reversed(order) if name in owners), broken[-1])
        bad.where = "gradient"


def _owner(name: str) -> str:
    """The module that owns a name, without the part that torch adds for parametrized weights."""
    return name.partition(".parametrizations")[0]


def _broken_rows(values: Tensor, batch_size: int) -> list[int]:
    """Indices of samples that have a value which is not finite.

    Args:
        values: Shape (batch_size, ...), any dtype; for other shapes the result is empty.
        batch_size: Samples in the micro-batch.
    """
    if values.ndim < 2 or len(values) != batch_size:
        return []
    return (~values.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()  # (batch_size, values per sample)
