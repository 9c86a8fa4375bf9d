"""The published language program, a fork of nanoGPT: its flags, their defaults, its configs, and our words for them."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from published import Flag, Program, Values, read_assignments

from runtime.errors import UserError

GPT2_CONFIGS = {  # (n_layer, n_head, n_embd, block_size), dataset -> ours
    ((12, 12, 768, 1024), "openwebtext"): "gpt2_small",
    ((12, 12, 768, 256), "openwebtext"): "gpt2_small_block256",
    ((4, 4, 192, 256), "openwebtext"): "gpt2_micro",
    ((6, 6, 384, 256), "shakespeare_char"): "gpt2_shakespeare",
}
RUNS = Path("runs/why_weight_decay")
SAVED_AT = re.compile(r"iter=(\d+)\.pt$")  # the iteration in the name of a published checkpoint
FINE_TUNE = "schedule decay batch_size target_eval_tokens train_eval_tokens"  # what differs from the run it continues


def language_values(values: Values, own: Sequence[str]) -> Values:
    """What our words for the language program need besides the values of its flags.

    Raises:
        UserError: If the values cannot be translated together.
    """
    return {
        "sequences": values["batch_size"] * values["gradient_accumulation_steps"],
        "eval_tokens": math.ceil(values["eval_examples"] / values["batch_size"])
        * values["batch_size"]
        * values["block_size"],
        "model_config": f"llama/configs/{_gpt2_config(values)}.json",
        "decayed": _decayed(values),
        "decay": _decay_words(values),
        "lowest": [] if values["min_lr"] is None else ["--min_lr", values["min_lr"]],  # a tenth of the peak in ours too
        "output_dir": str(RUNS / values["out_dir"] / run_name(values)),
        **_schedule(values, own),
    }


def lowest_lr(values: Values) -> float:
    """The learning rate at the end: a tenth of its peak unless min_lr is set."""
    return values["learning_rate"] / 10 if values["min_lr"] is None else values["min_lr"]


def run_name(values: Values) -> str:
    """Name of the run: the published one, the outcome's settings, and the seed."""
    strength = f"l2={values['l2_reg']}" if values["l2_reg"] else f"wd={values['weight_decay']}"
    parts = [values["wandb_run_name"], f"lr={values['learning_rate']}"]
    parts += [] if values["min_lr"] is None else [f"min_lr={values['min_lr']}"]
    parts.append(strength)
    if values["lr_decay_iters"] not in (None, values["max_iters"]):
        parts.append(f"cosine={values['lr_decay_iters']}")
    return "-".join([*parts, f"seed={values['random_seed']}"])


def _gpt2_config(values: Values) -> str:
    size = tuple(values[name] for name in ("n_layer", "n_head", "n_embd", "block_size"))
    if (size, values["dataset"]) not in GPT2_CONFIGS:
        flags = " ".join(f"--{name}={values[name]}" for name in ("n_layer", "n_head", "n_embd", "block_size"))
        raise UserError(
            f"{flags}: no config of this size for --dataset={values['dataset']}; another model is set by words of "
            "ours: -- --model_config FILE --max_length N"
        )
    return GPT2_CONFIGS[size, values["dataset"]]


def _decayed(values: Values) -> list[str]:
    """The substrings of the names of decayed parameters."""
    if not values["wd_substrings_include"].split():
        raise UserError(f"--wd_substrings_include={values['wd_substrings_include']!r}: names no parameter")
    return values["wd_substrings_include"].split()


def _decay_words(values: Values) -> list[str]:
    if values["l2_reg"] and values["weight_decay"]:
        raise UserError(f"--l2_reg={values['l2_reg']}: not together with --weight_decay={values['weight_decay']}")
    if values["l2_reg"]:
        return ["--l2", values["l2_reg"]]
    no_l2 = ["--l2", 0] if values["init_from"] == "resume" else []  # else the term of the run it continues would stay
    return ["--weight_decay", values["weight_decay"], *no_l2]


def _schedule(values: Values, own: Sequence[str]) -> Values:
    """The number of steps, and the words for warm-up and cosine.

    The published warm-up begins at 0, and the cosine ends at iteration lr_decay_iters, the 50,001st. A resumed run
    makes max_iters further steps and is past warm-up and cosine: its rate is constant.
    """
    steps, last = values["max_iters"], values["lr_decay_iters"] or values["max_iters"]
    if values["init_from"] == "scratch":
        warmup = ["--warmup_steps", values["warmup_iters"], "--warmup_lr", 0]
        return {"steps": steps, "shape": [*warmup, "--cosine_steps", last + 1]}
    if lowest_lr(values) != values["learning_rate"]:
        raise UserError(
            f"--init_from=resume --min_lr={lowest_lr(values)}: differs from --learning_rate={values['learning_rate']}; "
            "only a constant rate is translated"
        )
    return {"steps": steps + _resumed_step(values, own), "shape": ["--warmup_steps", 0]}


def _own_resume(own: Sequence[str]) -> str:
    """The value of --resume among our own words; "" if it is not there."""
    for i, word in enumerate(own):
        if word == "--resume" or word.startswith("--resume="):
            return word.partition("=")[2] or (own[i + 1] if i + 1 < len(own) else "")
    return ""


def _resumed_step(values: Values, own: Sequence[str]) -> int:
    """The optimizer step at which a resumed run begins."""
    resumed = _own_resume(own)
    if resumed == "auto":
        raise UserError("--resume auto: name the run to fine-tune; an interrupted fine-tune prints how to resume it")
    if resumed and Path(resumed).exists():
        from runtime.checkpoints import find_checkpoint  # imports torch

        return find_checkpoint(Path(resumed))[0].step
    saved = SAVED_AT.search(values["ckpt_path"])
    if saved is None:
        raise UserError(f"--ckpt_path={values['ckpt_path']}: its name does not end with iter=N.pt; -- --resume RUN")
    return int(saved[1])


def check_checkpoint(values: Values, own: Sequence[str]) -> None:
    """Raise UserError if the checkpoint of a fine-tune does not exist and our words name no other."""
    if values["init_from"] == "resume" and not _own_resume(own) and not Path(values["ckpt_path"]).exists():
        raise UserError(f"--ckpt_path={values['ckpt_path']}: no such file; fine-tune a run of ours: -- --resume RUN")


SMALL: Values = {"batch_size": 12, "gradient_accumulation_steps": 40, "max_iters": 600_000, "eval_interval": 200}
SMALL |= {"eval_examples": 1000, "log_interval": 10, "warmup_iters": 400, "weight_decay": 0.0, "wandb_run_name": "owt"}
SHAKESPEARE: Values = {"dataset": "shakespeare_char", "n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}
SHAKESPEARE |= {"batch_size": 64, "gradient_accumulation_steps": 1, "learning_rate": 1e-3, "beta2": 0.99}
SHAKESPEARE |= {"max_iters": 10_000, "lr_decay_iters": 10_000, "warmup_iters": 100, "weight_decay": 0.0}
SHAKESPEARE |= {"eval_interval": 250, "log_interval": 10, "wandb_run_name": "shakespeare"}

LANGUAGE = Program(
    trainer="main_llama.py",
    read=read_assignments,
    derive=language_values,
    check=check_checkpoint,
    configs={
        "config/train_gpt2_small.py": SMALL,
        "config/train_gpt2_small_block256.py": SMALL | {"block_size": 256},
        "config/train_gpt2_micro.py": SMALL | {"n_layer": 4, "n_head": 4, "n_embd": 192, "block_size": 256},
        "config/train_shakespeare_char.py": SHAKESPEARE,
    },
    flags={
        "dataset": Flag("openwebtext", {
            "openwebtext": "--dataset text --data_path data/openwebtext.jsonl.gz --tokenizer gpt2",
            "shakespeare_char": "--dataset text --data_path data/shakespeare_char/input.txt --tokenizer chars",
        }),
        "n_train_tokens": Flag(-1, {-1: ""}),  # all
        "n_layer": Flag(12, "--model_config {model_config}", minimum=1),
        "n_head": Flag(12, minimum=1),
        "n_embd": Flag(768, minimum=1),
        "block_size": Flag(1024, "--max_length {block_size}", minimum=1),
        "bias": Flag(False, {False: "--freeze *.bias"}),
        "dropout": Flag(0.0, {0.0: ""}),
        "learnable_ln": Flag(True, {True: ""}),
        "custom_init": Flag(False, {False: ""}),
        "init_scale": Flag(0.02, {0.02: ""}),
        "weight_tying": Flag(True, {True: ""}),
        "batch_size": Flag(12, "--batch_size {batch_size} --total_batch_size {sequences}", minimum=1),
        "gradient_accumulation_steps": Flag(40, minimum=1),
        "max_iters": Flag(600_000, "--num_training_steps {steps}", minimum=1),
        "opt_type": Flag("adam", {
            "adam": "--optimizer adamw --opt_betas {beta1} {beta2}",
            "gdm": "--optimizer momentum --momentum {beta1}",
            "gd": "--optimizer sgd --momentum 0",
        }),
        "beta1": Flag(0.9, minimum=0),
        "beta2": Flag(0.95, minimum=0),
        "dampening": Flag(0, {0: ""}),
        "learning_rate": Flag(6e-4, "--lr {learning_rate} {lowest}", minimum=0),
        "min_lr": Flag(None, of=float, minimum=0),
        "decay_lr": Flag(True, {True: "{shape}"}),
        "warmup_iters": Flag(2000, minimum=0),
        "lr_decay_iters": Flag(None, of=int, minimum=1),
        "weight_decay": Flag(0.0, "{decay}", minimum=0),
        "l2_reg": Flag(0.0, minimum=0),
        "wd_substrings_include": Flag("wte wpe mlp attn lm_head", "--decay_only {decayed}"),
        "grad_clip": Flag(1.0, "--clip_grad {grad_clip}", minimum=0),
        "ema_coef": Flag(0.99, "--model_ema --model_ema_decay {ema_coef} --model_ema_eval", minimum=0),
        "eval_interval": Flag(2000, "--eval_every {eval_interval}", minimum=1),
        "eval_examples": Flag(1000, "--target_eval_tokens {eval_tokens} --train_eval_tokens {eval_tokens}", minimum=1),
        "eval_only": Flag(False, {False: ""}),
        "log_interval": Flag(1, "--log_interval {log_interval}", minimum=1),
        "dtype": Flag("bfloat16", {
            "bfloat16": "--amp bf16", "float32": "--amp none --tf32", "float16": "--amp fp16"
        }),
        "compile": Flag(True, {True: "--compile", False: "--no_compile"}),
        "device": Flag("auto", "--device {device}"),  # published: cuda
        "random_seed": Flag(0, "--seed {random_seed}", minimum=0),
        "init_from": Flag("scratch", {"scratch": "", "resume": f"--resume {{ckpt_path}} --allow_changed {FINE_TUNE}"}),
        "ckpt_path": Flag(""),
        "force_save_ckpt": Flag(False, {False: "", True: ""}),  # ours saves after every evaluation
        "wandb_log": Flag(False, {False: "", True: "--enable_wandb --project {wandb_project}"}),  # published: True
        "wandb_project": Flag("llm"),
        "out_dir": Flag("", "--output_dir {output_dir}"),  # published: a folder of one machine
        "wandb_run_name": Flag("owt"),
    },
)  # fmt: skip
