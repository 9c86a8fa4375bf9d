"""The loss of a language model without all of its logits in memory at once."""

from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llama.sequences import IGNORED

TOKENS_AT_ONCE = 1024  # whose logits are in memory: 64 MB of bfloat16 for a vocabulary of 32000


def give_summed_loss(model: nn.Module) -> None:
    """Let `model(input_ids=ids, targets=targets)` return the cross-entropy summed over targets that are not -100.

    Logits are made for some tokens at a time, and made again for the backward pass. They are what autocast makes them,
    and the sum is in float32. (torch's linear_cross_entropy sums in the precision of the hidden states.) All happens
    inside the model's own forward pass, as DistributedDataParallel and FSDP need.
    """
    named: Any = model
    plain_forward = model.forward

    def forward(*args: Any, targets: Tensor | None = None, **others: Any) -> Any:
        if targets is None:
            return plain_forward(*args, **others)
        hidden = named.base_model(*args, **others)[0].flatten(0, 1).split(TOKENS_AT_ONCE)
        head = named.get_output_embeddings()
        losses = [
            checkpoint(summed_loss, head, part, target, use_reentrant=False)
            for part, target in zip(hidden, targets.flatten().split(TOKENS_AT_ONCE), strict=True)
        ]
        return sum(losses[1:], losses[0])

    named.forward = forward


def summed_loss(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of some tokens, in float32."""
    return nn.functional.cross_entropy(head(hidden).float(), targets, ignore_index=IGNORED, reduction="sum")
