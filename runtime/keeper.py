"""What keeps a run safe: its counts, its checkpoints, its end by a signal, and what follows a bad step."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime import runfolder
from runtime.checkpoints import find_checkpoint, has_checkpoints
from runtime.errors import Interrupted, NonFiniteError, Preempted
from runtime.finite import FiniteGate
from runtime.learner import Learner, learner_state, require_finite, restore
from runtime.preemption import Preemption
from runtime.processes import Ranks
from runtime.runfolder import Row
from runtime.session import RunOptions, Session
from runtime.sharded import whole
from runtime.tables import say


class Keeper:
    """Keeps count of a run on each rank; `session` is None on all but the main process.

    Args:
        learner: What is trained.
        options: Of the run.
        ranks: The process group.
        session: The run's folder.
        state: The training state of the checkpoint the run goes on from, or an empty dict.
        told: Whether the run has been told to end.
        own_state: What else the trainer needs to go on; goes into each checkpoint's state.
        trace: Finds where a bad step (its number is given) stopped being finite, on this rank. The row has "module"
            (empty if nothing was found), "found" (in words) and "suspects" (samples).
    """

    def __init__(
        self,
        learner: Learner,
        options: RunOptions,
        ranks: Ranks,
        session: Session | None,
        state: dict[str, Any],
        told: Preemption,
        own_state: Callable[[], Row],
        trace: Callable[[int], Row],
    ) -> None:
        self.learner, self.options, self.ranks, self.session = learner, options, ranks, session
        self.told, self.own_state, self.trace = told, own_state, trace
        self.step: int = state.get("step", 0)  # optimizer steps taken
        self.saved_step = self.step
        self.evaluation_due: bool = state.get("evaluation_due", False)  # the step's evaluation is not in the log yet
        self.bad_steps: int = state.get("bad_steps", 0)
        sums = state.get("loss_sums", [0.0])
        self.loss_sum: Tensor = torch.tensor(sums[ranks.rank % len(sums)], dtype=torch.float64, device=ranks.device)
        self.loss_steps: int = state.get("loss_steps", 0)
        self.gate = FiniteGate(learner, ranks, options.on_nonfinite, options.log_interval)

    def count(self, step: int, loss: Tensor | None, evaluation_due: bool) -> None:
        """Take note of a step; its loss is None where the update was left out.

        Raises:
            UserError: If a checkpoint could not be written behind the training.
        """
        self.step, self.evaluation_due = step, evaluation_due
        if loss is not None:
            self.loss_sum += loss
            self.loss_steps += 1
        if self.session is not None:
            self.session.check_saved()

    def mean_loss(self) -> float | None:
        """Mean training loss over all ranks since it was last asked for; None if there was no step."""
        total, steps = self.ranks.sum(torch.stack([self.loss_sum, torch.full_like(self.loss_sum, self.loss_steps)]))
        self.loss_sum, self.loss_steps = torch.zeros_like(self.loss_sum), 0
        return float(total / steps) if steps else None

    def require_finite(self) -> None:
        """Raise NonFiniteError if a step since the last look, or a weight, is not finite."""
        bad_step = self.gate.bad_step()
        if bad_step is not None:
            self.bad_step(bad_step)
        require_finite(self.learner.plain, self.step)

    def state(self) -> Row:
        """What a checkpoint holds besides weights and average. All ranks must come here."""
        own: Row = {
            "step": self.step,
            "evaluation_due": self.evaluation_due,
            "bad_steps": self.bad_steps,
            "loss_sums": self.ranks.gather(self.loss_sum.item()),
            "loss_steps": self.loss_steps,
        }
        written = self.session.state() if self.session is not None else {}
        return own | learner_state(self.learner, self.ranks) | self.own_state() | written

    def save(self, state: Row | None = None) -> None:
        """Begin to write a checkpoint, of `state` if it was taken before. All ranks must come here.

        Raises:
            NonFiniteError: If a weight is not finite; nothing is saved then.
        """
        self.require_finite()
        state = state or self.state()
        self.saved_step = self.step
        averaged = self.learner.averaged
        weights = whole(self.learner.plain.state_dict())
        ema = None if averaged is None else whole(averaged.state_dict())
        if self.session is not None:
            self.session.save(self.step, weights, ema, state)

    def have_checkpoint_to_roll_back_to(self) -> None:
        """Save the beginning where the policy is to roll back and the run's folder holds no checkpoint yet."""
        folder = Path(self.options.output_dir)
        if self.options.on_nonfinite == "rollback" and not self.ranks.from_main(lambda: has_checkpoints(folder)):
            self.save()

    def leave(self, signal: str) -> Preempted:
        """Save where the run was told to end, and leave the mark; returns the error to end with."""
        if self.step > self.saved_step:
            self.save()
        told = f"{signal} at optimizer step {self.step}; go on with"
        interrupted = signal == "SIGINT"  # by a person, who will say when to go on
        if self.session is not None:
            self.session.leave("" if interrupted else f"{told} --resume auto")
        self.ranks.wait()  # torchrun ends the others as soon as one has gone
        if interrupted:
            return Interrupted(f"{told}: {command_to_go_on(self.options.output_dir, self.ranks.count)}")
        return Preempted(f"{told} --resume auto")

    def bad_step(self, step: int) -> None:
        """Trace a step whose loss or gradient is not finite, then do what --on_nonfinite says.

        Raises:
            NonFiniteError: If the policy is to stop, or there have been more than --max_nonfinite of them.
        """
        self.bad_steps += 1
        policy, most = self.options.on_nonfinite, self.options.max_nonfinite
        found = self.ranks.gather(self.trace(step))
        first = next((row for row in found if row["module"]), found[0])
        suspects = f", sample {first['suspects'][0]}" if first["suspects"] else ""
        message = f"loss or gradient not finite at optimizer step {step}: first in {first['found']}{suspects}"
        if self.session is not None:
            self.session.append(runfolder.BAD_STEPS, [{"step": step, "action": policy, "ranks": found}])
        if policy == "stop":
            raise NonFiniteError(f"{message}; --on_nonfinite skip or rollback would go on")
        if self.bad_steps > most:
            raise NonFiniteError(f"{message}; such steps: {self.bad_steps}, more than --max_nonfinite {most}")
        if policy == "rollback":
            message += f"; back to the weights of step {self._roll_back()}"
        if self.ranks.is_main:
            say(f"warning: {message}; its update is left out ({self.bad_steps} so far)")

    def _roll_back(self) -> int:
        """Put back the newest checkpoint's state; data and schedules go on. Returns its step."""
        if self.session is not None:
            self.session.wait_saved()
        folder = Path(self.options.output_dir)
        checkpoint, _ = self.ranks.from_main(lambda: find_checkpoint(folder))
        restore(self.learner, checkpoint, self.ranks)
        return checkpoint.step


def command_to_go_on(folder: str, ranks: int) -> str:
    """This program's command with what lets it go on from the folder."""
    program = ["torchrun", f"--nproc_per_node={ranks}"] if ranks > 1 else ["python"]
    anew, words = ("--resume", "--output_dir", "--output-dir"), list[str]()
    for word in sys.argv:
        if words and words[-1] in anew:
            words.pop()
        elif word != "--overwrite" and word.split("=")[0] not in (anew if "=" in word else ()):
            words.append(word)
    return shlex.join([*program, *words, "--resume", "auto", "--output_dir", folder])
