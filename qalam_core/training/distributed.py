"""The processes that train one model: starting, collective operations, and stopping."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from qalam_core.errors import TrainingError
from qalam_core.training.spec import PEER_LOST, USER_ERROR


@dataclass(frozen=True)
class World:
    """The data-parallel processes; with one process, every operation is free."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, processes: int, device: str) -> World:
        """Join the processes that torchrun started; TrainingError when they are not `processes`."""
        if processes == 1:
            return cls()
        size = int(os.environ["WORLD_SIZE"])
        if size != processes:
            raise TrainingError(f"train.processes is {processes}, and torchrun started {size}; make them equal")
        if device == "cuda":
            local = int(os.environ["LOCAL_RANK"])
            if local >= torch.cuda.device_count():
                raise TrainingError(
                    f"train.processes needs {local + 1} GPUs or more on this machine, one per process, and it has "
                    f"{torch.cuda.device_count()}; lower it"
                )
            torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=10))
        return cls(dist.get_rank(), size)

    def any(self, *flags: bool) -> list[bool]:
        """Each flag, true if it is true in any process; reduced on the CPU, without synchronising a GPU."""
        if self.size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def mean(self, values: Tensor) -> Tensor:
        """The element-wise mean over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            self.any(False)


class Stop:
    """Becomes true on SIGTERM, SIGINT or SIGHUP, or when the parent process exits, which closes the pipe on standard
    input."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under `nohup`
            signal.signal(signal.SIGHUP, lambda *_: self._asked.set())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._asked.set())
        if stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
            threading.Thread(target=self._watch_input, daemon=True).start()
        if "WORLD_SIZE" in os.environ:  # the parent is the launcher of several processes
            threading.Thread(target=self._watch_parent, args=(os.getppid(),), daemon=True).start()

    def _watch_input(self) -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        self._asked.set()

    def _watch_parent(self, launcher: int) -> None:
        while os.getppid() == launcher:
            time.sleep(0.2)
        self._asked.set()

    def __bool__(self) -> bool:
        return self._asked.is_set()


# sharded tensors are recognised by their methods: importing their class takes half a second


def full(tensor: Tensor) -> Tensor:
    """The full tensor of one that fsdp sharded (all processes must call it); other tensors unchanged."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gather(tensor: Tensor) -> Tensor:
    """The values of a tensor, in full, on the CPU; all processes must call it."""
    return full(tensor.detach()).cpu().contiguous()


def local_shard(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor that fsdp sharded; other tensors unchanged."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A full tensor, sharded as `parameter` is."""
    if not hasattr(parameter, "full_tensor") or value.dim() != parameter.dim():
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def is_peer_loss(error: BaseException) -> bool:
    """Whether an error means that another process exited, rather than a fault of this one."""
    known = ("gloo", "Connection", "NCCL", "Socket", "peer", "recv", "Timed out")
    by_text = isinstance(error, RuntimeError) and any(word in str(error) for word in known)
    return by_text or isinstance(error, dist.DistError)


def launch(command: Sequence[str], processes: int, stopped: int) -> int:
    """Start `python COMMAND` in each of `processes` processes, as torchrun does, and wait; -> exit status.

    Over several machines: run the same on each, with PET_NNODES and PET_RDZV_ENDPOINT set as for torchrun. The status
    is `stopped` after a signal. Raises TrainingError when a process was killed, or reported a user error.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # torchrun's tracebacks; the errors below are one line each
    machines = int(os.environ.get("PET_NNODES", "1"))
    if processes % machines:
        raise TrainingError(f"train.processes {processes} is not a multiple of the {machines} machines of PET_NNODES")
    config = LaunchConfig(
        min_nodes=machines, max_nodes=machines, nproc_per_node=processes // machines, rdzv_backend="c10d",
        rdzv_endpoint=os.environ.get("PET_RDZV_ENDPOINT", "localhost:0"),
        run_id=os.environ.get("PET_RDZV_ID", "al-qalam"), max_restarts=0, monitor_interval=0.1,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)(*command)
    except SignalException:
        return stopped
    except ChildFailedError as failed:
        failures: list[ProcessFailure] = sorted(failed.failures.values(), key=lambda failure: failure.local_rank)
        resume = "run the same command again to resume from the last checkpoint"
        for failure in failures:
            if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
                killed = f"process {failure.local_rank} of {processes} was killed"
                raise TrainingError(f"{killed} ({signal.Signals(-failure.exitcode).name}); {resume}") from None
        # the first that failed by itself; the others exited because of it
        first = next((f for f in failures if f.exitcode not in (PEER_LOST, -signal.SIGTERM)), failures[0])
        if first.exitcode == USER_ERROR:
            raise TrainingError(_message(first.error_file)) from None
        if first.exitcode == PEER_LOST:
            raise TrainingError(f"a process on another machine exited; {resume}") from None
        return first.exitcode
    return 0


def exit_process(status: int) -> NoReturn:
    """Exit; one of several processes immediately, because gloo's threads may abort an orderly exit."""
    if dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def report_error(text: str) -> None:
    """Report a user error to `launch`, in the file that torchrun provides."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(file).write_text(json.dumps({"message": text}), encoding="utf-8")


def _message(file: str) -> str:
    try:
        return str(json.loads(Path(file).read_text(encoding="utf-8"))["message"])
    except (OSError, ValueError, KeyError):
        return "training failed; see standard error above"
