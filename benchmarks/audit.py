"""What an audited training step costs beside a plain one, in time and memory.

    python -m benchmarks.audit [--model deit_tiny_patch16_224] [--batch_size 16] [--rounds 15] [--json OUT]

Both steps (forward, backward, optimizer) are of the same model and optimizer in one process and take turns: AdamW and
Adam with torch's fused kernel, float32. Memory is the peak of the process in each, on Linux.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
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
        say(f"audited / plain: {interval_in_words(found['ratios'])}; {found['memory']:.2f} x the weights more memory")
    if given.json:
        given.json.write_text(json.dumps(result | environment(), indent=1) + "\n")


def measure(optimizer_name: str, model_name: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Seconds of both kinds of step, their ratios, and how much more memory the audited one takes at its peak."""
    torch.manual_seed(0)
    model = timm.create_model(model_name)
    optimizer = OPTIMIZERS[optimizer_name](alphadecay.param_groups(model, 0.05), lr=1e-4, fused=True)
    audit = alphadecay.DecayAudit(alphadecay.UniformDecay(model, optimizer), NEVER)
    images = torch.randn(batch_size, 3, 224, 224)

    def step() -> None:
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()

    def every(steps: int) -> Callable[[], None]:
        return lambda: setattr(audit, "every", steps)

    found = take_turns({"audited": timed(step, every(1)), "plain": timed(step, every(NEVER))}, rounds)
    quotients = ratios(found["audited"], found["plain"])
    peaks = {}
    for side, steps in (("plain", NEVER), ("audited", 1)):
        every(steps)()
        model(images).square().mean().backward()
        peaks[side] = median(peak_memory(optimizer.step) for _ in range(5))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        **found,
        "ratios": quotients,
        "interval": interval(quotients),
        "memory": (peaks["audited"] - peaks["plain"]) / weights,
    }


def peak_memory(work: Callable[[], Any]) -> int:
    """Bytes that the process holds beyond those before, at the peak of some work."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _memory("VmRSS")
    work()
    return _memory("VmHWM") - before


def _memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


if __name__ == "__main__":
    main()
