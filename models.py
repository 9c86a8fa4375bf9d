"""The timm model of a run and its moving average."""

import ast
import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import nn

import alphadecay
from runtime.checkpoints import find_checkpoint
from runtime.errors import UserError
from runtime.options import option
from runtime.tables import say

# What may not come in through --model_kwargs, which the file of a run or a grid sets too: what loads files, and what
# other options say.
NO_KEYWORDS = {
    "checkpoint_path": "loads a file; give --finetune",
    "cache_dir": "names a folder of downloads",
    "pretrained": "loads weights; give --pretrained or --finetune",
    "num_classes": "the data say how many classes there are",
    "img_size": "give --input_size",
    "drop_path_rate": "give --drop_path",
    "features_only": "leaves no classifier",
    "scriptable": "is not for training",
    "exportable": "is not for training",
}


@dataclass(frozen=True)
class ModelOptions:
    """The timm model."""

    model: str = option("deit_tiny_patch16_224", "a timm model name", fixed="model")
    pretrained: bool = option(False, "start from timm's pretrained weights")
    finetune: str = option("", "start from these weights: safetensors, a .pth of weights, or a checkpoint of a run")
    compile: bool = option(False, "compile the model with torch.compile", fixed="precision")
    channels_last: bool = option(False, "keep images and convolutions with channels last in memory", fixed="precision")
    drop_path: float = option(0.0, "rate of stochastic depth", minimum=0, maximum=0.99, fixed="model")
    model_kwargs: tuple[str, ...] = option(
        (), "KEY=VALUE ... passed to the model, such as embed_dim=96 depth=4", fixed="model"
    )
    split_qkv: bool = option(
        False, "give q, k and v of fused attention projections spectra and decays of their own", fixed="model"
    )

    CHECKS = (
        (
            lambda o: not (o.pretrained and o.finetune),
            "--finetune {finetune}: not together with --pretrained, which names other weights",
        ),
        (lambda o: parse_keywords(o.model_kwargs) is not None, ""),  # which says what is wrong with them
    )


@dataclass(frozen=True)
class EmaOptions:
    """The moving average of the weights."""

    model_ema: bool = option(False, "keep a moving average of the weights", fixed="ema")
    model_ema_decay: float = option(0.9999, "how much of the average a step keeps", minimum=0, maximum=1, fixed="ema")
    model_ema_warmup: bool = option(False, "let the average follow the weights more closely at the start", fixed="ema")
    model_ema_eval: bool = option(False, "evaluate the average too")

    CHECKS = (
        (
            lambda o: o.model_ema or not o.model_ema_eval,
            "--model_ema_eval true: there is no average to evaluate without --model_ema",
        ),
    )


def build_model(options: ModelOptions, classes: int, input_size: int, new_head: bool = True) -> nn.Module:
    """A timm model for so many classes and pixels; without `new_head` its weights must come with a head for them.

    Raises:
        UserError: If timm does not know the model, the model does not take what it is given, or has no fused qkv
            that is to be split.
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
    given = " ".join(f"{key}={value}" for key, value in keywords.items())
    try:
        model = timm.create_model(name, **keywords)
    except Exception as error:  # the models' own checks, and whatever absurd values lead to
        raise UserError(f"--model {name} does not accept {given}: {error}") from error
    if options.pretrained or options.finetune:
        model = _start_from(options, keywords, new_head)
    if options.split_qkv:
        try:
            alphadecay.split_qkv(model)
        except ValueError as error:
            raise UserError(f"--split_qkv: {error}") from error
    return model.to(memory_format=torch.channels_last) if options.channels_last else model


def _start_from(options: ModelOptions, keywords: dict[str, Any], new_head: bool) -> nn.Module:
    """The model with timm's pretrained weights or those of a file; a head for other classes stays as initialised.

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
        say(f"{source}: the head is new: theirs has {classes or 'no'} classes, the data {keywords['num_classes']}")
    try:
        return timm.create_model(options.model, pretrained=True, pretrained_cfg_overlay=overlay, **keywords)
    except Exception as error:  # no network, no such weights, weights of another model: timm raises all kinds
        said = [line.strip() for line in str(error).splitlines()]
        why = said[1] if len(said) > 1 and said[0].startswith("Error(s)") else said[0]  # the weights' names
        raise UserError(f"{source}: cannot be loaded into {options.model}: {_shortened(why)}") from error


def _shortened(names: str) -> str:
    """Keys that torch lists, or any other message, cut after three of them."""
    parts = names.split(", ")
    return ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from safetensors, a .pth file or a checkpoint folder of ours; no code in it is run.

    Raises:
        UserError: If there is no such file, or it holds anything but tensors.
    """
    if path.is_dir():
        checkpoint, _ = find_checkpoint(path)
        return checkpoint.model_weights()
    if not path.exists():
        raise UserError(f"--finetune {path}: no such file")
    try:
        safe = path.suffix == ".safetensors"
        loaded = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or malicious file makes the readers raise
        raise UserError(f"--finetune {path}: holds no weights, or more than weights; refused") from error
    for key in ("state_dict", "model"):
        loaded = loaded.get(key, loaded) if isinstance(loaded, dict) else loaded
    tensors = isinstance(loaded, dict) and all(isinstance(value, torch.Tensor) for value in loaded.values())
    if not loaded or not tensors or not all(isinstance(name, str) for name in loaded):
        raise UserError(f"--finetune {path}: is no state dict of tensors")
    return {name.removeprefix("module."): value for name, value in loaded.items()}


def parse_keywords(words: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE words as keyword arguments; values are Python literals where they can be, else text."""
    keywords: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--model_kwargs {word}: expected KEY=VALUE")
        if why := NO_KEYWORDS.get("pretrained" if key.startswith("pretrained") else key):
            raise UserError(f"--model_kwargs {word}: {why}")
        try:
            keywords[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            keywords[key] = text
        if isinstance(keywords[key], int) and keywords[key] < 0:
            raise UserError(f"--model_kwargs {word}: must be at least 0")
    return keywords


def build_ema(options: EmaOptions, model: nn.Module) -> ModelEmaV3 | None:
    """timm's moving average of a model, on the model's device; None where it is off."""
    if not options.model_ema:
        return None
    return ModelEmaV3(model, decay=options.model_ema_decay, use_warmup=options.model_ema_warmup)
