"""No update from a loss or gradient that is not finite: agreed between ranks before it happens, then traced."""

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
    """Decides before each update, on all ranks alike, whether it may happen.

    If a bad step ends the run, and the optimizer's kernels can be told on the device to leave everything as it is
    (torch's fused ones, which read `found_inf`), the host does not wait for the answer: from the first bad step on
    the weights stay as they were before it, and the host learns of it when it next looks.
    """

    def __init__(self, learner: Learner, ranks: Ranks, policy: str, every: int) -> None:
        """`policy`: of POLICIES in `run_options`; `every`: steps between looks of the host, where it need not wait."""
        self.learner, self.ranks, self.policy = learner, ranks, policy
        fused = all(group.get("fused") for group in learner.optimizer.param_groups)
        self.late = policy == "stop" and every > 1 and fused and host_runs_ahead(ranks.device)
        self.every = every if self.late else 1
        self._first = torch.full((), -1, dtype=torch.int64, device=ranks.device)  # first bad step, on the device
        self._before: Any = None
        if self.late:
            # After the decay schedule's own hook: that one must not wait for this flag.
            learner.optimizer.register_step_pre_hook(self._close)
            learner.optimizer.register_step_post_hook(self._reopen)

    def look(self, step: int, loss: Tensor, norm: Tensor) -> int | None:
        """The number of a bad step, whose update must not happen, or None: this one may happen.

        Args:
            step: Optimizer steps taken before this one.
            loss: The loss of this rank.
            norm: The norm of the gradient.
        """
        # GradScaler skips steps with overflowed gradients by itself: only the loss counts there.
        bad = ~torch.isfinite(loss if self.learner.scaler.is_enabled() else loss + norm)
        self._first = torch.where((self._first < 0) & self.ranks.any(bad), step, self._first)
        return self.bad_step() if (step + 1) % self.every == 0 else None

    def bad_step(self) -> int | None:
        """The first bad step since the last `forgive`; waits for the device."""
        first = int(self._first)
        return None if first < 0 else first

    def forgive(self) -> None:
        """Go on after a bad step that was dealt with."""
        self._first.fill_(-1)

    def _close(self, optimizer: Any, *_: Any) -> None:
        self._before = getattr(optimizer, "found_inf", None)  # GradScaler's own
        closed = (self._first >= 0).float()
        optimizer.found_inf = closed if self._before is None else torch.maximum(closed, self._before)

    def _reopen(self, optimizer: Any, *_: Any) -> None:
        if self._before is None:
            del optimizer.found_inf
        else:
            optimizer.found_inf = self._before


def host_runs_ahead(device: torch.device) -> bool:
    """Whether the host goes on while the device computes, and would have to wait for an answer."""
    return device.type != "cpu"


@dataclass
class Finding:
    """Where values stopped being finite when a bad step was done again."""

    module: str = ""  # empty where it did not happen again
    where: str = ""  # "input", "output" or "gradient"
    samples: list[int] = field(default_factory=list)  # places in the micro-batch whose values are not finite
    parameters: list[str] = field(default_factory=list)  # with gradients that are not finite, the first few
    micro_step: int = 0

    def __str__(self) -> str:
        return f"the {self.where} of {self.module}" if self.module else "nothing, when the step was done again"


@contextmanager
def traced(model: nn.Module, micro_step: int, batch_size: int) -> Iterator[Finding]:
    """Watch the forward and backward pass of a micro-batch; the finding is complete on leaving."""
    finding = Finding(micro_step=micro_step)
    order: list[str] = []

    def watch(name: str) -> Any:
        def look(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            order.append(name)
            for where, values in (("input", inputs), ("output", (output,))):
                broken = [v for v in values if isinstance(v, Tensor) and not v.isfinite().all()]
                if broken and not finding.module:
                    finding.module, finding.where = name, where
                    finding.samples = _broken_rows(broken[0], batch_size)

        return look

    modules = [(name, module) for name, module in model.named_modules() if _owner(name) == name]
    hooks = [module.register_forward_hook(watch(name or "the model")) for name, module in modules]
    try:
        yield finding
    finally:
        for hook in hooks:
            hook.remove()
    broken = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    finding.parameters = broken[:NAMED_PARAMETERS]
    if broken and not finding.module:  # the backward pass runs the other way: the last module came first
        owners = {_owner(name.rpartition(".")[0]) or "the model" for name in broken}
        finding.module = next((name for name in reversed(order) if name in owners), broken[-1])
        finding.where = "gradient"


def _owner(name: str) -> str:
    """The module whose weight it is, where a name is of torch's machinery for parametrized weights."""
    return name.partition(".parametrizations")[0]


def _broken_rows(values: Tensor, batch_size: int) -> list[int]:
    """Samples with a value that is not finite, where the first dimension is the batch's."""
    if values.ndim < 2 or len(values) != batch_size:
        return []
    return (~values.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
