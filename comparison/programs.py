"""The trainers that a comparison can run, and the run spec: one planned run, as arguments of a command line."""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import engine
import llama.engine
import main
import main_llama
from runtime.command import PER_CALL
from runtime.metrics import Metric

ROOT = Path(__file__).parent.parent
NOT_IN_A_GRID = {*PER_CALL, "output_dir", "seed", "help"} - {"max_steps"}  # compare.py sets these itself


@dataclass(frozen=True)
class Program:
    """A trainer."""

    script: str
    read_options: Callable[[Sequence[str]], Any]
    fixed: Iterable[str] = ()  # options that cannot change when a run is resumed
    metrics: Mapping[str, Metric] = field(default_factory=dict)  # the first one is the default

    def command(self, processes: int = 1) -> list[str]:
        """The command that starts it in the given number of processes."""
        if processes == 1:
            return [sys.executable, str(ROOT / self.script)]
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        return [sys.executable, *launch, str(ROOT / self.script)]


PROGRAMS = {
    "main.py": Program("main.py", main.read_options, main.FIXED, engine.METRICS),
    "main_llama.py": Program("main_llama.py", main_llama.read_options, main_llama.FIXED, llama.engine.METRICS),
}


@dataclass(frozen=True)
class Setting:
    """A domain at one point of its grid. Strategies are compared within a setting only."""

    domain: str
    label: str  # of the grid's point; empty if the domain has no grid
    program: Program
    metric: Metric
    processes: int
    searched: tuple[str, ...]  # options that every strategy is searched over, unless it sets them itself
    baseline: str
    contrasts: tuple[tuple[str, str], ...]  # pairs of strategies to compare, besides those with the baseline
    published_from: str = ""
    notes: str = ""

    @property
    def name(self) -> str:
        """Domain and label, as titles show them."""
        return f"{self.domain}, {self.label}" if self.label else self.domain


@dataclass(frozen=True)
class RunSpec:
    """One planned run of a comparison."""

    setting: Setting
    strategy: str
    point: tuple[tuple[str, str], ...]  # (option, value as written) of the search; empty if nothing is searched
    seed: int
    options: Mapping[str, Any]  # options that the grid sets, by name, without the seed
    weight_decay: float  # the base decay, as the trainer resolves it
    published: float | None = None  # the published value of the metric

    @property
    def point_name(self) -> str:
        """The point of the search, such as "weight_decay=0.1"; "-" if nothing is searched."""
        return ",".join(f"{name}={value}" for name, value in self.point) or "-"

    @property
    def parts(self) -> list[str]:
        """The run's place in the grid, from domain to seed."""
        setting = self.setting
        middle = [setting.label] if setting.label else []
        points = [self.point_name] if self.point else []
        return [setting.domain, *middle, self.strategy, *points, f"seed{self.seed}"]

    @property
    def name(self) -> str:
        """The name in messages, such as "digits/alphadecay/weight_decay=0.1/seed0"."""
        return "/".join(self.parts)

    def folder(self, root: Path) -> Path:
        """The run's folder, inside the comparison's folder `root`."""
        return root.joinpath("runs", *(re.sub(r"[^A-Za-z0-9._,=+-]+", "_", part) for part in self.parts))

    def words(self, folder: Path | None = None) -> list[str]:
        """The arguments of the command; with a folder they also say to train, or resume, in that folder."""
        words = words_of({**self.options, "seed": self.seed})
        return words if folder is None else [*words, "--output_dir", str(folder), "--resume", "auto"]

    def command(self, folder: Path) -> list[str]:
        """The command that starts or resumes this run."""
        return [*self.setting.program.command(self.setting.processes), *self.words(folder)]


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Options of a grid as arguments of a command line.

    Booleans, lists and mappings (for options of KEY=VALUE pairs) are written as the trainers read them.
    """
    words = []
    for name, value in options.items():
        if isinstance(value, bool):
            words += [f"--{name}", "true" if value else "false"]
        elif isinstance(value, Mapping):
            words += [f"--{name}", *(f"{key}={part}" for key, part in value.items())]
        elif isinstance(value, list | tuple):
            words += [f"--{name}", *map(str, value)]
        else:
            words += [f"--{name}={value}"]
    return words
