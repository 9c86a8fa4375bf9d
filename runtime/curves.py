"""Curves, histograms and figures for TensorBoard and, with --enable_wandb, for wandb."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import UserError, first_line


class Curves:
    """Draws a run's values during training: in tensorboard/ always, in wandb if enabled."""

    def __init__(self, folder: Path, first_step: int, wandb: "Wandb | None") -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard drops events after first_step: those steps are repeated.
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
        self.wandb = wandb

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Draw one point per curve; None is skipped."""
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
        """Show a matplotlib figure without closing it."""
        self.writer.add_figure(name, figure, step, close=False)
        if self.wandb:
            self.wandb.figure(step, name, figure)

    def close(self) -> None:
        """Write all buffered events and close."""
        self.writer.close()
        if self.wandb:
            self.wandb.close()


class Wandb:
    """A wandb run; its id is saved in the checkpoint, so that a resumed run continues it."""

    def __init__(self, folder: Path, config: Mapping[str, Any], project: str, name: str | None, run_id: str | None):
        try:
            import wandb

            folder.mkdir(parents=True, exist_ok=True)
            self.run = wandb.init(
                project=project, name=name, dir=str(folder), config=dict(config), id=run_id, resume="allow"
            )
        except ModuleNotFoundError:
            raise UserError("--enable_wandb: needs wandb; pip install '.[train]'") from None
        except Exception as error:  # wandb raises many types: no login, no network, an id in use
            raise UserError(f"--enable_wandb: {first_line(error)} (WANDB_MODE=offline needs no login)") from error

    @property
    def id(self) -> str:
        """The id by which a resumed run continues this one."""
        return self.run.id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Draw one point per curve."""
        self.run.log(dict(values), step=step)

    def figure(self, step: int, name: str, figure: Any) -> None:
        """Show a matplotlib figure."""
        import wandb

        self.run.log({name: wandb.Image(figure)}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()
