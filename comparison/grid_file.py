"""A grid's YAML file, read so that its mistakes are named: no code, no key twice, no bomb of aliases."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alphadecay.tables import escaped
from comparison.remains import shown
from runtime.errors import UserError, did_you_mean

MOST_VALUES = 100_000  # with aliases written out
MOST_LEVELS = 40
# Line ends and tabs may be in text; what else steers a terminal, or turns the direction of writing, may not.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class GridLoader(yaml.SafeLoader):
    """Refuses what yaml would silently drop: the first of two equal keys. What `<<` brings in may be overridden."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping, each key of which is there once."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen and key.tag != "tag:yaml.org,2002:merge":
                raise refusal(f"{key.value!r} is there twice", key)
            seen.add(str(key.value))
        return node

    def get_single_node(self) -> Any:
        """The whole document, if it is of moderate size once its aliases are written out."""
        node = super().get_single_node()
        if node is not None:
            measure(node, {}, 1)
        return node

    def construct_yaml_int(self, node: Any) -> int:
        """A whole number of at most 64 bits."""
        value = super().construct_yaml_int(node)
        if abs(value) >= 2**63:
            raise refusal("a whole number beyond 64 bits", node)
        return value


GridLoader.add_constructor("tag:yaml.org,2002:int", GridLoader.construct_yaml_int)


def measure(node: Any, known: dict[int, int], level: int) -> int:
    """How many values a node at a level is with its aliases written out; refused: too large, too deep, in itself.

    Known are the sizes found so far, by identity; 0 for nodes that this one is in.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise refusal("an alias within what it stands for", node)
        return known[id(node)]
    if level > MOST_LEVELS:
        raise refusal(f"is nested more than {MOST_LEVELS} levels deep", node)
    if isinstance(node, yaml.ScalarNode):
        if CONTROL.search(node.value):
            raise refusal(f"{node.value[:60]!r} has a control character in it", node)
        return 1
    known[id(node)] = 0
    parts = node.value if isinstance(node, yaml.SequenceNode) else [each for pair in node.value for each in pair]
    size = 1 + sum(measure(part, known, level + 1) for part in parts)
    if size > MOST_VALUES:
        raise refusal(f"has more than {MOST_VALUES} values, with aliases written out", node)
    known[id(node)] = size
    return size


def refusal(problem: str, node: Any) -> yaml.MarkedYAMLError:
    """An error that names the node's line."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


MOST_CHARACTERS = 1_000_000
Keys = Mapping[str, Any]  # what may be there, and of which type
FORMS = {str: "text", list: "a list", dict: "a mapping", int: "a whole number"}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a file holds; UserError if it is no YAML, larger than any comparison, or has a key twice."""
    try:
        text = _text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: cannot be read: {error}") from error
    try:
        content = yaml.load(text, GridLoader)
    except RecursionError as error:
        raise UserError(f"{path}: is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: such as the 31st of February
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{path}:{line} {escaped(problem)}") from error
    return as_mapping(content, str(path))


def _text(path: Path) -> str:
    """What a regular file of moderate size holds; a pipe or a device is refused without waiting."""
    if path.exists() and not path.is_dir() and not path.is_file():
        raise UserError(f"--config {path}: is no regular file")
    with open(path, encoding="utf-8") as file:
        text = file.read(MOST_CHARACTERS + 1)
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"--config {path}: is longer than {MOST_CHARACTERS} characters")
    return text


def check_keys(content: Mapping[str, Any], known: Keys, required: Sequence[str] = (), where: str = "") -> None:
    """Raise UserError for a key that is unknown, lacking, or has a value of the wrong type."""
    prefix = f"{where}: " if where else ""
    for key, value in content.items():
        if key not in known:
            hint = did_you_mean(str(key), known) or f"known are {', '.join(known)}"
            raise UserError(f"{prefix}{key}: unknown key; {hint}")
        types = known[key] if isinstance(known[key], tuple) else (known[key],)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            forms = " or ".join(FORMS[each] for each in types)
            raise UserError(f"{prefix}{key}: {shown(value)}: must be {forms}")
    for key in required:
        if not content.get(key):
            raise UserError(f"{prefix}{key}: is lacking")


def as_mapping(value: Any, where: str) -> dict[str, Any]:
    """The value, which must be a mapping with text for keys; nothing counts as an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: {shown(value)}: must be a mapping of names")
    for key in value:
        if not isinstance(key, str):
            raise UserError(f"{where}: {shown(key)}: must be a name; write it in quotes")
    return dict(value)


def as_list(value: Any, where: str) -> list[Any]:
    """The value, which must be a list with something in it."""
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {shown(value)}: must be a list with something in it")
    return value


MOST_RUNS = 10_000  # runs of a comparison

Options = Mapping[str, Any]
SearchPoint = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Search:
    """What every strategy is searched over."""

    points: Sequence[SearchPoint]
    joint: bool  # whether the points were listed, not combined from values

    def without(self, own: Options) -> list[SearchPoint]:
        """The points for a strategy that sets some of the options itself: the others' values; of listed points none."""
        left = [tuple((name, value) for name, value in point if name not in own) for point in self.points]
        if self.joint and left != list(self.points):
            return [()]
        return list({repr(point): point for point in left}.values())


def read_search(search: Any, where: str) -> Search:
    """A mapping is searched over all combinations of its values; a list holds the points themselves."""
    where = f"{where}: search"
    if isinstance(search, list):
        points = [tuple(as_mapping(point, where).items()) for point in as_list(search, where)]
        if len({frozenset(dict(point)) for point in points}) > 1 or not points[0]:
            raise UserError(f"{where}: {shown(search)}: every point must say the same options")
    else:
        axes = [[(n, v) for v in as_list(values, f"{where}: {n}")] for n, values in as_mapping(search, where).items()]
        points = _combined(axes, where)
    seen: set[str] = set()
    for point in points:
        if repr(point) in seen:
            raise UserError(f"{where}: {shown(dict(point))}: is there twice")
        seen.add(repr(point))
    return Search(points, isinstance(search, list))


def grid_points(grid: Mapping[str, Any], where: str) -> list[tuple[str, Options]]:
    """Label and options of each combination. An axis is an option with values, or labels with options."""
    axes: list[list[tuple[str, Options]]] = []
    for name, axis in as_mapping(grid, f"{where}: grid").items():
        place = f"{where}: grid: {name}"
        if isinstance(axis, Mapping) and axis:
            axes.append([(str(label), as_mapping(o, f"{place}: {label}")) for label, o in axis.items()])
        else:
            axes.append([(f"{name} {v}", {name: v}) for v in as_list(axis, place)])
    found: list[tuple[str, Options]] = []
    for combination in _combined(axes, f"{where}: grid"):
        options: dict[str, Any] = {}
        for _, each in combination:
            options |= each
        found.append((", ".join(label for label, _ in combination), options))
    return found


def _combined(axes: Sequence[Sequence[Any]], where: str) -> list[tuple[Any, ...]]:
    """All combinations of what is on the axes, if there are not too many."""
    count = math.prod(map(len, axes))
    if count > MOST_RUNS:
        raise UserError(f"{where}: has {shown(count)} combinations; a comparison may have {MOST_RUNS} runs in all")
    return list(itertools.product(*axes))
