"""The trainers a comparison can run: how they read options, and the figures by which their runs are judged."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import main
import main_llama
from runtime.command import PER_CALL

ROOT = Path(__file__).parent.parent
NOT_IN_A_GRID = {*PER_CALL, "output_dir", "seed", "help"} - {"max_steps"}  # said by compare.py itself


@dataclass(frozen=True)
class Metric:
    """A validation figure of log.jsonl."""

    name: str
    label: str  # of axes and columns, with its unit
    higher_is_better: bool
    needs: str = ""  # an option without which no run has it

    def better(self, a: float, b: float) -> bool:
        """Whether figure `a` is better than `b`."""
        return a > b if self.higher_is_better else a < b


@dataclass(frozen=True)
class Program:
    """One of the trainers."""

    script: str
    read_options: Callable[[Sequence[str]], Any]
    fixed: Iterable[str] = ()  # options that a run cannot change when it goes on
    metrics: Mapping[str, Metric] = field(default_factory=dict)  # the first one is the default

    def command(self, processes: int = 1) -> list[str]:
        """The words that start it, in so many processes."""
        if processes == 1:
            return [sys.executable, str(ROOT / self.script)]
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        return [sys.executable, *launch, str(ROOT / self.script)]


def _metrics(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


PROGRAMS = {
    "main.py": Program(
        "main.py",
        main.read_options,
        main.FIXED,
        _metrics(
            Metric("acc1", "top-1 accuracy in %", True),
            Metric("acc1_ema", "top-1 accuracy of EMA weights in %", True, "model_ema_eval"),
            Metric("acc5", "top-5 accuracy in %", True),
            Metric("loss", "validation cross-entropy in nats", False),
            Metric("loss_ema", "validation cross-entropy of EMA weights in nats", False, "model_ema_eval"),
        ),
    ),
    "main_llama.py": Program(
        "main_llama.py",
        main_llama.read_options,
        main_llama.FIXED,
        _metrics(
            Metric("perplexity", "validation perplexity", False),
            Metric("perplexity_published", "validation perplexity as published", False),
            Metric("loss", "validation cross-entropy in nats a token", False),
        ),
    ),
}
