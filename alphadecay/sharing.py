"""Measuring one model on several ranks: each matrix once, by one of the ranks that hold it, the same result on all."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from alphadecay.matrices import Matrix

Record = TypeVar("Record")


def assign_to_ranks(matrices: Sequence[Matrix], group: Any) -> Iterator[Matrix]:
    """The matrices that this rank measures, with their whole weights; together the ranks have each once.

    Ranks may hold the same model (data parallel), other parts of it (pipeline parallel), or shards of its weights
    (FSDP2): a sharded weight is gathered to the one rank that measures it, one for each rank at a time.

    Args:
        matrices: Those of this rank that take part.
        group: The ranks; all of them must call, and take all that comes.
    """
    ranks = dist.get_world_size(group)
    held = _gathered({matrix.name: cost(matrix) for matrix in matrices}, group, ranks)
    by_name = {matrix.name: matrix for matrix in matrices}
    for turn in turns_of(owners_of(held), ranks):
        mine = [_gathered_to(owner, by_name[name], group) for owner, name in turn if name in by_name]
        yield from (each for each in mine if each is not None)


def gather_records(found: dict[str, Record] | ValueError, group: Any) -> dict[str, Record]:
    """What all ranks of a group have found, by name; an error of one is raised on all. All of them must call."""
    outcomes = _gathered(found, group, dist.get_world_size(group))
    for outcome in outcomes:
        if isinstance(outcome, ValueError):
            raise outcome
    return {name: record for outcome in outcomes for name, record in outcome.items()}


def owners_of(held: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """Which rank measures each matrix: the costliest first, each goes to the rank that has least to do.

    Args:
        held: For each rank, the cost of each matrix that it holds, by name.
    """
    costs = {name: each[name] for each in reversed(held) for name in each}
    loads = [0.0] * len(held)
    owners = {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        owner = min((rank for rank, names in enumerate(held) if name in names), key=loads.__getitem__)
        owners[name] = owner
        loads[owner] += costs[name]
    return owners


def turns_of(owners: Mapping[str, int], ranks: int) -> list[list[tuple[int, str]]]:
    """Turns in each of which every rank measures one matrix: lists of (rank, name)."""
    lists: list[list[str]] = [[] for _ in range(ranks)]
    for name, owner in owners.items():
        lists[owner].append(name)
    longest = max(map(len, lists), default=0)
    return [[(rank, names[turn]) for rank, names in enumerate(lists) if turn < len(names)] for turn in range(longest)]


def cost(matrix: Matrix) -> float:
    """Multiplications in units that rank matrices: the Gram product and the cubic eigenvalue solver."""
    count, *sides = matrix.form
    rows, columns = sorted(sides)
    return count * (rows * rows * columns + 4.0 * rows**3)


class Snapshots:
    """Copies of matrices in CPU memory; those of a GPU are made while the host goes on.

    The copies stand in the GPU's queue before what is asked of it later, so they are of the weights as they are now.
    """

    def __init__(self, matrices: Iterable[Matrix]) -> None:
        self.matrices: list[Matrix] = []
        self._copied: Any = None
        for matrix in matrices:
            weight = matrix.weight.detach()
            if weight.is_cuda:
                copy = torch.empty(weight.shape, dtype=weight.dtype, device="cpu", pin_memory=True)
                copy.copy_(weight, non_blocking=True)
                self._copied = torch.cuda.Event()
                self._copied.record()
            else:
                copy = weight.to("cpu", copy=True)
            self.matrices.append(replace(matrix, weight=copy))

    def wait(self) -> None:
        """Return when the copies are there."""
        if self._copied is not None:
            self._copied.synchronize()


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this rank holds a part."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """A tensor, or the whole of one that is sharded: all ranks that hold a part must call."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local_part(tensor: Any) -> Tensor:
    """A tensor, or the part of a DTensor that this rank holds; no copy."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def power_sums(tensors: Sequence[Any], order: int) -> Tensor:
    """Sums of the magnitudes of each tensor's entries to the power of 1 or 2, on the device.

    Ranks that hold shards of a tensor must all call, and get the sum over the whole one. Entries that a sparse tensor
    does not hold are 0.

    Returns:
        Shape (number of tensors,), float64 (float32 where there is none): squares of float32 can over- and underflow.
    """
    local = [_magnitudes(local_part(tensor)) for tensor in tensors]
    dtype = torch.float32 if local[0].device.type == "mps" else torch.float64
    return joined(torch.stack(torch._foreach_norm(local, order, dtype=dtype)) ** order, tensors)


def _magnitudes(tensor: Tensor) -> Tensor:
    """What has the same sums of powers of magnitudes: real, and dense."""
    values = tensor.coalesce().values() if tensor.is_sparse else tensor
    return values.abs() if values.is_complex() else values


def joined(sums: Tensor, tensors: Sequence[Any]) -> Tensor:
    """Sums over the local parts of tensors, shape (..., number of tensors), as sums over the whole ones.

    Ranks that hold shards of a tensor must all call.
    """
    sharded = [is_sharded(tensor) for tensor in tensors]
    if any(sharded):
        one = tensors[sharded.index(True)]
        parts = sums * torch.tensor(sharded, device=sums.device)
        for dimension, placement in enumerate(one.placements):
            if placement.is_shard():  # along the others ranks hold copies
                dist.all_reduce(parts, group=one.device_mesh.get_group(dimension))
        sums = torch.where(torch.tensor(sharded, device=sums.device), parts, sums)
    return sums


def gradient_norms(matrices: Sequence[Matrix]) -> dict[str, float]:
    """The norm of each weight's gradient, where it has one; ranks that hold shards must all call."""
    norms = {}
    for matrix in matrices:
        gradient = matrix.weight.grad
        if gradient is not None:
            values = _magnitudes(gradient.detach())
            norm = torch.linalg.vector_norm(values, dtype=torch.promote_types(values.dtype, torch.float32))
            norms[matrix.name] = float(whole(norm))
    return norms


def _gathered(value: Any, group: Any, ranks: int) -> list[Any]:
    values: list[Any] = [None] * ranks
    dist.all_gather_object(values, value, group=group)
    return values


def _gathered_to(owner: int, matrix: Matrix, group: Any) -> Matrix | None:
    """The matrix with its whole weight on the rank that measures it, None on the others."""
    mine = dist.get_rank(group) == owner
    weight: Any = matrix.weight
    if not is_sharded(weight):
        return matrix if mine else None
    mesh, ranks = weight.device_mesh, dist.get_world_size(group)
    if mesh.ndim > 1 or mesh.size() != ranks or not weight.placements[0].is_shard(0):
        everything = whole(weight)  # other layouts: every rank holds the whole matrix for a moment
        return replace(matrix, weight=everything) if mine else None
    rows = -(-weight.shape[0] // ranks)
    local = weight.to_local().detach()
    padded = torch.zeros((rows, *weight.shape[1:]), dtype=local.dtype, device=local.device)
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in range(ranks)] if mine else None
    dist.gather(padded, parts, dst=dist.get_global_rank(group, owner), group=group)
    return replace(matrix, weight=torch.cat(parts)[: weight.shape[0]]) if parts else None
