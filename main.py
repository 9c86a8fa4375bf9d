"""Train and evaluate a timm model whose weight decay adapts to each module.

python main.py --data_set digits --decay alphadecay --output_dir runs/first
torchrun --nproc_per_node=2 main.py ...
"""

import sys

from runtime.errors import exit_status
from runtime.extras import answered
from vision.options import OPTION_CLASSES, DataOptions, Options, read_options

if __name__ == "__main__":  # answers --help and errors in options before torch and timm load, which takes seconds
    if status := answered("main.py", read_options, sys.argv[1:]):
        sys.exit(status)

import runtime.openmp  # noqa: F401  before torch
import runtime.timm_alone  # noqa: F401  before timm

# isort: split
from functools import partial
from typing import cast

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from datasets import open_images
from engine import METRICS, ImageRules, Precision
from optim_factory import build_decay, build_optimizer
from runtime.by_name import freeze
from runtime.evaluations import results_file, write_results
from runtime.learner import Learner, averaged_copy, load_weights
from runtime.moving_average import build_ema
from runtime.preemption import Preemption
from runtime.processes import Ranks
from runtime.reports import show_groups
from runtime.run import begin, launch
from runtime.run_contract import check_unchanged, contract_of, facts_of, fixed_options
from runtime.seeding import seed_everything
from runtime.start import Start, finished
from runtime.steps import AMP_DTYPES, data_parallel
from runtime.tables import say
from runtime.timescale import timescale_line, with_timescale
from vision.fingerprints import fingerprint
from vision.loaders import eval_loader, train_loader
from vision.models import build_model
from vision.run import ImageTask, ImageTraining, build_schedules, evaluate_all, show_evaluation

FIXED = fixed_options(OPTION_CLASSES)


def main() -> None:
    """Read the options, then train, evaluate, or only show what would be trained."""
    options = read_options(sys.argv[1:])
    launch(
        options.run,
        FIXED,
        sys.argv,
        train=partial(train, options),
        evaluate=partial(evaluate_only, options),
        show=partial(show_only, options),
        harmless=["--num_workers", "0" if options.data.num_workers else "2"],
    )


def train(options: Options, start: Start, ranks: Ranks, preemption: Preemption) -> None:
    """Build everything, resume from the checkpoint if there is one, and train."""
    task = build_task(options, ranks)
    facts = facts_of(ranks, fingerprint(task.data) if ranks.is_main else "")
    contract = contract_of(options.flat(), facts, FIXED)
    check_unchanged(start.checkpoint, contract, FIXED, options.run.allow_changed, ranks)
    if finished(start, task.last_step, METRICS, ranks):
        return
    names = options.model.model, options.data.data_set
    run = begin(names, task.learner, options.run, options.flat(), contract, start, ranks, preemption)
    if ranks.is_main:
        say(task.timescale)
    ImageTraining(task, run).run()


def show_only(options: Options, ranks: Ranks) -> None:
    """Print every parameter with its group, its decay and the reason for it."""
    task = build_task(options, ranks)
    task.decay.refresh()
    if ranks.is_main:
        say(task.timescale)
        show_groups(task.learner.plain, task.decay, options.decay, options.optimizer.freeze)


def evaluate_only(options: Options, start: Start, ranks: Ranks) -> None:
    """Print the accuracies of a checkpoint's raw and EMA weights, or of the weights that the model starts from."""
    results = ranks.from_main(partial(results_file, options.run, start))
    data = open_images(options.data, ranks, train=False)
    model = build_model(options.model, data.classes, options.data.input_size, new_head=False).to(ranks.device)
    averaged = None
    if start.checkpoint is not None:
        load_weights(model, start.checkpoint.model_weights(), start.checkpoint)
        averaged = averaged_copy(model, start.checkpoint)
    pin = ranks.device.type == "cuda"
    validation = eval_loader(options.data, data, rank=ranks.rank, ranks=ranks.count, pin_memory=pin)
    precision = Precision(AMP_DTYPES[options.run.amp], options.model.channels_last)
    metrics = evaluate_all(model, averaged, validation, ranks, precision)
    if ranks.is_main:
        show_evaluation(metrics)
        if results is not None:
            write_results(results, start, options.flat(), metrics)


def build_task(options: Options, ranks: Ranks) -> ImageTask:
    """Build data, model, EMA, optimizer, decay and rules of a run."""
    seed_everything(options.run.seed)  # the same initial weights on every rank
    data = open_images(options.data, ranks)
    pin = ranks.device.type == "cuda"
    accumulate = options.optimizer.update_freq
    train_batches = train_loader(
        options.data, data, accumulate=accumulate, rank=ranks.rank, ranks=ranks.count, seed=options.run.seed,
        pin_memory=pin,
    )  # fmt: skip
    plain = build_model(options.model, data.classes, options.data.input_size).to(ranks.device)
    freeze(plain, options.optimizer.freeze)
    ema = build_ema(options.ema, plain, as_timm=True)
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=options.run.amp == "fp16")
    decay_options = with_timescale(options.decay, options.optimizer, steps_per_unit=train_batches.steps)
    optimizer = build_optimizer(
        options.optimizer, decay_options, plain, options.optimizer.layer_decay, scaled=scaler.is_enabled()
    )
    decay = build_decay(decay_options, plain, optimizer, options.run.seed)
    schedules = build_schedules(options.optimizer, decay_options, train_batches.steps)
    schedules.write(optimizer, 0)
    precision = Precision(AMP_DTYPES[options.run.amp], options.model.channels_last)
    criterion, mixup = build_loss(options.data, data.classes)
    rules = ImageRules(
        schedules=schedules, accumulate=accumulate, clip_grad=options.optimizer.clip_grad,
        criterion=criterion, mixup=mixup, precision=precision, seed=options.run.seed, l2=options.optimizer.l2,
    )  # fmt: skip
    model = cast(nn.Module, torch.compile(plain)) if options.model.compile else plain
    return ImageTask(
        learner=Learner(data_parallel(model, ranks), plain, ema, optimizer, scaler),
        decay=decay,
        rules=rules,
        timescale=timescale_line(optimizer, schedules, options.optimizer.optimizer, "epochs", train_batches.steps),
        last_step=min(schedules.total_steps, options.run.max_steps or schedules.total_steps),
        train=train_batches,
        validation=eval_loader(options.data, data, rank=ranks.rank, ranks=ranks.count, pin_memory=pin),
        evaluate_ema=options.ema.model_ema_eval,
        data=data,
    )


def build_loss(options: DataOptions, classes: int) -> tuple[nn.Module, Mixup | None]:
    """The training loss and, if it is on, timm's mixup, which then smooths the labels."""
    if options.mixes:
        mixup = Mixup(
            mixup_alpha=options.mixup,
            cutmix_alpha=options.cutmix,
            cutmix_minmax=options.cutmix_minmax or None,
            prob=options.mixup_prob,
            switch_prob=options.mixup_switch_prob,
            mode=options.mixup_mode,
            label_smoothing=options.smoothing,
            num_classes=classes,
        )
        return SoftTargetCrossEntropy(), mixup
    return (LabelSmoothingCrossEntropy(options.smoothing) if options.smoothing else nn.CrossEntropyLoss()), None


if __name__ == "__main__":
    sys.exit(exit_status(main))
