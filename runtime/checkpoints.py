"""Checkpoints: folders that are whole or absent, verified when read, and can run no code.

A run's `checkpoints/` holds step_00000120/ and the like, each with model.safetensors, ema.safetensors (where
there is an average), training_state.pt (plain values and tensors) and manifest.json with the SHA-256 of each
file; `best` and `best_ema` are links to two of them.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from runtime.errors import UserError
from runtime.files import json_of
from runtime.runfolder import EMA, MANIFEST, MODEL, STATE, is_checkpoint, remove_checkpoint
from runtime.validation import Unfit, check_state

LINKS = ("best", "best_ema")
STEP = re.compile(r"\.?step_(\d+)(?:\.old)?")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder."""

    path: Path
    step: int

    def model_weights(self) -> dict[str, Tensor]:
        """The model's state dict, on the CPU."""
        return _tensors(self.path / MODEL)

    def ema_weights(self) -> dict[str, Tensor] | None:
        """The moving average's state dict, or None where the run kept none."""
        return _tensors(self.path / EMA) if (self.path / EMA).exists() else None

    def contract(self) -> dict[str, Any]:
        """What the run could not change when it was saved (`runtime.run_contract`); empty where that was not noted."""
        return json_of(self.path / MANIFEST).get("run") or {}

    def training_state(self) -> dict[str, Any]:
        """Everything else that training goes on from, on the CPU; loaded without running code.

        Raises:
            UserError: If the file is no such state; one that would run code is refused.
        """
        path = self.path / STATE
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a broken or hostile file makes the reader raise
            raise UserError(f"{path} holds more than plain values and tensors; refused") from error
        try:
            check_state(state, self.step)
        except Unfit as error:
            raise UserError(f"{path} {error}; refused") from error
        return state


@dataclass(frozen=True)
class Contents:
    """What goes into a checkpoint, in CPU memory of its own: training may go on while it is written."""

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    state: dict[str, Any]
    contract: Mapping[str, Any]  # of `runtime.run_contract`: what a run cannot change when it goes on

    @classmethod
    def copied(
        cls,
        step: int,
        model: Mapping[str, Tensor],
        ema: Mapping[str, Tensor] | None,
        state: Mapping[str, Any],
        contract: Mapping[str, Any],
    ) -> "Contents":
        """Copies of state dicts and of everything else that training goes on from."""
        average = None if ema is None else copied(dict(ema))
        taken = cls(step, copied(dict(model)), average, copied(dict(state)), contract)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies from GPUs were only begun
        return taken


def copied(value: Any) -> Any:
    """A copy of nested dicts, lists and tuples with all tensors in CPU memory of their own."""
    if isinstance(value, Tensor):
        pinned = value.device.type == "cuda"
        copy = torch.empty_like(value, device="cpu", pin_memory=pinned)  # strides stay: fused kernels rely on them
        return copy.copy_(value.detach(), non_blocking=pinned)
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(each) for each in value)
    return value


def write_checkpoint(folder: Path, contents: Contents, before_rename: Sequence[Path] = ()) -> Checkpoint:
    """Write checkpoints/step_... so that it is there whole or not at all, also after a power cut.

    Args:
        folder: The run's checkpoints/.
        contents: What to write.
        before_rename: Files that must be on the disk before the checkpoint is, such as the log it counts on.

    Raises:
        UserError: If the disk is full or the folder cannot be written; nothing of it is left behind.
    """
    target = folder / f"step_{contents.step:08d}"
    temporary, old = folder / f".{target.name}.tmp", folder / f".{target.name}.old"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_files(temporary, contents)
        for path in [*temporary.iterdir(), temporary, *filter(Path.exists, before_rename)]:
            _sync(path)
        if target.exists():
            os.rename(target, old)  # not deleted before the new one is there; see recover
        os.rename(temporary, target)
        _sync(folder)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch and safetensors wrap a full disk in their own
        free = shutil.disk_usage(folder).free / 1e6 if folder.is_dir() else 0
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"cannot write the checkpoint {target} ({free:.1f} MB free there): {error}") from error
    remove_checkpoint(old)
    return Checkpoint(target, contents.step)


def _write_files(folder: Path, contents: Contents) -> None:
    for name, weights in ((MODEL, contents.model), (EMA, contents.ema)):
        if weights is not None:
            save_file({key: tensor.contiguous() for key, tensor in weights.items()}, folder / name)
    torch.save(contents.state, folder / STATE)
    hashes = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    manifest = {"step": contents.step, "run": contents.contract, "files": hashes}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def recover(folder: Path) -> None:
    """Clear away what a crash left of an unfinished checkpoint; one that was about to be replaced comes back."""
    for path in folder.glob(".step_*.tmp"):
        remove_checkpoint(path)
    for path in folder.glob(".step_*.old"):
        whole = folder / path.name[1:-4]
        if whole.exists():
            remove_checkpoint(path)
        else:
            os.rename(path, whole)


def link(folder: Path, name: str, checkpoint: Checkpoint) -> None:
    """Point checkpoints/`name` at a checkpoint."""
    temporary = folder / f".{name}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(checkpoint.path.name)
    os.replace(temporary, folder / name)


def remove_old(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and those that a link points at."""
    linked = {os.readlink(folder / name) for name in LINKS if (folder / name).is_symlink()}
    for path in _newest_first(folder)[keep:]:
        if path.name not in linked:
            remove_checkpoint(path)


def remove_after(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps, and links that would point at none."""
    for path in _newest_first(folder):
        if step_of(path) > step:
            remove_checkpoint(path)
    for name in LINKS:
        if (folder / name).is_symlink() and not (folder / name).exists():
            (folder / name).unlink()


def later_than(folder: Path, step: int) -> Path | None:
    """The newest whole checkpoint of a later step, if there is one."""
    for path in _newest_first(folder):
        if step_of(path) > step:
            with suppress(UserError):
                return verified(path).path
    return None


def find_checkpoint(path: Path) -> tuple[Checkpoint, list[str]]:
    """The checkpoint at `path`, or the newest one that verifies in the run folder `path`.

    Returns:
        The checkpoint, and what is wrong with each newer one that was passed over.

    Raises:
        UserError: If there is none.
    """
    if (path / MANIFEST).exists():
        return verified(path), []
    broken: list[str] = []
    for candidate in _newest_first(path / "checkpoints"):
        try:
            return verified(candidate), broken
        except UserError as error:
            broken.append(str(error))
    if broken:
        raise UserError(f"{path} holds no usable checkpoint: {'; '.join(broken)}")
    raise UserError(f"{path} is no checkpoint and no run folder with checkpoints/step_.../manifest.json in it")


def verified(path: Path) -> Checkpoint:
    """The checkpoint in a folder whose files are all as its manifest says.

    Raises:
        UserError: If a file is missing or changed; it is named.
    """
    try:
        manifest = json_of(path / MANIFEST)
        step, files = int(manifest["step"]), dict(manifest["files"])
        named = STEP.fullmatch(path.name)
        if named and int(named[1]) != step or step < 0:
            raise ValueError(f"it is of step {step}")
        if not set(files) <= {MODEL, EMA, STATE}:
            raise ValueError("it names files that are none of a checkpoint's")
        run = manifest.get("run") or {}
        if not isinstance(run, dict) or not all(isinstance(run.get(key, {}), dict) for key in ("options", "facts")):
            raise ValueError("its run is no object of options and facts")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path / MANIFEST} cannot be read: {error}") from error
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file} is missing")
        if sha256(file) != expected:
            raise UserError(f"{file} is broken: its SHA-256 is not the manifest's")
    if MODEL not in files or STATE not in files:
        raise UserError(f"{path / MANIFEST} names no {MODEL} or no {STATE}")
    return Checkpoint(path, step)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _newest_first(folder: Path) -> list[Path]:
    """Checkpoint folders, and those that a crash left in the middle of being replaced."""
    found = [
        p for p in [*folder.glob("step_*"), *folder.glob(".step_*.old")] if STEP.fullmatch(p.name) and is_checkpoint(p)
    ]
    return sorted(found, key=lambda p: (-step_of(p), p.name.startswith(".")))


def has_checkpoints(run_folder: Path) -> bool:
    """Whether a run's folder holds a checkpoint, whole or not."""
    return bool(_newest_first(run_folder / "checkpoints"))


def step_of(path: Path) -> int:
    """The optimizer step in the name of a checkpoint folder."""
    match = STEP.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
