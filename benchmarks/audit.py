"""Cost of an audited training step compared with a plain one, in time and memory.

    python -m benchmarks.audit [--model deit_tiny_patch16_224] [--batch_size 16] [--rounds 15] [--json OUT]

Both kinds of step (forward, backward, optimizer) use the same model and optimizer and take turns in one process: AdamW
and Adam with torch's fused kernel, float32. Memory is the peak of an audited optimizer step, measured in a separate
process, on Linux.
"""

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import timm
import torch

import alphadecay
from benchmarks.paired import interval, interval_in_words, parser_of, ratios, row, take_turns, timed, write_json
from runtime.tables import say, table

NEVER = 10**9
OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


def main() -> None:
    """Measure, print a table, and write JSON if --json is given."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm model for 224 pixels")
    parser.add_argument("--batch_size", type=int, default=16, help="images per step")
    parser.add_argument("--rounds", type=int, default=15, help="paired measurements")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    say(f"{options.model}: {options.rounds} rounds of one step of {options.batch_size} images, {threads} threads")
    result = {name: measure(name, options.model, options.batch_size, options.rounds) for name in OPTIMIZERS}
    for name, measured in result.items():
        sides = ("audited", "plain")
        say(table([f"{name}, ms", "min", "median", "max"], [row(s, [1e3 * t for t in measured[s]]) for s in sides]))
        memory = f"{measured['memory']:.2f} x the weights in memory"
        say(f"audited / plain: {interval_in_words(measured['ratios'])}; {memory}")
    write_json(options.json, result)


def measure(optimizer_name: str, model_name: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Seconds of both kinds of step, their ratios, and the additional peak memory of the audited one."""
    model, optimizer, audit = build(optimizer_name, model_name)
    images = torch.randn(batch_size, 3, 224, 224)

    def step() -> None:
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()

    def every(steps: int) -> Callable[[], None]:
        return lambda: setattr(audit, "every", steps)

    seconds = take_turns({"audited": timed(step, every(1)), "plain": timed(step, every(NEVER))}, rounds)
    quotients = ratios(seconds["audited"], seconds["plain"])
    with get_context("spawn").Pool(1) as process:  # a new one, without freed memory of forward passes to reuse
        memory = process.apply(additional_memory, (optimizer_name, model_name))
    return {**seconds, "ratios": quotients, "interval": interval(quotients), "memory": memory}


def build(optimizer_name: str, model_name: str) -> tuple[torch.nn.Module, torch.optim.Optimizer, alphadecay.DecayAudit]:
    """Build a model, its optimizer, and an audit that never happens."""
    torch.manual_seed(0)
    model = timm.create_model(model_name)
    optimizer = OPTIMIZERS[optimizer_name](alphadecay.param_groups(model, 0.05), lr=1e-4, fused=True)
    return model, optimizer, alphadecay.DecayAudit(alphadecay.UniformDecay(model, optimizer), NEVER)


def additional_memory(optimizer_name: str, model_name: str) -> float:
    """Peak memory of an audited optimizer step beyond the memory before it, as a multiple of the weights' size."""
    model, optimizer, audit = build(optimizer_name, model_name)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    audit.every = 1
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _memory("VmRSS")
    optimizer.step()
    return (_memory("VmHWM") - before) / sum(p.numel() * p.element_size() for p in model.parameters())


def _memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


if __name__ == "__main__":
    main()
