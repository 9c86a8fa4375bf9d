"""Read the weights that a command-line argument names: a timm model, a run's checkpoint, safetensors, a folder."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alphadecay.skeletons import skeleton

MOST_JSON = 64 << 20  # bytes
MOST_PARTS = 200  # of a tensor's name, separated by full stops
MODEL, EMA, MANIFEST, INDEX = "model.safetensors", "ema.safetensors", "manifest.json", "model.safetensors.index.json"
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".tar"})
FLOATS = frozenset({"F16", "BF16", "F32", "F64", "C64"})  # dtypes that can be measured, as safetensors names them

MIXED_HEADS = frozenset({"gpt_bigcode"})  # transformers' model types whose fused rows are q, k and v per head


class BadInput(Exception):
    """One line for the user: the option or file, and what is wrong with it."""


@dataclass(frozen=True)
class Source:
    """Weights, and where they are from."""

    argument: str  # the command-line argument that names it
    model: nn.Module
    description: str  # such as "timm model deit_tiny_patch16_224, random weights of seed 0"
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of each file that was read, by its path


def read_source(argument: str, *, pretrained: bool = False, seed: int = 0, ema: bool = False) -> Source:
    """Read the weights that a command-line argument names.

    Args:
        argument: A timm model name; a run folder (its newest checkpoint is read), a checkpoint folder; a safetensors
            file; a folder with model.safetensors or its shards, as saved by transformers or timm.
        pretrained: Load timm's pretrained weights from the hub; if False, a timm model has random weights.
        seed: Seed of random weights.
        ema: Read the EMA weights of a checkpoint.

    Raises:
        BadInput: If the source does not exist, is damaged, or an option cannot be used with it. Pickles are refused
            without being loaded.
    """
    path = Path(argument)
    is_path = path.exists() or path.is_symlink()
    looks_like_path = "/" in argument or path.suffix in PICKLES | {".safetensors", ".json"}
    if not is_path and looks_like_path:
        raise BadInput(f"{argument}: no such file or folder")
    if is_path and pretrained:
        raise BadInput(f"--pretrained: needs the name of a timm model, but {argument} is a file or folder")
    if not is_path and ema:
        raise BadInput(f"--ema: needs a checkpoint, but {argument} is the name of a timm model")
    return _from_path(argument, path, ema) if is_path else _from_timm(argument, pretrained, seed)


def _from_timm(name: str, pretrained: bool, seed: int) -> Source:
    import timm

    if not timm.is_model(name):
        close = ", ".join(get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)) or "none"
        raise BadInput(f"{name}: no such file, and timm {timm.__version__} has no such model; close names: {close}")
    torch.manual_seed(seed)
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # it would report each retry
    try:
        model = timm.create_model(name, pretrained=pretrained)
    except Exception as error:  # no network or no such weights: timm and the hub raise many types of errors
        option = f"--pretrained {name}" if pretrained else name
        raise BadInput(f"{option}: {_first_line(error)}") from error
    finally:
        hub.setLevel(level)
    weights = "pretrained weights" if pretrained else f"random weights of seed {seed}"
    return Source(name, model, f"timm model {name}, {weights}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _from_path(argument: str, path: Path, ema: bool) -> Source:
    path = _newest_checkpoint(path) if (path / "checkpoints").is_dir() else path
    if ema and not (path / MANIFEST).exists():
        raise BadInput(f"--ema: needs a checkpoint of a run, but {argument} is not one")
    files = _weight_files(path, ema)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _read_tensors(file)
    hashes = {str(file): sha256(file) for file in files}
    if (files[0].parent / MANIFEST).exists():
        _check_manifest(files[0], hashes[str(files[0])])
    if not any(tensor.ndim >= 2 for tensor in tensors.values()):
        raise BadInput(f"{argument}: has no weight matrix")
    description = str(files[0]) if len(files) == 1 else f"{files[0].parent}, {len(files)} shards"
    try:
        model = skeleton(tensors, *_declared(files[0].parent))
    except ValueError as error:
        raise BadInput(f"{files[0]}: {error}") from error
    if _config(files[0].parent / "config.json").get("model_type") in MIXED_HEADS:
        for module in model.modules():
            module.multi_query = True  # type: ignore[assignment]  # split_qkv reads it
    return Source(argument, model, description, hashes)


def _newest_checkpoint(run: Path) -> Path:
    """The folder of a run's newest checkpoint."""
    steps = [p for p in (run / "checkpoints").glob("step_*") if p.name.removeprefix("step_").isdigit()]
    if not steps:
        raise BadInput(f"{run}: its checkpoints/ has no step_... folder")
    return max(steps, key=lambda p: int(p.name.removeprefix("step_")))


def _weight_files(path: Path, ema: bool) -> list[Path]:
    """The safetensors file or shards to read for a path."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise BadInput(f"{path}: is a broken link, or neither a file nor a folder")
    single = path / (EMA if ema else MODEL)
    if single.exists():
        return [single]
    if ema:
        raise BadInput(f"--ema: {path} has no {EMA}; the run had no EMA")
    if (path / INDEX).exists():
        return _shards(path / INDEX)
    if (path / ".metadata").exists():
        export = f"main_llama.py --eval --resume {path} --export_hf FOLDER"
        raise BadInput(f"{path}: each process wrote its part of this checkpoint; analyze what `{export}` writes")
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES and p.is_file())
    if pickles:
        raise BadInput(f"{path / pickles[0]}: is a pickle, which can run code when loaded; convert it to safetensors")
    raise BadInput(f"{path}: has neither {MODEL} nor {INDEX}")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(_json_of(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{index}: cannot be read as an index of shards ({type(error).__name__})") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise BadInput(f"{index}: names the shard {name!r}, which is outside its folder")
        if not (index.parent / name).is_file():
            raise BadInput(f"{index.parent / name}: no such file, but {index.name} names it")
    if not names:
        raise BadInput(f"{index}: names no shard")
    return [index.parent / name for name in names]


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The floating-point tensors of a safetensors file, on the CPU.

    Raises:
        BadInput: If it is a pickle, damaged, or quantized.
    """
    from safetensors import SafetensorError, safe_open

    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            if (deepest := max(name.count(".") for name in ["", *names])) >= MOST_PARTS:
                raise ValueError(f"a tensor's name has {deepest + 1} parts, more than {MOST_PARTS}")
            dtypes = {name: file.get_slice(name).get_dtype() for name in names}
            _refuse_quantized(path, dtypes)
            return {name: file.get_tensor(name) for name in names if dtypes[name] in FLOATS}
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInput(f"{path}: is not a safetensors file, or is damaged: {_first_line(error)}") from error


def refuse_pickle(path: Path) -> None:
    """Raise BadInput if a file is a pickle or a zip of pickles, by its name or its first bytes."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from error
    is_safetensors = head[8:9] == b"{"  # 8 bytes with the header's length, then the header in JSON
    pickled = head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05")
    if not is_safetensors and (pickled or path.suffix in PICKLES):
        raise BadInput(f"{path}: is a pickle, which can run code when loaded; convert it to safetensors")


def _refuse_quantized(path: Path, dtypes: Mapping[str, str]) -> None:
    for name, dtype in dtypes.items():
        if name.rpartition(".")[2] in ("weight", "qweight") and dtype not in FLOATS:
            raise BadInput(f"{path}: {name} is quantized ({dtype}); spectra need floating-point weights")


def _check_manifest(file: Path, actual: str) -> None:
    """Raise BadInput if the SHA-256 of a checkpoint's file is not the one in its manifest."""
    manifest = file.parent / MANIFEST
    try:
        expected = _json_of(manifest)["files"][file.name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{manifest}: cannot be read, or does not name {file.name}") from error
    if actual != expected:
        raise BadInput(f"{file}: is damaged: its SHA-256 differs from the manifest's")


def _declared(folder: Path) -> tuple[dict[str, Any] | None, dict[str, nn.Conv2d]]:
    """Stem, head and convolutions of the timm model that a run trained or timm saved; nothing if it is unknown."""
    run = folder.resolve().parent.parent
    for path, key in ((folder / "config.json", "architecture"), (run / "config.json", "model")):
        name = _config(path).get(key)
        if isinstance(name, str):
            import timm

            if timm.is_model(name) and (config := timm.get_pretrained_cfg(name)) is not None:
                declared = config.to_dict()
                with torch.device("meta"):
                    modules = dict(timm.create_model(name).named_modules())
                convolutions = {name: module for name, module in modules.items() if isinstance(module, nn.Conv2d)}
                return {key: declared[key] for key in ("first_conv", "classifier") if key in declared}, convolutions
    return None, {}


def _config(path: Path) -> dict[str, Any]:
    """The content of a config.json; empty if it cannot be read, because it only has hints."""
    try:
        config = _json_of(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _json_of(path: Path) -> Any:
    """The content of a JSON file; OSError for a pipe, which could block the reader for ever, and for a large file."""
    if path.exists() and not (path.is_file() and path.stat().st_size <= MOST_JSON):
        raise OSError(f"{path} is not a regular file of at most {MOST_JSON} bytes")
    return json.loads(path.read_text())


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in _blocks(file):
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: Any) -> Iterable[bytes]:
    return iter(lambda: file.read(1 << 20), b"")
