"""Measure one model on several ranks: each matrix once, by one of the ranks that hold it, with one result for all."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from alphadecay.matrices import Matrix

Record = TypeVar("Record")


def assign_to_ranks(matrices: Sequence[Matrix], group: Any) -> Iterator[Matrix]:
    """Yield the matrices that this rank measures, with whole weights; together the ranks measure each matrix once.

    Ranks may hold the same model (data parallel), different parts of it (pipeline parallel), or shards of its weights
    (FSDP2, HSDP). A sharded weight is gathered to the rank that measures it, from the ranks that share its copy. A rank
    holds one whole weight if the caller drops each matrix before it asks for the next.

    Args:
        matrices: The adapted matrices that this rank holds.
        group: The process group. All its ranks must call this and exhaust the iterator.
    """
    ranks = dist.get_world_size(group)
    held = _gathered({matrix.name: cost(matrix) for matrix in matrices}, group, ranks)
    by_name = {matrix.name: matrix for matrix in matrices}
    for turn in turns_of(owners_of(held), ranks):
        gathered = [_gathered_to(owner, by_name[name], group) for owner, name in turn if name in by_name]
        own = [matrix for matrix in gathered if matrix is not None]  # at most one
        del gathered
        if own:
            yield own.pop()  # not held here while the next one is gathered


def gather_records(records: dict[str, Record] | Exception, group: Any) -> dict[str, Record]:
    """The records of all ranks of a group, by name; an error on one rank is raised on all. All ranks must call."""
    outcomes = _gathered(records, group, dist.get_world_size(group))
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return {name: record for outcome in outcomes for name, record in outcome.items()}


def owners_of(held: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """The rank that measures each matrix: the costliest matrix first, each to the rank with the least work so far.

    Args:
        held: For each rank, the cost of each matrix that it holds, by name.
    """
    costs = {name: by_name[name] for by_name in reversed(held) for name in by_name}
    loads = [0.0] * len(held)
    owners = {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        owner = min((rank for rank, names in enumerate(held) if name in names), key=loads.__getitem__)
        owners[name] = owner
        loads[owner] += costs[name]
    return owners


def turns_of(owners: Mapping[str, int], ranks: int) -> list[list[tuple[int, str]]]:
    """Divide the matrices into turns, lists of (rank, name), with at most one matrix per rank."""
    owned: list[list[str]] = [[] for _ in range(ranks)]
    for name, owner in owners.items():
        owned[owner].append(name)
    longest = max(map(len, owned), default=0)
    return [[(rank, names[turn]) for rank, names in enumerate(owned) if turn < len(names)] for turn in range(longest)]


def cost(matrix: Matrix) -> float:
    """Relative cost of measuring a matrix: multiplications of the Gram product and of the cubic eigenvalue solver."""
    count, *sides = matrix.form
    rows, columns = sorted(sides)
    return count * (rows * rows * columns + 4.0 * rows**3)


class Snapshots:
    """Copies of matrices in CPU memory, with the weights as they are now; the host does not wait for copies from a GPU.

    The GPU makes the copies before all work that it gets later, such as the next optimizer step.
    """

    def __init__(self, matrices: Iterable[Matrix]) -> None:
        self.matrices: list[Matrix] = []
        self._copied: Any = None
        for matrix in matrices:
            weight = matrix.weight.detach()
            if weight.is_cuda:  # torch keeps pinned memory that is freed, and gives it to the next refresh
                copy = torch.empty(weight.shape, dtype=weight.dtype, device="cpu", pin_memory=True)
                copy.copy_(weight, non_blocking=True)
                self._copied = torch.cuda.Event()
                self._copied.record()
            else:
                copy = weight.to("cpu", copy=True)
            self.matrices.append(replace(matrix, weight=copy))
            del matrix, weight  # a gathered weight is freed before the next one is gathered

    def wait(self) -> None:
        """Wait until all copies are complete."""
        if self._copied is not None:
            self._copied.synchronize()


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor, of any shape, is a DTensor, of which this rank holds a part."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """A tensor of any shape; gathered from all ranks if it is sharded, so all ranks that hold a part must call."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local_part(tensor: Any) -> Tensor:
    """A tensor of any shape, or the part of a DTensor that this rank holds; no copy."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def power_sums(tensors: Sequence[Any], order: int) -> Tensor:
    """The sum of |entry|^order over each tensor, on the tensors' device.

    All ranks that hold shards of a tensor must call, and get the sum over the whole tensor. Entries that a sparse
    tensor does not store count as 0.

    Args:
        tensors: At least one, each of any shape and dtype, also complex.
        order: 1 or 2.

    Returns:
        Shape (number of tensors,), float64, because squares of float32 can over- and underflow (float32 on MPS, which
        has no float64).
    """
    local = [_magnitudes(local_part(tensor)) for tensor in tensors]
    dtype = torch.float32 if local[0].device.type == "mps" else torch.float64
    return joined(torch.stack(torch._foreach_norm(local, order, dtype=dtype)) ** order, tensors)


def _magnitudes(tensor: Tensor) -> Tensor:
    """A real, dense tensor with the same sums of powers of magnitudes as a tensor of any shape."""
    values = tensor.coalesce().values() if tensor.is_sparse else tensor
    return values.abs() if values.is_complex() else values


def joined(sums: Tensor, tensors: Sequence[Any]) -> Tensor:
    """Turn sums over the local parts of tensors into sums over the whole tensors, of the same shape.

    All ranks that hold shards of a tensor must call.

    Args:
        sums: Shape (..., number of tensors).
        tensors: Each of any shape; those that are DTensors are sharded alike.
    """
    sharded = [index for index, tensor in enumerate(tensors) if is_sharded(tensor)]
    if sharded:
        one = tensors[sharded[0]]
        each = list(sums.unbind(-1))
        parts = torch.stack([each[index] for index in sharded], -1)  # on a GPU a mask would wait for the host
        for dimension, placement in enumerate(one.placements):
            if placement.is_shard():  # along other mesh dimensions ranks hold copies
                dist.all_reduce(parts, group=one.device_mesh.get_group(dimension))
        for index, whole_sum in zip(sharded, parts.unbind(-1), strict=True):
            each[index] = whole_sum
        sums = torch.stack(each, -1)
    return sums


def gradient_norms(matrices: Sequence[Matrix]) -> dict[str, float]:
    """The Frobenius norm of each gradient, for weights that have one; all ranks that hold shards must call."""
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
    is_owner = dist.get_rank(group) == owner
    weight: Any = matrix.weight
    if not is_sharded(weight):
        return matrix if is_owner else None
    split = [dimension for dimension, placement in enumerate(weight.placements) if not placement.is_replicate()]
    if len(split) != 1 or not weight.placements[split[0]].is_shard(0):
        whole_weight = whole(weight)  # other layouts: every rank holds the whole matrix for a moment
        return replace(matrix, weight=whole_weight) if is_owner else None
    shards = weight.device_mesh.get_group(split[0])  # the ranks that share this rank's copy
    destination, ranks = dist.get_global_rank(group, owner), dist.get_process_group_ranks(shards)
    if destination not in ranks:
        return None
    local = weight.to_local().detach().contiguous()
    rows = -(-weight.shape[0] // len(ranks))
    if len(local) < rows:  # the last ranks may hold fewer, or none
        local = torch.cat([local, local.new_zeros(rows - len(local), *local.shape[1:])])
    if not is_owner:
        dist.gather(local, None, dst=destination, group=shards)
        return None
    gathered = local.new_empty(rows * len(ranks), *local.shape[1:])
    dist.gather(local, list(gathered.chunk(len(ranks))), dst=destination, group=shards)
    return replace(matrix, weight=gathered[: weight.shape[0]])
