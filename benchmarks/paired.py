"""The frame of a benchmark: its command line, sides that take turns in one process, ratios pair by pair."""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from runtime.runfolder import environment

LEAST_MEDIAN = 0.97  # the bar: the median ratio is at least this, and its interval reaches 1
RESAMPLES = 10_000


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A benchmark's command line, which has --json."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the result")
    return parser


def write_json(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write a result and the environment it was measured in, if --json is given."""
    if path is not None:
        path.write_text(json.dumps({**result, **environment()}, indent=1) + "\n")


def timed(
    work: Callable[[], Any], prepare: Callable[[], None] | None = None, device: str = "cpu"
) -> Callable[[], float]:
    """Make a function that does the work and returns its wall-clock seconds, without those of `prepare`.

    On CUDA it waits until the device has finished.
    """

    def run() -> float:
        if prepare is not None:
            prepare()
        began = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return run


def take_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Results of each side, called once per round. After a warm-up round, each round begins with another side."""
    names = list(sides)
    for name in names:
        sides[name]()
    results: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(sides[name]())
    return results


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The quotients pair by pair."""
    return [a / b for a, b in zip(above, below, strict=True)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The bootstrap 95 % interval of the median."""
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(low), float(high)


def meets_bar(values: Sequence[float]) -> bool:
    """Whether ratios of our speed to another's show that ours is not slower."""
    return median(values) >= LEAST_MEDIAN and interval(values)[1] >= 1.0


def row(label: str, values: Sequence[float]) -> list[str | float]:
    """A table's row: label, min, median, max."""
    return [label, *(part(values) for part in (min, median, max))]


def verdict(label: str, values: Sequence[float]) -> str:
    """One line on ratios: their median, its interval, and whether the bar is met."""
    met = "met" if meets_bar(values) else "MISSED"
    return f"{label}: {interval_in_words(values)}; bar (median at least {LEAST_MEDIAN}, interval reaches 1) {met}"


def interval_in_words(values: Sequence[float]) -> str:
    """The median of values, with its interval."""
    low, high = interval(values)
    return f"median {median(values):.4f}, 95 % interval {low:.4f} to {high:.4f}"
