"""Converts states of models whose weights are sharded over processes (FSDP2) to whole tensors and back."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from alphadecay.sharing import is_sharded, local_part
from runtime.processes import Ranks


def whole_on_main(value: Any, is_main: bool) -> Any:
    """A state with each sharded tensor gathered into the main process' CPU memory; None for it on the other ranks.

    Tensors are gathered one after another, so a device holds one whole tensor at a time. Tensors that are not sharded
    stay as they are. All ranks that hold parts must call this.
    """
    if is_sharded(value):
        gathered = value.full_tensor()
        return gathered.cpu() if is_main else None
    if isinstance(value, dict):
        return type(value)((key, whole_on_main(item, is_main)) for key, item in value.items())
    if isinstance(value, list):
        return [whole_on_main(item, is_main) for item in value]
    return value


def is_sharded_model(model: nn.Module) -> bool:
    """Whether a model's weights are sharded across processes."""
    return any(is_sharded(p) for p in model.parameters())


def agree_on_buffers(models: Iterable[nn.Module | None], ranks: Ranks) -> None:
    """Copy the main process' buffers to all ranks: running statistics of batch norm differ between ranks."""
    if ranks.count > 1:
        for model in models:
            for buffer in model.buffers() if model is not None else ():
                if not is_sharded(buffer):
                    dist.broadcast(buffer, 0)


def load_whole_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load whole tensors, each with the shape of the model's, into a model, sharded or not.

    Raises RuntimeError as `load_state_dict`.
    """
    if not is_sharded_model(model):
        model.load_state_dict(weights)
        return
    own = model.state_dict()
    model.load_state_dict({name: own.get(name, value) for name, value in weights.items()})  # are all there, no other?
    for name, value in weights.items():  # one is whole at a time
        model.load_state_dict({name: _like(own[name], value)}, strict=False)


def sharded_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Convert an optimizer state of whole tensors for an optimizer whose parameters may be sharded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    saved = [index for group in state["param_groups"] for index in group["params"]]
    if not any(is_sharded(p) for p in parameters) or len(saved) != len(parameters):
        return state
    of_parameter = dict(zip(saved, parameters, strict=True))
    moments = {
        index: {name: _like(of_parameter[index], value) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return state | {"state": moments}


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all values of all tensors (any shape) are finite; for shards, on all processes."""
    # A value that is not finite makes the sum not finite, and sums are fast. Large finite values can overflow the sum,
    # so then every value is checked.
    tensors = [tensor.detach() for tensor in tensors]
    parts = [local_part(tensor) for tensor in tensors]
    fine = torch.stack([part.sum(dtype=torch.float32) for part in parts]).isfinite().all()
    if not fine:
        fine = torch.stack([part.isfinite().all() for part in parts]).all()
    if any(is_sharded(tensor) for tensor in tensors):
        broken = (~fine).float()
        dist.all_reduce(broken, dist.ReduceOp.MAX)
        fine = broken == 0
    return bool(fine)


def _like(own: Any, value: Any) -> Any:
    """A whole tensor, sharded like `own` if `own` is sharded and has the same shape."""
    if is_sharded(own) and isinstance(value, Tensor) and value.shape == own.shape:
        from torch.distributed.tensor import distribute_tensor

        # Each process has read the value itself and takes its part.
        return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
    return value
