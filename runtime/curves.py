"""Curves, histograms and figures for TensorBoard and, when asked for, wandb."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import UserError, first_line


class Curves:
    """Where a run's numbers are drawn while it goes on: tensorboard/ always, wandb when enabled."""

    def __init__(self, folder: Path, first_step: int, wandb: "Wandb | None") -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events behind first_step are from a part of the run that is being repeated: TensorBoard drops them.
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
        self.wandb = wandb

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Draw one point of each curve; None is left out."""
        numbers = {name: value for name, value in values.items() if value is not None}
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(step, numbers)

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """Draw the distribution of some values at a step."""
        import numpy as np

        if values:
            self.writer.add_histogram(name, np.asarray(values), step)

    def figure(self, step: int, name: str, figure: Any) -> None:
        """Show a matplotlib figure; it stays open."""
        self.writer.add_figure(name, figure, step, close=False)
        if self.wandb:
            self.wandb.figure(step, name, figure)

    def close(self) -> None:
        """Write out what is buffered."""
        self.writer.close()
        if self.wandb:
            self.wandb.close()


class Wandb:
    """A wandb run; its id goes into the checkpoint, so that a resumed run continues it."""

    def __init__(self, folder: Path, config: Mapping[str, Any], project: str, name: str | None, run_id: str | None):
        try:
            import wandb

            folder.mkdir(parents=True, exist_ok=True)
            self.run = wandb.init(
                project=project, name=name, dir=str(folder), config=dict(config), id=run_id, resume="allow"
            )
        except ModuleNotFoundError:
            raise UserError("--enable_wandb: needs wandb; pip install '.[train]'") from None
        except Exception as error:  # wandb raises many kinds: no login, no network, a taken id
            raise UserError(f"--enable_wandb: {first_line(error)} (WANDB_MODE=offline needs none)") from error

    @property
    def id(self) -> str:
        """What a resumed run continues."""
        return self.run.id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Draw one point of each curve."""
        self.run.log(dict(values), step=step)

    def figure(self, step: int, name: str, figure: Any) -> None:
        """Show a matplotlib figure."""
        import wandb

        self.run.log({name: wandb.Image(figure)}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()
