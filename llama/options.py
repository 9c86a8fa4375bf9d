"""The options of the language trainer, main_llama.py; imports neither torch nor anything as slow."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.command import read_command
from runtime.decay_options import DecayOptions
from runtime.errors import UserError
from runtime.options import option
from runtime.run_options import OptimizerOptions, RunOptions

DESCRIPTION = """Pretrain a causal language model whose weight decay adapts to each module.

  python main_llama.py --dataset stdlib --decay alphadecay --output_dir runs/language
  python main_llama.py --eval --resume runs/language
  torchrun --nproc_per_node=2 main_llama.py --model_config llama/configs/llama_130m.json ..."""
DATASETS = ("c4", "stdlib")
# What a run on the built-in text takes where the command line is silent: about three minutes on two CPU cores.
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


@dataclass(frozen=True)
class TextOptions:
    """Text and how it becomes sequences."""

    TITLE = "Data"
    dataset: str = option("c4", "where text comes from; stdlib: the source of Python's library", choices=DATASETS)
    data_path: str = option(
        "", "c4: folder or fsspec URL of its .json.gz files, or of en/; none: the hub's", metavar="FOLDER"
    )
    tokenizer: str = option("t5-base", "name or folder of a transformers tokenizer, or bytes")
    max_length: int = option(256, "tokens a sequence", minimum=2, fixed="data")
    batch_size: int = option(256, "sequences a process and micro-step", minimum=1, fixed="batch_size")
    total_batch_size: int | None = option(
        None, "sequences an optimizer step; by default one micro-step's", minimum=1, fixed="batch_size"
    )
    pack: bool = option(True, "fill sequences with several documents; off: one each, cut and padded", fixed="data")
    shuffle_buffer: int = option(10_000, "documents in memory from which the next is drawn", minimum=1, fixed="data")
    max_bad_lines: int = option(100, "lines or files a process may find without text before the run ends", minimum=0)
    target_eval_tokens: int = option(10_000_000, "validation tokens, at most", minimum=1, fixed="data")

    CHECKS = (
        (
            lambda o: o.dataset == "c4" or not o.data_path,
            "--data_path {data_path}: goes with --dataset c4, not {dataset}",
        ),
    )

    def micro_steps(self, ranks: int) -> int:
        """Micro-steps an optimizer step with so many processes; UserError if they do not make --total_batch_size."""
        together = self.batch_size * ranks
        count, rest = divmod(self.total_batch_size or together, together)
        if rest:
            product = f"--batch_size {self.batch_size}" + (f" x {ranks} processes" if ranks > 1 else "")
            raise UserError(f"--total_batch_size {self.total_batch_size}: is no multiple of {product}")
        return count


@dataclass(frozen=True)
class LanguageModelOptions:
    """The transformers causal language model."""

    TITLE = "Model"
    model_config: str = option(
        "llama/configs/llama_60m.json", "a transformers config.json, or a folder with one", metavar="FILE"
    )
    init_from: str = option(
        "", "start from the weights of a transformers folder, whose config then counts", metavar="FOLDER"
    )
    pure_bf16: bool = option(
        False, "weights, gradients and optimizer state in bfloat16, as published: most decay is rounded away",
        fixed="precision",
    )  # fmt: skip
    compile: bool = option(False, "compile the model with torch.compile", fixed="precision")
    activation_checkpointing: bool = option(False, "keep less for the backward pass and compute it again")
    fsdp: bool = option(False, "shard weights and optimizer state over processes (FSDP2)", fixed="precision")
    chunked_loss: bool = option(
        False, "loss from the hidden states in chunks, never all logits at once: less memory", fixed="precision"
    )
    split_qkv: bool = option(
        False, "give q, k and v of fused attention projections (GPT-2's) spectra and decays of their own", fixed="model"
    )
    export_hf: str = option("", "write the trained model as a transformers folder", metavar="FOLDER")
    peak_tflops: float | None = option(
        None, "of one device, for the model FLOP utilisation; known for common GPUs", above=0
    )

    CHECKS = (
        (
            lambda o: not o.export_hf or can_be_folder(Path(o.export_hf)),
            "--export_hf {export_hf}: is a file, or lies below one",
        ),
    )


def can_be_folder(path: Path) -> bool:
    """Whether there is a folder, or one could be made."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists()).is_dir()


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
    awd_scale: float = option(100.0, "awd: the base times this times gradient norm / weight norm", above=0)
    remove_first_layer: bool = option(
        False, "the first matrix keeps its base decay: layer 0's q_proj, as in the published program"
    )
    remove_last_layer: bool = option(
        False, "the last matrix keeps its base decay; embedding and output layer always do"
    )

    def selection(self, model: Any) -> dict[str, Any]:
        """Embedding and output layer stay out, and of the other matrices the first or last if wanted."""
        from alphadecay.matrices import find_matrices

        names = [matrix.name for matrix in find_matrices(model) if not matrix.reason]
        ends = ((names[:1], self.remove_first_layer), (names[-1:], self.remove_last_layer))
        return {"exclude": tuple(name for part, removed in ends if removed for name in part)}


OPTION_CLASSES = (TextOptions, LanguageModelOptions, LanguageOptimizerOptions, LanguageDecayOptions, RunOptions)
CHECKS = (
    (
        lambda o: not o.eval or o.resume or o.init_from,
        "--eval: needs weights to evaluate: --resume RUN_FOLDER or CHECKPOINT, or --init_from FOLDER",
    ),
    (lambda o: not (o.pure_bf16 and o.amp != "none"), "--pure_bf16 true: not together with --amp {amp}"),
    (lambda o: not (o.fsdp and o.amp == "fp16"), "--fsdp true: not together with --amp fp16; use bf16"),
)


@dataclass(frozen=True)
class Options:
    """All options of a run, by room."""

    text: TextOptions
    model: LanguageModelOptions
    optimizer: LanguageOptimizerOptions
    decay: LanguageDecayOptions
    run: RunOptions

    def flat(self) -> dict[str, Any]:
        """Every option by name, as config.json has it."""
        return {name: value for room in asdict(self).values() for name, value in room.items()}


def read_options(argv: Sequence[str]) -> Options:
    """The options of a command line; where it is silent, those of --config, of the run that --resume names, or of
    --dataset stdlib."""
    return Options(
        *read_command(
            OPTION_CLASSES, argv, CHECKS, DESCRIPTION, lambda values: STDLIB if values["dataset"] == "stdlib" else {}
        )
    )
