"""What an audited training step costs beside a plain one, in time and memory.

    python -m benchmarks.audit [--model deit_tiny_patch16_224] [--batch_size 16] [--rounds 15] [--json OUT]

Both steps (forward, backward, optimizer) are of the same model and optimizer in one process and take turns: AdamW and
Adam with torch's fused kernel, float32. Memory is what an audited optimizer step holds at its peak, in a process of its
own, on Linux.
"""

import argparse
import json
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import timm
import torch

import alphadecay
from benchmarks.paired import interval, interval_in_words, ratios, row, take_turns, timed
from runtime.runfolder import environment
from runtime.tables import say, table

NEVER = 10**9
OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm model for 224 pixels")
    parser.add_argument("--batch_size", type=int, default=16, help="images a step")
    parser.add_argument("--rounds", type=int, default=15, help="paired measurements")
    parser.add_argument("--json", type=Path, help="where to write the result")
    given = parser.parse_args()
    threads = torch.get_num_threads()
    say(f"{given.model}: {given.rounds} rounds of one step of {given.batch_size} images, {threads} threads")
    result = {name: measure(name, given.model, given.batch_size, given.rounds) for name in OPTIMIZERS}
    for name, found in result.items():
        sides = ("audited", "plain")
        say(table([f"{name}, ms", "min", "median", "max"], [row(s, [1e3 * t for t in found[s]]) for s in sides]))
        say(f"audited / plain: {interval_in_words(found['ratios'])}; {found['memory']:.2f} x the weights in memory")
    if given.json:
        given.json.write_text(json.dumps(result | environment(), indent=1) + "\n")


def measure(optimizer_name: str, model_name: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Seconds of both kinds of step, their ratios, and how much more memory the audited one takes at its peak."""
    model, optimizer, audit = build(optimizer_name, model_name)
    images = torch.randn(batch_size, 3, 224, 224)

    def step() -> None:
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()

    def every(steps: int) -> Callable[[], None]:
        return lambda: setattr(audit, "every", steps)

    found = take_turns({"audited": timed(step, every(1)), "plain": timed(step, every(NEVER))}, rounds)
    quotients = ratios(found["audited"], found["plain"])
    with get_context("spawn").Pool(1) as fresh:  # where no forward pass has left memory to reuse
        memory = fresh.apply(more_memory, (optimizer_name, model_name))
    return {**found, "ratios": quotients, "interval": interval(quotients), "memory": memory}


def build(optimizer_name: str, model_name: str) -> tuple[torch.nn.Module, torch.optim.Optimizer, alphadecay.DecayAudit]:
    """A model, its optimizer, and an audit that is never due."""
    torch.manual_seed(0)
    model = timm.create_model(model_name)
    optimizer = OPTIMIZERS[optimizer_name](alphadecay.param_groups(model, 0.05), lr=1e-4, fused=True)
    return model, optimizer, alphadecay.DecayAudit(alphadecay.UniformDecay(model, optimizer), NEVER)


def more_memory(optimizer_name: str, model_name: str) -> float:
    """Peak memory of an audited optimizer step beyond what is held anyway, in sizes of the weights."""
    model, optimizer, audit = build(optimizer_name, model_name)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    audit.every = 1
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _memory("VmRSS")
    optimizer.step()
    return (_memory("VmHWM") - before) / sum(p.numel() * p.element_size() for p in model.parameters())


def _memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


if __name__ == "__main__":
    main()
