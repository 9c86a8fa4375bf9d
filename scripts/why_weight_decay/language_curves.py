"""Draw the training loss over steps for each decay: along a cosine, and at a constant rate with its tail.

python scripts/why_weight_decay/language_curves.py runs/language_small

Reads the runs of language_small.yaml in the folder of that comparison; writes report/figures/training_curves.png and
.svg there. Lines are means over seeds, bands from the smallest to the largest seed.
"""

import sys
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from alphadecay.figures.drawing import print_style  # noqa: E402  after the path
from comparison.grid import read_grid  # noqa: E402
from comparison.looks import new_figure, save  # noqa: E402
from comparison.results import FINISHED, Run, read_runs  # noqa: E402
from runtime.errors import UserError, exit_status  # noqa: E402

DOMAIN, STRATEGIES = "schedules", ("cosine", "constant, then tail")
EARLY = 0.25  # share of the steps that does not set the limits of the axis


def main() -> None:
    """Draw the figure of the comparison's folder that the command line names."""
    if len(sys.argv) != 2:
        raise UserError("give one folder of a comparison, such as runs/language_small")
    folder = Path(sys.argv[1])
    runs = [run for run in read_runs(read_grid(folder / "grid.yaml"), folder) if run.spec.setting.domain == DOMAIN]
    finished = [run for run in runs if run.state == FINISHED and run.spec.strategy in STRATEGIES]
    if not finished:
        raise UserError(f"{folder}: no run of {' or '.join(STRATEGIES)} has finished")
    save(drawn(finished), folder / "report" / "figures", "training_curves")


@print_style()
def drawn(runs: list[Run]) -> Any:
    """One panel per strategy, one line per base decay."""
    figure, axes = new_figure(2.9, 1, 2, sharey=True)
    decays = sorted({run.spec.weight_decay for run in runs})
    shown = []
    for ax, strategy in zip(axes, STRATEGIES, strict=True):
        for number, decay in enumerate(decays):
            own = [run.log for run in runs if (run.spec.strategy, run.spec.weight_decay) == (strategy, decay)]
            rows = list(zip(*own, strict=True))  # the same steps in all seeds
            if not rows:
                continue
            steps = [row[0]["step"] for row in rows]
            losses = [[seed["train_eval_loss"] for seed in row] for row in rows]
            ax.plot(steps, [fmean(values) for values in losses], color=f"C{number}", label=f"{decay:g}")
            low, high = ([choose(values) for values in losses] for choose in (min, max))
            ax.fill_between(steps, low, high, color=f"C{number}", alpha=0.15, lw=0)
            shown += [v for step, values in zip(steps, losses, strict=True) if step > EARLY * steps[-1] for v in values]
        ax.set(title=strategy[:1].upper() + strategy[1:], xlabel="Optimizer step")
        ax.grid(True)
    margin = 0.05 * (max(shown) - min(shown))
    axes[0].set(ylabel="Training loss in nats", ylim=(min(shown) - margin, max(shown) + margin))
    axes[1].legend(title="Base decay")
    return figure


if __name__ == "__main__":
    sys.exit(exit_status(main))
