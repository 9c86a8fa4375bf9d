"""Mutated files for every reader of what strangers send: each must be read, or be refused in one line, and soon.

python tests/fuzz.py --minutes 60 --seed 1

Starts from a finished run, an exported model and grids, changes bytes, values or structure of one file, and calls its
reader. Reports inputs a second and every outcome other than that; ends with status 1 if there was one.
"""

import argparse
import copy
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import runtime.openmp  # noqa: F401  before torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent / "helpers"))

import pytest
from attacks.attack import checkpoint_of, put, seal
from tiny import TINY, run
from tiny_text import TINY_TEXT, run_text

import main
import main_llama
from alphadecay.command.sources import BadInput, read_source
from comparison.grid import read_grid
from comparison.options import PRESETS
from comparison.remains import DECAY_LOG, LOG, read_environment, read_failure, read_rows, read_summary
from llama.models import read_config
from runtime.checkpoints import find_checkpoint
from runtime.errors import UserError, exit_status
from vision.models import read_weights

SLOW = 10.0  # seconds that no reader takes
STRANGE = (
    None, True, False, 0, -1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "\x1b[2J",
    "\x00", "../../x", "/etc/passwd", "a" * 3000, "=1+1", "--overwrite", [], {}, [[]], {"": None}, [None, {"a": [1]}],
)  # fmt: skip
BYTES = (b"", b"\x00", b"\xff\xfe", b"[" * 5000, b'{"a":' * 5000, b"\n", b"9" * 5000, b"NaN", b"-Infinity", b"\x1b[31m")


class Slow(BaseException):
    """A reader that does not come back."""


def in_bytes(draw: random.Random, content: bytes) -> bytes:
    """Some bytes changed, cut out, put in or doubled."""
    for _ in range(draw.randint(1, 4)):
        at, to = sorted(draw.randint(0, len(content)) for _ in range(2))
        to = min(to, at + 200)
        middle = draw.choice((
            draw.choice(BYTES), draw.randbytes(to - at), content[at:to] * 2,
            bytes(each ^ (1 << draw.randint(0, 7)) for each in content[at : at + 1]),
        ))  # fmt: skip
        content = content[:at] + middle + content[to:]
    return content if draw.random() > 0.05 else content[: draw.randint(0, len(content))]


def in_values(draw: random.Random, value: object) -> object:
    """A structure with something in it replaced, left out, doubled or nested."""
    value = copy.deepcopy(value)
    places: list[tuple] = []

    def walk(part: object) -> None:
        items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        for key, inside in items:
            places.append((part, key))
            walk(inside)

    walk(value)
    for part, key in draw.sample(places, min(len(places), draw.randint(1, 3))):
        how = draw.random()
        try:
            if how < 0.6:
                part[key] = draw.choice(STRANGE)
            elif how < 0.75:
                del part[key]
            elif how < 0.9 and isinstance(part, dict):
                part[draw.choice(("", "x", "\x1b", "../x", "__class__", "seed"))] = part[key]
            else:
                part[key] = [part[key]] * draw.randint(1, 3)
        except (KeyError, IndexError):  # it went with another
            pass
    return value


def json_of(draw: random.Random, content: bytes) -> bytes:
    """A JSON file, changed in values or bytes."""
    if draw.random() < 0.3:
        return in_bytes(draw, content)
    return json.dumps(in_values(draw, json.loads(content))).encode()


def rows_of(draw: random.Random, content: bytes) -> bytes:
    """A file of JSON lines, one of them changed."""
    lines = content.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    lines[at] = json_of(draw, lines[at]) + b"\n"
    return b"".join(lines)


def tensors_of(draw: random.Random, content: bytes) -> bytes:
    """A safetensors file, most often with another header."""
    if draw.random() < 0.3:
        return in_bytes(draw, content)
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(in_values(draw, json.loads(content[8 : 8 + size]))).encode()
    length = len(header) if draw.random() < 0.9 else draw.randint(0, 2**64 - 1)
    return length.to_bytes(8, "little") + header + content[8 + size :]


def yaml_of(draw: random.Random, content: bytes) -> bytes:
    """A grid: bytes changed, or values of its structure."""
    import yaml

    if draw.random() < 0.5:
        return in_bytes(draw, content)
    return yaml.safe_dump(in_values(draw, yaml.safe_load(content))).encode()


def targets(folder: Path) -> dict[str, tuple[Path, Callable, Callable[[Path], object]]]:
    """By name: a good file, what changes it, and its reader, which gets the changed one in the same place."""
    run_folder, model = folder / "run", folder / "model"
    checkpoint = checkpoint_of(run_folder)
    summary = json.loads((run_folder / "summary.json").read_text())
    metric = next(name for name in ("acc1", "loss") if name in summary)

    def sealed(read: Callable[[Path], object]) -> Callable[[Path], object]:
        def reading(path: Path) -> object:
            seal(path.parent)
            return read(path)

        return reading

    grid, failure = folder / "grid.yaml", folder / "failed.json"
    put(grid, PRESETS["smoke"].read_bytes())
    put(failure, {"status": 2, "lines": ["error: x", "y"]})
    return {
        "manifest": (checkpoint / "manifest.json", json_of, lambda path: find_checkpoint(run_folder)),
        "state": (checkpoint / "training_state.pt", in_bytes,
                  sealed(lambda path: find_checkpoint(run_folder)[0].training_state())),
        "model": (checkpoint / "model.safetensors", tensors_of,
                  sealed(lambda path: find_checkpoint(run_folder)[0].model_weights())),
        "weights": (checkpoint / "model.safetensors", tensors_of, read_weights),
        "analysis": (model / "model.safetensors", tensors_of, lambda path: read_source(str(path))),
        "run config": (run_folder / "config.json", json_of, lambda path: main.read_options(["--config", str(path)])),
        "text config": (folder / "text_run" / "config.json", json_of,
                        lambda path: main_llama.read_options(["--config", str(path)])),
        "model config": (model / "config.json", json_of, lambda path: read_config(str(path))),
        "summary": (run_folder / "summary.json", json_of, lambda path: read_summary(path.parent, metric)),
        "environment": (run_folder / "config.json", json_of, lambda path: read_environment(path.parent)),
        "failure": (failure, json_of, read_failure),
        "log": (run_folder / "log.jsonl", rows_of, lambda path: read_rows(path, LOG)),
        "ledger": (run_folder / "decay.jsonl", rows_of, lambda path: read_rows(path, DECAY_LOG)),
        "grid": (grid, yaml_of, read_grid),
    }  # fmt: skip


def outcome(read: Callable[[Path], object], path: Path) -> tuple[str, str]:
    """How a reader takes a file: fine, refused, or something else, which the second text describes."""
    signal.setitimer(signal.ITIMER_REAL, SLOW)
    try:
        read(path)
    except UserError as error:
        said = printed(error)
        return ("refused", "") if said[:-1].isprintable() else ("a line with control characters", repr(said))
    except BadInput:
        return "refused", ""
    except OSError as error:  # programs print one line where it names a file
        return ("refused", "") if error.filename else ("an OSError that names no file", str(error))
    except Slow:
        return "slow", f"over {SLOW} s"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {os.path.basename(last.filename)}:{last.lineno}", str(error)[:200]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "fine", ""


def printed(error: UserError) -> str:
    """What a program prints of an error."""

    def program() -> None:
        raise error

    with redirect_stderr(StringIO()) as said:
        exit_status(program)
    return said.getvalue()


def prepare(folder: Path) -> None:
    """What is mutated: a finished run of each trainer, and a model for transformers."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        words = [*TINY, "--max_steps", "5", "--output_dir", folder / "run"]
        assert run(*words, monkeypatch=monkeypatch) == 0
    text = ["--max_steps", "3", "--output_dir", folder / "text_run", "--export_hf", folder / "model"]
    assert run_text(*TINY_TEXT, *text) == 0


def fuzz(folder: Path, minutes: float, seed: int, only: str | None) -> Counter[tuple[str, str]]:
    """Counts of outcomes by target; what is neither fine nor refused is printed when it is first seen."""
    draw, counts = random.Random(seed), Counter()
    chosen = {name: each for name, each in targets(folder).items() if only in (None, name)}
    good = {name: path.read_bytes() for name, (path, *_) in chosen.items()}
    ends = time.monotonic() + 60 * minutes
    while time.monotonic() < ends:
        for name, (path, change, read) in chosen.items():
            put(path, change(draw, good[name]))
            found, said = outcome(read, path)
            counts[name, found] += 1
            if found not in ("fine", "refused") and counts[name, found] == 1:
                sys.stdout.write(f"{name}: {found}: {said}\n")
                kept = folder / f"found_{len(counts)}_{name.replace(' ', '_')}"
                kept.write_bytes(path.read_bytes())
            put(path, good[name])
            if path.parent.joinpath("manifest.json").exists():
                seal(path.parent)
    return counts


def main_of_fuzz() -> int:
    """Read the command line, fuzz, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one target, such as grid")
    options = parser.parse_args()

    def slow(*_: object) -> None:
        raise Slow

    signal.signal(signal.SIGALRM, slow)
    folder = Path(tempfile.mkdtemp(prefix="fuzz_"))
    prepare(folder)
    began = time.monotonic()
    counts = fuzz(folder, options.minutes, options.seed, options.only)
    total, seconds = sum(counts.values()), time.monotonic() - began
    sys.stdout.write(
        f"{total} inputs, {total / seconds:.0f} a second, seed {options.seed}; what was found is in {folder}\n"
    )
    for (name, found), count in sorted(counts.items()):
        sys.stdout.write(f"{count:8}  {name}: {found}\n")
    return int(any(found not in ("fine", "refused") for _, found in counts))


if __name__ == "__main__":
    sys.exit(main_of_fuzz())
