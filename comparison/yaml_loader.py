"""A YAML loader for files of strangers: no code, no key twice, no bomb of aliases, no control characters."""

import re
from typing import Any

import yaml

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
    """How many values a node is once its aliases are written out.

    Args:
        node: Of the document.
        known: The sizes found so far, by identity; 0 for nodes that this one is in.
        level: How deep it lies, from 1.

    Raises:
        yaml.MarkedYAMLError: If it is too large or too deep, holds itself, or has text with control characters.
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
