"""What a run left in its folder, read so that whatever may lie there instead is named and harms nothing else.

Only regular files of bounded size are read, nothing is kept that is not of the type that its readers take it for, and
text comes back without control characters.
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

MOST_LINE = 1 << 20  # bytes of a row
MOST_ROLES = 200  # each is a panel
LARGEST = 1e100  # a figure beyond it counts as infinite: sums and axes would overflow

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 100

Row = dict[str, Any]
Kind = Callable[[Any], bool]


def is_figure(value: Any) -> bool:
    """Whether it is a number, finite or not, or null."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def is_finite(value: Any) -> bool:
    """Whether it is a finite number."""
    return value is not None and is_figure(value) and math.isfinite(value)


def is_count(value: Any) -> bool:
    """Whether it is a whole number of 0 or more that floats hold exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def is_name(value: Any) -> bool:
    """Whether it is text that shows as it is."""
    return isinstance(value, str) and value.isprintable()


def is_text(value: Any) -> bool:
    """Whether it is text or null."""
    return value is None or isinstance(value, str)


def _are_alphas(value: Any) -> bool:
    if value is None:
        return True
    parts = value.items() if isinstance(value, dict) and len(value) <= MOST_ROLES else [(0, "")]
    return all(is_name(role) and is_figure(alpha) for role, alpha in parts)


def _is_status(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -256 < value < 256


def _are_lines(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(line, str) for line in value)


def _are_versions(value: Any) -> bool:
    return isinstance(value, dict) and all(is_text(number) for number in value.values())


SUMMARY = {"seconds": is_figure, "samples_per_second": is_figure, "alpha_by_role": _are_alphas}
LOG = {"step": is_count, "weight_decay_mean": is_finite, "weight_norm": is_figure, "train_loss": is_figure}
DECAY_LOG = {
    "step": is_count, "module": is_name, "role": is_name, "score": is_figure, "multiplier": is_finite,
    "audit": lambda value: value is None or isinstance(value, dict),
}  # fmt: skip
FAILURE = {"status": _is_status, "lines": _are_lines}
ENVIRONMENT = {"git_commit": is_text, "machine": is_text, "versions": _are_versions}


def read_summary(folder: Path, metric: str) -> Row:
    """summary.json, the metric's figure included; every reader here raises UserError for what is no such thing."""
    return checked(read_object(folder / runfolder.SUMMARY), SUMMARY | {metric: is_figure}, folder / runfolder.SUMMARY)


def read_log(folder: Path) -> list[Row]:
    """One row an evaluation."""
    return read_rows(folder / runfolder.LOG, LOG)


def read_decay_log(folder: Path) -> list[Row]:
    """One row a module and refresh, with what the report takes of it; audits are left out."""
    found = read_rows(folder / runfolder.DECAY_LOG, DECAY_LOG)
    rows = [{key: row.get(key) for key in DECAY_LOG} for row in found if row.get("audit") is None]
    roles = len({row["role"] for row in rows})
    if roles > MOST_ROLES:
        raise UserError(f"{folder / runfolder.DECAY_LOG}: has {roles} roles, more than {MOST_ROLES}")
    return rows


def read_failure(path: Path) -> Row:
    """The status of a run that failed, and the last lines of its output."""
    found = checked(read_object(path), FAILURE, path)
    return {"status": found["status"], "lines": [escaped(line.expandtabs()) for line in found["lines"]]}


def read_environment(folder: Path) -> Row:
    """Versions, commit and machine of a run; empty where there is no config.json, or it does not say."""
    path = folder / runfolder.CONFIG
    found = read_object(path).get("environment", {}) if _is_there(path) else {}
    if found == {}:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: environment: is no JSON object")
    found = checked({"versions": {}} | found, ENVIRONMENT, path)
    versions = {escaped(name): each and escaped(each) for name, each in found["versions"].items()}
    return {name: escaped(found.get(name) or "") for name in ("git_commit", "machine")} | {"versions": versions}


def read_object(path: Path) -> Row:
    """What a JSON file of moderate size holds; UserError if it cannot be read, or is no JSON object."""
    try:
        with open_regular(path, MOST_BYTES) as file:
            content = _parsed(file.read(MOST_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is damaged: it holds no JSON object")
    return content


def read_rows(path: Path, kinds: Mapping[str, Kind]) -> list[Row]:
    """The rows of a file of JSON lines; none where there is no file; UserError if a row lacks what its kind has.

    A last line without an end that is no JSON is left out: a crash left it half written, or the run is still at it.
    """
    rows: list[Row] = []
    if not _is_there(path):
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
    """An object that has values of the right kinds; UserError names the place, the key and the value."""
    for key, is_kind in kinds.items():
        if not isinstance(content, dict) or not is_kind(content.get(key)):
            value = content.get(key, "nothing") if isinstance(content, dict) else content
            raise UserError(f"{where}: is damaged: {key}: {shown(value)} is not what a run writes there")
    return content


def shown(value: Any) -> str:
    """A value as one short piece of text, whatever it is."""
    try:
        return escaped(SHORT.repr(value))
    except ValueError:  # too many digits
        return "a huge number"


def _is_there(path: Path) -> bool:
    """Also for a link to nothing, and what cannot be looked at: reading it then says so."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _parsed(content: bytes) -> Any:
    """JSON; ValueError for what is none."""
    try:
        return DECODER.decode(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _figure(text: str) -> float:
    value = float(text)
    return value if abs(value) <= LARGEST else math.copysign(math.inf, value)


def _whole(text: str) -> int | float:
    return int(text) if len(text) < 20 else _figure(text)


def _reason(error: Exception) -> str:
    """What is wrong, without the path, which messages of the system repeat."""
    if isinstance(error, UnicodeDecodeError):
        return "it is no text"
    return escaped(getattr(error, "strerror", None) or str(error))


DECODER = json.JSONDecoder(parse_float=_figure, parse_int=_whole)
