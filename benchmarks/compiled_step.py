"""How much torch.compile compiles of an optimizer's step, with AlphaDecay and without.

    python -m benchmarks.compiled_step [--model deit_tiny_patch16_224] [--interval 3] [--steps 8] [--json OUT]

Three runs of AdamW's compiled step over the same gradients: under AlphaDecay; plain; and with the decays of the first
run written by hand, which is what torch itself compiles again for changed values. Counted are Dynamo's frames and
graphs and the seconds of each step; the backend is the default one unless --backend says otherwise.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import timm
import torch
from torch._dynamo.utils import counters

import alphadecay
from runtime.runfolder import environment
from runtime.tables import say, table


def main() -> None:
    """Count, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm model")
    parser.add_argument("--interval", type=int, default=3, help="steps between refreshes")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--json", type=Path, help="where to write the result")
    given = parser.parse_args()
    attached = count(given.model, given.steps, given.interval, given.backend, attach=True)
    found = {
        "AlphaDecay": attached,
        "plain": count(given.model, given.steps, given.interval, given.backend),
        "by hand": count(given.model, given.steps, given.interval, given.backend, decays=attached["decays"]),
    }
    say(f"{given.model}, {given.steps} steps, a refresh every {given.interval}, backend {given.backend}")
    rows = [
        [name, each["frames"][0], each["frames"][-1], each["graphs"][0], each["graphs"][-1], *each["seconds"]]
        for name, each in found.items()
    ]
    heads = ["frames at step 0", "in all", "graphs at step 0", "in all"]
    say(table(["", *heads, *(f"step {step}, s" for step in range(given.steps))], rows))
    if given.json:
        given.json.write_text(json.dumps(found | environment(), indent=1) + "\n")


def count(
    model_name: str,
    steps: int,
    interval: int,
    backend: str,
    attach: bool = False,
    decays: list[list[float]] | None = None,
) -> dict[str, Any]:
    """Frames and graphs compiled up to each step, its seconds, and the decays that held."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model = timm.create_model(model_name)
    optimizer = torch.optim.AdamW(alphadecay.param_groups(model, 0.1), lr=1e-3)
    if attach:
        alphadecay.AlphaDecay(model, optimizer, interval)
    step = torch.compile(optimizer.step, backend=backend)
    found: dict[str, Any] = {"frames": [], "graphs": [], "seconds": [], "decays": []}
    for number in range(steps):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
        for group, decay in zip(optimizer.param_groups, decays[number] if decays else [], strict=False):
            group["weight_decay"] = decay
        began = time.perf_counter()
        step()
        found["seconds"].append(round(time.perf_counter() - began, 2))
        found["frames"].append(counters["frames"]["total"])
        found["graphs"].append(counters["stats"]["unique_graphs"])
        found["decays"].append([group["weight_decay"] for group in optimizer.param_groups])
    return found


if __name__ == "__main__":
    main()
