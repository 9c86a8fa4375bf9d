"""Checkpoints: folders that are complete or absent, that are verified when read, and that cannot run code.

A run's `checkpoints/` has folders such as step_00000120/, each with model.safetensors, ema.safetensors (if the run
keeps EMA weights), training_state.pt (plain values and tensors) and manifest.json with the SHA-256 of each file;
`best` and `best_ema` are links to two of these folders.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from runtime.errors import UserError
from runtime.files import json_of, sha256
from runtime.runfolder import EMA, MANIFEST, METADATA, MODEL, SHARD, STATE, is_checkpoint, remove_checkpoint
from runtime.sharded_checkpoints import (
    EMA_PREFIX,
    MODEL_PREFIX,
    OPTIMIZER_PREFIX,
    Hashes,
    add_moments,
    holds,
    read_whole,
)  # fmt: skip
from runtime.state_checks import Unfit, check_state

LINKS = ("best", "best_ema")
STAGE = 64 << 20  # bytes of pinned memory
STEP = re.compile(r"\.?step_(\d+)(?:\.old)?")


@cache
def pinned_stage() -> Tensor:
    """The block of pinned memory through which all checkpoints come from the GPU, shape (STAGE,), uint8."""
    return torch.empty(STAGE, dtype=torch.uint8, pin_memory=True)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder."""

    path: Path
    step: int

    @property
    def sharded(self) -> bool:
        """Whether each process wrote its part of the tensors (`runtime.sharded_checkpoints`)."""
        return (self.path / METADATA).exists()

    def model_weights(self) -> dict[str, Tensor]:
        """The model's state dict, on the CPU."""
        return self._weights(MODEL, MODEL_PREFIX)

    def ema_weights(self) -> dict[str, Tensor] | None:
        """The state dict of the EMA weights, on the CPU; None if the run keeps none."""
        return self._weights(EMA, EMA_PREFIX) if self.has_ema else None

    @property
    def has_ema(self) -> bool:
        """Whether the checkpoint has EMA weights."""
        return holds(self.path, EMA_PREFIX) if self.sharded else (self.path / EMA).exists()

    def _weights(self, file: str, prefix: str) -> dict[str, Tensor]:
        if self.sharded:
            return {name.removeprefix(prefix): tensor for name, tensor in read_whole(self.path, prefix).items()}
        return _tensors(self.path / file)

    def contract(self) -> dict[str, Any]:
        """The saved run's contract (`runtime.run_contract`); empty if the checkpoint has none."""
        return json_of(self.path / MANIFEST).get("run") or {}

    def training_state(self, mapped: bool = False) -> dict[str, Any]:
        """Everything else that training resumes from, on the CPU; loaded without running code.

        Args:
            mapped: Read tensors from the file when they are used, for a state of which each process needs a part. The
                file must stay as long as they are used. Those of a sharded checkpoint are left to `read_shards`.

        Raises:
            UserError: If the file is not a training state, or would run code.
        """
        path = self.path / STATE
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # a broken or hostile file can make the reader raise anything
            raise UserError(f"{path} holds more than plain values and tensors; refused") from error
        try:
            check_state(state, self.step)
        except Unfit as error:
            raise UserError(f"{path} {error}; refused") from error
        if self.sharded and not mapped:
            add_moments(state["optimizer"], read_whole(self.path, OPTIMIZER_PREFIX))
        return state


@dataclass(frozen=True)
class Contents:
    """The contents of a checkpoint, copied to CPU memory: training can continue while they are written."""

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    state: dict[str, Any]
    contract: Mapping[str, Any]  # see `runtime.run_contract`

    @classmethod
    def copied(
        cls,
        step: int,
        model: Mapping[str, Tensor],
        ema: Mapping[str, Tensor] | None,
        state: Mapping[str, Any],
        contract: Mapping[str, Any],
    ) -> "Contents":
        """Copies of the state dicts and of everything else that training resumes from."""
        stage = pinned_stage() if torch.cuda.is_initialized() else None
        average = None if ema is None else copied(dict(ema), stage)
        return cls(step, copied(dict(model), stage), average, copied(dict(state), stage), contract)


def copied(value: Any, stage: Tensor | None = None) -> Any:
    """A copy of nested dicts, lists and tuples; tensors of any shape and dtype are copied to CPU memory.

    Args:
        value: What to copy.
        stage: Pinned memory through which a GPU's tensors are copied, shape (bytes,), uint8.
    """
    if isinstance(value, Tensor):
        source = value.detach()
        copy = torch.empty_like(source, device="cpu")  # with the same strides: fused kernels rely on them
        if stage is None or source.device.type == "cpu" or not source.is_contiguous():
            return copy.copy_(source)
        _copy_staged(source.reshape(-1).view(torch.uint8), copy.view(-1).view(torch.uint8), stage)
        return copy
    if isinstance(value, dict):
        return {key: copied(item, stage) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(item, stage) for item in value)
    return value


def _copy_staged(source: Tensor, target: Tensor, stage: Tensor) -> None:
    """Copy bytes, shapes (n,), (n,) and (size of the stage,), piece by piece through pinned memory.

    A GPU copies to pinned memory at full speed. torch never gives it back, so one block serves for all.
    """
    for start in range(0, len(source), len(stage)):
        piece = stage[: min(len(stage), len(source) - start)]
        piece.copy_(source[start : start + len(piece)])
        target[start : start + len(piece)].copy_(piece)


def write_checkpoint(
    folder: Path, contents: Contents, before_rename: Sequence[Path] = (), shards: Hashes | None = None
) -> Checkpoint:
    """Write checkpoints/step_... so that it is either complete or absent, even after a power cut.

    Args:
        folder: The run's checkpoints/.
        contents: What to write.
        before_rename: Files that must be on the disk before the checkpoint, such as the log whose lines it counts.
        shards: SHA-256 of the files that the processes have written into `in_progress` with the tensors; the rest comes
            to them here.

    Raises:
        UserError: If the disk is full or the folder cannot be written; no incomplete checkpoint remains.
    """
    target = folder / f"step_{contents.step:08d}"
    temporary, old = in_progress(folder, contents.step), folder / f".{target.name}.old"
    try:
        if shards is None:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        _write_files(temporary, contents, shards)
        for path in [*temporary.iterdir(), temporary, *filter(Path.exists, before_rename)]:
            _sync(path)
        if target.exists():
            os.rename(target, old)  # not deleted before the new one is complete; see recover
        os.rename(temporary, target)
        _sync(folder)
    except (
        OSError,
        SafetensorError,
        RuntimeError,
    ) as error:  # torch and safetensors raise their own types for a full disk
        free = shutil.disk_usage(folder).free / 1e6 if folder.is_dir() else 0
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"cannot write the checkpoint {target} ({free:.1f} MB free): {error}") from error
    remove_checkpoint(old)
    return Checkpoint(target, contents.step)


def in_progress(folder: Path, step: int) -> Path:
    """The folder in which a checkpoint is written before it gets its name."""
    return folder / f".step_{step:08d}.tmp"


def _write_files(folder: Path, contents: Contents, shards: Hashes | None) -> None:
    for name, weights in ((MODEL, contents.model), (EMA, contents.ema)) if shards is None else ():
        if weights is not None:
            save_file({key: tensor.contiguous() for key, tensor in weights.items()}, folder / name)
    torch.save(contents.state, folder / STATE)
    known = shards or {}
    hashes = {path.name: known.get(path.name) or sha256(path) for path in sorted(folder.iterdir())}
    manifest = {"step": contents.step, "run": contents.contract, "files": hashes}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def recover(folder: Path) -> None:
    """Remove checkpoints that a crash left incomplete; restore one whose replacement was not completed."""
    for path in folder.glob(".step_*.tmp"):
        remove_checkpoint(path)
    for path in folder.glob(".step_*.old"):
        target = folder / path.name[1:-4]  # without the dot and ".old"
        if target.exists():
            remove_checkpoint(path)
        else:
            os.rename(path, target)


def link(folder: Path, name: str, checkpoint: Checkpoint) -> None:
    """Make checkpoints/`name` a link to a checkpoint."""
    temporary = folder / f".{name}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(checkpoint.path.name)
    os.replace(temporary, folder / name)


def remove_old(folder: Path, keep: int) -> None:
    """Delete all checkpoints except the newest `keep` and those that a link points to."""
    linked = {os.readlink(folder / name) for name in LINKS if (folder / name).is_symlink()}
    for path in _newest_first(folder)[keep:]:
        if path.name not in linked:
            remove_checkpoint(path)


def remove_after(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps, and links that pointed to them."""
    for path in _newest_first(folder):
        if step_of(path) > step:
            remove_checkpoint(path)
    for name in LINKS:
        if (folder / name).is_symlink() and not (folder / name).exists():
            (folder / name).unlink()


def later_than(folder: Path, step: int) -> Path | None:
    """The newest intact checkpoint of a later step, or None."""
    for path in _newest_first(folder):
        if step_of(path) > step:
            with suppress(UserError):
                return verified(path).path
    return None


def find_checkpoint(path: Path) -> tuple[Checkpoint, list[str]]:
    """The checkpoint at `path`, or the newest intact one in the run folder `path`.

    Returns:
        The checkpoint, and for each newer one that was skipped what is wrong with it.

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
        raise UserError(f"{path} has no usable checkpoint: {'; '.join(broken)}")
    raise UserError(f"{path} is neither a checkpoint nor a run folder with checkpoints/step_.../manifest.json")


def verified(path: Path) -> Checkpoint:
    """The checkpoint in a folder, after comparing all its files with the manifest.

    Raises:
        UserError: If a file is missing or changed; the message names it.
    """
    try:
        manifest = json_of(path / MANIFEST)
        step, files = int(manifest["step"]), dict(manifest["files"])
        step_name = STEP.fullmatch(path.name)
        if step_name and int(step_name[1]) != step or step < 0:
            raise ValueError(f"its step is {step}")
        if not all(name in (MODEL, EMA, STATE, METADATA) or SHARD.fullmatch(name) for name in files):
            raise ValueError("it lists files that do not belong to a checkpoint")
        run = manifest.get("run") or {}
        if not isinstance(run, dict) or not all(isinstance(run.get(key, {}), dict) for key in ("options", "facts")):
            raise ValueError('its "run" is not an object with options and facts')
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path / MANIFEST} cannot be read: {error}") from error
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file} is missing")
        if sha256(file) != expected:
            raise UserError(f"{file} is broken: its SHA-256 differs from the one in the manifest")
    if not {MODEL, METADATA} & set(files) or STATE not in files:
        raise UserError(f"{path / MANIFEST} does not list both {MODEL} and {STATE}")
    return Checkpoint(path, step)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error


def _newest_first(folder: Path) -> list[Path]:
    """Checkpoint folders, including those whose replacement a crash interrupted."""
    folders = [
        p for p in [*folder.glob("step_*"), *folder.glob(".step_*.old")] if STEP.fullmatch(p.name) and is_checkpoint(p)
    ]
    return sorted(folders, key=lambda p: (-step_of(p), p.name.startswith(".")))


def has_checkpoints(run_folder: Path) -> bool:
    """Whether a run folder has a checkpoint, intact or not."""
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
