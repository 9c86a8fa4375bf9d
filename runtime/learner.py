"""Everything that training changes, and how it is restored from a checkpoint."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runtime.checkpoints import STATE, Checkpoint
from runtime.errors import NonFiniteError, UserError
from runtime.moving_average import MovingAverage, copy_for_average
from runtime.processes import Ranks
from runtime.seeding import random_state, restore_random_state
from runtime.sharded import all_finite, is_sharded_model, load_whole_weights, sharded_optimizer_state, whole_on_main
from runtime.sharded_checkpoints import EMA_PREFIX, MODEL_PREFIX, add_moments, read_shards, without_shards
from runtime.state_checks import check_optimizer_state
from runtime.training_state import LearnerState, TrainingState


@dataclass(frozen=True)
class Learner:
    """Everything that a training step changes."""

    model: nn.Module  # the one that is called, perhaps wrapped (DistributedDataParallel)
    plain: nn.Module  # the same model without wrappers
    ema: MovingAverage | None  # of the weights of `plain`
    optimizer: Optimizer
    scaler: torch.amp.GradScaler  # does nothing unless enabled (fp16)

    @property
    def averaged(self) -> nn.Module | None:
        """The model with the EMA weights, or None."""
        return None if self.ema is None else self.ema.module


def load_weights(model: nn.Module, weights: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    """Load a checkpoint's weights; raises UserError if they do not fit the model."""
    try:
        load_whole_weights(model, weights)
    except RuntimeError as error:
        reason = str(error).split("\n\t")[1 if "\n\t" in str(error) else 0]
        raise UserError(f"{checkpoint.path} does not fit the model that the options describe: {reason}") from error


def averaged_copy(model: nn.Module, checkpoint: Checkpoint) -> nn.Module | None:
    """A copy of a model that is not sharded, with a checkpoint's EMA weights; None if the checkpoint has none."""
    weights = checkpoint.ema_weights()
    if weights is None:
        return None
    averaged = copy_for_average(model)
    load_weights(averaged, weights, checkpoint)
    return averaged


def restore(learner: Learner, checkpoint: Checkpoint, ranks: Ranks) -> TrainingState:
    """Restore raw and EMA weights, optimizer, scaler and this rank's random state; return the training state.

    If the checkpoint has no EMA weights, their average begins with its raw weights.

    Raises:
        UserError: If the checkpoint is from another model or its parameter groups differ.
    """
    in_shards = checkpoint.sharded and is_sharded_model(learner.plain)
    if not in_shards:
        load_weights(learner.plain, checkpoint.model_weights(), checkpoint)
    ema_weights = None if in_shards else checkpoint.ema_weights()
    if learner.averaged is not None and ema_weights is not None:
        load_weights(learner.averaged, ema_weights, checkpoint)
    state = checkpoint.training_state(mapped=is_sharded_model(learner.plain))
    if in_shards:
        indices = (index for group in state["optimizer"]["param_groups"] for index in group["params"])
        parameters = (p for group in learner.optimizer.param_groups for p in group["params"])
        own = dict(zip(indices, parameters, strict=False))
        tensors = read_shards(checkpoint.path, models_of(learner), own, ranks.cpu_group)
        add_moments(state["optimizer"], tensors)
    if learner.ema is not None and not checkpoint.has_ema:
        learner.ema.restart(learner.plain)
    try:
        check_optimizer_state(learner.optimizer, state["optimizer"], checkpoint.step)
        learner.optimizer.load_state_dict(sharded_optimizer_state(learner.optimizer, state["optimizer"]))
        learner.scaler.load_state_dict(state["scaler"])
        restore_random_state(state["random"][ranks.rank % len(state["random"])])
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"is invalid ({error})"
        raise UserError(f"{checkpoint.path / STATE}: {reason.splitlines()[0]}") from error
    return TrainingState.of(state)


def models_of(learner: Learner) -> dict[str, nn.Module]:
    """The models with the raw and, if there are any, the EMA weights, by their prefixes in a sharded checkpoint."""
    averaged = {} if learner.averaged is None else {EMA_PREFIX: learner.averaged}
    return {MODEL_PREFIX: learner.plain, **averaged}


def learner_state(learner: Learner, ranks: Ranks, in_shards: bool = False) -> LearnerState:
    """What `restore` needs besides raw and EMA weights. All ranks must call this.

    Sharded tensors are whole on the main process alone; `in_shards` leaves them out, as each process writes its part.
    """
    optimizer = learner.optimizer.state_dict()
    optimizer = without_shards(optimizer) if in_shards else whole_on_main(optimizer, ranks.is_main)
    return LearnerState(optimizer, learner.scaler.state_dict(), ranks.gather_to_main(random_state()))


def require_finite(model: nn.Module, step: int) -> None:
    """Raise NonFiniteError if a weight is not finite: finite gradients can still make a weight overflow."""
    if all_finite(model.parameters()):
        return
    for name, p in model.named_parameters():
        if not all_finite([p]):
            raise NonFiniteError(f"{name} holds values that are not finite after optimizer step {step}")
