"""Reading a YAML file so that its mistakes are named: keys twice or unknown, values of the wrong form."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alphadecay.tables import escaped
from comparison.remains import shown
from runtime.errors import UserError

MOST_CHARACTERS = 1_000_000
Keys = Mapping[str, Any]  # what may be there, and of which type
FORMS = {str: "text", list: "a list", dict: "a mapping", int: "a whole number"}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a file holds.

    Raises:
        UserError: If it cannot be read, is no YAML, is larger than any comparison, or has a key twice.
    """
    import yaml

    from comparison.yaml_loader import GridLoader

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
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
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
