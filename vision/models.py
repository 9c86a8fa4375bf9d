"""The timm model of a run."""

import difflib
import os
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn

import alphadecay
from runtime.checkpoints import find_checkpoint
from runtime.errors import UserError
from runtime.tables import say
from vision.options import ModelOptions, parse_keywords


def build_model(options: ModelOptions, classes: int, input_size: int, new_head: bool = True) -> nn.Module:
    """Build a timm model for this number of classes and this image size in pixels.

    Without `new_head`, the weights to start from must include a head for these classes.

    Raises:
        UserError: If timm does not know the model, the model rejects an argument or the weights, or --split_qkv finds
            no fused qkv projection in it.
    """
    name = options.model
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        raise UserError(f"--model {name}: timm {timm.__version__} has no such model; close: {', '.join(close) or '-'}")
    config = timm.get_pretrained_cfg(name)
    keywords: dict[str, Any] = {"num_classes": classes}
    if config is not None and config.fixed_input_size and input_size != config.input_size[-1]:
        keywords["img_size"] = input_size
    if options.drop_path:
        keywords["drop_path_rate"] = options.drop_path
    keywords |= parse_keywords(options.model_kwargs)
    arguments = " ".join(f"{key}={value}" for key, value in keywords.items())
    try:
        model = timm.create_model(name, **keywords)
    except Exception as error:  # models check their arguments, and absurd values can raise any error
        raise UserError(f"--model {name} does not accept {arguments}: {error}") from error
    if options.pretrained or options.finetune:
        model = _with_weights(options, keywords, new_head)
    if options.split_qkv:
        try:
            alphadecay.split_qkv(model)
        except ValueError as error:
            raise UserError(f"--split_qkv: {error}") from error
    return model.to(memory_format=torch.channels_last) if options.channels_last else model


def _with_weights(options: ModelOptions, keywords: dict[str, Any], new_head: bool) -> nn.Module:
    """Build the model with timm's pretrained weights or those of a file. A head for other classes stays random.

    timm adapts position embeddings to the input size and the stem to the input channels.
    """
    config = timm.get_pretrained_cfg(options.model)
    source, overlay, classes = "--pretrained", None, config.num_classes if config is not None else None
    if options.finetune:
        source = f"--finetune {options.finetune}"
        weights = read_weights(Path(options.finetune))
        head = config.classifier if config is not None else None
        head_name = head if isinstance(head, str) else (head[0] if head else "head")
        head_weight = weights.get(f"{head_name}.weight")
        classes = None if head_weight is None else len(head_weight)
        overlay = {"state_dict": weights, "num_classes": classes or keywords["num_classes"], "custom_load": False}
    if classes != keywords["num_classes"] and not new_head:
        raise UserError(f"{source}: has a head for {classes} classes, the data have {keywords['num_classes']}")
    if classes != keywords["num_classes"] and os.environ.get("RANK", "0") == "0":
        number = keywords["num_classes"]
        say(f"{source}: the head is new: the weights have {classes or 'no'} classes, the data {number}")
    try:
        return timm.create_model(options.model, pretrained=True, pretrained_cfg_overlay=overlay, **keywords)
    except Exception as error:  # no network, no such weights, weights of another model: errors of many classes
        lines = [line.strip() for line in str(error).splitlines()]
        reason = lines[1] if len(lines) > 1 and lines[0].startswith("Error(s)") else lines[0]  # lines[1] names weights
        raise UserError(f"{source}: cannot be loaded into {options.model}: {_shortened(reason)}") from error


def _shortened(message: str) -> str:
    """A message of torch that lists keys, cut after three of them."""
    parts = message.split(", ")
    return ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from safetensors, a .pth file or one of our checkpoint folders. Runs no code from the file.

    Raises:
        UserError: If there is no such file, or it contains anything but tensors.
    """
    if path.is_dir():
        checkpoint, _ = find_checkpoint(path)
        return checkpoint.model_weights()
    if not path.is_file():
        raise UserError(f"--finetune {path}: {'is not a regular' if path.exists() else 'no such'} file")
    try:
        safe = path.suffix == ".safetensors"
        loaded = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or malicious file can make the readers raise any error
        raise UserError(f"--finetune {path}: refused: it does not contain weights, or not only weights") from error
    for key in ("state_dict", "model"):
        loaded = loaded.get(key, loaded) if isinstance(loaded, dict) else loaded
    tensors = isinstance(loaded, dict) and all(isinstance(value, torch.Tensor) for value in loaded.values())
    if not loaded or not tensors or not all(isinstance(name, str) for name in loaded):
        raise UserError(f"--finetune {path}: is not a state dict of tensors")
    return {name.removeprefix("module."): value for name, value in loaded.items()}
