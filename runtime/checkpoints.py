"""Checkpoints: folders that are whole or absent, verified when read, and can run no code.

A run's `checkpoints/` holds step_00000120/ and the like, each with model.safetensors, ema.safetensors (where
there is an average), training_state.pt (plain values and tensors) and manifest.json with the SHA-256 of each
file; `best` and `best_ema` are links to two of them.
"""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from runtime.errors import UserError

MODEL, EMA, STATE, MANIFEST = "model.safetensors", "ema.safetensors", "training_state.pt", "manifest.json"
LINKS = ("best", "best_ema")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder."""

    path: Path
    step: int

    def model_weights(self) -> dict[str, Tensor]:
        """The model's state dict, on the CPU."""
        return load_file(self.path / MODEL)

    def ema_weights(self) -> dict[str, Tensor] | None:
        """The moving average's state dict, or None where the run kept none."""
        return load_file(self.path / EMA) if (self.path / EMA).exists() else None

    def contract(self) -> dict[str, Any]:
        """What the run could not change when it was saved (`runtime.drift`); empty where that was not noted."""
        return json.loads((self.path / MANIFEST).read_text()).get("run") or {}

    def training_state(self) -> dict[str, Any]:
        """Everything else that training goes on from, on the CPU; loaded without running code.

        Raises:
            UserError: If the file is no such state; one that would run code is refused.
        """
        try:
            return torch.load(self.path / STATE, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(f"{self.path / STATE} holds more than plain values and tensors; refused") from error


def save_checkpoint(
    folder: Path,
    step: int,
    model: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None,
    state: Mapping[str, Any],
    contract: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Write checkpoints/step_... so that it is there whole or not at all, also after a power cut.

    Raises:
        UserError: If the disk is full or the folder cannot be written; nothing of it is left behind.
    """
    target = folder / f"step_{step:08d}"
    temporary = folder / f".{target.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(_separate(model), temporary / MODEL)
        if ema is not None:
            save_file(_separate(ema), temporary / EMA)
        torch.save(dict(state), temporary / STATE)
        hashes = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        manifest = {"step": step, "run": contract or {}, "files": hashes}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in [*temporary.iterdir(), temporary]:
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(temporary, target)
        _sync(folder)
    except (
        OSError,
        SafetensorError,
        RuntimeError,
    ) as error:  # torch and safetensors wrap a full disk in their own
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"cannot write the checkpoint {target}: {error}") from error
    return Checkpoint(target, step)


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
            shutil.rmtree(path)


def remove_after(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps, and links that would point at none."""
    for path in _newest_first(folder):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    for name in LINKS:
        if (folder / name).is_symlink() and not (folder / name).exists():
            (folder / name).unlink()


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, or the newest one that verifies in the run folder `path`.

    Raises:
        UserError: If there is none.
    """
    if (path / MANIFEST).exists():
        return verified(path)
    broken = []
    for candidate in _newest_first(path / "checkpoints"):
        try:
            return verified(candidate)
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
        manifest = json.loads((path / MANIFEST).read_text())
        step, files = int(manifest["step"]), dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
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


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _newest_first(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("step_*") if p.name[5:].isdigit()), key=lambda p: -int(p.name[5:]))


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU: safetensors takes no tensors that share memory."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
