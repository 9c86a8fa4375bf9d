"""How often torch.compile compiles an optimizer step, with AlphaDecay and without.

    python -m benchmarks.compiled_step [--model deit_tiny_patch16_224] [--interval 3] [--steps 8] [--json OUT]

Three runs of AdamW's compiled step on the same gradients: with AlphaDecay; without; and with the decays of the first
run written by hand, which shows how often torch compiles again only because values change. The results are Dynamo's
frames and graphs and the seconds of each step.
"""

import time
from typing import Any

import timm
import torch
from torch._dynamo.utils import counters

import alphadecay
from benchmarks.paired import parser_of, write_json
from runtime.tables import say, table


def main() -> None:
    """Count, print a table, and write JSON if --json is given."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm model")
    parser.add_argument("--interval", type=int, default=3, help="steps between refreshes")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps")
    parser.add_argument("--backend", default="inductor", help="backend of torch.compile")
    options = parser.parse_args()
    attached = count(options.model, options.steps, options.interval, options.backend, attach=True)
    runs = {
        "AlphaDecay": attached,
        "plain": count(options.model, options.steps, options.interval, options.backend),
        "by hand": count(options.model, options.steps, options.interval, options.backend, decays=attached["decays"]),
    }
    say(f"{options.model}, {options.steps} steps, a refresh every {options.interval}, backend {options.backend}")
    rows = [
        [name, run["frames"][0], run["frames"][-1], run["graphs"][0], run["graphs"][-1], *run["seconds"]]
        for name, run in runs.items()
    ]
    heads = ["frames at step 0", "total", "graphs at step 0", "total"]
    say(table(["", *heads, *(f"step {step}, s" for step in range(options.steps))], rows))
    write_json(options.json, runs)


def count(
    model_name: str,
    steps: int,
    interval: int,
    backend: str,
    attach: bool = False,
    decays: list[list[float]] | None = None,
) -> dict[str, Any]:
    """Frames and graphs compiled up to each step, and the seconds and decays of each step."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model = timm.create_model(model_name)
    optimizer = torch.optim.AdamW(alphadecay.param_groups(model, 0.1), lr=1e-3)
    if attach:
        alphadecay.AlphaDecay(model, optimizer, interval)
    step = torch.compile(optimizer.step, backend=backend)
    counts: dict[str, Any] = {"frames": [], "graphs": [], "seconds": [], "decays": []}
    for number in range(steps):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
        for group, decay in zip(optimizer.param_groups, decays[number] if decays else [], strict=False):
            group["weight_decay"] = decay
        began = time.perf_counter()
        step()
        counts["seconds"].append(round(time.perf_counter() - began, 2))
        counts["frames"].append(counters["frames"]["total"])
        counts["graphs"].append(counters["stats"]["unique_graphs"])
        counts["decays"].append([group["weight_decay"] for group in optimizer.param_groups])
    return counts


if __name__ == "__main__":
    main()
