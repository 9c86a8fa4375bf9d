"""Checks of a model on a few tokens, before a run begins."""

from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import UserError, first_line

TOKENS = 8
TOLERANCE = 1e-3  # relative to the standard deviation of the logits; float32 rounding is 1000 times smaller


def require_causal(model: nn.Module, label: str) -> None:
    """Raise UserError if the model cannot run, or if its prediction at a token depends on a later token.

    Args:
        model: A model with float32 weights that is not wrapped.
        label: Option and value for the message, such as "--model_config PATH".
    """
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    ids = (torch.arange(TOKENS) % vocabulary).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % vocabulary
    try:
        first, second = _logits(model, ids)[:, :-1]
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError, IndexError) as error:
        raise UserError(f"{label}: the model cannot run: {first_line(error)}") from error
    if _differ(first, second):
        raise UserError(f"{label}: not a causal language model: its predictions depend on tokens that come later")


def require_plain_head(model: nn.Module) -> None:
    """Raise UserError if the logits are not the last hidden states times the output layer's weight."""
    ids = torch.arange(TOKENS)[None] % model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    untyped: Any = model
    with torch.no_grad():
        was_training = model.training
        product = untyped.get_output_embeddings()(untyped.eval().base_model(input_ids=ids)[0])
        model.train(was_training)
    if _differ(product, _logits(model, ids)):
        raise UserError(
            "--chunked_loss true: this model's logits are more than one matrix product of its hidden states"
        )


@torch.no_grad()
def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    was_training = model.training
    logits = model.eval()(input_ids=ids).logits
    model.train(was_training)
    return logits


def _differ(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).abs().max() > TOLERANCE * second.std())
