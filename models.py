"""The timm model of a run and its moving average."""

import ast
import difflib
from dataclasses import dataclass
from typing import Any

import timm
from timm.utils import ModelEmaV3
from torch import nn

from runtime.errors import UserError
from runtime.options import option


@dataclass(frozen=True)
class ModelOptions:
    """The timm model."""

    model: str = option("deit_tiny_patch16_224", "a timm model name")
    pretrained: bool = option(False, "start from timm's pretrained weights")
    drop_path: float = option(0.0, "rate of stochastic depth", minimum=0, maximum=0.99)
    model_kwargs: tuple[str, ...] = option((), "KEY=VALUE ... passed to the model, such as embed_dim=96 depth=4")


@dataclass(frozen=True)
class EmaOptions:
    """The moving average of the weights."""

    model_ema: bool = option(False, "keep a moving average of the weights")
    model_ema_decay: float = option(0.9999, "how much of the average a step keeps", minimum=0, maximum=1)
    model_ema_warmup: bool = option(False, "let the average follow the weights more closely at the start")
    model_ema_eval: bool = option(False, "evaluate the average too")

    CHECKS = (
        (
            lambda o: o.model_ema or not o.model_ema_eval,
            "--model_ema_eval true: there is no average to evaluate without --model_ema",
        ),
    )


def build_model(options: ModelOptions, classes: int, input_size: int) -> nn.Module:
    """A timm model for so many classes and pixels.

    Raises:
        UserError: If timm does not know the model, or the model does not take what it is given.
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
    try:
        return timm.create_model(name, pretrained=options.pretrained, **keywords)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        given = " ".join(f"{key}={value}" for key, value in keywords.items())
        raise UserError(f"--model {name} does not accept {given}: {error}") from error


def parse_keywords(words: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE words as keyword arguments; values are Python literals where they can be, else text."""
    keywords: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--model_kwargs {word}: expected KEY=VALUE")
        try:
            keywords[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            keywords[key] = text
    return keywords


def build_ema(options: EmaOptions, model: nn.Module) -> ModelEmaV3 | None:
    """timm's moving average of a model, on the model's device; None where it is off."""
    if not options.model_ema:
        return None
    return ModelEmaV3(model, decay=options.model_ema_decay, use_warmup=options.model_ema_warmup)
