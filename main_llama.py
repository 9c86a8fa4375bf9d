"""Pretrain a causal language model whose weight decay adapts to each module.

python main_llama.py --dataset stdlib --decay alphadecay --output_dir runs/language
torchrun --nproc_per_node=2 main_llama.py --model_config llama/configs/llama_130m.json ...
"""

import sys

from llama.options import OPTION_CLASSES, Options, read_options
from runtime.errors import UserError, exit_status
from runtime.extras import answered

if __name__ == "__main__":  # answers --help and errors in options before torch and timm load, which takes seconds
    if status := answered("main_llama.py", read_options, sys.argv[1:]):
        sys.exit(status)

import runtime.openmp  # noqa: F401  before torch
import runtime.timm_alone  # noqa: F401  before timm

# isort: split
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

from llama.data import TextData, open_text, train_eval_batches, train_stream, validation_batches
from llama.engine import METRICS, LossRules
from llama.models import build_model, check_export, config_hash, export, max_positions, vocabulary_size
from llama.run import TextTask, TextTraining, evaluate_all, show_perplexity
from llama.sharding import mesh_of, sharded_layers
from llama.tokenizers import require_exported, require_fits, require_recorded
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
from runtime.schedules import schedules_of
from runtime.seeding import seed_everything
from runtime.start import Start, finished
from runtime.steps import AMP_DTYPES, StepRules, data_parallel
from runtime.tables import say
from runtime.timescale import timescale_line, with_timescale

FIXED = fixed_options(OPTION_CLASSES)
ROUNDING_WARNING = (
    "warning: --pure_bf16: with weights in bfloat16 most decay is lost to rounding (--decay_audit shows how much); "
    "--dtype bfloat16 keeps float32 weights"
)


def main() -> None:
    """Read the options, then train, evaluate, or only show what would be trained."""
    options = read_options(sys.argv[1:])
    launch(
        options.run,
        FIXED,
        [*sys.argv, "--export_hf", ""],
        train=partial(train, options),
        evaluate=partial(evaluate_only, options),
        show=partial(show_only, options),
    )


def train(options: Options, start: Start, ranks: Ranks, preemption: Preemption) -> None:
    """Build everything, resume from the checkpoint if there is one, and train."""
    text = open_text(options.text, ranks)
    task = build_task(options, text, ranks)
    facts = facts_of(ranks, text.fingerprint() if ranks.is_main else "")
    facts["architecture"] = config_hash(task.learner.plain)
    facts["tokenizer"] = text.tokenizer.fingerprint[:16]
    contract = contract_of(options.flat(), facts, FIXED)
    check_unchanged(start.checkpoint, contract, FIXED, options.run.allow_changed, ranks)
    check_streams(start, ranks)
    if finished(start, task.last_step, METRICS, ranks):
        task.stream.close()
        export_finished(options, task, start, ranks)
        return
    ranks.from_main(partial(check_export_folder, options))
    names = options.model.init_from or options.model.model_config, options.text.dataset
    run = begin(names, task.learner, options.run, options.flat(), contract, start, ranks, preemption)
    if ranks.is_main:
        say(task.timescale)
    TextTraining(task, run).run()


def export_finished(options: Options, task: TextTask, start: Start, ranks: Ranks) -> None:
    """Write the export of a run that had finished without one."""
    target = task.export_to
    if target is None or start.checkpoint is None or ranks.from_main(lambda: target.exists() and any(target.iterdir())):
        return
    ranks.from_main(partial(check_export_folder, options))
    load_weights(task.learner.plain, start.checkpoint.model_weights(), start.checkpoint)
    export(task.learner.plain, task.tokenizer, target, ranks)


def check_streams(start: Start, ranks: Ranks) -> None:
    """Raise UserError if another number of processes saved the streams of text: documents would be lost or doubled."""
    if start.checkpoint is None:
        return
    saved = start.checkpoint.contract().get("facts", {}).get("world_size")
    if saved not in (None, ranks.count):
        raise UserError(
            f"--resume {start.checkpoint.path}: {saved} processes saved where they are in the text, so {ranks.count} "
            "cannot continue; --init_from a model written with --export_hf starts a new run"
        )


def check_export_folder(options: Options) -> None:
    """Raise UserError if --export_hf names a folder that must not be replaced. Writes nothing."""
    target = options.model.export_hf
    if target:
        check_export(Path(target), [options.run.output_dir, options.model.init_from], options.run.overwrite)


def show_only(options: Options, ranks: Ranks) -> None:
    """Print every parameter with its group, its decay and the reason for it."""
    text = open_text(options.text, ranks)
    task = build_task(options, text, ranks)
    task.decay.refresh()
    if ranks.is_main:
        say(task.timescale)
        show_groups(task.learner.plain, task.decay, options.decay, options.optimizer.freeze)
    task.stream.close()


def evaluate_only(options: Options, start: Start, ranks: Ranks) -> None:
    """Print the perplexities of a checkpoint's raw and EMA weights, or of the weights that the model starts from.

    The raw ones are exported if asked.
    """
    ranks.from_main(partial(check_export_folder, options))
    results = ranks.from_main(partial(results_file, options.run, start))
    text = open_text(options.text, ranks)
    if not {"data", "tokenizer"} & set(options.run.allow_changed):
        require_recorded(text.tokenizer, start.checkpoint)
    model = fitting_model(options, text).to(ranks.device)
    averaged = None
    if start.checkpoint is not None:
        load_weights(model, start.checkpoint.model_weights(), start.checkpoint)
        averaged = averaged_copy(model, start.checkpoint)
    validation = validation_batches(options.text, text, ranks)
    train_eval = train_eval_batches(options.text, text, ranks)
    metrics = evaluate_all(model, averaged, validation, train_eval, ranks, loss_rules(options))
    if ranks.is_main:
        show_perplexity(metrics)
        if results is not None:
            write_results(results, start, options.flat(), metrics)
    if options.model.export_hf:
        export(model, text.tokenizer, Path(options.model.export_hf), ranks)


def fitting_model(options: Options, text: TextData) -> nn.Module:
    """Build the model, which must have embeddings for all ids of the tokenizer and positions for whole sequences.

    Raises:
        UserError: If it cannot be built, or has too few of them.
    """
    model = build_model(options.model)
    require_fits(text.tokenizer, vocabulary_size(model))
    require_exported(text.tokenizer, options.model.init_from)
    positions = max_positions(model)
    if positions is not None and options.text.max_length > positions:
        raise UserError(f"--max_length {options.text.max_length}: the model has positions for {positions} tokens")
    return model


def build_task(options: Options, text: TextData, ranks: Ranks) -> TextTask:
    """Build model, optimizer, decay, stream and rules of a run."""
    if options.model.pure_bf16 and ranks.is_main:
        say(ROUNDING_WARNING)
    seed_everything(options.run.seed)  # the same initial weights on every rank
    plain = fitting_model(options, text)
    freeze(plain, options.optimizer.freeze)
    ema = build_ema(options.ema, plain, partial(placed, ranks=ranks, options=options))  # before `plain` is sharded
    model = wrapped(plain, ranks, options)
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=options.run.amp == "fp16")
    steps_per_token = 1 / options.text.tokens_per_step(ranks.count)
    decay_options = with_timescale(options.decay, options.optimizer, steps_per_token)
    optimizer = build_optimizer(options.optimizer, decay_options, plain, scaled=scaler.is_enabled())
    decay = build_decay(decay_options, plain, optimizer, options.run.seed)
    steps = options.optimizer.num_training_steps
    schedules = schedules_of(options.optimizer, decay_options, steps, options.optimizer.warmup_steps)
    schedules.write(optimizer, 0)
    stream = train_stream(options.text, text, ranks, seed=options.run.seed, remembered_steps=options.run.log_interval)
    clip_grad, l2 = options.optimizer.clip_grad, options.optimizer.l2
    return TextTask(
        learner=Learner(model, plain, ema, optimizer, scaler),
        decay=decay,
        rules=StepRules(schedules=schedules, accumulate=stream.accumulate, clip_grad=clip_grad, l2=l2),
        timescale=timescale_line(optimizer, schedules, options.optimizer.optimizer, "tokens", steps_per_token),
        last_step=min(steps, options.run.max_steps or steps),
        loss=loss_rules(options),
        stream=stream,
        validation=validation_batches(options.text, text, ranks),
        train_eval=train_eval_batches(options.text, text, ranks),
        tokenizer=text.tokenizer,
        evaluate_ema=options.ema.model_ema_eval,
        eval_every=options.optimizer.eval_every,
        sharded=options.model.fsdp,
        in_shards=options.model.sharded_checkpoints,
        peak_tflops=options.model.peak_tflops,
        export_to=Path(options.model.export_hf) if options.model.export_hf else None,
    )


def loss_rules(options: Options) -> LossRules:
    """The rules for computing the loss."""
    return LossRules(AMP_DTYPES[options.run.amp], options.model.chunked_loss)


def wrapped(plain: nn.Module, ranks: Ranks, options: Options) -> nn.Module:
    """Wrap the model, on its device, for training on all ranks; compiled with --compile."""
    model = placed(plain, ranks, options)
    if options.model.compile:
        model = cast(nn.Module, torch.compile(model))
    return model if options.model.fsdp else data_parallel(model, ranks)


def placed(plain: nn.Module, ranks: Ranks, options: Options) -> nn.Module:
    """The model on its device.

    FSDP2 shards it in place, block by block: only one block at a time is whole on a device.

    Raises:
        UserError: If it cannot be sharded over this number of processes.
    """
    if not options.model.fsdp:
        return plain.to(ranks.device)
    return sharded_layers(plain, mesh_of(ranks, options.model.fsdp_size), AMP_DTYPES[options.run.amp])


if __name__ == "__main__":
    sys.exit(exit_status(main))
