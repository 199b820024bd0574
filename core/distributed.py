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
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch import distributed as dist

from core.devices import select_device
from core.errors import ConfigError, DeviceUnavailable, RankLost
from core.machine.processes import exit_with_parent, num_cores

RENDEZVOUS_VARIABLE = "RATCHET_RENDEZVOUS"
LEADER_VARIABLE = "RATCHET_LEADER"
LEAVE_SECONDS = 10.0
TIMEOUT = timedelta(minutes=30)
"""A rank may wait for as long as another one evaluates or saves; one that dies is noticed at once."""
LOOK_SECONDS = 0.05


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
        return bool(self.told(int(said))[0])

    def told(self, *said: int) -> list[int]:
        """The numbers that rank 0 says, on every rank."""
        if self.world_size == 1:
            return list(said)
        numbers = torch.tensor(said, device=self.device)
        with _all_there():
            dist.broadcast(numbers, src=0)
        return [int(number) for number in numbers.tolist()]

    def means(self, *values: float) -> list[float]:
        """The mean of each of these numbers over all ranks, in one exchange."""
        if self.world_size == 1:
            return list(values)
        totals = torch.tensor(values, dtype=torch.float64, device=self.device)
        with _all_there():
            dist.all_reduce(totals)
        return [float(total) / self.world_size for total in totals.tolist()]

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        if self.world_size == 1:
            return number
        found = torch.tensor([number], device=self.device)
        with _all_there():
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found.item())

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over all ranks."""
        if self.world_size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        with _all_there():
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
        with _all_there():
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
        RankLost: one of them is gone.
    """
    if num_processes == 1:
        yield ALONE
        return
    _share_cores(num_processes, environment)
    if is_made(environment):
        if LEADER_VARIABLE in environment:
            exit_with_parent(signal.SIGKILL, parent=int(environment[LEADER_VARIABLE]))
        device = _device_of_rank(environment, wanted_device)
        if RENDEZVOUS_VARIABLE in environment:
            _sign_of(environment[RENDEZVOUS_VARIABLE], int(environment["RANK"])).touch()
        yield from _joined(environment, device)
        return
    _check_room(num_processes, wanted_device)
    with Peers(command, num_processes, environment, said) as peers:
        peers.wait_until_all_are_there()
        yield from _joined(peers.own, _device_of_rank(peers.own, wanted_device))


def is_made(environment: Mapping[str, str]) -> bool:
    """Whether somebody else has made all ranks, of which this process is one: torchrun, or a leader."""
    return bool(environment.get("WORLD_SIZE") and environment.get("RANK"))


def join(device: str, environment: Mapping[str, str] = os.environ) -> Ranks:
    """Join the ranks that the environment tells of, and wait until all are there; alone if it tells of none.

    Args:
        device: Where this rank computes; CUDA ranks speak through NCCL, all others through gloo.
    """
    world_size = int(environment["WORLD_SIZE"]) if is_made(environment) else 1
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
    _meeting: str = field(init=False)
    own: dict[str, str] = field(init=False)
    """The environment of rank 0."""

    def __enter__(self) -> Self:
        """Start them."""
        self._folder = tempfile.TemporaryDirectory(prefix="ratchet-ranks-")
        self._meeting = str(Path(self._folder.name) / "meeting")
        self.own, *others = [
            {
                **self.environment,
                "WORLD_SIZE": str(self.world_size),
                RENDEZVOUS_VARIABLE: self._meeting,
                LEADER_VARIABLE: str(os.getpid()),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            }
            for rank in range(self.world_size)
        ]
        try:
            for environment in others:
                self._start(environment)
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def _start(self, environment: Mapping[str, str]) -> None:
        process = subprocess.Popen(
            self.command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        self._processes.append(process)
        assert process.stdin
        with suppress(BrokenPipeError):  # Its death is noticed where it is missed.
            process.stdin.write(self.said)
            process.stdin.close()

    def wait_until_all_are_there(self) -> None:
        """Until each is about to join: whoever joins waits for the others, and would wait for a dead one, too.

        Raises:
            RankLost: one has ended instead.
        """
        while not all(_sign_of(self._meeting, rank).exists() for rank in range(1, self.world_size)):
            for rank, process in enumerate(self._processes, start=1):
                if process.poll() is not None:
                    raise RankLost(f"process {rank} of this run ended (status {process.returncode}) before it began")
            time.sleep(LOOK_SECONDS)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for process in self._processes:
            if kind is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LEAVE_SECONDS)
            process.kill()
            process.wait()
        self._folder.cleanup()


def _joined(environment: Mapping[str, str], device: str) -> Iterator[Ranks]:
    ranks = join(device, environment)
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


def _sign_of(meeting: str, rank: int) -> Path:
    return Path(f"{meeting}-{rank}")


@contextmanager
def _all_there() -> Iterator[None]:
    """Around an exchange, which torch ends with a RuntimeError if somebody is missing."""
    try:
        yield
    except RuntimeError as error:
        raise RankLost("another process of this run is gone, so this one cannot go on") from error


def _check_room(num_processes: int, wanted_device: str) -> None:
    if select_device(wanted_device).startswith("cuda"):
        if num_processes > torch.cuda.device_count():
            raise DeviceUnavailable(
                f"num_processes is {num_processes}, each of which needs a GPU of its own, and "
                f"{torch.cuda.device_count()} can be seen here",
                field="num_processes",
            )
    elif num_processes > num_cores():
        raise ConfigError([("num_processes", f"must be at most {num_cores()}, the cores of this machine")])
