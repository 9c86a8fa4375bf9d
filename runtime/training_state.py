"""The content of a checkpoint's `training_state.pt`, in parts by owner. In the file all parts are in one dict."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from runtime.runfolder import Row

Part = TypeVar("Part")


@dataclass
class Counts:
    """The trainer's part (`runtime.trainer`): the progress of the run."""

    step: int = 0  # optimizer steps taken
    evaluation_due: bool = False  # the step's evaluation is not in the log yet
    bad_steps: int = 0  # steps whose loss or gradient was not finite
    loss_sums: list[float] = field(default_factory=lambda: [0.0])  # since the last evaluation, one per rank
    loss_steps: int = 0
    train_seconds: float = 0.0
    decay_seconds: float = 0.0  # during which training waited for spectra and assignments


@dataclass(frozen=True)
class LearnerState:
    """The learner's part (`runtime.learner`); raw and EMA weights have separate files."""

    optimizer: Row = field(default_factory=dict)  # with the decay of each group; whole tensors, sharded or not
    scaler: Row = field(default_factory=dict)
    random: list[Row] = field(default_factory=list)  # one per rank


@dataclass(frozen=True)
class Written:
    """The session's part (`runtime.session`): what the main process has written so far."""

    best: dict[str, Row] = field(default_factory=dict)  # link -> {"value", "step"}
    rows: dict[str, int] = field(default_factory=dict)  # file -> lines
    seconds: float = 0.0  # wall clock
    wandb_id: str | None = None


@dataclass(frozen=True)
class TrainingState:
    """Everything besides weights that training resumes from; the defaults are the start of a run."""

    counts: Counts = field(default_factory=Counts)
    learner: LearnerState = field(default_factory=LearnerState)
    written: Written = field(default_factory=Written)
    streams: list[Row] | None = None  # the position of each rank's text stream (`llama.stream`)

    def flat(self) -> Row:
        """All parts in one dict, as in the file."""
        streams = {} if self.streams is None else {"streams": self.streams}
        return vars(self.counts) | vars(self.learner) | vars(self.written) | streams

    @classmethod
    def of(cls, flat: Mapping[str, Any]) -> "TrainingState":
        """The state from a file's dict; entries that an older file lacks get their defaults."""
        return cls(_part(Counts, flat), _part(LearnerState, flat), _part(Written, flat), flat.get("streams"))


def _part(kind: type[Part], flat: Mapping[str, Any]) -> Part:
    return kind(**{f.name: flat[f.name] for f in fields(kind) if f.name in flat})  # type: ignore[arg-type]
