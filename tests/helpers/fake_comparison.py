"""Folders of a comparison as its runs would leave them, with effects that are known, and without training."""

import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from comparison.grid import Grid, read_grid
from comparison.results import FAILED, OUTPUT, Run, read_runs

STRATEGIES = {
    "none": {"weight_decay": 0},
    "uniform": {"decay": "uniform"},
    "awd": {"decay": "awd"},
    "adadecay": {"decay": "adadecay"},
    "alphadecay": {"decay": "alphadecay"},
    "alphadecay matched": {"decay": "alphadecay", "decay_budget": "matched"},
    "alphadecay shuffled": {"decay": "alphadecay", "decay_control": "shuffle"},
}
IMAGES = {
    "program": "main.py",
    "search": {"weight_decay": [0.1, 0.5, 2.0]},
    "options": {"data_set": "digits", "model": "vit_tiny_patch16_224", "epochs": 2, "num_workers": 0},
}
TEXT = {
    "program": "main_llama.py",
    "search": {"weight_decay": [0.1, 0.5, 2.0]},
    "options": {
        "dataset": "stdlib", "model_config": "llama/configs/llama_quick.json", "num_training_steps": 300, "lr": 3e-3,
    },
}  # fmt: skip
VIT = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
LLAMA = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")
PER_MODULE = ("alphadecay", "adadecay")
STEPS, REFRESHES = range(50, 301, 50), range(0, 300, 50)


def grid_of(folder: Path, strategies=None, seeds=(0, 1, 2), contrasts=(), domains=None, **more) -> Grid:
    """The grid of a small YAML file, read as compare.py reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    strategies = strategies or {name: STRATEGIES[name] for name in ("uniform", "alphadecay")}
    content = {
        "title": "A comparison", "seeds": list(seeds), "baseline": "uniform", "strategies": strategies,
        "contrasts": [list(pair) for pair in contrasts], "domains": domains or {"digits": IMAGES}, **more,
    }  # fmt: skip
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_grid(path)


@dataclass(frozen=True)
class Effects:
    """What the runs find: figure = start + by seed + by strategy - curvature x log10(decay / best decay)^2 + noise.

    Of perplexities with the opposite sign, so that a positive effect is always for the better.
    """

    by_strategy: dict = field(default_factory=dict)
    noise: float = 0.1  # standard deviation, of each run on its own
    curvature: float = 1.0
    best_decay: float = 0.5
    depth: int = 4
    commits: tuple = ("9afdc15ff394daf56e18ca2438d428e89f7e2763",)


def fill(grid: Grid, root: Path, effects: Effects = Effects(), left_out=(), **ended) -> list[Run]:  # noqa: B008
    """Write every run as finished, but for specs named otherwise.

    Args:
        grid: The comparison.
        root: Its folder.
        effects: What the runs find.
        left_out: Names of specs of which there is nothing.
        ended: failed, diverged or killed: names of specs that ended so.
    """
    runs = read_runs(grid, root)
    for index, run in enumerate(runs):
        how = next((how for how, names in ended.items() if run.spec.name in names), "")
        if how:
            _write_failure(run, {"failed": 1, "diverged": 3, "killed": -9}[how])
        elif run.spec.name not in left_out:
            _write_run(run, effects, effects.commits[index % len(effects.commits)])
    return runs


def value(run: Run, effects: Effects) -> float:
    """The metric at the end."""
    spec = run.spec
    draw = random.Random(spec.name)
    off = math.log10(spec.weight_decay / effects.best_decay) if spec.weight_decay else 1.5
    good = effects.by_strategy.get(spec.strategy, 0.0) - effects.curvature * off**2 + draw.gauss(0, effects.noise)
    by_seed = random.Random(f"seed {spec.seed}").gauss(0, 0.5)
    return 92.0 + by_seed + good if spec.setting.metric.higher_is_better else 20.0 + by_seed - good


def _write_failure(run: Run, status: int) -> None:
    run.folder.mkdir(parents=True)
    lines = [f"step 40: loss {0.5:.3f}", "stopped: the loss of step 41 is not finite <b>&"]
    (run.folder / OUTPUT).write_text("\n".join(lines) + "\n")
    (run.folder / FAILED).write_text(json.dumps({"status": status, "lines": lines}))


def _write_run(run: Run, effects: Effects, commit: str) -> None:
    run.folder.mkdir(parents=True)
    images = run.spec.setting.program.script == "main.py"
    roles, end = VIT if images else LLAMA, value(run, effects)
    ledger = _ledger(run, roles, effects.depth)
    log = [_log_row(run, step, end, ledger) for step in STEPS]
    _write_rows(run.folder / "decay.jsonl", ledger)
    _write_rows(run.folder / "log.jsonl", log)
    metric = run.spec.setting.metric.name
    summary = {
        "step": STEPS[-1], metric: log[-1][metric], "train_loss": log[-1]["train_loss"], "seconds": 12.5,
        "samples_per_second": 1449.6, "alpha_by_role": {role: 2 + i / 3 + end / 1000 for i, role in enumerate(roles)},
    }  # fmt: skip
    (run.folder / "summary.json").write_text(json.dumps(summary))
    words = ["/here/" + run.spec.setting.program.script, *run.spec.words()]
    environment = {
        "versions": {"python": "3.11.7", "torch": "2.6.0+cpu"}, "git_commit": commit, "command": words,
        "machine": "Linux-6.1-x86_64",
    }  # fmt: skip
    (run.folder / "config.json").write_text(json.dumps({"seed": run.spec.seed, "environment": environment}))


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _log_row(run: Run, step: int, end: float, ledger: list[dict]) -> dict:
    left = math.exp(-step / 60)
    higher, decays = run.spec.setting.metric.higher_is_better, [row["weight_decay"] for row in ledger]
    draw = random.Random(f"{run.spec.name} {step}")
    metric = end * (1 - left) if higher else end * (1 + 3 * left)
    return {
        "step": step, "lr": 1e-3, "weight_decay": run.spec.weight_decay, "bad_steps": 0,
        "weight_decay_mean": sum(decays) / len(decays), "weight_decay_min": min(decays),
        "weight_decay_max": max(decays), "weight_norm": 30 + step / 100 - 5 * run.spec.weight_decay + draw.random(),
        "train_loss": 0.3 + 2 * left + 0.02 * draw.random(),
        run.spec.setting.metric.name: end if step == STEPS[-1] else metric, "seconds": step / 10,
    }  # fmt: skip


def _ledger(run: Run, roles, depth: int) -> list[dict]:
    kind, base = run.spec.options.get("decay", "uniform"), run.spec.weight_decay
    draw = random.Random(f"ledger {run.spec.name}")
    common = {"kind": kind, "audit": None, "note": ""}
    if kind == "awd":
        return [
            {"step": s, "measured_step": s, "module": "(all)", "role": "", "score": 0.02, "multiplier": 2 - s / 300,
             "weight_decay": base * (2 - s / 300), "weight_norm": 30.0, **common}
            for s in range(300)
        ]  # fmt: skip
    rows = []
    for step in REFRESHES:
        for i in range(depth):
            for j, role in enumerate(roles):
                score = 2 + j / len(roles) + i / depth * step / 300 + draw.gauss(0, 0.03)
                multiplier = 0.67 + (score - 2) * 1.15 if kind in PER_MODULE else 1.0
                rows.append(
                    {"step": step, "measured_step": step, "module": f"blocks.{i}.{role}", "role": role,
                     "score": score if kind in PER_MODULE else None, "multiplier": multiplier,
                     "weight_decay": base * multiplier, "weight_norm": 3.0, **common}
                )  # fmt: skip
    return rows
