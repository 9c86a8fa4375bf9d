"""From a YAML file to the run specs, all checked before any run starts. docs/compare.md describes the format."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alphadecay.tables import escaped
from comparison.grid_file import (
    MOST_RUNS,
    Keys,
    Options,
    Search,
    as_list,
    as_mapping,
    check_keys,
    grid_points,
    read_search,
    read_yaml,
)
from comparison.programs import NOT_IN_A_GRID, PROGRAMS, RunSpec, Setting, words_of
from comparison.remains import shown
from runtime.errors import UserError
from runtime.metrics import Metric

TOP: Keys = {
    **dict.fromkeys(("title", "notes", "baseline"), str),
    **dict.fromkeys(("seeds", "contrasts"), list),
    **dict.fromkeys(("strategies", "domains", "slurm"), dict),
}
DOMAIN: Keys = {
    **dict.fromkeys(("program", "metric", "published_from", "notes"), str),
    **dict.fromkeys(("options", "grid", "strategies", "published"), dict),
    "search": (dict, list),
    "seeds": list,
    "processes": int,
}

MOST_SEEDS, MOST_CONTRASTS, MOST_PROCESSES = 1_000, 1_000, 1_024
COMMANDS = ("setup", "teardown", "srun_args")  # parameters of submitit that jobs execute as commands
OPTION = re.compile(r"[A-Za-z][\w-]*")
NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)")  # argparse takes such an argument for a negative number, not for an option
MOST_NAME = 255  # bytes of a folder's name, the limit of the usual file systems


@dataclass(frozen=True)
class Grid:
    """A whole comparison."""

    source: Path
    title: str
    notes: str
    specs: Sequence[RunSpec]
    slurm: Options = field(default_factory=dict)  # parameters of submitit

    @property
    def settings(self) -> list[Setting]:
        """The settings in their order."""
        return list({spec.setting.name: spec.setting for spec in self.specs}.values())

    @property
    def processes(self) -> int:
        """The largest number of processes that a run has."""
        return max(setting.processes for setting in self.settings)

    def of(self, setting: Setting) -> list[RunSpec]:
        """The run specs of a setting."""
        return [spec for spec in self.specs if spec.setting.name == setting.name]


def read_grid(path: Path) -> Grid:
    """Read and check the comparison that a file describes; UserError names the key or run that is wrong."""
    content = read_yaml(path)
    try:
        check_keys(content, TOP, required=("strategies", "domains"))
        _check_slurm(content.get("slurm", {}))
        specs: list[RunSpec] = []
        for name, domain in content["domains"].items():
            specs += _domain_specs(str(name), domain, content, MOST_RUNS - len(specs))
        _check_folders(specs)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Grid(path, content.get("title", path.stem), content.get("notes", ""), specs, content.get("slurm", {}))


def _check_slurm(parameters: Mapping[str, Any]) -> None:
    """Raise UserError for parameters that could run commands in a job."""
    for name, value in parameters.items():
        if str(name).removeprefix("slurm_") in COMMANDS:
            raise UserError(
                f"slurm: {name}: is not allowed in a grid, because jobs would execute it; run it before compare.py"
            )
        parts = (name, *(part for pair in value.items() for part in pair)) if isinstance(value, dict) else (name, value)
        if any("\n" in str(part) for part in parts):
            raise UserError(f"slurm: {shown(name)}: {shown(value)}: must be one line")


def _domain_specs(name: str, domain: Any, content: Mapping[str, Any], most: int) -> list[RunSpec]:
    where = f"domain {name}"
    domain = as_mapping(domain, where)
    check_keys(domain, DOMAIN, required=("program",), where=where)
    if domain["program"] not in PROGRAMS:
        raise UserError(f"{where}: program: {domain['program']}: must be one of {', '.join(PROGRAMS)}")
    strategies = _strategies(content, domain, where)
    metric = _metric(domain, where)
    baseline = content.get("baseline", "uniform")
    contrasts = _contrasts(content.get("contrasts", []), content, strategies)
    search = read_search(domain.get("search", {}), where)
    seeds = _seeds(domain.get("seeds", content.get("seeds", [0])), where)
    grid = grid_points(domain.get("grid", {}), where)
    if baseline not in strategies:
        raise UserError(f"{where}: baseline: {baseline}: no such strategy; known are {', '.join(strategies)}")
    planned = len(grid) * len(seeds) * sum(len(search.without(own)) for own in strategies.values())
    if planned > most:
        raise UserError(f"{where}: has {planned} runs; a comparison may have {MOST_RUNS} in all")
    published = _published(domain.get("published", {}), [label for label, _ in grid], strategies, search, where)
    specs = []
    for label, options in grid:
        setting = Setting(
            name, label, PROGRAMS[domain["program"]], metric, _processes(domain, where),
            tuple(dict.fromkeys(option for point in search.points for option, _ in point)), baseline, contrasts,
            domain.get("published_from", ""), domain.get("notes", ""),
        )  # fmt: skip
        base = {**as_mapping(domain.get("options"), f"{where}: options"), **options}
        resolved = _setting_specs(setting, base, strategies, search, seeds, published.get(label, {}))
        _check_duplicates(resolved)
        specs += [spec for spec, _ in resolved]
    return specs


def _setting_specs(
    setting: Setting, base: Options, strategies: Mapping[str, Options], search: Search, seeds: Sequence[int],
    published: Mapping[str, Sequence[float | None]],
) -> list[tuple[RunSpec, str]]:  # fmt: skip
    """The run specs of a setting, each with its resolved options as JSON, by which duplicates are found."""
    resolved = []
    for strategy, own in strategies.items():
        for index, point in enumerate(search.without(own)):
            for seed in seeds:
                options = {**base, **dict(point), **own}
                values = published.get(strategy, ())
                value = values[index] if index < len(values) else None
                written = tuple((name, str(value)) for name, value in point)
                resolved.append(_checked(RunSpec(setting, strategy, written, seed, options, 0.0, value)))
    return resolved


def _checked(spec: RunSpec) -> tuple[RunSpec, str]:
    """The spec with its base decay filled in, and its options as the trainer resolves them, as JSON."""
    for name, value in spec.options.items():
        if not OPTION.fullmatch(name):
            raise UserError(f"run {spec.name}: {shown(name)}: is not an option name")
        if name.replace("-", "_").removeprefix("no_") in NOT_IN_A_GRID:
            raise UserError(f"run {spec.name}: {name}: is not allowed in a grid; compare.py sets it")
        if value is None:
            raise UserError(f"run {spec.name}: {name}: has no value")
        if not isinstance(value, str | int | float | list | Mapping):
            raise UserError(f"run {spec.name}: {name}: {value}: is not text or a number; write it in quotes")
        for word in () if isinstance(value, bool) else words_of({name: value})[1:]:
            if word.startswith("-") and not NUMBER.fullmatch(word):
                raise UserError(f"run {spec.name}: {name}: {shown(word)}: begins with a dash, as options do")
    try:
        options = spec.setting.program.read_options(spec.words())
    except UserError as error:
        raise UserError(f"run {spec.name}: {error}") from error
    flat = options.flat()
    _check_metric(spec, flat)
    resolved = json.dumps(flat, sort_keys=True)
    return RunSpec(**{**vars(spec), "weight_decay": flat["weight_decay"]}), resolved


def _check_metric(spec: RunSpec, flat: Options) -> None:
    """Raise UserError if a run with these options does not have the metric that runs are compared by."""
    for needed in spec.setting.metric.needs:
        if not flat[needed]:
            value = "true" if flat[needed] is False else "NUMBER"
            raise UserError(f"run {spec.name}: metric: {spec.setting.metric.name}: needs {needed}: {value}")


def _check_duplicates(resolved: Sequence[tuple[RunSpec, str]]) -> None:
    seen: dict[str, RunSpec] = {}
    for spec, options in resolved:
        if (first := seen.setdefault(options, spec)) is not spec:
            raise UserError(f"run {spec.name}: has the same options as {first.name}")


def _check_folders(specs: Sequence[RunSpec]) -> None:
    seen: dict[Path, RunSpec] = {}
    for spec in specs:
        if any(not part.strip(".") for part in spec.parts):
            raise UserError(f"run {spec.name}: a name that is empty or has only dots makes no folder")
        if any(len(part) > MOST_NAME for part in spec.folder(Path()).parts):
            raise UserError(f"run {spec.name[:80]}...: a name of more than {MOST_NAME} characters makes no folder")
        if not spec.name.isprintable():
            raise UserError(f"run {escaped(spec.name)}: a name must be one line without control characters")
        folder = spec.folder(Path())
        if (first := seen.setdefault(folder, spec)) is not spec:
            raise UserError(f"run {spec.name}: has the same folder as {first.name}: {folder}")


def _strategies(content: Mapping[str, Any], domain: Mapping[str, Any], where: str) -> dict[str, Options]:
    """The file's strategies, with the domain's changes; a strategy that is null in the domain is left out."""
    strategies: dict[str, Options] = {
        name: as_mapping(own, f"strategy {name}")
        for name, own in as_mapping(content["strategies"], "strategies").items()
    }
    for name, own in as_mapping(domain.get("strategies"), f"{where}: strategies").items():
        if own is None and name not in strategies:
            raise UserError(f"{where}: strategies: {name}: is left out but is not one of {', '.join(strategies)}")
        if own is None:
            del strategies[name]
        else:
            strategies[name] = {**strategies.get(name, {}), **as_mapping(own, f"{where}: strategy {name}")}
    if not strategies:
        raise UserError(f"{where}: strategies: has none")
    return strategies


def _metric(domain: Mapping[str, Any], where: str) -> Metric:
    metrics = PROGRAMS[domain["program"]].metrics
    name = domain.get("metric", next(iter(metrics)))
    if name not in metrics:
        raise UserError(f"{where}: metric: {name}: must be one of {', '.join(metrics)}")
    return metrics[name]


def _processes(domain: Mapping[str, Any], where: str) -> int:
    processes = domain.get("processes", 1)
    if not 1 <= processes <= MOST_PROCESSES:
        most = "" if processes < 1 else f" and at most {MOST_PROCESSES}"
        raise UserError(f"{where}: processes: {processes}: must be at least 1{most}")
    return processes


def _seeds(seeds: Sequence[Any], where: str) -> list[int]:
    if len(seeds) > MOST_SEEDS:
        raise UserError(f"{where}: seeds: has {len(seeds)}; at most {MOST_SEEDS} are allowed")
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise UserError(f"{where}: seeds: {shown(seed)}: is not a whole number of 0 or more")
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: seeds: {shown(list(seeds))}: must be one or more, each only once")
    return list(seeds)


def _contrasts(
    pairs: Sequence[Any], content: Mapping[str, Any], here: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    """The pairs whose strategies are both in this domain; UserError for a strategy that no domain has."""
    if len(pairs) > MOST_CONTRASTS:
        raise UserError(f"contrasts: has {len(pairs)}; at most {MOST_CONTRASTS} are allowed")
    parts = [part for part in (content, *content["domains"].values()) if isinstance(part, Mapping)]
    named = [part["strategies"] for part in parts if isinstance(part.get("strategies"), Mapping)]
    known = {name: None for strategies in named for name in strategies}
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
            raise UserError(f"contrasts: {shown(pair)}: is not a pair of strategies")
        for name in pair:
            if str(name) not in known:
                raise UserError(f"contrasts: {name}: no such strategy; known are {', '.join(known)}")
    return tuple((str(a), str(b)) for a, b in pairs if str(a) in here and str(b) in here)


def _published(
    published: Mapping[str, Any], labels: Sequence[str], strategies: Mapping[str, Options], search: Search,
    where: str,
) -> dict[str, dict[str, list[float | None]]]:  # fmt: skip
    """Published values by setting label and strategy, one per point of the search; without a grid the label is ""."""
    if labels == [""]:
        published = {"": published}
    by_label = {str(label): as_mapping(part, f"{where}: published: {label}") for label, part in published.items()}
    for label, by_strategy in by_label.items():
        if label not in labels:
            raise UserError(f"{where}: published: {label}: is not one of {', '.join(labels)}")
        for strategy, values in by_strategy.items():
            place = f"{where}: published: {label + ': ' if label else ''}{strategy}"
            if strategy not in strategies:
                raise UserError(f"{place}: no such strategy")
            count = len(search.without(strategies[strategy]))
            if len(as_list(values, place)) != count or not all(type(v) in (int, float, type(None)) for v in values):
                raise UserError(f"{place}: {values}: must be {count} numbers or null, one per point of the search")
    return by_label
