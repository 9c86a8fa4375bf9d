"""What a refresh of the decays costs beside the singular values of the same matrices.

    python -m benchmarks.refresh [--model deit_tiny_patch16_224] [--rounds 15] [--json OUT]

Both sides take turns in one process; the ratio of each pair is svdvals time over refresh time, so above 1 the
refresh (Gram products, eigenvalues, fits, all measures, assignment, writing the optimizer) is the faster.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import timm
import torch

import alphadecay
from alphadecay.matrices import find_matrices
from runtime.runfolder import environment
from runtime.tables import say, table

TARGET = 2.5  # at least, for deit_tiny_patch16_224


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm model")
    parser.add_argument("--rounds", type=int, default=15, help="paired measurements")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    result = measure(options.model, options.rounds, options.device)
    rows = [[side, *(1e3 * part(result[side]) for part in (min, median, max))] for side in ("svdvals", "refresh")]
    rows.append(["svdvals / refresh", *(part(result["ratios"]) for part in (min, median, max))])
    say(f"{options.model}: {result['matrices']} matrices, {options.rounds} pairs, {torch.get_num_threads()} threads")
    say(table(["milliseconds; ratio", "min", "median", "max"], rows))
    if options.json:
        options.json.write_text(json.dumps(result | environment(), indent=1) + "\n")


def measure(model_name: str, rounds: int, device: str = "cpu") -> dict:
    """Times in seconds of both sides, and their ratios pair by pair."""
    torch.manual_seed(0)
    model = timm.create_model(model_name).to(device)
    optimizer = torch.optim.AdamW(alphadecay.param_groups(model, 0.05))
    schedule = alphadecay.AlphaDecay(model, optimizer)
    weights = [m.weight.detach() for m in find_matrices(model) if not m.reason]
    weights = [w.flatten(2).permute(2, 0, 1).contiguous() if w.ndim == 4 else w for w in weights]

    def singular_values() -> None:
        for weight in weights:
            torch.linalg.svdvals(weight)

    sides = {"svdvals": singular_values, "refresh": schedule.refresh}
    for side in sides.values():  # warm up
        side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(seconds(side, device))
    ratios = [a / b for a, b in zip(times["svdvals"], times["refresh"], strict=True)]
    return {
        "model": model_name,
        "matrices": len(weights),
        "threads": torch.get_num_threads(),
        **times,
        "ratios": ratios,
    }


def seconds(work: Callable[[], None], device: str) -> float:
    """Wall-clock time of a piece of work, the device's included."""
    began = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
