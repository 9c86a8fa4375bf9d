"""Cost of analysing a model compared with the WeightWatcher package, and whether both find the same exponents.

    pip install weightwatcher
    python -m benchmarks.weightwatcher [--model deit_tiny_patch16_224] [--rounds 5] [--json OUT]

Both choose the start of the tail by the smallest KS distance (our `goodness-of-fit`), on the same matrices, and take
turns in one process. Exponents are compared for matrices whose tail starts at the same eigenvalue in both.
"""

import logging
from statistics import median
from typing import Any

import torch

import alphadecay
from benchmarks.paired import interval, parser_of, ratios, row, take_turns, timed, write_json
from benchmarks.refresh import build
from runtime.tables import say, table

TARGET = 4.0  # smallest ratio of WeightWatcher's time to ours that is good enough
SAME_START = 1e-3  # largest relative difference of xmin for tails that start at the same eigenvalue


def main() -> None:
    """Measure, compare, print, and write JSON if --json is given."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm model or llama_...")
    parser.add_argument("--rounds", type=int, default=5, help="paired measurements")
    options = parser.parse_args()
    import weightwatcher

    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    model = build(options.model)
    records: list[alphadecay.SpectrumRecord] = []
    details: list[Any] = []

    def ours() -> None:
        records[:] = [r for r in alphadecay.analyze(model, fit="goodness-of-fit") if r.alpha is not None]

    ours()
    ours_by_name = {record.name for record in records}
    described = weightwatcher.WeightWatcher(model=model).describe()
    layers = [int(line["layer_id"]) for _, line in described.iterrows() if line["longname"] in ours_by_name]

    def theirs() -> None:
        details[:] = [weightwatcher.WeightWatcher(model=model).analyze(layers=layers)]

    sides = {"WeightWatcher": timed(theirs), "alphadecay": timed(ours)}
    times = take_turns(sides, options.rounds)
    say(f"{options.model}: {len(records)} matrices, {options.rounds} rounds, {torch.get_num_threads()} threads")
    say(table(["seconds", "min", "median", "max"], [row(name, values) for name, values in times.items()]))
    values = ratios(times["WeightWatcher"], times["alphadecay"])
    low, high = interval(values)
    say(f"WeightWatcher / alphadecay: median {median(values):.2f}, 95 % interval {low:.2f} to {high:.2f}")
    same, largest = compare(records, details[0])
    difference = f"at most {largest:.1e} (relative)"
    say(f"{same} of {len(records)} tails start at the same eigenvalue; their alphas differ by {difference}")
    write_json(options.json, {"seconds": times})


def compare(records: list[alphadecay.SpectrumRecord], details: Any) -> tuple[int, float]:
    """Number of tails that start at the same eigenvalue, and the largest relative difference of their exponents."""
    lines = {line["longname"]: line for _, line in details.iterrows()}
    same, largest = 0, 0.0
    for record in records:
        line = lines.get(record.name)
        if line is None or record.alpha is None or record.xmin is None:
            continue
        if abs(line["xmin"] / record.xmin - 1) < SAME_START:
            same += 1
            largest = max(largest, abs(line["alpha"] / record.alpha - 1))
    return same, largest


if __name__ == "__main__":
    main()
