"""How a run's checkpoints are written in the background: by the main process, or by each process its part."""

import shutil
from functools import partial
from pathlib import Path

from runtime.checkpoints import in_progress
from runtime.learner import Learner, models_of
from runtime.processes import Ranks
from runtime.session import Session
from runtime.sharded import whole_on_main
from runtime.sharded_checkpoints import ShardWriter, tensors_of
from runtime.training_state import TrainingState


class WholeSaver:
    """The main process gathers sharded tensors one by one and writes the checkpoint. All ranks call all methods.

    Args:
        learner: Whose weights, EMA weights and optimizer are saved.
        session: Of the main process; None on the others.
    """

    in_shards = False

    def __init__(self, learner: Learner, session: Session | None) -> None:
        self.learner, self.session = learner, session

    def save(self, step: int, state: TrainingState) -> None:
        """Copy the checkpoint of a step and write it in the background; UserError if the last one failed."""
        averaged, is_main = self.learner.averaged, self.session is not None
        weights = whole_on_main(self.learner.plain.state_dict(), is_main)
        ema = None if averaged is None else whole_on_main(averaged.state_dict(), is_main)
        if self.session is not None:
            self.session.save(step, weights, ema, state)

    def check(self) -> None:
        """Raise UserError if the last checkpoint could not be written; does not wait."""
        if self.session is not None:
            self.session.check_saved()

    def wait(self) -> None:
        """Return when the last checkpoint is on the disk; raises UserError if it could not be written."""
        if self.session is not None:
            self.session.wait_saved()


class ShardSaver:
    """Each process writes its part, and the main process completes the checkpoint; methods as of `WholeSaver`."""

    in_shards = True

    def __init__(self, learner: Learner, session: Session | None, ranks: Ranks, run_folder: Path) -> None:
        self.learner, self.session, self.ranks = learner, session, ranks
        self.folder, self.writer = run_folder / "checkpoints", ShardWriter(ranks)

    def save(self, step: int, state: TrainingState) -> None:
        """As `WholeSaver.save`."""
        self.writer.wait()
        folder = in_progress(self.folder, step)
        self.ranks.from_main(partial(shutil.rmtree, folder, ignore_errors=True))
        tensors = tensors_of(models_of(self.learner), self.learner.optimizer.state_dict())
        complete = self.session.writes(step, state, {}) if self.session is not None else lambda _: None
        self.writer.save(folder, tensors, complete)

    def check(self) -> None:
        """As `WholeSaver.check`."""
        self.writer.check()

    def wait(self) -> None:
        """As `WholeSaver.wait`."""
        self.writer.wait()
        self.ranks.wait()  # until the main process has completed it
