"""People at work while everything is killed: they submit until they are answered, watch, pause and cancel."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
from sqlmodel import col, func, select

from client.api import Ratchet
from client.errors import ApiError, ServiceUnreachable
from jobs.tables import FINAL, Job, State
from tests.chaos.world import World

TINY = {
    "source": "sums.md",
    "test_mode": True,
    "training_steps": 30,
    "eval_interval": 15,
    "eval_iters": 1,
    "checkpoint_interval": 5,
    "block_size": 16,
    "batch_size": 2,
    "n_embd": 16,
    "max_new_tokens": 0,
    "device": "cpu",
}
CONFIGS = [
    {**TINY, "seed": 1},
    {**TINY, "seed": 2, "dropout": 0.1, "test_mode": False, "n_head": 2, "n_layer": 1},
    {**TINY, "seed": 3, "checkpoint_interval": 7, "keep_checkpoints": 1},
    {**TINY, "seed": 4, "gradient_accumulation_steps": 2, "precision": "bf16", "dropout": 0.1},
]
MAX_UNFINISHED = 4
PATIENCE = 600.0


@dataclass
class Storm:
    """What people did, and what they were told.

    Args:
        world: In which they live.
        seed: Of their choices.
    """

    world: World
    seed: int
    answered: dict[str, int] = field(default_factory=dict)
    """Id of each job that was answered with 201, and the number of its configuration."""
    watched: dict[str, list[int]] = field(default_factory=dict)
    """Numbers of all events that a reader got of a job it followed to its end."""
    answers: Counter[int] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    mistakes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._calm = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=[act], name=act.__name__)
            for act in (self._submit, self._watch, self._meddle)
        ]

    def begin(self) -> None:
        """Let them work."""
        for thread in self._threads:
            thread.start()

    def calm(self) -> None:
        """No more jobs, and no more meddling."""
        self._calm.set()

    def end(self, seconds: float = 60) -> None:
        """Let them go home."""
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=seconds)
            if thread.is_alive():
                self.mistakes.append(f"{thread.name} did not come to an end")

    def num_unfinished(self) -> int:
        """Jobs that may still go on by themselves."""
        return self._count(*FINAL, State.PAUSED)

    def is_done(self) -> bool:
        """Whether every job has come to its end, those too that somebody has to let go on."""
        return self._count(*FINAL) == 0

    def _count(self, *but: State) -> int:
        with self.world.ledger.read() as session:
            return session.exec(select(func.count()).select_from(Job).where(col(Job.state).not_in(but))).one()

    def submit(self, http: httpx2.Client, number: int) -> str:
        """One job, asked for until the answer comes."""
        kind = number % len(CONFIGS)
        body, key = {**CONFIGS[kind], "priority": number % 3}, f"{self.seed}-{number}"
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                answer = http.post("/jobs", json=body, headers={"Idempotency-Key": key})
            except httpx2.TransportError:
                time.sleep(0.05)
                continue
            self.answers[answer.status_code] += 1
            if answer.status_code == 201:
                job_id = str(answer.json()["id"])
                self.answered[job_id] = kind
                return job_id
            if answer.status_code < 500 or answer.status_code == 500:
                self.mistakes.append(f"POST /jobs: {answer.status_code} {answer.text}")
            time.sleep(0.1)
        raise TimeoutError("no job was taken in")

    def _work(self, act: Callable[[random.Random], None]) -> None:
        chance = random.Random(f"{self.seed} {act.__name__}")
        try:
            act(chance)
        except Exception as error:  # Whatever it is, the storm has to end and be judged.
            self.mistakes.append(f"{act.__name__}: {type(error).__name__}: {error}")

    def _submit(self, _chance: random.Random) -> None:
        number = 0
        with httpx2.Client(base_url=self.world.url, timeout=20) as http:
            while not self._calm.is_set():
                if self.num_unfinished() >= MAX_UNFINISHED:
                    time.sleep(0.05)
                    continue
                self.submit(http, number)
                number += 1

    def _watch(self, chance: random.Random) -> None:
        """Follow one run after the other, over every break of the connection."""
        while not self._calm.is_set():
            candidates = [job_id for job_id in list(self.answered)[-MAX_UNFINISHED:] if job_id not in self.watched]
            if not candidates:
                time.sleep(0.1)
                continue
            job_id = chance.choice(candidates)
            seen: list[int] = []
            while not self._over.is_set():
                try:
                    with Ratchet(self.world.url, patience_seconds=PATIENCE) as api:
                        for event in api.events(job_id, after=seen[-1] if seen else 0):
                            seen.append(event.seq)
                    self.watched[job_id] = seen
                    break
                except (ServiceUnreachable, ApiError):
                    time.sleep(0.2)

    def _meddle(self, chance: random.Random) -> None:
        """Pause, resume and cancel now and then."""
        with httpx2.Client(base_url=self.world.url, timeout=20) as http:
            while not self._calm.is_set():
                self._over.wait(chance.uniform(0.5, 3))
                recent = list(self.answered)[-MAX_UNFINISHED:]
                if not recent:
                    continue
                verb = chance.choice(["pause", "resume", "resume", "cancel"])
                self._ask(http, chance.choice(recent), verb)
            for job_id in list(self.answered):
                self._let_go_on(http, job_id)

    def _let_go_on(self, http: httpx2.Client, job_id: str) -> None:
        """No job stays paused for want of somebody who resumes it."""
        while not self._over.is_set():
            with self.world.ledger.read() as session:
                job = session.get(Job, job_id)
            if job is None or job.state in FINAL or (job.state is not State.PAUSED and job.stop_requested is None):
                return
            self._ask(http, job_id, "resume")
            time.sleep(0.1)

    def _ask(self, http: httpx2.Client, job_id: str, verb: str) -> None:
        try:
            with self.world.ledger.read() as session:
                job: Any = session.get(Job, job_id)
            if verb == "resume" and (job is None or job.state in FINAL):
                return  # That would be a new job.
            answer = http.post(f"/jobs/{job_id}/{verb}")
        except httpx2.TransportError:
            return
        self.asked[f"{verb} {answer.status_code}"] += 1
        if answer.status_code == 201:
            self.answered[str(answer.json()["id"])] = -1
        elif answer.status_code not in (200, 409, 503):
            self.mistakes.append(f"{verb}: {answer.status_code} {answer.text}")
