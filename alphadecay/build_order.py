"""Checks that a model is not wrapped and no optimizer is built before parameters of the model are replaced."""

import gc
from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

WRAPPERS = frozenset(
    {
        "DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "FSDPModule", "OptimizedModule",
        "ScriptModule", "ModelEma", "ModelEmaV2", "ModelEmaV3", "AveragedModel",
    }
)  # fmt: skip


def refuse_wrapped(model: nn.Module, caller: str, when: str = "before") -> None:
    """Raise ValueError, which says what to do, if a model or a part of it is wrapped, compiled or sharded."""
    for module in model.modules():
        wrappers = {base.__name__ for base in type(module).__mro__} & WRAPPERS
        if getattr(module, "_compiled_call_impl", None) is not None:
            wrappers.add("torch.compile")
        if wrappers:
            raise ValueError(f"call {caller} {when} {' or '.join(sorted(wrappers))}: {type(model).__name__} is wrapped")
    for name, parameter in model.named_parameters():
        if is_distributed(parameter):
            raise ValueError(f"call {caller} {when} fully_shard or parallelize_module: {name} is distributed")


def refuse_held(weights: dict[int, str]) -> None:
    """Raise ValueError if an optimizer or DistributedDataParallel holds one of these weights (id -> name).

    It would keep the fused weight, which the model no longer has, and silently train nothing. The model has no
    reference to either, so this searches all objects that Python's garbage collector knows.
    """
    holder = _holder(weights)
    if holder is not None:
        gc.collect()  # the holder may be garbage
        holder = _holder(weights)
    if holder is not None:
        raise ValueError(f"call split_qkv before building {holder[0]}: it holds the fused weight of {holder[1]}")


def _holder(weights: dict[int, str]) -> tuple[str, str] | None:
    """Class of an object that holds one of these weights, and the weight's name; None if there is no such object."""
    for candidate in gc.get_objects():
        held: Sequence[Tensor] = ()
        if issubclass(type(candidate), Optimizer):
            held = [p for group in getattr(candidate, "param_groups", ()) for p in group["params"]]
        elif issubclass(type(candidate), nn.parallel.DistributedDataParallel):
            held = list(candidate.parameters())
        for parameter in held:
            if id(parameter) in weights:
                return type(candidate).__name__, weights[id(parameter)]
    return None


def is_distributed(tensor: Tensor) -> bool:
    """Whether a tensor of any shape is a DTensor; without importing DTensor's module, which takes long."""
    return hasattr(tensor, "device_mesh")
