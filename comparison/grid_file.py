"""Reading a YAML file so that its mistakes are named: keys twice or unknown, values of the wrong form."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import UserError

Keys = Mapping[str, Any]  # what may be there, and of which type
FORMS = {str: "text", list: "a list", dict: "a mapping", int: "a whole number"}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a file holds.

    Raises:
        UserError: If it cannot be read, is no YAML, or has a key twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses what yaml would silently drop: the first of two equal keys. What `<<` brings in may be overridden."""

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                if str(key.value) in seen and key.tag != "tag:yaml.org,2002:merge":
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)
                seen.add(str(key.value))
            return node

    try:
        content = yaml.load(path.read_text(), Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: such as the 31st of February
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{path}:{line} {problem}") from error
    return as_mapping(content, str(path))


def check_keys(content: Mapping[str, Any], known: Keys, required: Sequence[str] = (), where: str = "") -> None:
    """Raise UserError for a key that is unknown, lacking, or has a value of the wrong type."""
    prefix = f"{where}: " if where else ""
    for key, value in content.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise UserError(f"{prefix}{key}: unknown key; {hint}")
        types = known[key] if isinstance(known[key], tuple) else (known[key],)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            forms = " or ".join(FORMS[each] for each in types)
            raise UserError(f"{prefix}{key}: {value!r}: must be {forms}")
    for key in required:
        if not content.get(key):
            raise UserError(f"{prefix}{key}: is lacking")


def as_mapping(value: Any, where: str) -> dict[str, Any]:
    """The value, which must be a mapping with text for keys; nothing counts as an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: {value!r}: must be a mapping of names")
    for key in value:
        if not isinstance(key, str):
            raise UserError(f"{where}: {key!r}: must be a name; write it in quotes")
    return dict(value)


def as_list(value: Any, where: str) -> list[Any]:
    """The value, which must be a list with something in it."""
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {value!r}: must be a list with something in it")
    return value
