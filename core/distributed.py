"""Ranks: several processes that train one model together, each on its own part of every batch.

Who a process is comes from the variables that torchrun sets (`RANK`, `WORLD_SIZE`, …), or from `Peers`, which starts
the other ranks itself. Rank 0 speaks, saves and decides; the others follow.

Gradients are averaged in one flat buffer and always in the same order. DistributedDataParallel would be faster, but
lays its buckets out anew after its first step, so that a resumed run would add in another order than one that ran on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch import distributed as dist

RENDEZVOUS_VARIABLE = "RATCHET_RENDEZVOUS"
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

    def leave(self) -> None:
        """Take leave of the others, once nothing is asked of them any more."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


ALONE = Ranks()


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
    """Starts the other ranks of this process, and ends them with it.

    Args:
        command: Runs one rank.
        world_size: Ranks in all, this process among them.
        said: What each is told on standard input.
    """

    command: Sequence[str]
    world_size: int
    said: str = ""
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)
    _folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        if self.world_size == 1:
            return self
        self._folder = tempfile.TemporaryDirectory(prefix="ratchet-ranks-")
        told = {"WORLD_SIZE": str(self.world_size), RENDEZVOUS_VARIABLE: str(Path(self._folder.name) / "store")}
        for rank in range(1, self.world_size):
            environment = {**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = subprocess.Popen(self.command, env=environment, stdin=subprocess.PIPE, text=True)
            self._processes.append(process)
            assert process.stdin
            with suppress(BrokenPipeError):  # Its death is noticed where it is missed.
                process.stdin.write(self.said)
                process.stdin.close()
        os.environ.update({**told, "RANK": "0", "LOCAL_RANK": "0"})
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for process in self._processes:
            if kind is not None:
                process.kill()
            process.wait()
        if self._folder:
            self._folder.cleanup()


def is_follower(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a rank that somebody else leads."""
    return int(environment.get("RANK") or 0) > 0


def is_led_from_outside(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher such as torchrun has made all ranks already."""
    return int(environment.get("WORLD_SIZE") or 1) > 1


def this_program(*arguments: str) -> list[str]:
    """The command that runs another process of this interpreter."""
    return [sys.executable, *arguments]
