"""The process group of a run: one process, or the processes that torchrun started."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from runtime.errors import RankLost, UserError, first_line

CONNECTION_LOST = re.compile(
    r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe"
)  # in the messages of gloo's RuntimeErrors


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, the number of processes, and the device of this process."""

    rank: int
    count: int
    device: torch.device
    control: Any = None  # process group for messages between CPUs; None for a single process

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes files and prints."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks of a tensor of any shape, in place; the same on each rank."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order, on each rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.control)
        return values

    def any(self, flag: torch.Tensor) -> torch.Tensor:
        """Whether a flag is set on any rank: bool, any shape, on this rank's device. Does not wait for the device."""
        if self.count == 1:
            return flag
        number = flag.float()
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return number > 0

    def from_main(self, function: Callable[[], Any]) -> Any:
        """Run a function on rank 0 and broadcast its result, or its UserError, to all ranks."""
        value = error = None
        if self.is_main:
            try:
                value = function()
            except UserError as raised:
                error = raised
                error.here_only = False  # all ranks get it
        value, error = self.gather((value, error))[0]
        if error is not None:
            raise error
        return value

    def tensor_from_main(self, function: Callable[[], torch.Tensor]) -> torch.Tensor:
        """`from_main` for a function that returns a CPU tensor of any shape and dtype."""
        made: list[torch.Tensor] = []

        def describe() -> tuple[torch.Size, torch.dtype]:
            made.append(function())
            return made[0].shape, made[0].dtype

        shape, dtype = self.from_main(describe)
        tensor = made[0] if made else torch.empty(shape, dtype=dtype)
        if self.count > 1:
            dist.broadcast(tensor, 0, group=self.control)
        return tensor

    def wait(self) -> None:
        """Return when all ranks have called this."""
        if self.count > 1:
            dist.barrier(group=self.control)


@contextmanager
def process_group(device_name: str) -> Iterator[Ranks]:
    """Join the process group that torchrun describes in the environment (NCCL on GPUs, else gloo); leave it at the end.

    Args:
        device_name: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: If the device is unknown or does not exist.
        RankLost: If the connection to another process breaks.
    """
    rank, count = _from_environment("RANK", 0), _from_environment("WORLD_SIZE", 1)
    if count > 1 and any(name not in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")):
        missing = "without RANK, MASTER_ADDR and MASTER_PORT in the environment: use torchrun"
        raise UserError(f"WORLD_SIZE={count} {missing}", here_only=True)
    if not rank < count:
        raise UserError(f"RANK={rank} in the environment: must be below WORLD_SIZE={count}", here_only=True)
    device = _device(device_name, _from_environment("LOCAL_RANK", 0))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    control = None
    if count > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_meeting_point(count), rank=rank, world_size=count)
        control = dist.new_group(backend="gloo")
    try:
        yield Ranks(rank, count, device, control)
    except RuntimeError as error:
        if count > 1 and (isinstance(error, dist.DistError) or CONNECTION_LOST.search(str(error))):
            reason = re.sub(r"^\[.*?\] ", "", first_line(error)).partition(". ")[0]
            raise RankLost(
                f"rank {rank}: another process of this run has ended or cannot be reached ({reason})"
            ) from error
        raise
    finally:
        if count > 1:
            dist.destroy_process_group()


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"{name}={text} in the environment: is not a whole number", here_only=True)
    return int(text)


def _meeting_point(count: int) -> dist.Store:
    """The store by which the processes find each other.

    torchrun uses one store for all restarts (pytorch#135712), so restarted processes would find the addresses of ended
    ones. On one node each restart therefore uses its own prefix. On several nodes the restart counts can differ; there
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives each restart its own store (docs/cluster.md).
    """
    store, _, _ = next(dist.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") != str(count):
        return store
    return dist.PrefixStore(f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: unknown; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: torch sees no CUDA GPU on this machine; use cpu or auto")
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise UserError(f"--device {name}: torch sees {torch.cuda.device_count()} GPU(s) here")
    return device
