"""The loss from hidden states in chunks: never all logits at once, and none of them kept for the backward pass."""

from typing import Any

import torch
from torch import Tensor, nn

from llama.sequences import IGNORED
from runtime.errors import UserError

CHUNK = 2**23  # logits; 32 MB in float32
CHANGED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # by the models whose config has them


def give_chunked_loss(model: Any) -> None:
    """Let a causal language model return the summed cross-entropy where its forward is given `targets`.

    In the model's own forward, so that what wraps it (DDP, FSDP2) sees the parameters being used.

    Raises:
        UserError: If its logits are not just a product of hidden states and weights.
    """
    head, usual = model.get_output_embeddings(), model.forward
    changes = [name for name in CHANGED_LOGITS if getattr(model.config, name, None) not in (None, 1.0)]
    if not isinstance(head, nn.Linear) or head.bias is not None or changes:
        why = ", ".join(changes) or "its output layer is no Linear without bias"
        raise UserError(f"--chunked_loss true: not for {type(model).__name__}: {why}")

    def forward(*words: Any, targets: Tensor | None = None, **named: Any) -> Any:
        if targets is None:
            return usual(*words, **named)
        hidden = model.base_model(*words, **named).last_hidden_state.flatten(0, 1)
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        rows = max(1, CHUNK // head.weight.shape[0])
        with torch.autocast(device, enabled=False):
            return _ChunkedLoss.apply(hidden.to(dtype), head.weight, targets.flatten(), rows, torch.is_grad_enabled())

    model.forward = forward


class _ChunkedLoss(torch.autograd.Function):
    """Sum of cross-entropies; its gradients are computed with it, chunk by chunk, and only scaled in the backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int, learns: bool) -> Tensor:
        product = weight.to(hidden.dtype)
        total = torch.zeros((), device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if learns else hidden
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if learns else weight
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            counts, places = targets[part, None] != IGNORED, targets[part, None].clamp_min(0)
            logs = (hidden[part] @ product.T).float().log_softmax(1)
            total -= (logs.gather(1, places) * counts).sum()
            if learns:
                excess = logs.exp_().scatter_add_(1, places, torch.full_like(places, -1, dtype=logs.dtype))
                excess = excess.mul_(counts).to(hidden.dtype)
                hidden_grad[part] = excess @ product
                weight_grad += excess.T @ hidden[part]
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Any, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        return (
            hidden_grad * outer[0].to(hidden_grad.dtype),
            (weight_grad * outer[0]).to(ctx.weight_dtype),
            None,
            None,
            None,
        )
