"""What a refresh of the decays costs beside the singular values of the same matrices, and with other fits and windows.

    python -m benchmarks.refresh [--model deit_tiny_patch16_224] [--rounds 15] [--json OUT]

All sides take turns in one process. svdvals time over refresh time is above 1 where the refresh (Gram products,
eigenvalues, fits, all measures, assignment, writing the optimizer) is the faster; the other ratios are a refresh of
that kind over one with the median fit of whole matrices.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch

import alphadecay
from alphadecay.matrices import find_matrices
from benchmarks.paired import interval, ratios, row, take_turns
from runtime.runfolder import environment
from runtime.tables import say, table

SVD, MEDIAN = "svdvals", "refresh"
REFRESHES: dict[str, dict[str, Any]] = {
    MEDIAN: {},
    "refresh, goodness-of-fit": {"fit": "goodness-of-fit"},
    "refresh, fix-finger": {"fit": "fix-finger"},
    "refresh, FARMS windows": {"window": "farms"},
}


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm model")
    parser.add_argument("--rounds", type=int, default=15, help="paired measurements")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    times, matrices = measure(options.model, options.rounds, options.device)
    say(f"{options.model}: {matrices} matrices, {options.rounds} rounds, {torch.get_num_threads()} threads")
    say(table(["milliseconds", "min", "median", "max"], [row(k, [1e3 * t for t in v]) for k, v in times.items()]))
    for side in times:
        if side != MEDIAN:
            above, below = (times[SVD], times[MEDIAN]) if side == SVD else (times[side], times[MEDIAN])
            values = ratios(above, below)
            low, high = interval(values)
            say(f"{side} / {MEDIAN}: median {median(values):.3f}, 95 % interval {low:.3f} to {high:.3f}")
    if options.json:
        options.json.write_text(json.dumps({"model": options.model, "seconds": times} | environment(), indent=1) + "\n")


def measure(model_name: str, rounds: int, device: str = "cpu") -> tuple[dict[str, list[float]], int]:
    """Seconds of each side in each round, and the number of matrices."""
    torch.manual_seed(0)
    model = timm.create_model(model_name).to(device)
    weights = [m.weight.detach() for m in find_matrices(model) if not m.reason]
    stacks = [w.flatten(2).permute(2, 0, 1).contiguous() if w.ndim == 4 else w for w in weights]

    def singular_values() -> None:
        for stack in stacks:
            torch.linalg.svdvals(stack)

    sides = {SVD: timed(singular_values, device)}
    for name, options in REFRESHES.items():
        optimizer = torch.optim.AdamW(alphadecay.param_groups(model, 0.05))
        sides[name] = timed(alphadecay.AlphaDecay(model, optimizer, **options).refresh, device)
    return take_turns(sides, rounds), len(weights)


def timed(work: Callable[[], None], device: str) -> Callable[[], float]:
    """A piece of work that returns its wall-clock time, the device's included."""

    def run() -> float:
        began = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return run


if __name__ == "__main__":
    main()
