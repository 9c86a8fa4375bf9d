"""Checkpoints whose tensors each process writes for itself, with torch.distributed.checkpoint; no process holds all.

Such a checkpoint folder holds `.metadata` and `__RANK_0.distcp` files in place of model.safetensors, and any number of
processes can read it. torch reads `.metadata` with pickle; `_Metadata` lets it build nothing but descriptions.
"""

import pickle
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from alphadecay.sharing import is_sharded
from runtime.errors import UserError, first_line
from runtime.files import sha256
from runtime.processes import Ranks
from runtime.runfolder import METADATA, SHARD
from runtime.writer import BackgroundWriter

MODEL_PREFIX, EMA_PREFIX, OPTIMIZER_PREFIX = "model.", "ema.", "optimizer."
Hashes = Mapping[str, str]  # file name -> SHA-256
# What a description of tensors consists of.
DESCRIPTIONS = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float64", "float32", "bfloat16", "float16", "int64", "int32", "uint8", "bool"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "Path"},
    "pathlib._local": {"PosixPath", "Path"},
}  # fmt: skip


class ShardWriter:
    """Writes this process' part of checkpoints in the background; the main process completes each.

    All ranks call all methods in the same places.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self._writer = ranks, BackgroundWriter()
        # A group of its own, so that messages of the background threads do not mix with the training's.
        self._group: Any = dist.new_group(backend="gloo")

    def save(self, folder: Path, tensors: Mapping[str, Tensor], complete: Callable[[Hashes], None]) -> None:
        """Copy this process' part to CPU memory and begin to write it.

        Args:
            folder: Where the files go; it does not exist, or is empty.
            tensors: By name, the same on all ranks, of any shape; each process writes its part of the sharded ones.
            complete: Called on the main process with all files' SHA-256, in its background thread.

        Raises:
            UserError: If the last checkpoint could not be written.
        """
        self.wait()
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        self._writer.submit(partial(self._write, folder, copies, complete))

    def _write(self, folder: Path, copies: dict[str, Tensor], complete: Callable[[Hashes], None]) -> None:
        try:
            dcp.save(copies, storage_writer=dcp.FileSystemWriter(folder), process_group=self._group)
        except (Exception, CheckpointException) as error:
            raise UserError(f"cannot write the checkpoint {folder}: {_reason(error)}") from error
        own = {path.name: sha256(path) for path in folder.glob(f"__{self._ranks.rank}_*.distcp")}
        parts: list[Any] = [None] * self._ranks.count
        dist.all_gather_object(parts, own, group=self._group)
        if self._ranks.is_main:
            complete({name: digest for part in parts for name, digest in part.items()})

    def check(self) -> None:
        """Raise UserError if the last checkpoint could not be written; does not wait."""
        self._writer.check()

    def wait(self) -> None:
        """Return when the last checkpoint is on the disk; raises UserError if it could not be written."""
        self._writer.wait()


def tensors_of(models: Mapping[str, nn.Module], optimizer: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of models, by prefix, and the sharded ones of an optimizer's state dict, by name."""
    tensors = weights_of(models)
    for index, values in optimizer["state"].items():
        tensors |= {f"{OPTIMIZER_PREFIX}{index}.{name}": value for name, value in values.items() if is_sharded(value)}
    return tensors


def weights_of(models: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of models' state dicts, each name after its model's prefix."""
    return {prefix + name: tensor for prefix, each in models.items() for name, tensor in each.state_dict().items()}


def without_shards(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state dict without its sharded tensors."""
    state = optimizer["state"]
    return {**optimizer, "state": {i: {k: v for k, v in state[i].items() if not is_sharded(v)} for i in state}}


def add_moments(optimizer: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put tensors of a checkpoint, by name, back into an optimizer's state dict; other names are ignored."""
    for key, tensor in tensors.items():
        if key.startswith(OPTIMIZER_PREFIX):
            index, _, name = key.removeprefix(OPTIMIZER_PREFIX).partition(".")
            optimizer["state"].setdefault(int(index), {})[name] = tensor


def holds(folder: Path, prefix: str) -> bool:
    """Whether a checkpoint has tensors whose names begin with a prefix."""
    return any(key.startswith(prefix) for key in _described(_Reader(folder), folder))


def read_whole(folder: Path, prefix: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint whose names begin with a prefix, whole and on the CPU; without a process group."""
    reader = _Reader(folder)
    described = _described(reader, folder).items()
    tensors = {
        key: torch.empty(each.size, dtype=each.properties.dtype) for key, each in described if key.startswith(prefix)
    }
    _load(tensors, reader, folder, no_dist=True)
    return tensors


def read_shards(
    folder: Path, models: Mapping[str, nn.Module], parameters: Mapping[int, Tensor], group: Any
) -> dict[str, Tensor]:
    """Load sharded models' weights in place; return all tensors by name, the optimizer's sharded as its parameters.

    EMA weights that the checkpoint lacks are left as they are.

    Args:
        folder: The checkpoint's.
        models: By prefix, with sharded weights.
        parameters: By index, as in the optimizer's state dict.
        group: The ranks; all must call.

    Raises:
        UserError: If the checkpoint is of another model.
    """
    reader = _Reader(folder)
    described = _described(reader, folder)
    has_ema = any(key.startswith(EMA_PREFIX) for key in described)
    models = {prefix: model for prefix, model in models.items() if has_ema or prefix != EMA_PREFIX}
    tensors = weights_of(models)
    for key, each in described.items():
        if key.startswith(OPTIMIZER_PREFIX):
            index = int(key.removeprefix(OPTIMIZER_PREFIX).partition(".")[0])
            if index in parameters:
                tensors[key] = torch.zeros_like(parameters[index].detach(), dtype=each.properties.dtype)
    for key, tensor in tensors.items():
        if key not in described or tuple(described[key].size) != tuple(tensor.shape):
            raise UserError(f"{folder} does not fit the model that the options describe: {key.partition('.')[2]}")
    _load(tensors, reader, folder, process_group=group)
    for prefix, model in models.items():  # of q, k and v that are split, the state dict has a copy
        model.load_state_dict({name: tensors[prefix + name] for name in model.state_dict()})
    return tensors


def _load(tensors: dict[str, Tensor], reader: "_Reader", folder: Path, **how: Any) -> None:
    try:
        with warnings.catch_warnings():  # that there is no process group is intended
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(tensors, storage_reader=reader, **how)
    except (Exception, CheckpointException) as error:  # a broken or hostile file can make the reader raise anything
        raise UserError(f"{folder} cannot be read: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The first line of an error, or of the first one that torch collected from the ranks into a BaseException."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return first_line(error)


def _described(reader: "_Reader", folder: Path) -> dict[str, TensorStorageMetadata]:
    try:
        described = reader.read_metadata().state_dict_metadata
        if not all(isinstance(each, TensorStorageMetadata) for each in described.values()):
            raise ValueError("it describes more than tensors")
    except Exception as error:  # as above
        raise UserError(f"{folder / METADATA} cannot be read: {first_line(error)}; refused") from error
    return dict(described)  # type: ignore[arg-type]


class _Reader(dcp.FileSystemReader):
    """torch's reader, whose metadata can run no code."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        with open(Path(self.path) / METADATA, "rb") as file:
            metadata = _Metadata(file).load()
        metadata.storage_meta.load_id = self.load_id
        for info in metadata.storage_data.values():
            if not SHARD.fullmatch(str(info.relative_path)):
                raise ValueError(f"it names the file {info.relative_path}")
        return metadata


class _Metadata(pickle.Unpickler):
    """Builds descriptions of tensors; refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in DESCRIPTIONS.get(module, ()):
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)
