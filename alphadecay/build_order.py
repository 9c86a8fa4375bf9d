"""What must not have been built yet when the parameters of a model are replaced."""

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
    """Raise ValueError, with what the caller is to do, if a model or a part of it is wrapped, compiled or sharded."""
    for module in model.modules():
        kinds = {each.__name__ for each in type(module).__mro__} & WRAPPERS
        if getattr(module, "_compiled_call_impl", None) is not None:
            kinds.add("torch.compile")
        if kinds:
            raise ValueError(f"call {caller} {when} {' or '.join(sorted(kinds))}: {type(model).__name__} is wrapped")
    for name, parameter in model.named_parameters():
        if is_distributed(parameter):
            raise ValueError(f"call {caller} {when} fully_shard or parallelize_module: {name} is distributed")


def refuse_held(weights: dict[int, str]) -> None:
    """Raise ValueError if an optimizer or DistributedDataParallel holds one of these weights.

    It would go on with the fused weight, which the model no longer has, and train nothing without a word. Neither
    is known to the model, so all living objects are looked at.
    """
    found = _holder(weights)
    if found is not None:
        gc.collect()  # it may only wait for that
        found = _holder(weights)
    if found is not None:
        raise ValueError(f"call split_qkv before building {found[0]}: it holds the fused weight of {found[1]}")


def _holder(weights: dict[int, str]) -> tuple[str, str] | None:
    """Class of an object that holds one of these weights, and the weight's name."""
    for each in gc.get_objects():
        held: Sequence[Tensor] = ()
        if issubclass(type(each), Optimizer):
            held = [p for group in getattr(each, "param_groups", ()) for p in group["params"]]
        elif issubclass(type(each), nn.parallel.DistributedDataParallel):
            held = list(each.parameters())
        for parameter in held:
            if id(parameter) in weights:
                return type(each).__name__, weights[id(parameter)]
    return None


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor, whose module takes long to import."""
    return hasattr(tensor, "device_mesh")
