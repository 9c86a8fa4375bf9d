"""The options of both trainers: optimizer, moving average, run.

Modules of options import neither torch nor other slow packages, so that --help and errors appear immediately.
"""

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from runtime.errors import UserError
from runtime.options import Check, option

AMP = ("none", "bf16", "fp16")
POLICIES = ("stop", "skip", "rollback")  # after a loss or gradient that is not finite
SHAPES = ("cosine", "linear", "constant", "wsd", "drop")  # of the learning rate's schedule
TORCH = "torch:"  # --optimizer torch:NAME is torch's own, without timm's defaults
MUON = "torch:muon"


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimizer and its learning rate; each trainer adds how its length is given."""

    TITLE = "Optimizer"
    FIXED = "schedule"
    optimizer: str = option(
        "adam",
        "a timm optimizer: adam couples decay with the gradient (L2), adamw does not; or torch:NAME for torch's own; "
        "torch:Muon trains matrices, and AdamW the rest",
        fixed="optimizer",
    )
    opt_betas: tuple[float, ...] = option(
        (), "the optimizer's betas, by default its own; torch:Muon: those of AdamW", metavar="X", fixed="optimizer"
    )
    opt_eps: float | None = option(
        None, "the optimizer's eps, by default its own; torch:Muon: that of AdamW", minimum=0, fixed="optimizer"
    )
    opt_kwargs: tuple[str, ...] = option(
        (), "further arguments of the optimizer, such as amsgrad=True", metavar="KEY=VALUE", fixed="optimizer"
    )
    lr: float = option(4e-3, "peak learning rate", above=0)
    min_lr: float | None = option(1e-6, "learning rate at the end (a rate, not a ratio)", minimum=0)
    warmup_steps: int = option(-1, "optimizer steps of linear warm-up of the learning rate")
    warmup_lr: float | None = option(
        None, "learning rate of the first step of warm-up; by default --lr / steps of warm-up", minimum=0
    )
    sched: str = option(
        "cosine",
        "learning rate after warm-up: cosine or linear to --min_lr, constant, wsd (constant, then linear to --min_lr), "
        "drop (constant, then --min_lr)",
        choices=SHAPES,
    )
    cosine_steps: int | None = option(
        None, "optimizer step at which the cosine reaches --min_lr; may be later than the last", minimum=1
    )
    cooldown: float | None = option(
        None, "wsd: share of all steps in which the rate falls, by default 0.2", above=0, maximum=1
    )
    drop_at: float | None = option(None, "share of all steps before a drop, by default 0.5", above=0, maximum=1)
    adamw_lr: float | None = option(None, "torch:Muon: peak learning rate of AdamW, by default --lr", above=0)
    momentum: float = option(
        0.9, "momentum of timm's optimizers that have one; sgd uses Nesterov's, and at 0 none", minimum=0, maximum=1,
        fixed="optimizer",
    )  # fmt: skip
    l2: float = option(
        0.0, "adds the gradient of this x sum of squared decayed weights, before clipping; replaces decay", minimum=0,
        fixed="decay",
    )  # fmt: skip
    clip_grad: float | None = option(None, "largest norm of the gradient; 0: no limit", minimum=0, fixed="optimizer")
    freeze: tuple[str, ...] = option(
        (), "globs of names of parameters that are not trained", metavar="GLOB", fixed="model"
    )

    CHECKS = (
        (lambda o: o.min_lr is None or o.min_lr <= o.lr, "--min_lr {min_lr:g}: above --lr {lr:g}"),
        (lambda o: o.warmup_lr is None or o.warmup_lr <= o.lr, "--warmup_lr {warmup_lr:g}: above --lr {lr:g}"),
        (
            lambda o: o.cosine_steps is None or o.sched == "cosine",
            "--cosine_steps {cosine_steps}: goes with --sched cosine, not {sched}",
        ),
        (lambda o: o.cooldown is None or o.sched == "wsd", "--cooldown {cooldown}: goes with --sched wsd, not {sched}"),
        (lambda o: o.drop_at is None or o.drop_at < 1, "--drop_at {drop_at:g}: must be below 1"),
        (
            lambda o: o.adamw_lr is None or o.optimizer.lower() == MUON,
            "--adamw_lr {adamw_lr}: goes with --optimizer torch:Muon, not {optimizer}",
        ),
    )


# Between options of different groups, for the CHECKS of both programs.
SHARED_CHECKS: tuple[Check, ...] = (
    (
        lambda o: o.drop_at is None or "drop" in (o.sched, o.weight_decay_sched),
        "--drop_at {drop_at:g}: needs --sched drop or --weight_decay_sched drop",
    ),
    (
        lambda o: not o.l2 or o.decay == "uniform",
        "--l2 {l2:g}: adds the same term for all weights, so it goes with --decay uniform, not {decay}",
    ),
    (lambda o: not (o.l2 and o.weight_decay_end), "--l2 {l2:g}: replaces decay; leave --weight_decay_end out"),
    (lambda o: not (o.l2 and o.decay_timescale), "--l2 {l2:g}: replaces decay; leave --decay_timescale out"),
)


def settle(values: dict[str, Any], typed: Container[str]) -> None:
    """With --l2, set the base decay to 0 in `values`.

    Raises:
        UserError: If the command line has an option that another one replaces, or that the others do not read.
    """
    for name in ("l2", "decay_timescale"):
        if values[name] and "weight_decay" in typed:
            raise UserError(f"--weight_decay {values['weight_decay']}: not together with --{name} {values[name]}")
    if values["l2"]:
        values["weight_decay"] = 0.0
    if values["sched"] == "constant" and "min_lr" in typed and values["min_lr"] != values["lr"]:
        raise UserError(f"--min_lr {values['min_lr']}: --sched constant does not read it")
    if str(values["optimizer"]).lower().startswith(TORCH) and "momentum" in typed:
        momentum = values["momentum"]
        raise UserError(f"--momentum {momentum}: torch's own optimizers get it from --opt_kwargs momentum={momentum}")


@dataclass(frozen=True)
class EmaOptions:
    """The exponential moving average (EMA) of the weights."""

    TITLE = "Moving average"
    FIXED = "ema"
    model_ema: bool = option(False, "keep a moving average of the weights")
    model_ema_decay: float = option(0.9999, "share of the old average that each step keeps", minimum=0, maximum=1)
    model_ema_warmup: bool = option(False, "let the average follow the weights more closely at the start")
    model_ema_eval: bool = option(False, "evaluate the average too", fixed="")

    CHECKS = (
        (
            lambda o: o.model_ema or not o.model_ema_eval,
            "--model_ema_eval true: there is no average to evaluate without --model_ema",
        ),
    )


@dataclass(frozen=True)
class RunOptions:
    """The run: its folder, length and device."""

    TITLE = "Run"
    output_dir: str = option("runs/run", "folder of the run", metavar="FOLDER")
    overwrite: bool = option(False, "replace the run that is in --output_dir")
    resume: str = option(
        "", "resume from a run folder or a checkpoint; auto: from --output_dir if a run is there", metavar="FOLDER"
    )
    allow_changed: tuple[str, ...] = option((), "options, facts or categories that may differ from the checkpoint")
    config: str = option("", "a run's config.json; its options apply unless the command line has them", metavar="FILE")
    eval: bool = option(False, "only evaluate --resume, or the weights the model starts from")
    results_file: str = option(
        "", "file for the metrics of --eval (without it: evaluation.json in the run folder)", metavar="FILE"
    )
    dry_run: bool = option(False, "print every parameter with its group, decay and the reason, then stop")
    self_test_resume: bool = option(False, "test that resuming with these options is bitwise reproducible, then stop")
    max_steps: int | None = option(None, "stop after this optimizer step; schedules do not change", minimum=1)
    checkpoint_every: int | None = option(
        None, "optimizer steps between checkpoints, besides one after each evaluation", minimum=1
    )
    save_ckpt_num: int = option(3, "newest checkpoints kept, besides the best", minimum=1)
    on_nonfinite: str = option("stop", "action after a loss or gradient that is not finite", choices=POLICIES)
    max_nonfinite: int = option(10, "steps that may be skipped or rolled back; one more ends the run", minimum=0)
    log_interval: int = option(10, "optimizer steps between points of the training curves", minimum=1)
    decay_audit: bool = option(False, "log at each log interval how decay changed each module's stored weights")
    seed: int = option(0, "seed of initial weights, data order, augmentation and dropout", minimum=0, fixed="seed")
    device: str = option("auto", "auto, cpu, cuda or cuda:N", metavar="DEVICE")
    timeout: float = option(30.0, "minutes that a process waits for the others before it gives up", above=0)
    amp: str = option("none", "mixed precision with float32 weights", choices=AMP, fixed="precision")
    tf32: bool = option(False, "products of float32 in TF32 on NVIDIA GPUs: faster, 10 bits", fixed="precision")
    deterministic: bool = option(
        False, "use bitwise reproducible algorithms only: slower on GPUs, and not every model can",
        fixed="precision",
    )  # fmt: skip
    enable_wandb: bool = option(False, "log to wandb too")
    project: str = option("alphadecay", "wandb project")
    wandb_name: str = option("", "name of the wandb run")

    CHECKS = (
        (lambda o: o.output_dir, "--output_dir {output_dir!r}: must not be empty; '.' is the current folder"),
        (
            lambda o: not any("\ud800" <= letter <= "\udfff" for letter in o.output_dir),
            "--output_dir {output_dir}: is not UTF-8, which TensorBoard needs",
        ),
    )
