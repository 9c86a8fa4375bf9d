"""FSDP2 for language models: weights, gradients and optimizer state are split over processes."""

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from runtime.errors import UserError
from runtime.processes import Ranks


def mesh_of(ranks: Ranks, size: int | None) -> DeviceMesh:
    """The processes that share one copy of the model, and those that hold copies of the same part (HSDP).

    Args:
        ranks: All processes, on the device that the weights are to be on.
        size: How many share one copy; None: all of them.

    Returns:
        Shape (count,), or (count / size, size) with the processes of a copy next to each other, as they are on a node.

    Raises:
        UserError: If there is one process, or their number is no multiple of `size`.
    """
    if ranks.count == 1:
        raise UserError("--fsdp true: needs several processes; start with torchrun --nproc_per_node=N")
    if size is None or size == ranks.count:
        return init_device_mesh(ranks.device.type, (ranks.count,), mesh_dim_names=("shard",))
    if ranks.count % size:
        raise UserError(f"--fsdp_size {size}: {ranks.count} processes are no multiple of it")
    return init_device_mesh(ranks.device.type, (ranks.count // size, size), mesh_dim_names=("copy", "shard"))


def sharded_layers(model: nn.Module, mesh: DeviceMesh, amp: torch.dtype | None) -> nn.Module:
    """The model with FSDP2: each block of layers, then the rest; each goes to the mesh's device when it is sharded.

    Args:
        model: On the CPU.
        mesh: Of `mesh_of`.
        amp: Weights are gathered in this precision, 16 bits halve traffic and memory; gradients are averaged in
            float32. None: everything in the weights' own precision.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    how: dict[str, Any] = {"mesh": mesh}
    if amp is not None:
        how["mp_policy"] = MixedPrecisionPolicy(param_dtype=amp, reduce_dtype=torch.float32)
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, **how)
    fully_shard(model, **how)
    return model
