"""Reads a grid's YAML file and names its mistakes; runs no code, refuses duplicate keys and huge alias expansions."""

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

MOST_VALUES = 100_000  # after aliases are expanded
MOST_LEVELS = 40
# Text may have line ends and tabs, but no other character that controls a terminal or the direction of writing.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class GridLoader(yaml.SafeLoader):
    """Refuses duplicate keys, of which PyYAML silently drops the first. Keys merged by `<<` may be overridden."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping without duplicate keys."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen and key.tag != "tag:yaml.org,2002:merge":
                raise refusal(f"{key.value!r} is there twice", key)
            seen.add(str(key.value))
        return node

    def get_single_node(self) -> Any:
        """The whole document; refused if it is too large after its aliases are expanded."""
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
    """Count the values of a node after aliases are expanded; a node is refused if too large, too deep, or recursive.

    Args:
        node: The node.
        known: Sizes of nodes so far, by id; 0 for nodes that contain this one.
        level: Depth of the node in the document.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise refusal("an alias inside the value that it stands for", node)
        return known[id(node)]
    if level > MOST_LEVELS:
        raise refusal(f"is nested more than {MOST_LEVELS} levels deep", node)
    if isinstance(node, yaml.ScalarNode):
        if CONTROL.search(node.value):
            raise refusal(f"{node.value[:60]!r} has a control character in it", node)
        return 1
    known[id(node)] = 0
    parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
    size = 1 + sum(measure(part, known, level + 1) for part in parts)
    if size > MOST_VALUES:
        raise refusal(f"has more than {MOST_VALUES} values after aliases are expanded", node)
    known[id(node)] = size
    return size


def refusal(problem: str, node: Any) -> yaml.MarkedYAMLError:
    """An error that names the node's line."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


MOST_CHARACTERS = 1_000_000
Keys = Mapping[str, Any]  # the allowed keys, with the types of their values
FORMS = {str: "text", list: "a list", dict: "a mapping", int: "a whole number"}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file; UserError if it is not YAML, is too large, or has duplicate keys."""
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
    """The text of a regular file of limited size; a pipe or a device is refused without waiting."""
    if path.exists() and not path.is_dir() and not path.is_file():
        raise UserError(f"--config {path}: is no regular file")
    with open(path, encoding="utf-8") as file:
        text = file.read(MOST_CHARACTERS + 1)
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"--config {path}: is longer than {MOST_CHARACTERS} characters")
    return text


def check_keys(content: Mapping[str, Any], known: Keys, required: Sequence[str] = (), where: str = "") -> None:
    """Raise UserError for a key that is unknown or missing, or has a value of the wrong type."""
    prefix = f"{where}: " if where else ""
    for key, value in content.items():
        if key not in known:
            hint = did_you_mean(str(key), known) or f"known are {', '.join(known)}"
            raise UserError(f"{prefix}{key}: unknown key; {hint}")
        types = known[key] if isinstance(known[key], tuple) else (known[key],)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            forms = " or ".join(FORMS[kind] for kind in types)
            raise UserError(f"{prefix}{key}: {shown(value)}: must be {forms}")
    for key in required:
        if not content.get(key):
            raise UserError(f"{prefix}{key}: is missing")


def as_mapping(value: Any, where: str) -> dict[str, Any]:
    """The value, which must be a mapping with text as keys; None counts as an empty mapping."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: {shown(value)}: must be a mapping of names")
    for key in value:
        if not isinstance(key, str):
            raise UserError(f"{where}: {shown(key)}: must be a name; write it in quotes")
    return dict(value)


def as_list(value: Any, where: str) -> list[Any]:
    """The value, which must be a list that is not empty."""
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {shown(value)}: must be a list that is not empty")
    return value


MOST_RUNS = 10_000  # in a comparison

Options = Mapping[str, Any]
SearchPoint = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Search:
    """The points that every strategy is searched over."""

    points: Sequence[SearchPoint]
    joint: bool  # whether the points were listed, not combined from values

    def without(self, own: Options) -> list[SearchPoint]:
        """The points without the options `own`, which a strategy sets itself; listed points are then dropped whole."""
        rest = [tuple((name, value) for name, value in point if name not in own) for point in self.points]
        if self.joint and rest != list(self.points):
            return [()]
        return list({repr(point): point for point in rest}.values())


def read_search(search: Any, where: str) -> Search:
    """Read a search: a mapping gives all combinations of its values, a list gives the points themselves."""
    where = f"{where}: search"
    if isinstance(search, list):
        points = [tuple(as_mapping(point, where).items()) for point in as_list(search, where)]
        if len({frozenset(dict(point)) for point in points}) > 1 or not points[0]:
            raise UserError(f"{where}: {shown(search)}: every point must set the same options")
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
    """Label and options of each combination of the axes. An axis is an option with values, or labels with options."""
    axes: list[list[tuple[str, Options]]] = []
    for name, axis in as_mapping(grid, f"{where}: grid").items():
        place = f"{where}: grid: {name}"
        if isinstance(axis, Mapping) and axis:
            axes.append([(str(label), as_mapping(o, f"{place}: {label}")) for label, o in axis.items()])
        else:
            axes.append([(f"{name} {v}", {name: v}) for v in as_list(axis, place)])
    points: list[tuple[str, Options]] = []
    for combination in _combined(axes, f"{where}: grid"):
        options: dict[str, Any] = {}
        for _, part in combination:
            options |= part
        points.append((", ".join(label for label, _ in combination), options))
    return points


def _combined(axes: Sequence[Sequence[Any]], where: str) -> list[tuple[Any, ...]]:
    """All combinations of the axes' values; UserError if there are too many."""
    count = math.prod(map(len, axes))
    if count > MOST_RUNS:
        raise UserError(f"{where}: has {shown(count)} combinations; a comparison may have {MOST_RUNS} runs in all")
    return list(itertools.product(*axes))
