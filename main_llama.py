"""Pretrain a causal language model whose weight decay adapts to each module.

python main_llama.py --dataset stdlib --decay alphadecay --output_dir runs/language
torchrun --nproc_per_node=2 main_llama.py --model_config llama/configs/llama_130m.json ...
"""

import sys

from llama.options import OPTION_CLASSES, LanguageModelOptions, Options, read_options
from runtime.errors import UserError, exit_status
from runtime.extras import answered

if __name__ == "__main__":  # help and mistakes are answered before torch and timm are loaded, which takes seconds
    if mistaken := answered("main_llama.py", read_options, sys.argv[1:]):
        sys.exit(mistaken)

import runtime.openmp  # noqa: F401  before torch
import runtime.timm_alone  # noqa: F401  before timm

# isort: split
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

from llama.data import TextData, open_text, train_stream, validation_batches
from llama.engine import METRICS, LossRules, evaluate
from llama.models import architecture, build_model, check_export, export, longest, vocabulary_size
from llama.run import TextTask, TextTraining, even_batches, sharded_layers, show_perplexity
from llama.tokenizers import require_fits
from optim_factory import build_decay, build_optimizer
from runtime.evaluations import results_file, write_results
from runtime.learner import Learner, load_weights
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

FIXED = fixed_options(OPTION_CLASSES)
ROUNDED_AWAY = (
    "warning: --pure_bf16: weights in bfloat16 round most of their decay away (--decay_audit shows how much); "
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


def train(options: Options, start: Start, ranks: Ranks, noted: Preemption) -> None:
    """Build everything, go on from the checkpoint if there is one, and train."""
    text = open_text(options.text, ranks)
    task = build_task(options, text, ranks)
    facts = facts_of(ranks, text.fingerprint() if ranks.is_main else "")
    facts["architecture"] = architecture(task.learner.plain)
    contract = contract_of(options.flat(), facts, FIXED)
    check_unchanged(start.checkpoint, contract, FIXED, options.run.allow_changed, ranks)
    if finished(start, task.last_step, METRICS, ranks):
        task.stream.close()
        hand_over_late(options, task, start, ranks)
        return
    ranks.from_main(partial(require_free, options))
    what = options.model.init_from or options.model.model_config, options.text.dataset
    run = begin(what, task.learner, options.run, options.flat(), contract, start, ranks, noted)
    TextTraining(task, run).run()


def hand_over_late(options: Options, task: TextTask, start: Start, ranks: Ranks) -> None:
    """Write the export of a finished run that ended before it had one."""
    target = task.export_to
    if target is None or start.checkpoint is None or ranks.from_main(lambda: target.exists() and any(target.iterdir())):
        return
    ranks.from_main(partial(require_free, options))
    load_weights(task.learner.plain, start.checkpoint.model_weights(), start.checkpoint)
    export(task.learner.plain, task.tokenizer, target, ranks)


def require_free(options: Options) -> None:
    """Raise UserError if the export, where one is wanted, would replace what it must not; nothing is written."""
    target = options.model.export_hf
    if target:
        check_export(Path(target), [options.run.output_dir, options.model.init_from], options.run.overwrite)


def show_only(options: Options, ranks: Ranks) -> None:
    """Print every parameter with its group, decay and why."""
    text = open_text(options.text, ranks)
    task = build_task(options, text, ranks)
    task.decay.refresh()
    if ranks.is_main:
        show_groups(task.learner.plain, task.decay)
    task.stream.close()


def evaluate_only(options: Options, start: Start, ranks: Ranks) -> None:
    """Print the perplexity of a checkpoint, or of the weights the model starts from; write them for transformers."""
    ranks.from_main(partial(require_free, options))
    results = ranks.from_main(partial(results_file, options.run, start))
    text = open_text(options.text, ranks)
    model = fitting_model(options, text).to(ranks.device)
    if start.checkpoint is not None:
        load_weights(model, start.checkpoint.model_weights(), start.checkpoint)
    validation = validation_batches(options.text, text, ranks)
    found = evaluate(model, even_batches(validation, sharded=False), ranks, loss_rules(options))
    if ranks.is_main:
        show_perplexity(found)
        if results is not None:
            write_results(results, start, options.flat(), found)
    if options.model.export_hf:
        export(model, text.tokenizer, Path(options.model.export_hf), ranks)


def fitting_model(options: Options, text: TextData) -> nn.Module:
    """The model, which knows all ids that the tokenizer can give and has positions for whole sequences.

    Raises:
        UserError: If it cannot be had.
    """
    model = build_model(options.model)
    require_fits(text.tokenizer, vocabulary_size(model))
    last = longest(model)
    if last is not None and options.text.max_length > last:
        raise UserError(f"--max_length {options.text.max_length}: the model has positions for {last} tokens")
    return model


def build_task(options: Options, text: TextData, ranks: Ranks) -> TextTask:
    """Model, optimizer, decay, stream and rules of a run."""
    if options.model.pure_bf16 and ranks.is_main:
        say(ROUNDED_AWAY)
    seed_everything(options.run.seed)  # the same initial weights on every rank
    plain = fitting_model(options, text).to(ranks.device)
    sharded = options.model.fsdp and ranks.count > 1
    model = wrapped(plain, ranks, options.model)
    optimizer = build_optimizer(options.optimizer, options.decay, plain)
    decay = build_decay(options.decay, plain, optimizer, options.run.seed)
    steps = options.optimizer.num_training_steps
    schedules = schedules_of(options.optimizer, options.decay, steps, options.optimizer.warmup_steps)
    schedules.write(optimizer, 0)
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=options.run.amp == "fp16")
    stream = train_stream(options.text, text, ranks, seed=options.run.seed, remembered_steps=options.run.log_interval)
    clip_grad = options.optimizer.clip_grad
    return TextTask(
        learner=Learner(model, plain, None, optimizer, scaler),
        decay=decay,
        rules=StepRules(schedules=schedules, accumulate=stream.accumulate, clip_grad=clip_grad),
        last_step=min(steps, options.run.max_steps or steps),
        loss=loss_rules(options),
        stream=stream,
        validation=validation_batches(options.text, text, ranks),
        tokenizer=text.tokenizer,
        eval_every=options.optimizer.eval_every,
        sharded=sharded,
        peak_tflops=options.model.peak_tflops,
        export_to=Path(options.model.export_hf) if options.model.export_hf else None,
    )


def loss_rules(options: Options) -> LossRules:
    """How the loss is computed."""
    return LossRules(AMP_DTYPES[options.run.amp], options.model.chunked_loss)


def wrapped(plain: nn.Module, ranks: Ranks, options: LanguageModelOptions) -> nn.Module:
    """The model as ranks train it together, compiled if wanted; FSDP2 shards it in place.

    Raises:
        UserError: If it is to be sharded over a single process.
    """
    if options.fsdp and ranks.count == 1:
        raise UserError("--fsdp true: needs several processes; start with torchrun --nproc_per_node=N")
    model = sharded_layers(plain) if options.fsdp else plain
    if options.compile:
        model = cast(nn.Module, torch.compile(model))
    return model if options.fsdp else data_parallel(model, ranks)


if __name__ == "__main__":
    sys.exit(exit_status(main))
