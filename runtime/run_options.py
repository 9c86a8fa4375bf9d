"""The optimizer and run options of both trainers.

Modules of options import neither torch nor other slow packages, so that --help and errors appear immediately.
"""

from dataclasses import dataclass

from runtime.options import option

AMP = ("none", "bf16", "fp16")
POLICIES = ("stop", "skip", "rollback")  # after a loss or gradient that is not finite


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimizer and its learning rate; each trainer adds how its length is given."""

    TITLE = "Optimizer"
    FIXED = "schedule"
    optimizer: str = option(
        "adam", "a timm optimizer: adam couples decay with the gradient (L2), adamw does not", fixed="optimizer"
    )
    lr: float = option(4e-3, "peak learning rate", above=0)
    min_lr: float | None = option(1e-6, "learning rate at the end (a rate, not a ratio)", minimum=0)
    warmup_steps: int = option(-1, "optimizer steps of linear warm-up of the learning rate")
    momentum: float = option(0.9, "momentum of optimizers that have one", minimum=0, maximum=1, fixed="optimizer")
    clip_grad: float | None = option(None, "largest norm of the gradient; 0: no limit", minimum=0, fixed="optimizer")

    CHECKS = ((lambda o: o.min_lr is None or o.min_lr <= o.lr, "--min_lr {min_lr:g}: above --lr {lr:g}"),)


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
