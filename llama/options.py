"""What a language run's steps and decay are, where that differs from a vision run's."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from alphadecay.matrices import find_matrices
from optim_factory import DecayOptions, OptimizerOptions
from runtime.options import option

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
class LanguageOptimizerOptions(OptimizerOptions):
    """The optimizer and its learning rate, counted in steps."""

    lr: float = option(1e-3, "peak learning rate", above=0, fixed="schedule")
    min_lr: float | None = option(
        None, "learning rate at the end; by default a tenth of --lr", minimum=0, fixed="schedule"
    )
    warmup_steps: int = option(1000, "steps of linear warm-up of the learning rate", minimum=0, fixed="schedule")
    num_training_steps: int = option(10_000, "optimizer steps of the schedules", minimum=1, fixed="schedule")
    eval_every: int = option(1000, "optimizer steps between evaluations", minimum=1, fixed="schedule")


@dataclass(frozen=True)
class LanguageDecayOptions(DecayOptions):
    """Weight decay: its base, its schedule, and how it differs between modules."""

    weight_decay: float = option(1e-5, "base weight decay", minimum=0, fixed="decay")
    awd_scale: float = option(
        100.0, "awd: the base times this times gradient norm / weight norm", above=0, fixed="decay"
    )
    remove_first_layer: bool = option(
        False, "the first matrix keeps its base decay: layer 0's q_proj, as in the published program", fixed="decay"
    )
    remove_last_layer: bool = option(
        False, "the last matrix keeps its base decay; embedding and output layer always do", fixed="decay"
    )

    def selection(self, model: nn.Module) -> dict[str, Any]:
        """Embedding and output layer stay out, and of the other matrices the first or last if wanted."""
        names = [matrix.name for matrix in find_matrices(model) if not matrix.reason]
        ends = ((names[:1], self.remove_first_layer), (names[-1:], self.remove_last_layer))
        return {"exclude": tuple(name for part, removed in ends if removed for name in part)}
