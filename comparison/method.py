"""How a comparison was done: what was searched, and what its runs say of machine, commit, versions and command."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from comparison.findings import Finding
from comparison.results import Run
from comparison.wording import counted, listed

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Provenance:
    """Where the runs come from: each different value with the number of runs that have it."""

    commits: Mapping[str, int]
    machines: Mapping[str, int]
    versions: Mapping[str, int]

    @property
    def warnings(self) -> list[str]:
        """Why the runs may not be comparable, or not be repeatable."""
        found = []
        for what, values in (("commits", self.commits), ("machines", self.machines), ("versions", self.versions)):
            if len(values) > 1:
                found.append(f"The runs come from {len(values)} different {what}; see how this was done.")
        if any(commit.endswith("-dirty") for commit in self.commits):
            found.append("Some runs come from a working tree with changes that were not committed.")
        if UNKNOWN in self.commits:
            found.append("Of some runs the commit is not known.")
        return found


def provenance(runs: Sequence[Run]) -> Provenance:
    """Of all runs that have started."""
    commits: dict[str, int] = {}
    machines: dict[str, int] = {}
    versions: dict[str, int] = {}
    for run in runs:
        environment = run.environment
        if not environment:
            continue
        known = ", ".join(f"{name} {number}" for name, number in environment["versions"].items() if number)
        for values, value in (
            (commits, environment["git_commit"]),
            (machines, environment["machine"]),
            (versions, known),
        ):
            values[value or UNKNOWN] = values.get(value or UNKNOWN, 0) + 1
    return Provenance(commits, machines, versions)


def searched_words(finding: Finding) -> str:
    """What every strategy of a setting was searched over, and over how many points."""
    by_points: dict[tuple[str, ...], list[str]] = {}
    for tuned in finding.tuned:
        by_points.setdefault(tuple(point.name for point in tuned.points), []).append(tuned.strategy)
    parts = []
    for points, names in by_points.items():
        if points == ("-",):
            parts.append(f"{listed(names)}: not searched, one point")
        else:
            parts.append(f"{listed(names)}: {counted(len(points), 'point')} ({'; '.join(points)})")
    seeds = sorted({run.cell.seed for run in finding.runs})
    return f"{finding.setting.name}: {'. '.join(parts)}. Seeds {', '.join(map(str, seeds))}."


def command_of(finding: Finding) -> str:
    """The command of one run, the baseline's first that has one, without its folder."""
    runs = [run for point in finding.baseline.points for run in point.runs]
    run = next((run for run in runs if run.environment), runs[0])
    return shlex.join(["python", run.cell.setting.program.script, *run.cell.words()])


STATISTICS = (
    "The base decay (and whatever else was searched) is chosen on the same seeds and the same validation data as the "
    "figures that are reported at it. The best of several is optimistic; equally so for strategies that were searched "
    "over the same number of points, less so for one that was searched over fewer. Only new seeds, or data held back, "
    "would give figures free of it.",
    "Runs of one seed share what the seed decides (first weights, order of data, augmentation), so strategies are "
    "compared by differences paired by seed. Only seeds that both finished are paired.",
    "The verdict rests on the two-sided paired t test, corrected after Holm over all comparisons of a setting, at "
    "level 0.05. It takes differences to be about normal, which so few seeds can neither show nor refute.",
    "The bootstrap interval (percentile, 9999 resamples of the seeds, uncorrected) is shown beside Student's; of few "
    "seeds it is too narrow, and the verdict does not rest on it. Intervals are not corrected for their number.",
    "Smallest detectable difference and seeds needed are for 80 % power, at 0.05 divided by the number of comparisons "
    "(the strictest level of Holm's procedure), and take the spread seen in these few seeds for the true one.",
    "Not distinguishable does not mean equal: these seeds do not tell. Runs that diverged, failed or are missing have "
    "no figure; they are counted wherever figures are shown, and a point of the search that lacks seeds is chosen only "
    "if none is complete.",
    "Mean applied decay is the mean over parameters that are decayed at all, then over the evaluations of a run.",
)
