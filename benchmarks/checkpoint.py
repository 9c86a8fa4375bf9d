"""How long training waits for a checkpoint, compared with only copying its tensors and with writing it at once.

    python -m benchmarks.checkpoint [--model deit_tiny_patch16_224] [--rounds 21] [--steps 4] [--json OUT]

A real run's state (weights, EMA, AdamW's moments, random states) is saved as main.py saves it; the sides take turns
in one process. The last two sides are training steps while a checkpoint is written in the background, and without it.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.paired import interval, parser_of, ratios, row, take_turns, timed, write_json
from engine import train_one_epoch
from main import build_task, read_options
from runtime.checkpoints import Contents, write_checkpoint
from runtime.preemption import Preemption
from runtime.processes import Ranks
from runtime.run import StartedRun
from runtime.seeding import seed_everything
from runtime.session import Session
from runtime.start import Start
from runtime.tables import say, table
from runtime.training_state import TrainingState, Written
from vision.run import ImageTraining

ALONE = Ranks(0, 1, torch.device("cpu"))


def main() -> None:
    """Measure, print a table, and write JSON if --json is given."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm model for 224 pixels")
    parser.add_argument("--rounds", type=int, default=21, help="paired measurements")
    parser.add_argument("--steps", type=int, default=4, help="training steps of 8 images while a checkpoint is written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds, size = measure(options.model, options.rounds, options.steps, Path(folder))
    megabytes, threads = size / 1e6, torch.get_num_threads()
    say(f"{options.model}, checkpoint of {megabytes:.0f} MB, {options.rounds} rounds, {threads} threads")
    say(table(["milliseconds", "min", "median", "max"], [row(k, [1e3 * t for t in v]) for k, v in seconds.items()]))
    compared = {
        "training waits / copying alone": ratios(seconds["training waits"], seconds["copying alone"]),
        "writing at once / training waits": ratios(seconds["writing at once"], seconds["training waits"]),
        "steps beside writing / steps": ratios(seconds["steps beside writing"], seconds["steps"]),
    }
    for label, values in compared.items():
        low, high = interval(values)
        say(f"{label}: median {median(values):.3f}, 95 % interval {low:.3f} to {high:.3f}")
    write_json(options.json, seconds | {"bytes": size})


def measure(model: str, rounds: int, steps: int, folder: Path) -> tuple[dict[str, list[float]], int]:
    """Seconds of each side, and the size of a checkpoint in bytes."""
    training, session = started(model, folder)
    learner = training.learner
    take_steps(training, 1)  # creates the optimizer's moments

    def contents() -> Contents:
        models = learner.plain.state_dict(), learner.averaged.state_dict() if learner.averaged else None
        return Contents.copied(training.counts.step, *models, training.state().flat(), {})

    def save() -> None:
        training.counts.step += 1
        training.save()

    def beside_writing() -> None:
        save()
        take_steps(training, steps)

    copied = contents()
    sides: dict[str, Callable[[], Any]] = {
        "copying alone": contents,
        "training waits": save,
        "writing at once": lambda: write_checkpoint(folder / "at_once", contents()),
        "steps": lambda: take_steps(training, steps),
        "steps beside writing": beside_writing,
    }
    seconds = take_turns({name: timed(side, session.wait_saved) for name, side in sides.items()}, rounds)
    session.wait_saved()
    tensors = [*copied.model.values(), *(copied.ema or {}).values(), *moments(copied.state)]
    return seconds, sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def started(model: str, folder: Path) -> tuple[ImageTraining, Session]:
    """Begin a run as main.py does."""
    words = f"--data_set digits --input_size 224 --num_workers 0 --model {model} --batch_size 8 --device cpu "
    words += f"--optimizer adamw --model_ema --decay alphadecay --output_dir {folder / 'run'}"
    options = read_options(words.split())
    seed_everything(0)
    task = build_task(options, ALONE)
    session = Session(options.run, Start(folder / "run", None), options.flat(), Written(), {})
    return ImageTraining(task, StartedRun(options.run, ALONE, session, TrainingState(), Preemption(ALONE))), session


def take_steps(training: ImageTraining, steps: int) -> None:
    """Train on images of noise."""
    images, labels = torch.randn(8, 3, 224, 224), torch.arange(8)
    batches = [(images.clone(), labels) for _ in range(steps)]
    step, rules = training.counts.step, training.task.rules
    train_one_epoch(training.learner, batches, rules, ALONE, step, training.gate, lambda *_: None, training.bad_step)


def moments(state: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors of an optimizer's state."""
    entries = state["optimizer"]["state"].values()
    return [value for entry in entries for value in entry.values() if isinstance(value, torch.Tensor)]


if __name__ == "__main__":
    main()
