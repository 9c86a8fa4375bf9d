"""Programs in processes of their own, without the seconds that each would take to import torch and timm.

`forked(2, *words, program="main_llama.py")` runs a program as torchrun would start it on two ranks, `forked(1, ...)` as
python would. A server, one for each process of the tests, has imported both trainers and computed nothing; it forks.
What torchrun itself does (restarts, its own messages) and what happens at the end of the interpreter need the real one.
"""

import atexit
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from traceback import print_exc

ROOT = Path(__file__).parents[2]
GRACE = 30.0  # seconds that torchrun gives the other ranks to end after one has failed
PRELOADED = (
    "main", "main_llama", "matplotlib.pyplot", "torch.utils.tensorboard", "torch.distributed.fsdp",
    "torch.distributed.checkpoint", "sklearn.datasets", "alphadecay.__main__",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """What came of a program: torchrun's status (1 if any rank failed) or its own, those of the ranks, what it said."""

    returncode: int
    codes: list[int]
    stdout: str
    stderr: str


def forked(ranks: int, *words: object, program: object = "main.py", timeout: float = 300) -> Ended:
    """Run a program on some ranks and wait for its end."""
    with TemporaryDirectory() as folder:
        asked = {"ranks": ranks, "program": str(program), "words": [*map(str, words)], "timeout": timeout}
        asked |= {"folder": folder, "environment": dict(os.environ), "port": free_port()}
        codes = server().ask(asked)["codes"]
        said = [Path(folder, name).read_text() for name in ("stdout", "stderr")]
    return Ended(codes[0] if ranks == 1 else int(any(codes)), codes, *said)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@cache
def server() -> "Server":
    """The server of this process of the tests."""
    return Server()


class Server:
    """The side that asks."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=-1, stdout=-1, text=True, start_new_session=True)
        atexit.register(self.close)

    def ask(self, request: dict) -> dict:
        """One program's ranks and their exit statuses."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert not answer["hung"], f"{request['program']} ran over {request['timeout']} s"
        return answer

    def close(self) -> None:
        """Let the server end."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)


def serve() -> None:
    """Fork what is asked for until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import may print is no answer
    sys.path[:0] = [str(ROOT)]
    for name in PRELOADED:
        __import__(name)
    for line in sys.stdin:
        request = json.loads(line)
        pids = [fork_rank(request, rank) for rank in range(request["ranks"])]
        codes, hung = wait_for(pids, request["timeout"])
        answers.write(json.dumps({"codes": codes, "hung": hung}) + "\n")
        answers.flush()


def fork_rank(request: dict, rank: int) -> int:
    """The process of one rank."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = be_rank(request, rank)
        except BaseException:
            print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return pid


def be_rank(request: dict, rank: int) -> int:
    """What the forked process does; returns its exit status."""
    import torch

    from runtime import trainer

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(request["folder"], name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(request["environment"])
    ranks = request["ranks"]
    if ranks > 1:
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ.update({name: str(value) for name, value in where.items()})
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(request["port"]), OMP_NUM_THREADS="1")
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    sys.argv = [request["program"], *request["words"]]
    sys.path[:0] = [str((ROOT / request["program"]).parent)]
    trainer.Trainer._figures = lambda *_: {}  # slower to draw than these runs are to train
    try:
        runpy.run_path(str(ROOT / request["program"]), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def wait_for(pids: list[int], timeout: float) -> tuple[list[int], bool]:
    """Exit statuses, minus a signal's number, and whether time ran out; a failure ends the others, as with torchrun."""
    left, codes, ends = dict(enumerate(pids)), {}, time.monotonic() + timeout
    failed_at = None
    while left:
        for rank, pid in list(left.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[rank] = os.waitstatus_to_exitcode(status)
                del left[rank]
        now = time.monotonic()
        if failed_at is None and any(codes.values()):
            failed_at = now
            for pid in left.values():
                os.kill(pid, signal.SIGTERM)
        if now > ends or (failed_at and now > failed_at + GRACE):
            for pid in left.values():
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[rank] for rank in sorted(codes)], time.monotonic() > ends


if __name__ == "__main__":
    serve()
