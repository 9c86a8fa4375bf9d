"""Validation figures: how each is called in files, tables and figures. The trainers' engines list theirs."""

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Metric:
    """A validation figure of log.jsonl."""

    name: str  # key of the log and the summary
    label: str  # of axes, with its unit
    column: str  # of tables
    higher_is_better: bool = False
    headline: bool = False  # said of a finished run
    needs: str = ""  # an option without which no run has it

    def better(self, a: float, b: float) -> bool:
        """Whether figure `a` is better than `b`."""
        return a > b if self.higher_is_better else a < b

    def averaged(self) -> "Metric":
        """The same figure of the moving average of the weights."""
        what, _, unit = self.label.partition(" in ")
        label = f"{what} of EMA weights in {unit}"
        return replace(self, name=f"{self.name}_ema", label=label, needs="model_ema_eval")


def by_name(metrics: Iterable[Metric]) -> dict[str, Metric]:
    """Metrics by name; the first one is what runs are compared by unless another is asked for."""
    return {metric.name: metric for metric in metrics}
