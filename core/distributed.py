"""Ranks: several processes that train one model together, each on its own part of every batch.

Who a process is comes from the variables that torchrun sets (`RANK`, `WORLD_SIZE`, …); without it, rank 0 starts the
others itself. Rank 0 speaks, saves and decides; the others follow.

Gradients are averaged in one flat buffer and always in the same order. DistributedDataParallel would be faster, but
lays its buckets out anew after its first step, so that a resumed run would add in another order than one that ran on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from core.devices import select_device
from core.errors import ConfigError, DeviceUnavailable
from core.processes import exit_with_parent, num_cores

RENDEZVOUS_VARIABLE = "RATCHET_RENDEZVOUS"
LEADER_VARIABLE = "RATCHET_LEADER"
LEAVE_SECONDS = 10.0
TIMEOUT = timedelta(minutes=30)
"""A rank may wait for as long as another one evaluates or saves; one that dies is noticed at once."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together; alone by default, and then nothing here costs anything."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether this is the one that speaks and saves."""
        return self.rank == 0

    def agree(self, said: bool) -> bool:
        """What rank 0 says, on every rank."""
        if self.world_size == 1:
            return said
        flag = torch.tensor([int(said)], device=self.device)
        dist.broadcast(flag, src=0)
        return bool(flag.item())

    def mean(self, value: float) -> float:
        """The mean of one number over all ranks."""
        if self.world_size == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64, device="cpu" if self.device == "cpu" else self.device)
        dist.all_reduce(total)
        return float(total.item()) / self.world_size

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over all ranks."""
        if self.world_size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world_size
        for gradient, mean in zip(
            gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))

    def gather(self, value: Any) -> list[Any]:
        """Each rank's value, in order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


ALONE = Ranks()


def is_follower(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a rank that another one leads."""
    return int(environment.get("RANK") or 0) > 0


@contextmanager
def together(
    num_processes: int,
    wanted_device: str,
    command: Sequence[str],
    environment: Mapping[str, str] = os.environ,
    *,
    said: str = "",
) -> Iterator[Ranks]:
    """This process among the ranks of a run, all of which are there when it begins and gone when it ends.

    Args:
        num_processes: Ranks in all. Where torchrun, or this function in another process, has started them, they are
            joined; else the others are started here.
        wanted_device: As in `TrainingConfig.device`; on CUDA each rank has a GPU of its own.
        command: Starts another rank, which is to call this function with the same arguments.
        said: What each of those is told on standard input.

    Raises:
        DeviceUnavailable, ConfigError: this machine has no room for so many.
    """
    if num_processes == 1:
        yield ALONE
        return
    _share_cores(num_processes, environment)
    if is_follower(environment) and LEADER_VARIABLE in environment:
        exit_with_parent(signal.SIGKILL, parent=int(environment[LEADER_VARIABLE]))
    if "WORLD_SIZE" in environment:
        yield from _joined(environment, wanted_device)
        return
    _check_room(num_processes)
    with Peers(command, num_processes, environment, said) as told:
        yield from _joined(told, wanted_device)


def join(device: str, environment: Mapping[str, str] = os.environ) -> Ranks:
    """Join the ranks that the environment tells of, and wait until all are there; alone if it tells of none.

    Args:
        device: Where this rank computes; CUDA ranks speak through NCCL, all others through gloo.
    """
    world_size = int(environment.get("WORLD_SIZE") or 1)
    if world_size == 1:
        return ALONE
    rank = int(environment["RANK"])
    rendezvous = environment.get(RENDEZVOUS_VARIABLE)
    dist.init_process_group(
        "nccl" if device.startswith("cuda") else "gloo",
        init_method=f"file://{rendezvous}" if rendezvous else "env://",
        rank=rank,
        world_size=world_size,
        timeout=TIMEOUT,
    )
    return Ranks(rank, world_size, device)


@dataclass
class Peers:
    """The other ranks of this process, which start and end with it.

    Args:
        command: Runs one rank.
        world_size: Ranks in all, this process among them.
        environment: What they have beside the variables that make them ranks.
        said: What each is told on standard input.
    """

    command: Sequence[str]
    world_size: int
    environment: Mapping[str, str]
    said: str = ""
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)
    _folder: tempfile.TemporaryDirectory[str] = field(init=False)

    def __enter__(self) -> dict[str, str]:
        """Start them; returns the environment of rank 0."""
        self._folder = tempfile.TemporaryDirectory(prefix="ratchet-ranks-")
        meeting = str(Path(self._folder.name) / "meeting")
        ranks = [
            {
                **self.environment,
                "WORLD_SIZE": str(self.world_size),
                RENDEZVOUS_VARIABLE: meeting,
                LEADER_VARIABLE: str(os.getpid()),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            }
            for rank in range(self.world_size)
        ]
        for environment in ranks[1:]:
            process = subprocess.Popen(
                self.command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
            )
            self._processes.append(process)
            assert process.stdin
            with suppress(BrokenPipeError):  # Its death is noticed where it is missed.
                process.stdin.write(self.said)
                process.stdin.close()
        return ranks[0]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for process in self._processes:
            if kind is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LEAVE_SECONDS)
            process.kill()
            process.wait()
        self._folder.cleanup()


def _joined(environment: Mapping[str, str], wanted_device: str) -> Iterator[Ranks]:
    ranks = join(_device_of_rank(environment, wanted_device), environment)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def _device_of_rank(environment: Mapping[str, str], wanted: str) -> str:
    device = select_device(wanted)
    if not device.startswith("cuda"):
        return device
    number = int(environment.get("LOCAL_RANK") or 0)
    if number >= torch.cuda.device_count():
        raise DeviceUnavailable(
            f"each process needs a GPU of its own, and this one sees {torch.cuda.device_count()}", field="num_processes"
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}"


def _share_cores(num_processes: int, environment: Mapping[str, str]) -> None:
    """Ranks of one machine would wait for each other's threads."""
    if not environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(max(1, num_cores() // num_processes))


def _check_room(num_processes: int) -> None:
    if not torch.cuda.is_available() and num_processes > num_cores():
        raise ConfigError([("num_processes", f"must be at most {num_cores()}, the cores of this machine")])
