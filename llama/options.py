"""The options of the language trainer, main_llama.py. Imports neither torch nor any other slow module."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.command import read_command
from runtime.decay_options import DecayOptions
from runtime.errors import UserError
from runtime.options import option
from runtime.run_options import SHARED_CHECKS, EmaOptions, OptimizerOptions, RunOptions

DESCRIPTION = """Pretrain a causal language model whose weight decay adapts to each module.

  python main_llama.py --dataset stdlib --decay alphadecay --output_dir runs/language
  python main_llama.py --eval --resume runs/language
  torchrun --nproc_per_node=2 main_llama.py --model_config llama/configs/llama_130m.json ..."""
DATASETS = ("c4", "stdlib", "text")  # the keys of llama.corpora.FINDERS
DOCUMENT_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
# Defaults of a run on the built-in text, which then takes about three minutes on two CPU cores.
STDLIB: dict[str, Any] = {
    "tokenizer": "bytes",
    "model_config": "llama/configs/llama_stdlib.json",
    "max_length": 128,
    "batch_size": 8,
    "num_training_steps": 800,
    "warmup_steps": 80,
    "optimizer": "adamw",
    "lr": 3e-3,
    "clip_grad": 1.0,
    "weight_decay": 0.1,
    "decay_interval": 100,
    "eval_every": 200,
    "target_eval_tokens": 100_000,
    "shuffle_buffer": 2000,
}


def has_documents(path: str) -> bool:
    """Whether a file's name says that it has documents; any other file is one continuous text."""
    return path.lower().endswith(DOCUMENT_ENDINGS)


@dataclass(frozen=True)
class TextOptions:
    """Text and how it becomes sequences."""

    TITLE = "Data"
    dataset: str = option(
        "c4", "where text comes from; stdlib: Python's standard library; text: one file", choices=DATASETS
    )
    data_path: str = option(
        "",
        "c4: folder or URL with its .json.gz files, or with en/, by default the Hugging Face hub's; text: file or URL",
        metavar="PATH",
    )
    tokenizer: str = option(
        "t5-base", "name or folder of a transformers tokenizer, bytes, or with --dataset text chars"
    )
    max_length: int = option(256, "tokens per sequence", minimum=2, fixed="data")
    batch_size: int = option(256, "sequences per process and micro-step", minimum=1, fixed="batch_size")
    total_batch_size: int | None = option(
        None, "sequences per optimizer step; by default those of one micro-step", minimum=1, fixed="batch_size"
    )
    pack: bool = option(
        True, "fill sequences with several documents; off: one document each, cut and padded", fixed="data"
    )
    shuffle_buffer: int = option(
        10_000, "documents in memory from which the next one is drawn", minimum=1, fixed="data"
    )
    max_bad_lines: int = option(
        100, "lines or files without text that are skipped per process; one more ends the run", minimum=0
    )
    target_eval_tokens: int = option(10_000_000, "largest number of validation tokens", minimum=1, fixed="data")
    train_eval_tokens: int = option(
        0, "at each evaluation also the loss of this many tokens, the first of the training text", minimum=0,
        fixed="data",
    )  # fmt: skip

    CHECKS = (
        (
            lambda o: o.dataset != "stdlib" or not o.data_path,
            "--data_path {data_path}: goes with --dataset c4 or text, not {dataset}",
        ),
        (lambda o: o.dataset != "text" or o.data_path, "--dataset text: needs --data_path FILE"),
        (
            lambda o: o.dataset == "text" or o.tokenizer != "chars",
            "--tokenizer chars: goes with --dataset text, not {dataset}",
        ),
        (
            lambda o: o.pack or o.dataset != "text" or has_documents(o.data_path),
            "--pack false: {data_path} is one continuous text, which cannot be one document per sequence",
        ),
    )

    def micro_steps(self, ranks: int) -> int:
        """Micro-steps per optimizer step; UserError if their number for --total_batch_size is not whole."""
        per_micro_step = self.batch_size * ranks
        count, rest = divmod(self.total_batch_size or per_micro_step, per_micro_step)
        if rest:
            product = f"--batch_size {self.batch_size}" + (f" x {ranks} processes" if ranks > 1 else "")
            raise UserError(f"--total_batch_size {self.total_batch_size}: is not a multiple of {product}")
        return count

    def tokens_per_step(self, ranks: int) -> int:
        """Tokens per optimizer step of all processes, with padding."""
        return self.micro_steps(ranks) * self.batch_size * ranks * self.max_length


@dataclass(frozen=True)
class LanguageModelOptions:
    """The transformers causal language model."""

    TITLE = "Model"
    model_config: str = option(
        "llama/configs/llama_60m.json", "a transformers config.json, or a folder with one", metavar="FILE"
    )
    init_from: str = option("", "start from the weights and the config of a transformers folder", metavar="FOLDER")
    pure_bf16: bool = option(
        False, "weights, gradients and optimizer state in bfloat16, as published: most decay is lost to rounding",
        fixed="precision",
    )  # fmt: skip
    compile: bool = option(False, "compile the model with torch.compile", fixed="precision")
    activation_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, more time")
    fsdp: bool = option(False, "shard weights and optimizer state across processes (FSDP2)", fixed="precision")
    fsdp_size: int | None = option(
        None, "processes that share one copy of the weights, such as those of a node (HSDP); by default all",
        minimum=1, fixed="precision",
    )  # fmt: skip
    sharded_checkpoints: bool = option(
        False, "each process writes its part of a checkpoint, and none gathers the model; any number can read it"
    )
    chunked_loss: bool = option(
        False, "compute the loss in chunks of tokens, never all logits at once: less memory", fixed="precision"
    )
    split_qkv: bool = option(
        False, "give q, k and v of fused attention projections (GPT-2's) their own spectra and decays", fixed="model"
    )
    export_hf: str = option("", "write the trained model as a transformers folder", metavar="FOLDER")
    peak_tflops: float | None = option(
        None, "peak TFLOP/s of one device, for the model FLOP utilisation; known for common GPUs", above=0
    )

    CHECKS = (
        (lambda o: o.fsdp or not o.sharded_checkpoints, "--sharded_checkpoints true: needs --fsdp true"),
        (lambda o: o.fsdp or o.fsdp_size is None, "--fsdp_size {fsdp_size}: needs --fsdp true"),
        (
            lambda o: not o.export_hf or can_be_folder(Path(o.export_hf)),
            "--export_hf {export_hf}: is a file, or below a file",
        ),
    )


def can_be_folder(path: Path) -> bool:
    """Whether a path is a folder, or could become one."""
    candidates = (path.absolute(), *path.absolute().parents)
    return next(candidate for candidate in candidates if candidate.exists()).is_dir()


@dataclass(frozen=True)
class LanguageOptimizerOptions(OptimizerOptions):
    """The optimizer and its learning rate, counted in steps."""

    lr: float = option(1e-3, "peak learning rate", above=0)
    min_lr: float | None = option(None, "learning rate at the end; by default a tenth of --lr", minimum=0)
    warmup_steps: int = option(1000, "steps of linear warm-up of the learning rate", minimum=0)
    num_training_steps: int = option(10_000, "optimizer steps of the schedules", minimum=1)
    eval_every: int = option(1000, "optimizer steps between evaluations", minimum=1)


@dataclass(frozen=True)
class LanguageDecayOptions(DecayOptions):
    """Weight decay: its base, its schedule, and how it differs between modules."""

    weight_decay: float = option(1e-5, "base weight decay", minimum=0)
    awd_scale: float = option(100.0, "awd: decay = base decay x this x gradient norm / weight norm", above=0)
    remove_first_layer: bool = option(
        False, "the first matrix keeps its base decay: layer 0's q_proj, as in the published program"
    )
    remove_last_layer: bool = option(
        False, "the last matrix keeps its base decay; embedding and output layer always do"
    )

    def selection(self, model: Any) -> dict[str, Any]:
        """Skip the first or last matrix if the options say so; embedding and output layer are always skipped."""
        from alphadecay.matrices import find_matrices

        names = [matrix.name for matrix in find_matrices(model) if not matrix.reason]
        ends = ((names[:1], self.remove_first_layer), (names[-1:], self.remove_last_layer))
        return {"exclude": tuple(name for part, removed in ends if removed for name in part)}


OPTION_CLASSES = (
    TextOptions, LanguageModelOptions, LanguageOptimizerOptions, LanguageDecayOptions, EmaOptions, RunOptions,
)  # fmt: skip
CHECKS = (
    *SHARED_CHECKS,
    (
        lambda o: not o.eval or o.resume or o.init_from,
        "--eval: needs weights to evaluate: --resume RUN_FOLDER or CHECKPOINT, or --init_from FOLDER",
    ),
    (lambda o: not (o.pure_bf16 and o.amp != "none"), "--pure_bf16 true: not together with --amp {amp}"),
    (lambda o: not (o.fsdp and o.amp == "fp16"), "--fsdp true: not together with --amp fp16; use bf16"),
)


@dataclass(frozen=True)
class Options:
    """All options of a run, by group."""

    text: TextOptions
    model: LanguageModelOptions
    optimizer: LanguageOptimizerOptions
    decay: LanguageDecayOptions
    ema: EmaOptions
    run: RunOptions

    def flat(self) -> dict[str, Any]:
        """Every option by name, as in config.json."""
        return {name: value for group in asdict(self).values() for name, value in group.items()}


def read_options(argv: Sequence[str]) -> Options:
    """Read a command line; other options come from --config, the run that --resume names, or --dataset stdlib."""
    return Options(
        *read_command(
            OPTION_CLASSES, argv, CHECKS, DESCRIPTION, lambda values: STDLIB if values["dataset"] == "stdlib" else {}
        )
    )
