"""One attack: a command line, and the files that it meets."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Attack:
    """`words` may hold {here} (the case's own folder), {run} and {text_run} (copies of finished runs), {model}."""

    name: str
    program: str
    words: str
    culprit: str  # must be in the one line
    build: Callable[[Path], None] | None = None  # puts files into {here}, or damages the copy of a run that lies there
    environment: tuple[tuple[str, str], ...] = ()
    trains: bool = False  # met while it trains, when {here}/out holds a run


def put(path: Path, content: bytes | str | dict | list) -> None:
    """Write a file, its folders too, in place of what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        path.unlink()
    if isinstance(content, dict | list):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def checkpoint_of(run: Path) -> Path:
    """The newest checkpoint of a run."""
    return sorted((run / "checkpoints").glob("step_*"))[-1]


def seal(checkpoint: Path, **changed) -> None:
    """Let the manifest vouch for the files as they are now."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
    put(checkpoint / "manifest.json", manifest | changed)


def snapshot(folder: Path) -> dict[str, tuple]:
    """All that lies below a folder, so that one sees whether anything was written."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            status = os.lstat(os.path.join(place, name))
            stamp = None if name in folders else (status.st_size, status.st_mtime_ns)
            found[os.path.join(place, name)] = (status.st_mode, stamp)
    return found


def tensors(header: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape: list[int], end: int, kind: str = "F32", begin: int = 0) -> dict:
    """What a header says of a tensor."""
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


BAD_TENSORS = {
    "empty": b"",
    "seven bytes": b"1234567",
    "text": b"no weights at all",
    "header longer than the file": tensors({}, length=2**40),
    "header of 2**63 bytes": tensors({}, length=2**63),
    "header no JSON": tensors(b"{nonsense}"),
    "header a list": tensors(b"[]"),
    "header deep": tensors(b'{"a":' + b"[" * 100_000),
    "header not UTF-8": tensors(b'{"\xff": 1}'),
    "offsets beyond the end": tensors({"a.weight": tensor([64, 64], 16384)}, b"few"),
    "offsets backwards": tensors({"a.weight": tensor([2], 8, begin=16)}, bytes(16)),
    "offsets negative": tensors({"a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, bytes(8)),
    "offsets overlap": tensors({"a.weight": tensor([2], 8), "b.weight": tensor([2], 8)}, bytes(8)),
    "shape of another size": tensors({"a.weight": tensor([64, 64], 8)}, bytes(8)),
    "shape beyond all memory": tensors({"a.weight": tensor([2**62, 2**62], 8)}, bytes(8)),
    "shape negative": tensors({"a.weight": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, bytes(8)),
    "kind unknown": tensors({"a.weight": tensor([2], 8, "X99")}, bytes(8)),
}
DEEP = "[" * 100_000
BAD_JSON = {
    "empty": b"", "binary": bytes(range(256)), "deep": DEEP.encode(), "a list": b"[1]", "a number": b"3",
    "not UTF-8": b'{"a": "\xff"}', "cut": b'{"step": 3, "fil', "null": b"null",
}  # fmt: skip
