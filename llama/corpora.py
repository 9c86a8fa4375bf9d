"""Find text files: C4 in a folder or on the Hugging Face hub, or the source of Python's standard library."""

import hashlib
import os
import re
import sys
import sysconfig
from collections.abc import Callable

import fsspec

from llama.document_files import JsonLines, ParquetRows, documents_of
from llama.options import has_documents
from llama.sources import C4Shards, Corpus, Shard, SourceFiles, warn
from llama.text_files import Contents, OneFile, TextFile, contents_of, file_at
from runtime.errors import UserError, first_line
from runtime.processes import Ranks

C4_HUB = "hf://datasets/allenai/c4/en"
C4_FILE = re.compile(r"c4-(train|validation)\.(\d+)-of-(\d+)\.json\.gz")
EXCLUDED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
VALIDATION_EVERY = 20  # one file in 20 of the standard library is for validation
Splits = tuple[Corpus, Corpus]  # for training, for validation
FoundShards = tuple[str, dict[str, tuple[Shard, ...]]]  # root, shards of each split


def find_c4(data_path: str, ranks: Ranks) -> Splits:
    """Find C4's shards in a folder, in its en/, or at any URL that fsspec knows; on the hub if `data_path` is empty.

    Only the main process searches. All ranks use its result, so that they agree.

    Raises:
        UserError: If there is no such folder, or it has no training shard or no validation shard.
    """
    label = f"--data_path {data_path}" if data_path else f"--dataset c4 ({C4_HUB})"
    try:
        files, root = fsspec.core.url_to_fs(data_path or C4_HUB)
    except ImportError:
        raise UserError(f"{label}: needs huggingface_hub; pip install '.[llama]'") from None
    except ValueError as error:
        raise UserError(f"{label}: {first_line(error)}") from None
    root, shards = ranks.from_main(lambda: _search_c4(files, root, label))
    train, validation = (C4Shards(label, files, root, shards[split]) for split in ("train", "validation"))
    return train, validation


def _search_c4(files: fsspec.AbstractFileSystem, root: str, label: str) -> FoundShards:
    shards: dict[str, tuple[Shard, ...]] = {}
    for folder in (root, f"{root}/en"):
        shards = shards or _c4_files(files, folder, label, needed=folder == root)
        if shards:
            root = folder
            break
    for split in ("train", "validation"):
        if split not in shards:
            raise UserError(f"{label}: has no c4-{split}.NNNNN-of-NNNNN.json.gz, and its en/ has none either")
        if missing := missing_shards(split, shards[split], label):
            warn(missing)
    return root, shards


def _c4_files(files: fsspec.AbstractFileSystem, root: str, label: str, needed: bool) -> dict[str, tuple[Shard, ...]]:
    """C4's files in a folder, by split, sorted by name."""
    try:
        listed = files.ls(root, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        if needed:
            raise UserError(f"{label}: no such folder") from None
        return {}
    except Exception as error:  # network file systems raise errors of many classes
        raise UserError(f"{label}: cannot be read: {first_line(error)}") from error
    by_split: dict[str, list[Shard]] = {}
    for entry in sorted(listed, key=lambda entry: entry["name"]):
        name = entry["name"].rstrip("/").rpartition("/")[2]
        if match := C4_FILE.fullmatch(name):
            by_split.setdefault(match[1], []).append(Shard(name, entry["size"]))
    return {split: tuple(shards) for split, shards in by_split.items()}


def missing_shards(split: str, shards: tuple[Shard, ...], label: str) -> str:
    """A message that names the missing shards of a split; empty if none is missing.

    Raises:
        UserError: If files of differently divided copies of the split are mixed: documents would come twice.
    """
    matches = [C4_FILE.fullmatch(shard.name) for shard in shards]
    totals = sorted({match[3] for match in matches if match})
    if len(totals) > 1:
        raise UserError(f"{label}: has c4-{split} divided into {' and into '.join(totals)} files; keep one of them")
    present = {int(match[2]) for match in matches if match}
    missing = [f"{number:05}" for number in range(int(totals[0])) if number not in present]
    if not missing:
        return ""
    names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    return f"{label}: {len(missing)} of {int(totals[0])} files of c4-{split} are missing: {names}"


def find_stdlib(data_path: str, ranks: Ranks) -> Splits:
    """Find the source files of Python's standard library without tests; a hash of names puts 1 in 20 into validation.

    Raises:
        UserError: If this Python has no source files.
    """
    label, root = "--dataset stdlib", sysconfig.get_paths()["stdlib"]
    shards = ranks.from_main(lambda: source_files(root))
    hashes = [int(hashlib.sha256(shard.name.encode()).hexdigest(), 16) for shard in shards]
    is_validation = [name_hash % VALIDATION_EVERY == 0 for name_hash in hashes]
    parts = [tuple(s for s, v in zip(shards, is_validation, strict=True) if v is chosen) for chosen in (False, True)]
    if not all(parts):
        raise UserError(f"{label}: {root} has no source files of the standard library")
    train, validation = (SourceFiles(label, fsspec.filesystem("file"), root, part) for part in parts)
    return train, validation


def source_files(root: str) -> list[Shard]:
    """The .py files below a folder that are not empty, sorted, without tests and installed packages."""
    shards = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in EXCLUDED_FOLDERS]
        paths = [os.path.join(folder, name) for name in names if name.endswith(".py")]
        shards += [Shard(os.path.relpath(path, root).replace(os.sep, "/"), os.path.getsize(path)) for path in paths]
    return sorted(shard for shard in shards if shard.size)


def find_text(data_path: str, ranks: Ranks) -> Splits:
    """Find one file of text, whose last tenth is for validation; only the main process reads all of it, once.

    Raises:
        UserError: If it cannot be read, or has no text for training or for validation.
    """
    label, kind = f"--data_path {data_path}", kind_of(data_path)

    def read_once() -> tuple[Shard, Contents]:
        files, root, size = file_at(data_path, label)
        shard = Shard(root.rpartition("/")[2], size)
        whole = kind(label, files, root, (shard,), 0, sys.maxsize, Contents(0, 0, "", b""))
        return shard, contents_of(whole) if kind is TextFile else documents_of(whole)

    shard, contents = ranks.from_main(read_once)
    files, root = fsspec.core.url_to_fs(data_path)
    borders = ((0, contents.boundary), (contents.boundary, contents.end))
    train, validation = (kind(label, files, root, (shard,), begin, end, contents) for begin, end in borders)
    return train, validation


def kind_of(data_path: str) -> type[OneFile]:
    """What a file's name says that it is."""
    if data_path.lower().endswith(".parquet"):
        return ParquetRows
    return JsonLines if has_documents(data_path) else TextFile


FINDERS: dict[str, Callable[[str, Ranks], Splits]] = {"c4": find_c4, "stdlib": find_stdlib, "text": find_text}
