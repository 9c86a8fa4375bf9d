"""Reads the files in a run's folder and checks them, so that a wrong file is named and does no harm.

Reads only regular files of limited size, checks the type of every value, and removes control characters from text.
"""

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alphadecay.tables import escaped
from runtime import runfolder
from runtime.errors import UserError
from runtime.files import MOST_BYTES, MOST_ROWS_BYTES, open_regular

MOST_LINE = 1 << 20  # bytes per row
MOST_ROLES = 200  # a figure has one panel per role
LARGEST = 1e100  # larger numbers count as infinite: sums and axes would overflow

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 100

Row = dict[str, Any]
Kind = Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Whether the value is a number, finite or not, or null."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def is_finite(value: Any) -> bool:
    """Whether the value is a finite number."""
    return value is not None and is_number(value) and math.isfinite(value)


def is_count(value: Any) -> bool:
    """Whether the value is an integer of 0 or more that a float represents exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def is_name(value: Any) -> bool:
    """Whether the value is printable text."""
    return isinstance(value, str) and value.isprintable()


def is_text(value: Any) -> bool:
    """Whether the value is text or null."""
    return value is None or isinstance(value, str)


def _are_alphas(value: Any) -> bool:
    if value is None:
        return True
    parts = value.items() if isinstance(value, dict) and len(value) <= MOST_ROLES else [(0, "")]
    return all(is_name(role) and is_number(alpha) for role, alpha in parts)


def _is_status(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -256 < value < 256


def _are_lines(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(line, str) for line in value)


def _are_versions(value: Any) -> bool:
    return isinstance(value, dict) and all(is_text(number) for number in value.values())


SUMMARY = {"seconds": is_number, "samples_per_second": is_number, "alpha_by_role": _are_alphas}
LOG = {"step": is_count, "weight_decay_mean": is_finite, "weight_norm": is_number, "train_loss": is_number}
DECAY_LOG = {
    "step": is_count, "module": is_name, "role": is_name, "score": is_number, "multiplier": is_finite,
    "audit": lambda value: value is None or isinstance(value, dict),
}  # fmt: skip
FAILURE = {"status": _is_status, "lines": _are_lines}
ENVIRONMENT = {"git_commit": is_text, "machine": is_text, "versions": _are_versions}


def read_summary(folder: Path, metric: str) -> Row:
    """summary.json, with the metric. All readers of this module raise UserError if a file has other content."""
    return checked(read_object(folder / runfolder.SUMMARY), SUMMARY | {metric: is_number}, folder / runfolder.SUMMARY)


def read_log(folder: Path) -> list[Row]:
    """One row per evaluation."""
    return read_rows(folder / runfolder.LOG, LOG)


def read_decay_log(folder: Path) -> list[Row]:
    """One row per module and refresh, with the columns that the report uses; audits are left out."""
    all_rows = read_rows(folder / runfolder.DECAY_LOG, DECAY_LOG)
    rows = [{key: row.get(key) for key in DECAY_LOG} for row in all_rows if row.get("audit") is None]
    roles = len({row["role"] for row in rows})
    if roles > MOST_ROLES:
        raise UserError(f"{folder / runfolder.DECAY_LOG}: has {roles} roles, more than {MOST_ROLES}")
    return rows


def read_failure(path: Path) -> Row:
    """Exit status and last lines of output of a failed run."""
    failure = checked(read_object(path), FAILURE, path)
    return {"status": failure["status"], "lines": [escaped(line.expandtabs()) for line in failure["lines"]]}


def read_environment(folder: Path) -> Row:
    """Versions, commit and machine of a run; empty if there is no config.json, or it has no environment."""
    path = folder / runfolder.CONFIG
    content = read_object(path).get("environment", {}) if _exists(path) else {}
    if content == {}:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: environment: is not a JSON object")
    content = checked({"versions": {}} | content, ENVIRONMENT, path)
    versions = {escaped(name): version and escaped(version) for name, version in content["versions"].items()}
    return {name: escaped(content.get(name) or "") for name in ("git_commit", "machine")} | {"versions": versions}


def read_object(path: Path) -> Row:
    """The object in a JSON file of limited size; UserError if it cannot be read, or is not a JSON object."""
    try:
        with open_regular(path, MOST_BYTES) as file:
            content = _parsed(file.read(MOST_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is damaged: it is not a JSON object")
    return content


def read_rows(path: Path, kinds: Mapping[str, Kind]) -> list[Row]:
    """The rows of a file of JSON lines, empty if there is no file; UserError if a row has a wrong value.

    A last line without a line end that is not valid JSON is left out: a crash or a running process left it unfinished.
    """
    rows: list[Row] = []
    if not _exists(path):
        return rows
    number, line = 0, b""
    try:
        with open_regular(path, MOST_ROWS_BYTES) as file:
            while line := file.readline(MOST_LINE + 1):
                number += 1
                if len(line) > MOST_LINE:
                    raise UserError(f"{path}, line {number}: is damaged: it is longer than {MOST_LINE} bytes")
                if line.strip():
                    rows.append(checked(_parsed(line), kinds, f"{path}, line {number}"))
    except ValueError as error:
        if line.endswith(b"\n"):
            raise UserError(f"{path}, line {number}: is damaged: {_reason(error)}") from error
    except OSError as error:
        raise UserError(f"{path}: is damaged: {_reason(error)}") from error
    return rows


def checked(content: Any, kinds: Mapping[str, Kind], where: object) -> Row:
    """Return an object after a check of its values; UserError names the place, the key and the wrong value."""
    for key, is_kind in kinds.items():
        if not isinstance(content, dict) or not is_kind(content.get(key)):
            value = content.get(key, "nothing") if isinstance(content, dict) else content
            raise UserError(f"{where}: is damaged: {key}: {shown(value)} is not a value that a run writes")
    return content


def shown(value: Any) -> str:
    """Any value as one short piece of text."""
    try:
        return escaped(SHORT.repr(value))
    except ValueError:  # too many digits
        return "a huge number"


def _exists(path: Path) -> bool:
    """True also for a broken link and for a path without access: reading it then raises an error."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _parsed(content: bytes) -> Any:
    """The JSON value; ValueError if it is not valid JSON."""
    try:
        return DECODER.decode(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _float(text: str) -> float:
    value = float(text)
    return value if abs(value) <= LARGEST else math.copysign(math.inf, value)


def _int(text: str) -> int | float:
    return int(text) if len(text) < 20 else _float(text)


def _reason(error: Exception) -> str:
    """The problem in words, without the path that messages of the operating system repeat."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not text"
    return escaped(getattr(error, "strerror", None) or str(error))


DECODER = json.JSONDecoder(parse_float=_float, parse_int=_int)
