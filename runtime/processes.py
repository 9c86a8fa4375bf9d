"""The process group of a run: one process, or those that torchrun started, each on its own device."""

import hashlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from runtime.errors import EndedTogether, RankLost, UserError, first_line

# In the messages of RuntimeErrors of gloo and NCCL.
CONNECTION_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe")
SAME_ERROR = timedelta(seconds=5)  # how long ranks wait for each other about the same error


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, the number of processes, and the device of this process."""

    rank: int
    count: int
    device: torch.device
    cpu_group: Any = None  # process group for messages between CPUs; None for a single process

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
        """The values of all ranks, in rank order, on each rank; for small values."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.cpu_group)
        return values

    def gather_to_main(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order, on the main process; an empty list on the others."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count if self.is_main else []
        dist.gather_object(value, values if self.is_main else None, dst=0, group=self.cpu_group)
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
            except (UserError, EndedTogether) as raised:
                error = raised
                error.agreed, error.here_only = True, False  # type: ignore[union-attr]
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
            dist.broadcast(tensor, 0, group=self.cpu_group)
        return tensor

    def wait(self) -> None:
        """Return when all ranks have called this."""
        if self.count > 1:
            dist.barrier(group=self.cpu_group)


@contextmanager
def process_group(device_name: str, timeout: float = 30.0) -> Iterator[Ranks]:
    """Join the process group that torchrun describes in the environment (NCCL on GPUs, else gloo).

    The group is left in order only if there was no error. After an error NCCL can wait for ever for ranks that have
    ended, so `runtime.errors.exit_status` prints the error and ends the process with the group still open.

    Args:
        device_name: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
        timeout: Minutes that a rank waits for the others before it gives up.

    Raises:
        UserError: If the device is unknown or does not exist, or ranks would share a GPU.
        RankLost: If the connection to another process breaks.
    """
    rank, count = _from_environment("RANK", 0), _from_environment("WORLD_SIZE", 1)
    if "WORLD_SIZE" not in os.environ and _from_environment("SLURM_STEP_NUM_TASKS", 1) > 1:
        raise UserError(
            f"srun started {os.environ['SLURM_STEP_NUM_TASKS']} processes that do not know of each other: start one "
            "torchrun per node, as scripts/slurm.sh does",
            here_only=os.environ.get("SLURM_PROCID", "0") == "0",
        )
    if count > 1 and any(name not in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")):
        missing = "without RANK, MASTER_ADDR and MASTER_PORT in the environment: use torchrun"
        raise UserError(f"WORLD_SIZE={count} {missing}", here_only=True)
    if not rank < count:
        raise UserError(f"RANK={rank} in the environment: must be below WORLD_SIZE={count}", here_only=True)
    device = _device(device_name, _from_environment("LOCAL_RANK", 0))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if count == 1:
        yield Ranks(rank, count, device)
        return
    store = None
    try:
        store = _meeting_point(count, timedelta(minutes=timeout))
        _check_places(store, rank, count, device)
        yield Ranks(rank, count, device, _join(store, rank, count, device, timedelta(minutes=timeout)))
    except RuntimeError as error:
        _ignore_sigterm()
        if not isinstance(error, dist.DistError) and not CONNECTION_LOST.search(str(error)):
            _agree_who_prints(error, store, rank, count)
            raise
        reason = re.sub(r"^\[.*?\] ", "", first_line(error)).partition(". ")[0]
        hint = "" if dist.is_initialized() else "; GLOO_SOCKET_IFNAME names the network between nodes"
        message = f"rank {rank}: another process of this run has ended or cannot be reached ({reason}){hint}"
        raise RankLost(message) from error
    except Exception as error:
        _ignore_sigterm()
        _agree_who_prints(error, store, rank, count)
        raise
    dist.destroy_process_group()


def _join(store: dist.Store, rank: int, count: int, device: torch.device, timeout: timedelta) -> Any:
    """Join the group for tensors, and return one of its own for messages between CPUs."""
    on_gpus: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
    backend = "nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout, **on_gpus)
    return dist.new_group(backend="gloo", timeout=timeout)


def _agree_who_prints(error: Any, store: dist.Store | None, rank: int, count: int) -> None:
    """Agree with the other ranks, for at most SAME_ERROR, on who prints an error; `runtime.errors` reads it.

    Sets `where`: None if rank 0 prints the same error, "" on rank 0, else this rank and host. torchrun kills the others
    as soon as one process has ended, so ranks wait until rank 0 has printed and called the error's `printed`.
    """
    here = f"rank {rank} on {socket.gethostname()}"
    if store is None:
        error.where = here
        return
    key = f"error {hashlib.sha256(str(error).encode()).hexdigest()}"
    if rank == 0:
        error.where, error.printed = "", partial(_announce, store, key, count)
        return
    try:
        store.wait([key], SAME_ERROR)
        store.add(f"{key} heard", 1)
        error.where = None
    except RuntimeError:  # rank 0 does not have the error, or its store has ended
        error.where = None if getattr(error, "agreed", False) else here


def _ignore_sigterm() -> None:
    """Let this process end by itself, with its own exit status and what it is writing: torchrun sends SIGTERM to it as
    soon as another one has ended, and SIGKILL if it takes too long."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _announce(store: dist.Store, key: str, count: int) -> None:
    """Tell the other ranks that the error is printed, and wait a moment: the store may end with this process."""
    deadline = time.monotonic() + SAME_ERROR.total_seconds()
    with suppress(RuntimeError):
        store.set(key, "printed")
        while store.add(f"{key} heard", 0) < count - 1 and time.monotonic() < deadline:
            time.sleep(0.05)


def _check_places(store: dist.Store, rank: int, count: int, device: torch.device) -> None:
    """Raise UserError, on all ranks, if two of them share a GPU or some have one and others none.

    Before a group exists, the main process reads all places and puts its verdict into the store.
    """
    place = f"{socket.gethostname()} {device.type}"
    sees = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if device.type == "cuda" and "MIG" not in sees:  # parts of a MIG GPU report the same UUID
        place += f" {torch.cuda.get_device_properties(device).uuid}"
    store.set(f"place {rank}", place)
    if rank == 0:
        store.set("places", _reason_to_refuse([store.get(f"place {each}").decode() for each in range(count)]) or "fine")
    refused = store.get("places").decode()
    if refused != "fine":
        error = UserError(refused)
        error.agreed = True
        raise error


def _reason_to_refuse(places: list[str]) -> str:
    """Why these places are refused, or "". A place is "host type" or "host type GPU-id"."""
    kinds = [place.split(" ")[1] for place in places]
    if len(set(kinds)) > 1:
        other = next(rank for rank, kind in enumerate(kinds) if kind != kinds[0])
        there = f"rank 0 on {places[0].split(' ')[0]} has {kinds[0]}, rank {other} on {places[other].split(' ')[0]}"
        return f"--device auto: {there} has {kinds[other]}; give --device cpu, or each process a GPU"
    first: dict[str, int] = {}
    for rank, place in enumerate(places):
        if place.count(" ") == 2 and first.setdefault(place, rank) != rank:
            host = place.split(" ")[0]
            return f"ranks {first[place]} and {rank} on {host} share one GPU; start one process per GPU"
    return ""


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"{name}={text} in the environment: is not a whole number", here_only=True)
    return int(text)


def _meeting_point(count: int, timeout: timedelta) -> dist.Store:
    """The store by which the processes find each other.

    torchrun uses one store for all restarts (pytorch#135712), so restarted processes would find the addresses of ended
    ones. On one node each restart therefore uses its own prefix. On several nodes the restart counts can differ; there
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives each restart its own store (docs/cluster.md).
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
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
            raise UserError(f"--device {name}: torch sees no CUDA GPU on {socket.gethostname()}; use cpu or auto",
                            here_only=local_rank == 0)  # fmt: skip
        count, one_each = torch.cuda.device_count(), _sees_one_gpu()
        device = torch.device("cuda", (0 if one_each else local_rank) if device.index is None else device.index)
        if device.index >= count:
            asked = f"LOCAL_RANK={local_rank}" if local_rank else f"--device {name}"
            raise UserError(f"{asked}: torch sees {count} GPU(s) on {socket.gethostname()}", here_only=True)
    return device


def _sees_one_gpu() -> bool:
    """Whether a scheduler gave each process one GPU to see, such as srun with --gpus-per-task=1."""
    return torch.cuda.device_count() == 1 and "SLURM_PROCID" in os.environ
