"""Images per second of our training steps compared with timm's, each as in its own program.

    python -m benchmarks.training [--model deit_tiny_patch16_224] [--batch_size 16] [--steps 1] [--rounds 61]
                                  [--json OUT]

timm: the steps of timm's train.py (its parameter groups, scheduler, ModelEmaV3, the loss read at each step).
uniform, alphadecay: `engine.train_one_epoch` with the task of `main.build_task`, decays refreshed every 500 steps.
All sides have the same model, float32, AdamW, mixup and cutmix, drop-path, EMA, and batches in memory, and take turns
in one process. Each optimizer is that of its program: ours has torch's fused kernel, that of timm's train.py does not.
Ratios are our speed divided by timm's: above 1 ours is faster. On a busy machine the intervals become too wide to show
anything.

The numbers of alphadecay include the cost of refreshes: one refresh is timed per round, and a 500th of it is added to
every step. Refreshes that happen during the timed steps are subtracted.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from timm import create_model
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3

from benchmarks.paired import interval, interval_in_words, parser_of, ratios, row, take_turns, verdict, write_json
from datasets import Batch
from engine import train_one_epoch
from main import build_task, read_options
from runtime.finite import FiniteGate
from runtime.processes import Ranks
from runtime.seeding import seed_everything
from runtime.tables import say, table

INTERVAL = 500  # optimizer steps between refreshes
LR, DECAY, DROP_PATH, EMA_DECAY, EPOCHS, WARMUP = 1e-3, 0.05, 0.1, 0.9999, 300, 20
CLASSES = 10  # of the built-in digits; our program refuses other numbers for them
Side = Callable[[], float]  # takes the steps of a round and returns images per second


def main() -> None:
    """Measure, print a table, and write JSON if --json is given."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm model for 224 pixels")
    parser.add_argument("--batch_size", type=int, default=16, help="images per step")
    parser.add_argument("--steps", type=int, default=1, help="steps per side and round")
    parser.add_argument("--rounds", type=int, default=61, help="paired measurements")
    args = parser.parse_args()
    result = measure(args.model, args.batch_size, args.steps, args.rounds)
    rows = [row(side, result[side]) for side in ("timm", "uniform", "alphadecay")]
    rows += [row(f"{side} / timm", result["ratios"][side]) for side in result["ratios"]]
    threads = torch.get_num_threads()
    rounds = f"{args.rounds} rounds of {args.steps} steps of {args.batch_size} images"
    say(f"{args.model}: {rounds}, {threads} threads")
    say(table(["images/s; ratio", "min", "median", "max"], rows))
    for side, values in result["ratios"].items():
        say(verdict(f"{side} / timm", values))
    refresh = median(result["refresh_seconds"])
    step = args.batch_size / median(result["uniform"])
    say(f"alphadecay / uniform: {interval_in_words(ratios(result['alphadecay'], result['uniform']))}")
    added = refresh / INTERVAL
    say(f"a refresh takes {1e3 * refresh:.0f} ms; {1e3 * added:.2f} ms of it are added to each step of alphadecay,")
    say(f"which is {100 * added / step:.3f} % of a step with uniform decay")
    write_json(args.json, result)


def measure(model: str, batch_size: int, steps: int, rounds: int) -> dict[str, Any]:
    """Images per second of the three sides, and their ratios to timm, round by round."""
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(batch_size, 3, 224, 224, generator=generator), torch.arange(batch_size) % CLASSES)
        for _ in range(steps)
    ]
    refreshes: list[float] = []
    sides = {"timm": timm_side(model, batches)}
    sides |= {decay: our_side(model, batches, decay, refreshes) for decay in ("uniform", "alphadecay")}
    speeds = take_turns(sides, rounds)
    quotients = {side: ratios(speeds[side], speeds["timm"]) for side in ("uniform", "alphadecay")}
    return {
        "model": model,
        "batch_size": batch_size,
        "steps": steps,
        "threads": torch.get_num_threads(),
        **speeds,
        "refresh_seconds": refreshes[1:],  # the first one warmed up
        "ratios": quotients,
        "intervals": {side: interval(values) for side, values in quotients.items()},
    }


def timm_side(name: str, batches: list[Batch]) -> Side:
    """Train as timm's train.py does in one process."""
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
    """Train as main.py does; with alphadecay, append the seconds of a refresh to `refreshes`."""
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
    """Copies of batches for one side, because mixup changes images in place."""
    return [(images.clone(), labels) for images, labels in batches]


def image_count(batches: list[Batch]) -> int:
    """Number of images in all batches."""
    return sum(len(labels) for _, labels in batches)


if __name__ == "__main__":
    main()
