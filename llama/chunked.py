"""The loss of a language model, computed without having all logits in memory at once."""

from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llama.sequences import IGNORED

TOKENS_AT_ONCE = 1024  # tokens whose logits are in memory: 64 MB in bfloat16 for a vocabulary of 32000


def give_summed_loss(model: nn.Module) -> None:
    """Let `model(input_ids=ids, targets=targets)` return the cross-entropy summed over targets that are not -100.

    Both have shape (sequences, length) and dtype int64; the result is a float32 scalar. Logits are computed for 1024
    tokens at a time, and again in the backward pass. They have the dtype that autocast gives them, but the sum is in
    float32. (torch's linear_cross_entropy sums in the precision of the hidden states.) All this happens inside the
    model's own forward pass, as DistributedDataParallel and FSDP require.
    """
    plain_forward = type(model).forward

    def forward(self: Any, *args: Any, targets: Tensor | None = None, **others: Any) -> Any:
        if targets is None:
            return plain_forward(self, *args, **others)
        # (sequences, length, hidden size) -> (tokens, hidden size)
        hidden = self.base_model(*args, **others)[0].flatten(0, 1).split(TOKENS_AT_ONCE)
        head = self.get_output_embeddings()
        losses = [
            checkpoint(summed_loss, head, states, labels, use_reentrant=False)
            for states, labels in zip(hidden, targets.flatten().split(TOKENS_AT_ONCE), strict=True)
        ]
        return sum(losses[1:], losses[0])

    model.forward = MethodType(forward, model)  # a deep copy has its own: a function would use this model's weights


def summed_loss(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy summed in float32, a scalar, of hidden states (tokens, hidden size) and targets (tokens,)."""
    return nn.functional.cross_entropy(head(hidden).float(), targets, ignore_index=IGNORED, reduction="sum")
