"""Cost of a refresh compared with the singular values of the same matrices, and with other fits and windows.

    python -m benchmarks.refresh [--model deit_tiny_patch16_224] [--rounds 15] [--growth] [--json OUT]

--model is a timm name, or llama_60m, llama_130m, llama_350m or llama_1b for the matrices of the published LLaMA.
--growth times one layer of each LLaMA instead, and fits the exponent with which the cost grows.

All sides take turns in one process. The ratio svdvals / refresh is above 1 if the refresh (Gram products, eigenvalues,
fits, all metrics, assignment, writing the optimizer's decays) is faster. The other ratios are the time of that kind of
refresh divided by that of one with the median fit of whole matrices.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

import alphadecay
from alphadecay.matrices import find_matrices
from benchmarks.paired import interval, parser_of, ratios, row, take_turns, timed, write_json
from runtime.tables import say, table

LLAMA = {  # hidden size, inner size, layers
    "llama_60m": (512, 1376, 8),
    "llama_130m": (768, 2048, 12),
    "llama_350m": (1024, 2736, 24),
    "llama_1b": (2048, 5461, 24),
}
SVD, MEDIAN = "svdvals", "refresh"
REFRESHES: dict[str, dict[str, Any]] = {
    MEDIAN: {},
    "refresh, goodness-of-fit": {"fit": "goodness-of-fit"},
    "refresh, fix-finger": {"fit": "fix-finger"},
    "refresh, FARMS windows": {"window": "farms"},
}


def main() -> None:
    """Measure, print a table, and write JSON if --json is given."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm model or llama_...")
    parser.add_argument(
        "--kinds", nargs="*", default=list(REFRESHES)[1:], help="refreshes to time besides the default one"
    )
    parser.add_argument("--growth", action="store_true", help="time one layer of each LLaMA")
    parser.add_argument("--rounds", type=int, default=15, help="paired measurements")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    if options.growth:
        result = growth(options.rounds, options.device)
        write_json(options.json, result)
        return
    times, matrices = measure(build(options.model), options.rounds, options.device, options.kinds)
    say(f"{options.model}: {matrices} matrices, {options.rounds} rounds, {torch.get_num_threads()} threads")
    say(table(["milliseconds", "min", "median", "max"], [row(k, [1e3 * t for t in v]) for k, v in times.items()]))
    for side in times:
        if side != MEDIAN:
            above, below = (times[SVD], times[MEDIAN]) if side == SVD else (times[side], times[MEDIAN])
            values = ratios(above, below)
            low, high = interval(values)
            say(f"{side} / {MEDIAN}: median {median(values):.3f}, 95 % interval {low:.3f} to {high:.3f}")
    write_json(options.json, {"model": options.model, "seconds": times})


def growth(rounds: int, device: str) -> dict[str, Any]:
    """Time a layer of each LLaMA, fit seconds ~ hidden size ** exponent, and print the exponents."""
    widths = [width for width, _, _ in LLAMA.values()]
    times = [measure(llama(name, layers=1), rounds, device, kinds=())[0] for name in LLAMA]
    seconds = {side: [median(layer[side]) for layer in times] for side in (SVD, MEDIAN)}
    rows = [[width, 1e3 * svd, 1e3 * ours] for width, svd, ours in zip(widths, *seconds.values(), strict=True)]
    say(table(["hidden size", "svdvals, ms", "refresh, ms"], rows))
    exponents = {side: float(np.polyfit(np.log(widths), np.log(values), 1)[0]) for side, values in seconds.items()}
    for side, exponent in exponents.items():
        say(f"{side}: seconds grow as the hidden size to the power of {exponent:.2f}")
    return {"hidden_sizes": widths, "seconds": times, "exponents": exponents}


def build(name: str) -> nn.Module:
    """Build a timm model, or the matrices of a LLaMA."""
    torch.manual_seed(0)
    return llama(name, LLAMA[name][2]) if name in LLAMA else timm.create_model(name)


def llama(name: str, layers: int) -> nn.Module:
    """Build the seven matrices of each layer, with the names of a transformers LLaMA."""
    hidden, inner, _ = LLAMA[name]
    model = nn.Module()
    model.layers = nn.ModuleList()
    for _ in range(layers):
        attention = {part: nn.Linear(hidden, hidden, bias=False) for part in ("q_proj", "k_proj", "v_proj", "o_proj")}
        mlp = {part: nn.Linear(hidden, inner, bias=False) for part in ("gate_proj", "up_proj")}
        mlp["down_proj"] = nn.Linear(inner, hidden, bias=False)
        model.layers.append(nn.ModuleDict({"self_attn": nn.ModuleDict(attention), "mlp": nn.ModuleDict(mlp)}))
    return model


def measure(model: nn.Module, rounds: int, device: str, kinds: Sequence[str]) -> tuple[dict[str, list[float]], int]:
    """Seconds of each side in each round, and the number of matrices."""
    model = model.to(device)
    weights = [m.weight.detach() for m in find_matrices(model) if not m.reason]
    stacks = [w.flatten(2).permute(2, 0, 1).contiguous() if w.ndim == 4 else w for w in weights]

    def singular_values() -> None:
        for stack in stacks:
            torch.linalg.svdvals(stack)

    sides = {SVD: timed(singular_values, device=device)}
    for name in (MEDIAN, *kinds):
        optimizer = torch.optim.AdamW(alphadecay.param_groups(model, 0.05))
        sides[name] = timed(alphadecay.AlphaDecay(model, optimizer, **REFRESHES[name]).refresh, device=device)
    return take_turns(sides, rounds), len(weights)


if __name__ == "__main__":
    main()
