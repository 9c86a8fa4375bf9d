"""The decays of another run again, from its decay log."""

import math
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from alphadecay.analysis import SpectrumRecord
from alphadecay.baselines import AdaDecayPerEntry
from alphadecay.decay_log import parsed_row
from alphadecay.groups import ALL
from alphadecay.matrices import MIN_EIGENVALUES
from alphadecay.schedule import DecaySchedule

Multipliers = dict[str, float]  # by module
DecayRows = dict[int, dict[str, dict[str, Any]]]  # rows by step and module


class Replay(DecaySchedule):
    """The multipliers of a decay log, step by step or their means over time, whatever the modules' spectra say now.

    With the options of the run that wrote it, the run comes out with the same bits. Construct it after the optimizer
    and before any learning-rate scheduler.

    Args:
        model: The model the optimizer trains, wrapped or not.
        optimizer: Any torch optimizer with `weight_decay`, wrapped or not; its groups are split where needed.
        ledger: A run's decay.jsonl, as `log_to` of any schedule and the trainers write it: one line of JSON a module
            and refresh. Read are step (optimizer steps taken before, from 0 on), module and multiplier (at least 0).
        mean: Give each module the mean of its multipliers over the log's steps, each weighted by the steps for which it
            held, from the first step on.
        exclude: Globs over module names that get no decay of their own; as in the run that wrote the decay log.
        include: Any of "stem", "head" and "frozen": they have decays of their own as well; as in that run.
        min_eigenvalues: Matrices with fewer eigenvalues get no decay of their own; as in that run.
        cautious: Decay only entries that the update does not push away from zero (cautious weight decay, arXiv
            2510.12402). Needs an optimizer that decays by learning rate x decay x weight, such as AdamW. Its groups
            then have weight_decay 0, and the decay is applied after its step.
        on_refresh: Called with this object each time that multipliers change.

    Raises:
        ValueError: If the log cannot be read, is of other modules or of a strategy that no decay log holds, or
            begins after the first step (file and line or module are named); or as `AlphaDecay`.

    Example:
        >>> import tempfile, torch, alphadecay
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 128))
        >>> optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     decay = alphadecay.AlphaDecay(model, optimizer)
        ...     decay.log_to(f"{folder}/decay.jsonl")
        ...     decay.refresh()
        ...     decay.detach()
        ...     again = alphadecay.Replay(model, optimizer, f"{folder}/decay.jsonl")
        >>> model(torch.ones(1, 64)).sum().backward()
        >>> optimizer.step()
        >>> {name: round(multiplier, 3) for name, multiplier in again.multipliers.items()}
        {'0': 0.667, '1': 3.0}
    """

    strategy = "replay"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        ledger: str | PathLike[str],
        *,
        mean: bool = False,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        min_eigenvalues: int = MIN_EIGENVALUES,
        cautious: bool = False,
        on_refresh: Callable[[DecaySchedule], None] | None = None,
    ) -> None:
        rows = read_decay_log(Path(ledger))
        super().__init__(
            model, optimizer, 1, exclude=exclude, include=include, min_eigenvalues=min_eigenvalues, cautious=cautious,
            on_refresh=on_refresh,
        )  # fmt: skip
        self._rows = changes(rows)
        self.same_for_all = ALL in rows[0]
        self._check_modules(Path(ledger))
        if mean:
            first = {name: row for by_module in reversed(rows.values()) for name, row in by_module.items()}
            means = means_over_time(rows)
            self._rows = {0: {name: row | {"multiplier": means[name]} for name, row in first.items()}}

    def _check_modules(self, path: Path) -> None:
        own = {group["decay_name"]: is_lazy(group["params"][0]) for group in self.own_groups}
        theirs = set(self._rows[0])
        lacking = sorted({name for name, lazy in own.items() if not lazy} - theirs)
        other = sorted(theirs - set(own) - set(self.multipliers))
        if (lacking or other) and not self.same_for_all:
            self.detach()
            what = f"no row for {lacking[0]}" if lacking else f"rows for {other[0]}, which is none of this one's"
            raise ValueError(f"{path} is the decay log of another model or selection: it has {what}")

    @property
    def next_refresh(self) -> int | None:
        """Before which step the decay log has the next change; None: it has no more."""
        return min((step for step in self._rows if step >= self.step), default=None)

    def _act(self, step: int) -> None:
        if step in self._rows or not self._wrote_multipliers or self._due:
            self.refresh()

    def _measure(self) -> tuple[list[SpectrumRecord], Multipliers]:
        rows = self._rows[max(step for step in self._rows if step <= self.step)]
        self.scores = {name: row["score"] for name, row in rows.items() if row.get("score") is not None}
        self.measured_at = next(iter(rows.values())).get("measured_step", self.step)
        multipliers = {name: row["multiplier"] for name, row in rows.items()}
        if self.same_for_all:
            multipliers = {group["decay_name"]: multipliers[ALL] for group in self.optimizer.param_groups}
        return [], multipliers


def read_decay_log(path: Path) -> DecayRows:
    """The rows of a decay.jsonl by step and module, in order of steps; those of audits, which assign nothing, apart.

    Raises:
        ValueError: If it cannot be read or replayed; file and line are named.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{path}: is no regular file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    found: DecayRows = {}
    for number, line in enumerate(lines, 1):
        row = _checked(line, f"{path}, line {number}")
        if row.get("audit") is None:
            found.setdefault(row["step"], {})[row["module"]] = row
    if not found:
        raise ValueError(f"{path} is empty: its run refreshed no decay")
    if min(found) != 0:
        raise ValueError(f"{path} begins at step {min(found)}, not at 0")
    return dict(sorted(found.items()))


def _checked(line: str, where: str) -> dict[str, Any]:
    row = parsed_row(line, where, {"step": int, "module": str, "multiplier": int | float})
    if not (0 <= row["multiplier"] < math.inf and row["step"] >= 0):
        raise ValueError(f"{where}: multiplier {row['multiplier']} at step {row['step']} is impossible")
    if row.get("kind") == AdaDecayPerEntry.strategy:
        raise ValueError(f"{where}: {row['kind']} decays entries by different amounts, which no decay log holds")
    return row


def changes(rows: DecayRows) -> DecayRows:
    """The steps at which a multiplier changes; others are in a log for what was looked at then."""
    found: DecayRows = {}
    last: Multipliers = {}
    for step, by_module in rows.items():
        now = {name: row["multiplier"] for name, row in by_module.items()}
        if now != last:
            found[step] = by_module
        last = now
    return found


def means_over_time(rows: DecayRows) -> Multipliers:
    """Each module's multipliers, weighted by the steps for which they held; the last as long as the one before."""
    steps = list(rows)
    spans = [later - step for step, later in zip(steps, steps[1:], strict=False)]
    spans.append(spans[-1] if spans else 1)
    held: dict[str, list[tuple[int, float]]] = {}
    for step, span in zip(steps, spans, strict=True):
        for name, row in rows[step].items():
            held.setdefault(name, []).append((span, row["multiplier"]))
    return {
        name: math.fsum(span * multiplier for span, multiplier in each) / sum(span for span, _ in each)
        for name, each in held.items()
    }
