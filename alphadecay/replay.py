"""Repeat the decays of another run from its decay log."""

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
    """The multipliers of a decay log, step by step or their means over time; no spectra are measured.

    With the options of the run that wrote the log, the replayed run is bitwise identical to it. Construct it after the
    optimizer and before any learning-rate scheduler.

    Args:
        model: The model that the optimizer trains, wrapped or not.
        optimizer: Any torch optimizer with `weight_decay`, wrapped or not; its groups are split where needed.
        ledger: Path of a run's decay log (decay.jsonl), as `log_to` of any schedule and the trainers write it: one line
            of JSON per module and refresh. Replay reads its step (optimizer steps taken before, from 0 on), module and
            multiplier (at least 0).
        mean: Give each module, from the first step on, the mean of its multipliers over the log's steps, each weighted
            by the number of steps for which it was used.
        exclude: Globs of modules that get no decay of their own; the same as in the run that wrote the decay log.
        include: Any of "stem", "head" and "frozen": these have decays of their own too; the same as in that run.
        min_eigenvalues: Matrices with fewer eigenvalues get no decay of their own; the same as in that run.
        cautious: Decay only entries that the update does not push away from zero (cautious weight decay, arXiv
            2510.12402). Needs an optimizer that decays by learning rate x decay x weight, such as AdamW. Its groups
            then have weight_decay 0, and the decay is applied after its step.
        on_refresh: Called with this object each time multipliers change.

    Raises:
        ValueError: If the log cannot be read, is of other modules or of a strategy that a decay log cannot hold, or
            begins after the first step (the message names file and line or module); or for what `AlphaDecay` refuses.

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
        """Raise ValueError if the log's modules are not those of this schedule."""
        own = {group["decay_name"]: is_lazy(group["params"][0]) for group in self.own_groups}
        logged = set(self._rows[0])
        missing = sorted({name for name, lazy in own.items() if not lazy} - logged)
        unknown = sorted(logged - set(own) - set(self.multipliers))
        if (missing or unknown) and not self.same_for_all:
            self.detach()
            why = f"no row for {missing[0]}" if missing else f"rows for {unknown[0]}, which is not adapted here"
            raise ValueError(f"{path} is the decay log of another model or selection: it has {why}")

    @property
    def next_refresh(self) -> int | None:
        """The step before which multipliers change next; None: they change no more."""
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
    """The rows of a decay log by step and module, in order of steps, without rows of audits, which assign no decay.

    Raises:
        ValueError: If it cannot be read or replayed; the message names file and line.
    """
    if path.exists() and not path.is_file():  # reading a pipe would wait
        raise ValueError(f"{path}: is not a regular file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    rows: DecayRows = {}
    for number, line in enumerate(lines, 1):
        row = _checked(line, f"{path}, line {number}")
        if row.get("audit") is None:
            rows.setdefault(row["step"], {})[row["module"]] = row
    if not rows:
        raise ValueError(f"{path} is empty: its run refreshed no decay")
    if min(rows) != 0:
        raise ValueError(f"{path} begins at step {min(rows)}, not at 0")
    return dict(sorted(rows.items()))


def _checked(line: str, where: str) -> dict[str, Any]:
    """Parse a row; ValueError, which names `where`, if it cannot be replayed."""
    row = parsed_row(line, where, {"step": int, "module": str, "multiplier": int | float})
    if not (0 <= row["multiplier"] < math.inf and row["step"] >= 0):
        raise ValueError(f"{where}: multiplier {row['multiplier']} at step {row['step']} is impossible")
    if row.get("kind") == AdaDecayPerEntry.strategy:
        raise ValueError(f"{where}: {row['kind']} decays entries by different amounts, which a decay log cannot hold")
    return row


def changes(rows: DecayRows) -> DecayRows:
    """The rows of steps at which a multiplier changes; a log has other steps too, at which it stayed the same."""
    changed: DecayRows = {}
    last: Multipliers = {}
    for step, by_module in rows.items():
        now = {name: row["multiplier"] for name, row in by_module.items()}
        if now != last:
            changed[step] = by_module
        last = now
    return changed


def means_over_time(rows: DecayRows) -> Multipliers:
    """Mean multiplier of each module, weighted by the number of steps for which each multiplier was used.

    The last multiplier counts for as many steps as the one before it.
    """
    steps = list(rows)
    spans = [later - step for step, later in zip(steps, steps[1:], strict=False)]
    spans.append(spans[-1] if spans else 1)
    weighted: dict[str, list[tuple[int, float]]] = {}
    for step, span in zip(steps, spans, strict=True):
        for name, row in rows[step].items():
            weighted.setdefault(name, []).append((span, row["multiplier"]))
    return {
        name: math.fsum(span * multiplier for span, multiplier in pairs) / sum(span for span, _ in pairs)
        for name, pairs in weighted.items()
    }
