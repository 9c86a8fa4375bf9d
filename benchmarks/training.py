"""Images a second of our training steps beside timm's, each as its own program takes them.

    python -m benchmarks.training [--model deit_tiny_patch16_224] [--batch_size 16] [--steps 1] [--rounds 61]
                                  [--json OUT]

timm: the steps of timm's train.py (its parameter groups, scheduler, ModelEmaV3, a look at the loss each step).
uniform, alphadecay: `engine.train_one_epoch` with what `main.build_task` makes, decays refreshed every 500 steps.
All have the same model, float32, AdamW, mixup and cutmix, drop-path, moving average, and batches from memory, and
take turns in one process. Each optimizer is as its program makes it: ours asks torch for the fused kernel, timm's
train.py does not. The ratio of each pair is ours over timm's, so above 1 ours is the faster. A busy machine widens
the intervals until they say nothing.

The cost of a refresh is in the numbers of alphadecay: one refresh is timed in each round, and every step is charged
a 500th of it. The refreshes that happen to fall into the timed steps are taken out.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timm import create_model
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3

from benchmarks.paired import interval, interval_in_words, ratios, row, take_turns, verdict
from datasets import Batch
from engine import train_one_epoch
from main import build_task, read_options
from runtime.finite import FiniteGate
from runtime.processes import Ranks
from runtime.runfolder import environment
from runtime.seeding import seed_everything
from runtime.tables import say, table

INTERVAL = 500  # optimizer steps between refreshes
LR, DECAY, DROP_PATH, EMA_DECAY, EPOCHS, WARMUP = 1e-3, 0.05, 0.1, 0.9999, 300, 20
CLASSES = 10  # of the built-in digits, of which our program takes this number alone
Side = Callable[[], float]  # takes the steps of a round and returns images a second


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm model for 224 pixels")
    parser.add_argument("--batch_size", type=int, default=16, help="images a step")
    parser.add_argument("--steps", type=int, default=1, help="steps a side and round")
    parser.add_argument("--rounds", type=int, default=61, help="paired measurements")
    parser.add_argument("--json", type=Path, help="where to write the result")
    given = parser.parse_args()
    result = measure(given.model, given.batch_size, given.steps, given.rounds)
    rows = [row(side, result[side]) for side in ("timm", "uniform", "alphadecay")]
    rows += [row(f"{side} / timm", result["ratios"][side]) for side in result["ratios"]]
    threads = torch.get_num_threads()
    say(f"{given.model}: {given.rounds} rounds of {given.steps} steps of {given.batch_size} images, {threads} threads")
    say(table(["images/s; ratio", "min", "median", "max"], rows))
    for side, values in result["ratios"].items():
        say(verdict(f"{side} / timm", values))
    refresh = median(result["refresh_seconds"])
    step = given.batch_size / median(result["uniform"])
    say(f"alphadecay / uniform: {interval_in_words(ratios(result['alphadecay'], result['uniform']))}")
    charged = refresh / INTERVAL
    say(f"a refresh takes {1e3 * refresh:.0f} ms; each step of alphadecay is charged {1e3 * charged:.2f} ms for it,")
    say(f"which is {100 * charged / step:.3f} % of a step with uniform decay")
    if given.json:
        given.json.write_text(json.dumps(result | environment(), indent=1) + "\n")


def measure(model: str, batch_size: int, steps: int, rounds: int) -> dict[str, Any]:
    """Images a second of the three sides, and the ratios to timm round by round."""
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(batch_size, 3, 224, 224, generator=generator), torch.arange(batch_size) % CLASSES)
        for _ in range(steps)
    ]
    refreshes: list[float] = []
    sides = {"timm": timm_side(model, batches)}
    sides |= {decay: our_side(model, batches, decay, refreshes) for decay in ("uniform", "alphadecay")}
    found = take_turns(sides, rounds)
    quotients = {side: ratios(found[side], found["timm"]) for side in ("uniform", "alphadecay")}
    return {
        "model": model,
        "batch_size": batch_size,
        "steps": steps,
        "threads": torch.get_num_threads(),
        **found,
        "refresh_seconds": refreshes[1:],  # the first one warmed up
        "ratios": quotients,
        "intervals": {side: interval(values) for side, values in quotients.items()},
    }


def timm_side(name: str, batches: list[Batch]) -> Side:
    """Training as timm's train.py does it in one process."""
    seed_everything(0)
    model = create_model(name, num_classes=CLASSES, drop_path_rate=DROP_PATH)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=DECAY)
    ema = ModelEmaV3(model, decay=EMA_DECAY)
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES)
    criterion = SoftTargetCrossEntropy()
    scheduler, _ = create_scheduler_v2(
        optimizer, num_epochs=EPOCHS, warmup_epochs=WARMUP, step_on_epochs=False, updates_per_epoch=100
    )
    assert scheduler is not None
    losses, updates = AverageMeter(), 0

    def take_steps() -> float:
        nonlocal updates
        own = copied(batches)
        began = time.perf_counter()
        model.train()
        for images, targets in own:
            images, targets = mixup(images, targets)
            loss = criterion(model(images), targets)
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), len(images))
            updates += 1
            optimizer.zero_grad()
            ema.update(model, step=updates)
            scheduler.step_update(num_updates=updates, metric=losses.avg)
        return image_count(own) / (time.perf_counter() - began)

    return take_steps


def our_side(name: str, batches: list[Batch], decay: str, refreshes: list[float]) -> Side:
    """Training as main.py does it; adds the seconds of a refresh to `refreshes` where decay adapts."""
    size = len(batches[0][1])
    words = f"--data_set digits --input_size 224 --num_workers 0 --model {name} --batch_size {size} --device cpu "
    words += f"--optimizer adamw --lr {LR} --weight_decay {DECAY} --drop_path {DROP_PATH} --epochs {EPOCHS} "
    words += f"--warmup_epochs {WARMUP} --model_ema --model_ema_decay {EMA_DECAY} "
    words += f"--decay {decay} --decay_interval {INTERVAL}"
    options, alone = read_options(words.split()), Ranks(0, 1, torch.device("cpu"))
    seed_everything(0)
    task = build_task(options, alone)
    loss_sum = torch.zeros((), dtype=torch.float64)

    gate = FiniteGate(task.learner, alone, "stop", every=10)

    def after_step(_: int, loss: torch.Tensor | None) -> None:
        assert loss is not None
        loss_sum.add_(loss)

    def on_bad_step(step: int) -> None:
        raise SystemExit(f"step {step} is not finite")

    def take_steps() -> float:
        own = copied(batches)
        refreshed, began = task.decay.seconds, time.perf_counter()
        train_one_epoch(task.learner, own, task.rules, alone, task.decay.step, gate, after_step, on_bad_step)
        seconds = time.perf_counter() - began - (task.decay.seconds - refreshed)
        if decay == "alphadecay":
            began = time.perf_counter()
            task.decay.refresh()
            refreshes.append(time.perf_counter() - began)
            seconds += refreshes[-1] * len(own) / INTERVAL
        return image_count(own) / seconds

    return take_steps


def copied(batches: list[Batch]) -> list[Batch]:
    """Batches of a side's own, as mixup changes images in place."""
    return [(images.clone(), labels) for images, labels in batches]


def image_count(batches: list[Batch]) -> int:
    """Images in all batches."""
    return sum(len(labels) for _, labels in batches)


if __name__ == "__main__":
    main()
