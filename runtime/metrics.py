"""Validation metrics: their names in files, tables and figures. Each trainer's engine lists its metrics."""

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Metric:
    """A validation metric in log.jsonl."""

    name: str  # key of the log and the summary
    label: str  # of axes, with its unit
    column: str  # of tables
    higher_is_better: bool = False
    headline: bool = False  # printed for a finished run
    needs: tuple[str, ...] = ()  # options without which runs do not have this metric

    def better(self, a: float, b: float) -> bool:
        """Whether value `a` is better than `b`."""
        return a > b if self.higher_is_better else a < b

    def averaged(self) -> "Metric":
        """The same metric of the EMA weights."""
        quantity, _, unit = self.label.partition(" in ")
        label = f"{quantity} of EMA weights" + (f" in {unit}" if unit else "")
        return replace(self, name=f"{self.name}_ema", label=label, needs=(*self.needs, "model_ema_eval"))


def by_name(metrics: Iterable[Metric]) -> dict[str, Metric]:
    """Metrics by name; by default, runs are compared by the first one."""
    return {metric.name: metric for metric in metrics}
