"""A service and some workers on one ledger: started, watched, killed, and started again."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx2
import psutil

from core.checkpointing import CheckpointStore
from core.machine.processes import EXIT_WITH_PARENT
from jobs.database import Database
from tests.conftest import PROJECT
from tests.postgres import PostgresServer

TEXT = "\n\n".join(f"QUESTION: What is {a} plus {b}?\nANSWER: It is {a + b}." for a in range(12) for b in range(12))

MANY = "1000000"
"""Attempts: being killed is no fault of the job here."""

SETTINGS = {
    "RATCHET_INFERENCE": "false",
    "RATCHET_LEASE_SECONDS": "1.0",
    "RATCHET_CLAIM_SECONDS": "0.05",
    "RATCHET_STOP_POLL_SECONDS": "0.1",
    "RATCHET_MAX_ATTEMPTS": MANY,
    "RATCHET_MAX_FAILURES_IN_A_ROW": MANY,
    "RATCHET_RETRY_SECONDS": "0",
    "OMP_NUM_THREADS": "1",
}

_CALL = re.compile(r'\bfailpoint\("([a-z.]+)"\)')


def sites(*rooms: str) -> list[str]:
    """Every failpoint in the code of these rooms."""
    found = {
        site for room in rooms for path in (PROJECT / room).rglob("*.py") for site in _CALL.findall(path.read_text())
    }
    return sorted(found)


SHARE_OF_RARE = 0.3
"""Of the processes with failpoints, those that get the one alone that has fired least."""

SERVICE_SITES = sites("service")
WORKER_SITES = sites("worker", "core")


@dataclass
class Actor:
    """One process that is to be there: `python -m module`, again and again."""

    name: str
    module: str
    sites: list[str]
    env: dict[str, str]
    log: IO[str]
    process: subprocess.Popen[str] | None = None
    num_starts: int = 0

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, failpoints: str = "", once: Path | None = None) -> None:
        """Run it, with failpoints in it and in its children; each acts once."""
        self.num_starts += 1
        told = {**self.env}
        if failpoints and once is not None:
            once.mkdir(parents=True)
            told |= {"RATCHET_FAILPOINT": failpoints, "RATCHET_FAILPOINT_ONCE": str(once)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", self.module], cwd=PROJECT, env=told, stdout=self.log, stderr=self.log, text=True
        )

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def children(self) -> list[psutil.Process]:
        """What trains for it, or waits to."""
        try:
            found = psutil.Process(self.process.pid).children() if self.process else []
            return [child for child in found if child.status() != psutil.STATUS_ZOMBIE]
        except psutil.NoSuchProcess:
            return []


@dataclass
class World:
    """All of it, in one folder.

    Args:
        folder: For the ledger, the checkpoints and the logs.
        chance: What decides about failpoints.
        num_workers: As many are kept up.
        postgres: The ledger is there instead of in a file.
    """

    folder: Path
    chance: random.Random
    num_workers: int = 2
    postgres: PostgresServer | None = None
    killed: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    """Processes that nobody killed and that are gone all the same."""

    def __post_init__(self) -> None:
        (self.folder / "sources").mkdir()
        (self.folder / "sources" / "sums.md").write_text(TEXT)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        database_url = self.postgres.make_database() if self.postgres else f"sqlite:///{self.folder / 'ratchet.db'}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RATCHET_")}
        places = {
            "RATCHET_DATA": str(self.folder),
            "RATCHET_SOURCES": str(self.folder / "sources"),
            "RATCHET_DATABASE_URL": database_url,
            "RATCHET_PORT": str(self.port),
            MARK: str(self.folder),
            EXIT_WITH_PARENT: "1",
        }
        env = {**kept, **SETTINGS, **places}
        self.log = (self.folder / "log").open("w")
        self.service = Actor("service", "service", SERVICE_SITES, env, self.log)
        # Every other worker starts a child only when there is a job for it.
        self.workers = [
            Actor(f"worker{n}", "worker", WORKER_SITES, {**env, WARM: str(n % 2 == 0)}, self.log)
            for n in range(self.num_workers)
        ]
        self.ledger = Database(database_url, busy_seconds=30.0)
        self.ledger.migrate()
        self.store = CheckpointStore(self.folder / "checkpoints")

    @property
    def actors(self) -> list[Actor]:
        return [self.service, *self.workers]

    def keep_up(self, *, share_with_failpoints: float = 0.0) -> None:
        """Start what is down; a share of what starts is given failpoints."""
        for actor in self.actors:
            if actor.is_up:
                continue
            self._count_death(actor)
            if self.chance.random() < share_with_failpoints:
                actor.start(self._some_failpoints(actor), self.folder / "once" / f"{actor.name}-{actor.num_starts}")
            else:
                actor.start()

    def _some_failpoints(self, actor: Actor) -> str:
        if self.chance.random() < SHARE_OF_RARE:
            # A process seldom comes as far as its last sites, unless nothing before them is in its way.
            fired = self.fired()
            return f"{min(actor.sites, key=lambda site: fired[site])}:kill"
        # A site whose turn never comes would be no risk, so the turns are early ones.
        chosen = self.chance.sample(actor.sites, min(4, len(actor.sites)))
        return ";".join(f"{site}:kill@{self.chance.choice([1, 1, 1, 2, 3])}" for site in chosen)

    def strike(self) -> None:
        """Kill something: the service, a worker, or one of a worker's children."""
        target = self.chance.choice(["service", "worker", "child", "child"])
        if target == "service":
            self._strike_actor(self.service, "service")
        elif target == "worker":
            self._strike_actor(self.chance.choice(self.workers), "worker")
        else:
            children = [child for worker in self.workers for child in worker.children()]
            if children:
                self._strike_child(self.chance.choice(children))

    def fired(self) -> Counter[str]:
        """How often each failpoint killed its process."""
        return Counter(path.name for path in (self.folder / "once").glob("*/*"))

    def num_kills(self) -> int:
        """Of both kinds."""
        return self.killed.total() + self.fired().total()

    def wait_until_it_answers(self, seconds: float = 30) -> None:
        """Until the service is ready."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if httpx2.get(f"{self.url}/readyz", timeout=5).is_success:
                    return
            except httpx2.TransportError:
                time.sleep(0.05)
        raise TimeoutError("the service does not answer")

    def close(self) -> None:
        """End everything."""
        for actor in self.actors:
            if actor.is_up and actor.process is not None:
                actor.process.terminate()
        for actor in self.actors:
            if actor.process is not None:
                try:
                    actor.process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    actor.kill()
        self.ledger.close()
        self.log.close()

    def left_over(self) -> list[int]:
        """Processes of ours that outlived everything that was to end them."""
        mine = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(MARK) == str(self.folder):
                    mine.append(process.pid)
            except psutil.Error:
                continue
        return mine

    def _strike_actor(self, actor: Actor, name: str) -> None:
        if actor.is_up:
            actor.kill()
            self.killed[name] += 1

    def _strike_child(self, child: psutil.Process) -> None:
        try:
            child.send_signal(signal.SIGKILL)
            self.killed["child"] += 1
        except psutil.NoSuchProcess:
            return

    def _count_death(self, actor: Actor) -> None:
        if actor.process is not None and actor.process.returncode not in (0, -signal.SIGKILL):
            self.unexpected.append(f"{actor.name}, status {actor.process.returncode}")


MARK = "CHAOS_WORLD"
WARM = "RATCHET_WARM_CHILD"
