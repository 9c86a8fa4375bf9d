"""The weights that a word on the command line means: a timm model, a checkpoint of a run, safetensors, a folder."""

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
MOST_PARTS = 200  # of a tensor's name, between full stops
MODEL, EMA, MANIFEST, INDEX = "model.safetensors", "ema.safetensors", "manifest.json", "model.safetensors.index.json"
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".tar"})
FLOATS = frozenset({"F16", "BF16", "F32", "F64", "C64"})  # safetensors' names of what spectra can be measured of

MIXED_HEADS = frozenset({"gpt_bigcode"})  # transformers' model types whose fused rows are q, k and v head by head


class BadInput(Exception):
    """One line for the person at the keyboard: it names the option or file and what is wrong with it."""


@dataclass(frozen=True)
class Source:
    """Weights, and where they are from."""

    what: str  # as it was asked for
    model: nn.Module
    description: str  # such as "timm model deit_tiny_patch16_224, random weights of seed 0"
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of each file that was read, by its path


def read_source(what: str, *, pretrained: bool = False, seed: int = 0, ema: bool = False) -> Source:
    """The weights that `what` names.

    Args:
        what: A timm model name; a run folder (its newest checkpoint), a checkpoint folder; a safetensors file; a
            folder with model.safetensors or shards of it, as transformers and timm save them.
        pretrained: Load timm's pretrained weights from the hub; else a timm model's are random.
        seed: Of random weights.
        ema: Take a checkpoint's moving average.

    Raises:
        BadInput: If there is no such thing, it is broken, or an option does not go with it. Pickles are refused
            without being loaded.
    """
    path = Path(what)
    is_path = path.exists() or path.is_symlink()
    looks_like_path = "/" in what or path.suffix in PICKLES | {".safetensors", ".json"}
    if not is_path and looks_like_path:
        raise BadInput(f"{what}: no such file or folder")
    if is_path and pretrained:
        raise BadInput(f"--pretrained: goes with the name of a timm model, {what} is a file or folder")
    if not is_path and ema:
        raise BadInput(f"--ema: goes with a checkpoint, {what} is the name of a timm model")
    return _from_path(what, path, ema) if is_path else _from_timm(what, pretrained, seed)


def _from_timm(name: str, pretrained: bool, seed: int) -> Source:
    import timm

    if not timm.is_model(name):
        close = ", ".join(get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)) or "none"
        raise BadInput(f"{name}: no such file, and timm {timm.__version__} has no such model; close names: {close}")
    torch.manual_seed(seed)
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # it reports each of its retries
    try:
        model = timm.create_model(name, pretrained=pretrained)
    except Exception as error:  # no network, no such weights: timm and the hub raise all kinds
        option = f"--pretrained {name}" if pretrained else name
        raise BadInput(f"{option}: {_first_line(error)}") from error
    finally:
        hub.setLevel(level)
    weights = "pretrained weights" if pretrained else f"random weights of seed {seed}"
    return Source(name, model, f"timm model {name}, {weights}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _from_path(what: str, path: Path, ema: bool) -> Source:
    path = _newest_checkpoint(path) if (path / "checkpoints").is_dir() else path
    if ema and not (path / MANIFEST).exists():
        raise BadInput(f"--ema: goes with a checkpoint of a run, {what} is none")
    files = _weight_files(path, ema)
    found: dict[str, Tensor] = {}
    for file in files:
        found |= _read_tensors(file)
    hashes = {str(file): sha256(file) for file in files}
    if (files[0].parent / MANIFEST).exists():
        _check_manifest(files[0], hashes[str(files[0])])
    if not any(tensor.ndim >= 2 for tensor in found.values()):
        raise BadInput(f"{what}: holds no weight matrix")
    description = str(files[0]) if len(files) == 1 else f"{files[0].parent}, {len(files)} shards"
    try:
        model = skeleton(found, *_declared(files[0].parent))
    except ValueError as error:
        raise BadInput(f"{files[0]}: {error}") from error
    if _config(files[0].parent / "config.json").get("model_type") in MIXED_HEADS:
        for module in model.modules():
            module.multi_query = True  # type: ignore[assignment]  # what split_qkv goes by
    return Source(what, model, description, hashes)


def _newest_checkpoint(run: Path) -> Path:
    """The folder of a run's last checkpoint."""
    steps = [p for p in (run / "checkpoints").glob("step_*") if p.name.removeprefix("step_").isdigit()]
    if not steps:
        raise BadInput(f"{run}: its checkpoints/ holds no step_... folder")
    return max(steps, key=lambda p: int(p.name.removeprefix("step_")))


def _weight_files(path: Path, ema: bool) -> list[Path]:
    """The safetensors file or shards that a path means."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise BadInput(f"{path}: is a link to nothing, or neither file nor folder")
    single = path / (EMA if ema else MODEL)
    if single.exists():
        return [single]
    if ema:
        raise BadInput(f"--ema: {path} holds no {EMA}; the run kept no moving average")
    if (path / INDEX).exists():
        return _shards(path / INDEX)
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES and p.is_file())
    if pickles:
        raise BadInput(f"{path / pickles[0]}: is a pickle, which can run code when loaded; convert it to safetensors")
    raise BadInput(f"{path}: holds no {MODEL} and no {INDEX}")


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
    """Floating-point tensors of a safetensors file, on the CPU.

    Raises:
        BadInput: If it is a pickle, broken, or quantized.
    """
    from safetensors import SafetensorError, safe_open

    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            if (deepest := max(name.count(".") for name in ["", *names])) >= MOST_PARTS:
                raise ValueError(f"a tensor's name has {deepest + 1} parts, more than {MOST_PARTS}")
            kinds = {name: file.get_slice(name).get_dtype() for name in names}
            _refuse_quantized(path, kinds)
            return {name: file.get_tensor(name) for name in names if kinds[name] in FLOATS}
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInput(f"{path}: is no safetensors file, or a broken one: {_first_line(error)}") from error


def refuse_pickle(path: Path) -> None:
    """Raise BadInput if a file is a pickle or a zip of pickles, by its name or its first bytes."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from error
    is_safetensors = head[8:9] == b"{"  # the length of a header in JSON comes before it
    pickled = head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05")
    if not is_safetensors and (pickled or path.suffix in PICKLES):
        raise BadInput(f"{path}: is a pickle, which can run code when loaded; convert it to safetensors")


def _refuse_quantized(path: Path, kinds: Mapping[str, str]) -> None:
    for name, kind in kinds.items():
        if name.rpartition(".")[2] in ("weight", "qweight") and kind not in FLOATS:
            raise BadInput(f"{path}: {name} is quantized ({kind}); spectra need weights in floating point")


def _check_manifest(file: Path, found: str) -> None:
    """Raise BadInput if a checkpoint's file is not the one that was written."""
    manifest = file.parent / MANIFEST
    try:
        expected = _json_of(manifest)["files"][file.name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{manifest}: cannot be read, or does not name {file.name}") from error
    if found != expected:
        raise BadInput(f"{file}: is broken: its SHA-256 is not the manifest's")


def _declared(folder: Path) -> tuple[dict[str, Any] | None, dict[str, nn.Conv2d]]:
    """Stem and head, and the convolutions, of the timm model of a run or of a folder that timm saved."""
    run = folder.resolve().parent.parent
    for path, key in ((folder / "config.json", "architecture"), (run / "config.json", "model")):
        name = _config(path).get(key)
        if isinstance(name, str):
            import timm

            if timm.is_model(name) and (config := timm.get_pretrained_cfg(name)) is not None:
                declared = config.to_dict()
                with torch.device("meta"):
                    modules = dict(timm.create_model(name).named_modules())
                convolutions = {name: each for name, each in modules.items() if isinstance(each, nn.Conv2d)}
                return {key: declared[key] for key in ("first_conv", "classifier") if key in declared}, convolutions
    return None, {}


def _config(path: Path) -> dict[str, Any]:
    """What a config.json says; nothing where there is none that can be read: it only holds hints."""
    try:
        config = _json_of(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _json_of(path: Path) -> Any:
    """What a JSON file holds; OSError for a pipe, at which a reader could wait for ever, and what is too large."""
    if path.exists() and not (path.is_file() and path.stat().st_size <= MOST_JSON):
        raise OSError(f"{path} is no regular file of at most {MOST_JSON} bytes")
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
