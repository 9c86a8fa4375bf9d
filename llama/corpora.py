"""Finding the files of a text: C4 in a folder or on the hub, and the source of Python's standard library."""

import hashlib
import os
import re
import sysconfig
from collections.abc import Callable

import fsspec

from llama.sources import C4Shards, Corpus, Shard, SourceFiles, warn
from runtime.errors import UserError, first_line
from runtime.processes import Ranks

C4_HUB = "hf://datasets/allenai/c4/en"
C4_FILE = re.compile(r"c4-(train|validation)\.(\d+)-of-(\d+)\.json\.gz")
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
VALIDATES = 20  # one file of so many of the standard library validates
Parts = tuple[Corpus, Corpus]  # for training, for validation
Found = tuple[str, dict[str, tuple[Shard, ...]]]  # root, shards of each split


def find_c4(data_path: str, ranks: Ranks) -> Parts:
    """C4's shards in a folder, in en/ below it, or at any URL that fsspec knows; without one, on the hub.

    The main process looks and all use what it found, so that they agree.

    Raises:
        UserError: If there is no such place, or it holds no shard of training or of validation.
    """
    label = f"--data_path {data_path}" if data_path else f"--dataset c4 ({C4_HUB})"
    try:
        files, root = fsspec.core.url_to_fs(data_path or C4_HUB)
    except ImportError:
        raise UserError(f"{label}: needs huggingface_hub; pip install '.[llama]'") from None
    except ValueError as error:
        raise UserError(f"{label}: {first_line(error)}") from None
    root, found = ranks.from_main(lambda: _look_for_c4(files, root, label))
    train, validation = (C4Shards(label, files, root, found[split]) for split in ("train", "validation"))
    return train, validation


def _look_for_c4(files: fsspec.AbstractFileSystem, root: str, label: str) -> Found:
    found: dict[str, tuple[Shard, ...]] = {}
    for place in (root, f"{root}/en"):
        found = found or _c4_files(files, place, label, needed=place == root)
        if found:
            root = place
            break
    for split in ("train", "validation"):
        if split not in found:
            raise UserError(f"{label}: holds no c4-{split}.NNNNN-of-NNNNN.json.gz, nor does en/ below it")
        if missing := missing_shards(split, found[split], label):
            warn(missing)
    return root, found


def _c4_files(files: fsspec.AbstractFileSystem, root: str, label: str, needed: bool) -> dict[str, tuple[Shard, ...]]:
    """C4's files of a folder by split, in the order of their names."""
    try:
        listed = files.ls(root, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        if needed:
            raise UserError(f"{label}: no such folder") from None
        return {}
    except Exception as error:  # file systems of the network raise errors of many kinds
        raise UserError(f"{label}: cannot be read: {first_line(error)}") from error
    found: dict[str, list[Shard]] = {}
    for each in sorted(listed, key=lambda each: each["name"]):
        name = each["name"].rstrip("/").rpartition("/")[2]
        if match := C4_FILE.fullmatch(name):
            found.setdefault(match[1], []).append(Shard(name, each["size"]))
    return {split: tuple(shards) for split, shards in found.items()}


def missing_shards(split: str, shards: tuple[Shard, ...], label: str) -> str:
    """In words, which shards of a split are not there; empty if all are.

    Raises:
        UserError: If the shards are of differently divided splits, whose documents would come twice.
    """
    numbers = [C4_FILE.fullmatch(shard.name) for shard in shards]
    totals = sorted({match[3] for match in numbers if match})
    if len(totals) > 1:
        raise UserError(f"{label}: holds c4-{split} divided into {' and into '.join(totals)} files; keep one of them")
    there = {int(match[2]) for match in numbers if match}
    missing = [f"{number:05}" for number in range(int(totals[0])) if number not in there]
    if not missing:
        return ""
    few = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    return f"{label}: {len(missing)} of {int(totals[0])} files of c4-{split} are not there: {few}"


def find_stdlib(data_path: str, ranks: Ranks) -> Parts:
    """The source files of Python's standard library, tests left out; by a hash of its name one in 20 validates.

    Raises:
        UserError: If this Python comes without them.
    """
    label, root = "--dataset stdlib", sysconfig.get_paths()["stdlib"]
    shards = ranks.from_main(lambda: source_files(root))
    validates = [int(hashlib.sha256(shard.name.encode()).hexdigest(), 16) % VALIDATES == 0 for shard in shards]
    parts = [tuple(s for s, v in zip(shards, validates, strict=True) if v is chosen) for chosen in (False, True)]
    if not all(parts):
        raise UserError(f"{label}: {root} holds no source files of the standard library")
    train, validation = (SourceFiles(label, fsspec.filesystem("file"), root, part) for part in parts)
    return train, validation


def source_files(root: str) -> list[Shard]:
    """The files below a folder that end in .py and are not empty, sorted; tests and other packages left out."""
    found = []
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        paths = [os.path.join(place, name) for name in names if name.endswith(".py")]
        found += [Shard(os.path.relpath(path, root).replace(os.sep, "/"), os.path.getsize(path)) for path in paths]
    return sorted(shard for shard in found if shard.size)


FINDERS: dict[str, Callable[[str, Ranks], Parts]] = {"c4": find_c4, "stdlib": find_stdlib}
