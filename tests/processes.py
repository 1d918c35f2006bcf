"""Two processes that compute together, as torchrun would start them; they stay for many tests."""

import gc
import io
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

COUNT = 2
# A process that waits for another that has failed gives up after this; then so does the test.
COLLECTIVE_SECONDS, TASK_SECONDS = 30, 90


def device() -> torch.device:
    """Of this process."""
    nccl = dist.get_backend() == "nccl"
    return torch.device("cuda", dist.get_rank()) if nccl else torch.device("cpu")


def _work(connection: Connection, rank: int, backend: str, meeting_place: str) -> None:
    """Runs what comes through the connection, until None does."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_warn_always(True)  # and not only the first time, which another test may have seen
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend,
        init_method=f"file://{meeting_place}",
        rank=rank,
        world_size=COUNT,
        timeout=timedelta(seconds=COLLECTIVE_SECONDS),
    )
    while (task := connection.recv()) is not None:
        function, arguments = task
        try:
            file = io.BytesIO()
            torch.save(function(*arguments), file)
            connection.send((file.getvalue(), ""))
        except Exception:
            connection.send((b"", traceback.format_exc()))
        gc.collect()  # what holds the group must not outlive it
    dist.destroy_process_group()


class Pair:
    """The processes. They start with the first task, and again after one that has failed."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.processes: list[Any] = []
        self.connections: list[Connection] = []
        self.folder: Any = None

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        meeting_place = str(Path(self.folder.name) / "meet")
        for rank in range(COUNT):
            ours, theirs = context.Pipe()
            arguments = (theirs, rank, self.backend, meeting_place)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            theirs.close()  # so that the end of the process ends the connection
            self.processes.append(process)
            self.connections.append(ours)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What the function returns in each process. It is sent by name: a helper file has it."""
        if not self.processes:
            self.start()
        for connection in self.connections:
            connection.send((function, arguments))
        waiting = dict(zip(self.connections, range(COUNT), strict=True))
        results: dict[int, Any] = {}
        while waiting:
            # Whoever comes first: one that has failed is what another waits for in vain.
            ready: list[Any] = wait(list(waiting), TASK_SECONDS)
            for connection in ready:
                rank = waiting.pop(connection)
                try:
                    result, failure = connection.recv()
                except EOFError:
                    result, failure = b"", "It has ended."
                if failure:
                    self.kill()
                    raise RuntimeError(f"process {rank} failed:\n{failure}")
                results[rank] = torch.load(io.BytesIO(result), weights_only=False)
            if not ready:
                self.kill()
                raise TimeoutError(f"processes {sorted(waiting.values())} have not answered")
        return [results[rank] for rank in range(COUNT)]

    def stop(self) -> None:
        for connection in self.connections:
            connection.send(None)
        for process in self.processes:
            process.join(TASK_SECONDS)
        codes = [process.exitcode for process in self.processes]
        self.kill()
        assert codes == [0] * len(codes)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.processes, self.connections = [], []
        if self.folder is not None:
            self.folder.cleanup()
