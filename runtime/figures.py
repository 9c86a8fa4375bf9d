"""Figures of a run, from its log and decay log."""

from collections.abc import Mapping, Sequence
from typing import Any

from alphadecay.baselines import ALL
from alphadecay.figures.alpha import alpha_by_depth
from alphadecay.figures.decay import decay_by_depth, decay_over_time
from alphadecay.figures.spectra import spectra_by_role
from alphadecay.records import SpectrumRecords, spectra_of
from runtime.metrics import Metric

Row = Mapping[str, Any]


def figures_of_run(records: SpectrumRecords, decay_log: Sequence[Row], score: str) -> dict[str, Any]:
    """Figures of a run's spectra and decays, by name.

    Args:
        records: The spectra after the last step.
        decay_log: Rows of decay.jsonl.
        score: The metric from which the decays were assigned.
    """
    spectra = spectra_of(records)
    drawn = {"spectra": spectra_by_role(spectra), "alpha_by_depth": alpha_by_depth(records)} if spectra else {}
    if decay_log:
        drawn["decay_over_time"] = decay_over_time(decay_log, score)
    if any(row["module"] != ALL for row in decay_log):  # not for a strategy that gives all modules one decay
        drawn["decay_by_depth"] = decay_by_depth(decay_log, score)
    return drawn


def training_curves(rows: Sequence[Row], metric: Metric) -> Any:
    """Losses, one validation metric (of raw and EMA weights) and the learning rate over optimizer steps.

    Args:
        rows: Lines of log.jsonl.
        metric: The validation metric; drawn for EMA weights too if the log has it.

    Returns:
        A matplotlib figure.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.9, 2.1), layout="constrained")
    with style.context("petroff10"):  # colours that colour-blind readers can distinguish
        losses, metrics, rates = figure.subplots(1, 3)
    steps = [row["step"] for row in rows]
    for key, name in (
        ("train_loss", "training"), ("train_eval_loss", "training, in evaluation"), ("loss", "validation"),
        ("loss_ema", "validation, EMA"),
    ):  # fmt: skip
        _line(losses, steps, rows, key, name)
    _line(metrics, steps, rows, metric.name, "raw weights")
    _line(metrics, steps, rows, metric.averaged().name, "EMA weights")
    _line(rates, steps, rows, "lr", "learning rate")
    for axes, title in ((losses, "cross-entropy"), (metrics, metric.label), (rates, "learning rate")):
        axes.set(xlabel="optimizer step", title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    losses.legend()
    metrics.legend()
    return figure


def _line(axes: Any, steps: Sequence[int], rows: Sequence[Row], key: str, name: str) -> None:
    points = [(step, row[key]) for step, row in zip(steps, rows, strict=True) if row.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
