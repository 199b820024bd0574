"""The whole ledger in random order, against a model of it in plain Python.

People, two workers, two scanners and two clocks that need not agree act on a handful of jobs. The model says beforehand
what each act must answer or refuse, which job is next, and what every job's row and log must look like afterwards; it
shares no code with the ledger but the names of the states. Workers also speak of jobs that they lost long ago.

`HYPOTHESIS_PROFILE=long` looks further, at other lives in each run.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlmodel import Session, col, select

from jobs import catalog, feed, lease, queue
from jobs.database import Database
from jobs.errors import IdempotencyConflict, IllegalTransition, JobBusy, LeaseLost
from jobs.lease import Failed, Halted, LeaseScanner, Outcome, Stopped, Succeeded
from jobs.queue import NewJob
from jobs.tables import TRANSITIONS, Checkpoint, Event, Job, State

settings.register_profile(
    "short",
    max_examples=120,
    stateful_step_count=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "long", settings.get_profile("short"), max_examples=2_000, stateful_step_count=80, derandomize=False
)
PROFILE = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

HOUR = 3_600.0
LEASE_SECONDS = 30.0
MAX_ATTEMPTS = 5
MAX_JOBS = 7

CRASH = Failed("crashed", "It crashed.")
FULL = Halted("disk_full", "The disk is full.")

HELD = {"starting", "running", "stopping"}
FINAL = {"succeeded", "failed", "cancelled"}

Refusal = type[Exception]


class Refused(Exception):
    """The model expects the ledger to raise this."""

    def __init__(self, kind: Refusal) -> None:
        super().__init__(kind.__name__)
        self.kind = kind


@dataclass
class Twin:
    """What a job must look like; `log` has (kind, attempt, state) of each event."""

    place: int
    priority: int
    run_after: float | None
    key: str | None = None
    said: str | None = None
    resume_key: str | None = None
    resume_said: str | None = None
    id: str = ""
    state: str = "queued"
    stop: str | None = None
    fence: int = 0
    heartbeat: int = 0
    attempt: int = 0
    failures: int = 0
    checkpoint: str | None = None
    claimed_checkpoint: str | None = None
    worker: str | None = None
    device: str | None = None
    error: str | None = None
    step: int = 0
    log: list[tuple[str, int, str | None]] = field(default_factory=list)

    def go(self, state: str) -> None:
        self.state = state
        self.log.append(("state", self.attempt, state))
        if state in FINAL:
            self.log.append(("done", self.attempt, state))
        if state not in HELD:
            self.device = None

    def rest(self, error: str | None = None, charged: bool = False) -> None:
        """Stop as was asked."""
        if self.state != "stopping":
            self.go("stopping")
        self.error = error or self.error
        if self.stop == "cancel":
            self.go("cancelled")
            return
        self.worker = None
        self.attempt -= 0 if charged else 1
        self.go("paused")

    def row(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in {"log", "said", "resume_said"}}

    def __hash__(self) -> int:
        return id(self)


def row_of(job: Job) -> dict[str, Any]:
    return {
        "place": job.seq,
        "priority": job.priority,
        "run_after": job.run_after,
        "key": job.idempotency_key,
        "resume_key": job.resume_key,
        "id": job.id,
        "state": job.state.value,
        "stop": job.stop_requested and job.stop_requested.value,
        "fence": job.fence,
        "heartbeat": job.heartbeat,
        "attempt": job.attempt,
        "failures": job.failures_in_a_row,
        "checkpoint": job.checkpoint,
        "claimed_checkpoint": job.claimed_checkpoint,
        "worker": job.worker_id,
        "device": job.device,
        "error": job.error and job.error["code"],
        "step": job.step,
    }


class Model:
    """The ledger as it should be."""

    def __init__(self) -> None:
        self.jobs: list[Twin] = []
        self.checkpoints: set[str] = set()

    def enqueue(self, key: str | None, said: str, priority: int, run_after: float | None) -> tuple[Twin, bool]:
        for twin in self.jobs:
            if key is not None and key in (twin.key, twin.resume_key):
                if said != (twin.said if key == twin.key else twin.resume_said):
                    raise Refused(IdempotencyConflict)
                return twin, False
        place = 1 + max((twin.place for twin in self.jobs), default=0)
        twin = Twin(place, priority, run_after, key, said)
        twin.log.append(("state", 0, "queued"))
        self.jobs.append(twin)
        return twin, True

    def claim(self, worker: str, wall: float, device: str | None) -> Twin | None:
        if device is not None and any(twin.device == device for twin in self.jobs):
            return None
        due = [t for t in self.jobs if t.state == "queued" and (t.run_after is None or t.run_after <= wall)]
        if not due:
            return None
        twin = min(due, key=lambda twin: (-twin.priority, twin.place))
        twin.fence += 1
        twin.attempt += 1
        twin.claimed_checkpoint = twin.checkpoint
        twin.worker, twin.device, twin.run_after, twin.error = worker, device, None, None
        twin.go("starting")
        return twin

    def held(self, twin: Twin, fence: int) -> None:
        if twin not in self.jobs or twin.fence != fence or twin.state not in HELD:
            raise Refused(LeaseLost)

    def record(self, twin: Twin, fence: int, kinds: list[str], step: int) -> None:
        self.held(twin, fence)
        if "started" in kinds and twin.state == "starting":
            twin.go("running")
        for kind in kinds:
            step += 1
            twin.log.append((kind, twin.attempt, None))
            if kind == "step":
                twin.step = step
            if kind == "checkpoint":
                twin.checkpoint, twin.failures = f"c{step}", 0
                self.checkpoints.add(f"c{step}")

    def beat(self, twin: Twin, fence: int) -> str | None:
        self.held(twin, fence)
        twin.heartbeat += 1
        return twin.stop

    def acknowledge(self, twin: Twin, fence: int) -> None:
        self.held(twin, fence)
        if twin.stop is not None:
            if twin.state == "stopping":
                raise Refused(IllegalTransition)
            twin.go("stopping")

    def finish(self, twin: Twin, fence: int, outcome: Outcome) -> None:
        if twin in self.jobs and twin.fence == fence and twin.state in FINAL:
            return  # Whoever held it last may say so twice.
        self.held(twin, fence)
        match outcome:
            case Succeeded():
                if twin.state == "starting":
                    twin.go("running")
                twin.go("succeeded")
            case Failed() if twin.state == "stopping":
                twin.rest(outcome.code, charged=True)
            case Failed():
                twin.error = outcome.code
                twin.go("failed")
            case Halted():
                twin.rest(outcome.code)
            case Stopped():
                self.release(twin, fence)

    def release(self, twin: Twin, fence: int) -> None:
        self.held(twin, fence)
        if twin.stop is not None:
            twin.rest()
            return
        twin.worker = None
        twin.attempt -= 1
        twin.go("queued")

    def retry(
        self, twin: Twin, fence: int, error: str, due: float, progress: bool | None, limit: int = MAX_ATTEMPTS
    ) -> None:
        self.held(twin, fence)
        if twin.stop is not None:
            twin.rest(error, charged=True)
            return
        if progress is None:
            progress = twin.checkpoint != twin.claimed_checkpoint
        twin.failures = 0 if progress else twin.failures + 1
        twin.error = error
        if twin.attempt >= limit or twin.failures >= 2:
            twin.go("failed")
            return
        twin.run_after, twin.worker = due, None
        twin.go("retry_wait")

    def cancel(self, twin: Twin) -> None:
        if twin.state in HELD:
            twin.stop = "cancel"
        elif twin.state not in FINAL:
            twin.run_after = None
            twin.go("cancelled")

    def pause(self, twin: Twin) -> None:
        if twin.state in FINAL:
            raise Refused(IllegalTransition)
        if twin.state in HELD:
            twin.stop = twin.stop or "pause"
            return
        if twin.state == "retry_wait":
            twin.run_after = None
            twin.go("queued")
        if twin.state == "queued":
            twin.go("paused")

    def unpause(self, twin: Twin, key: str | None, said: str) -> None:
        if twin.state == "stopping":
            raise Refused(JobBusy)
        if twin.state in HELD and twin.stop == "pause":
            twin.stop = None
        elif twin.state == "paused":
            twin.stop = twin.error = None
            twin.go("queued")
        else:
            raise Refused(IllegalTransition)
        if key is not None:
            twin.resume_key, twin.resume_said = key, said

    def wake(self, wall: float) -> list[Twin]:
        def is_due(moment: float) -> bool:
            return moment <= wall or moment > wall + 60  # Nobody waits longer, so the clock was set back.

        due = [twin for twin in self.jobs if twin.state == "retry_wait" and is_due(twin.run_after or 0.0)]
        for twin in due:
            twin.run_after = None
            twin.go("queued")
        return sorted(due, key=lambda twin: twin.place)

    def delete(self, twin: Twin) -> None:
        if twin.state not in FINAL:
            raise Refused(JobBusy)
        self.jobs.remove(twin)


class Watch:
    """What one scanner has seen of each holder, and since when."""

    def __init__(self) -> None:
        self.seen: dict[Twin, tuple[int, int, float]] = {}

    def silent(self, model: Model, now: float) -> list[Twin]:
        sightings = {}
        for twin in (twin for twin in model.jobs if twin.state in HELD):
            since = self.seen.get(twin)
            known = since is not None and since[:2] == (twin.fence, twin.heartbeat)
            sightings[twin] = since if known and since else (twin.fence, twin.heartbeat, now)
        self.seen = sightings
        return [twin for twin, (_, _, since) in sightings.items() if now - since >= LEASE_SECONDS]


@contextmanager
def clock_at(wall: float) -> Iterator[None]:
    with patch("time.time", lambda: wall):
        yield


some = st.integers(0, 1_000)
"""Which of those that there are, counted round and round."""

progress = st.sampled_from([None, None, True, False])
outcomes = st.sampled_from([Succeeded(), CRASH, Stopped(), FULL, "drained"])
keys = st.sampled_from([None, "k1", "k2"])
set_by = st.sampled_from([0.0, 0.0, HOUR, -HOUR])
words = st.sampled_from(["this", "that"])
priorities = st.integers(-1, 2)


class Ledger(RuleBasedStateMachine):
    """Each rule is one transaction of one of those who share the ledger."""

    db: ClassVar[Database]
    tally: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.connection = self.db.writer.connect()
        self.everything = self.connection.begin()  # Rolled back in the end, so that each life begins with no jobs.
        self.wall, self.monotonic = 1_000_000.0, 0.0
        self.watches = [Watch(), Watch()]
        self.scanners = [LeaseScanner(LEASE_SECONDS, lambda: self.monotonic) for _ in self.watches]
        self.grips: list[tuple[Twin, int]] = []  # Every lease that was ever handed out.
        self.num_said = 0

    def teardown(self) -> None:
        self.everything.rollback()
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with (
            clock_at(self.wall),
            Session(self.connection, expire_on_commit=False, join_transaction_mode="create_savepoint") as session,
            session.begin(),
        ):
            yield session

    def same(self, expected: Callable[[], Any], actual: Callable[[Session], Any]) -> tuple[Any, Any]:
        """Let the model and the ledger do the same: both answer, or the ledger refuses as the model says."""
        try:
            foretold = expected()
        except Refused as refusal:
            self.tally[refusal.kind.__name__] += 1
            with pytest.raises(refusal.kind), self.transaction() as session:
                actual(session)
            return None, None
        with self.transaction() as session:
            return foretold, actual(session)

    def job(self, session: Session, twin: Twin) -> Job:
        return catalog.get_job(session, "local", twin.id)

    def one(self, number: int) -> Twin:
        """Any job, more often one at work."""
        choices = self.model.jobs + 2 * [twin for twin in self.model.jobs if twin.state in HELD]
        return choices[number % len(choices)]

    @property
    def good(self) -> list[tuple[Twin, int]]:
        return [(twin, fence) for twin, fence in self.grips if twin.fence == fence and twin.state in HELD]

    @property
    def lost(self) -> list[tuple[Twin, int]]:
        return [grip for grip in self.grips if grip not in self.good]

    def grip(self, number: int) -> tuple[Twin, int]:
        """Now and then a lease that was lost; more often one that is good."""
        choices = 3 * self.good + self.grips[-3:]
        return choices[number % len(choices)]

    has_jobs = precondition(lambda self: self.model.jobs)
    was_claimed = precondition(lambda self: self.grips)
    is_held = precondition(lambda self: self.good)
    was_lost = precondition(lambda self: self.lost)

    @initialize(waiting=st.integers(1, 3), running=st.integers(0, 2))
    def a_life_begins(self, waiting: int, running: int) -> None:
        for _ in range(waiting):
            self.someone_submits(None, "this", 0, None)
        for number in range(running):
            self.a_worker_claims(f"w{number + 1}", None, starts=True)

    @precondition(lambda self: len(self.model.jobs) < MAX_JOBS)
    @rule(key=keys, said=words, priority=priorities, wait=st.sampled_from([None, None, -5.0, 20.0, 2 * HOUR]))
    def someone_submits(self, key: str | None, said: str, priority: int, wait: float | None) -> None:
        self.wall += 1.0
        run_after = None if wait is None else self.wall + wait
        spec = NewJob(
            "tale", {}, 10, priority=priority, run_after=run_after, idempotency_key=key, request_hash=key and said
        )
        foretold, enqueued = self.same(
            lambda: self.model.enqueue(key, said, priority, run_after), lambda session: queue.enqueue(session, spec)
        )
        if foretold is not None:
            twin, created = foretold
            twin.id = twin.id or enqueued.job.id
            assert (enqueued.job.id, enqueued.created) == (twin.id, created)

    @rule(
        worker=st.sampled_from(["w1", "w2"]),
        device=st.sampled_from([None, None, "gpu0", "gpu1"]),
        starts=st.booleans(),
    )
    def a_worker_claims(self, worker: str, device: str | None, starts: bool) -> None:
        def claim(session: Session) -> Job | None:
            due = queue.anything_due(session, self.wall)
            job = queue.claim(session, worker, self.wall, device=device)
            assert due or job is None
            return job

        twin, job = self.same(lambda: self.model.claim(worker, self.wall, device), claim)
        assert (twin and twin.id) == (job and job.id)
        if twin is not None:
            assert (job.fence, job.attempt) == (twin.fence, twin.attempt)
            self.grips.append((twin, twin.fence))
            if starts:
                self.record((twin, twin.fence), ["started"])

    @was_claimed
    @rule(number=some, kinds=st.lists(st.sampled_from(["started", "step", "log", "checkpoint"]), max_size=4))
    def a_run_speaks(self, number: int, kinds: list[str]) -> None:
        self.record(self.grip(number), kinds)

    def record(self, grip: tuple[Twin, int], kinds: list[str]) -> None:
        (twin, fence), step = grip, self.num_said
        events = []
        for kind in kinds:
            step += 1
            data = {"step": step, "loss": float("nan"), "id": f"c{step}", "name": f"checkpoint_{step}"}
            events.append((kind, data))
        _, last = self.same(
            lambda: self.model.record(twin, fence, kinds, self.num_said),
            lambda session: feed.record(session, twin.id, fence, events),
        )
        self.num_said = step
        assert last is None or last == len(twin.log)

    @was_claimed
    @rule(number=some)
    def a_worker_beats(self, number: int) -> None:
        self.beat(self.grip(number))

    def beat(self, grip: tuple[Twin, int]) -> None:
        twin, fence = grip
        stop, answer = self.same(
            lambda: self.model.beat(twin, fence), lambda session: lease.beat(session, twin.id, fence)
        )
        assert answer is None or answer.stop_requested == stop

    @was_claimed
    @rule(number=some)
    def a_worker_begins_to_stop(self, number: int) -> None:
        self.acknowledge(self.grip(number))

    def acknowledge(self, grip: tuple[Twin, int]) -> None:
        twin, fence = grip
        self.same(
            lambda: self.model.acknowledge(twin, fence),
            lambda session: lease.acknowledge_stop(session, twin.id, fence),
        )

    @was_claimed
    @rule(number=some, outcome=outcomes, twice=st.booleans())
    def a_run_ends(self, number: int, outcome: Outcome | Literal["drained"], twice: bool) -> None:
        self.end(self.grip(number), outcome, twice)

    def end(self, grip: tuple[Twin, int], outcome: Outcome | Literal["drained"], twice: bool = False) -> None:
        twin, fence = grip
        if outcome == "drained":
            self.same(lambda: self.model.release(twin, fence), lambda session: lease.release(session, twin.id, fence))
            return
        for _ in range(1 + twice):
            self.same(
                lambda: self.model.finish(twin, fence, outcome),
                lambda session: lease.finish(session, twin.id, fence, outcome),
            )

    @was_claimed
    @rule(number=some, delay=st.sampled_from([0.0, 10.0, 60.0]), progress=progress)
    def a_run_crashes(self, number: int, delay: float, progress: bool | None) -> None:
        self.crash(self.grip(number), delay, progress)

    def crash(self, grip: tuple[Twin, int], delay: float, progress: bool | None) -> None:
        twin, fence = grip
        self.same(
            lambda: self.model.retry(twin, fence, CRASH.code, self.wall + delay, progress),
            lambda session: lease.retry(session, twin.id, fence, CRASH, delay, made_progress=progress),
        )

    @has_jobs
    @rule(number=some, verb=st.sampled_from(["pause", "unpause", "cancel", "pause", "unpause"]), key=keys, said=words)
    def someone_steers(self, number: int, verb: str, key: str | None, said: str) -> None:
        self.steer(self.one(number), verb, key, said)

    def steer(self, twin: Twin, verb: str, key: str | None = None, said: str = "this") -> None:
        match verb:
            case "cancel":
                self.same(
                    lambda: self.model.cancel(twin),
                    lambda session: queue.request_cancel(session, self.job(session, twin)),
                )
            case "pause":
                self.same(
                    lambda: self.model.pause(twin),
                    lambda session: queue.request_pause(session, self.job(session, twin)),
                )
            case "unpause":
                self.let_go_on(twin, key, said)

    def let_go_on(self, twin: Twin, key: str | None, said: str) -> None:
        if any(key in (other.key, other.resume_key) for other in self.model.jobs):
            key = None  # The service looks for the key first, in the same transaction.
        columns = {} if key is None else {"resume_key": key, "resume_hash": said}
        self.same(
            lambda: self.model.unpause(twin, key, said),
            lambda session: queue.unpause(session, self.job(session, twin), **columns),
        )

    @has_jobs
    @rule(number=some, priority=priorities | st.none())
    def someone_puts_a_job_first_or_away(self, number: int, priority: int | None) -> None:
        twin = self.one(number)
        if priority is None:
            self.same(
                lambda: self.model.delete(twin), lambda session: catalog.delete_job(session, self.job(session, twin))
            )
            return
        twin.priority = priority
        with self.transaction() as session:
            session.add(self.job(session, twin).sqlmodel_update({"priority": priority}))

    # What takes several acts and is seldom found by chance.

    @is_held
    @rule(number=some, verbs=st.lists(st.sampled_from(["cancel", "pause"]), min_size=1, max_size=2), outcome=outcomes)
    def a_run_is_stopped(self, number: int, verbs: list[str], outcome: Outcome | Literal["drained"]) -> None:
        grip = self.good[number % len(self.good)]
        for verb in verbs:
            self.steer(grip[0], verb)
        self.beat(grip)
        self.acknowledge(grip)
        self.end(grip, outcome)

    @is_held
    @rule(number=some, each_saves=st.lists(st.booleans(), min_size=1, max_size=5), progress=progress)
    def attempts_fail(self, number: int, each_saves: list[bool], progress: bool | None) -> None:
        grip = self.good[number % len(self.good)]
        for saves in each_saves:
            self.record(grip, ["started", "checkpoint"] if saves else ["started"])
            self.crash(grip, 0.0, progress)
            self.waiting_is_over_for_some()
            self.a_worker_claims("w1", None, starts=False)
            grip = self.grips[-1]

    @has_jobs
    @rule(number=some, key=keys, said=words, then=words)
    def a_job_rests_and_goes_on_and_that_is_asked_twice(
        self, number: int, key: str | None, said: str, then: str
    ) -> None:
        twin = self.one(number)
        self.steer(twin, "pause")
        if twin.state in HELD:
            self.end((twin, twin.fence), Stopped())
        self.let_go_on(twin, key, said)
        self.someone_submits(key, then, 0, None)

    @was_lost
    @rule(number=some, outcome=outcomes)
    def a_ghost_says_all_it_can(self, number: int, outcome: Outcome | Literal["drained"]) -> None:
        grip = self.lost[number % len(self.lost)]
        self.beat(grip)
        self.record(grip, ["started", "step", "checkpoint"])
        self.acknowledge(grip)
        self.crash(grip, 0.0, progress=None)
        self.end(grip, outcome)

    @rule()
    def waiting_is_over_for_some(self) -> None:
        twins, woken = self.same(lambda: self.model.wake(self.wall), lambda session: queue.wake_due(session, self.wall))
        assert [job.id for job in woken] == [twin.id for twin in twins]

    @rule(seconds=st.sampled_from([0.5, 5.0, 29.0, 31.0]), set_by=set_by)
    def time_passes(self, seconds: float, set_by: float) -> None:
        """On both clocks, and someone may set the wall clock meanwhile."""
        self.wall += seconds + set_by
        self.monotonic += seconds

    @is_held
    @rule(which=st.integers(0, 1), number=some, kept=st.booleans(), set_by=set_by)
    def a_lease_goes_by(self, which: int, number: int, kept: bool, set_by: float) -> None:
        """All fall silent for as long as a lease, but for one that may beat; someone may set the wall clock."""
        self.scan(which)
        if kept:
            self.beat(self.good[number % len(self.good)])
        self.time_passes(LEASE_SECONDS / 2, set_by)
        self.scan(which)
        self.time_passes(LEASE_SECONDS / 2, 0.0)
        self.scan(which)

    def scan(self, which: int) -> None:
        def expected() -> list[Twin]:
            lost = self.watches[which].silent(self.model, self.monotonic)
            for twin in lost:
                self.model.retry(twin, twin.fence, "worker_lost", self.wall, None)
            return lost

        twins, jobs = self.same(expected, self.scanners[which].scan)
        self.tally["scanned"] += len(twins)
        assert {job.id for job in jobs} == {twin.id for twin in twins}

    @invariant()
    def every_row_is_as_foretold(self) -> None:
        with self.transaction() as session:
            rows = session.exec(select(Job)).all()
            saved = set(session.exec(select(Checkpoint.id)).all())
        by_id = {twin.id: twin.row() for twin in self.model.jobs}
        assert {job.id: row_of(job) for job in rows} == by_id
        assert saved == self.model.checkpoints
        for job in rows:
            assert (job.finished_at is not None) == (job.state.value in FINAL)
        in_use = [job.device for job in rows if job.device is not None]
        assert len(set(in_use)) == len(in_use)

    @invariant()
    def every_log_is_whole_and_follows_the_arrows(self) -> None:
        with self.transaction() as session:
            columns = (Event.job_id, Event.seq, Event.kind, Event.attempt, Event.data)
            written = session.execute(select(*columns).order_by(col(Event.job_id), col(Event.seq))).all()  # type: ignore[call-overload]
        logs: dict[str, list[tuple[int, str, int, str | None]]] = {}
        for job_id, seq, kind, attempt, data in written:
            state = json.loads(data)["state"] if kind in {"state", "done"} else None
            logs.setdefault(job_id, []).append((seq, kind, attempt, state))
        assert logs == {
            twin.id: [(seq, *said) for seq, said in enumerate(twin.log, start=1)] for twin in self.model.jobs
        }
        for log in logs.values():
            states = [State(state) for _, kind, _, state in log if kind == "state"]
            assert all(to in TRANSITIONS[origin] for origin, to in pairwise(states))
            ends = [seq for seq, kind, *_ in log if kind == "done"]
            assert ends == ([len(log)] if states[-1].value in FINAL else [])
            self.tally.update(f"{a.value} → {b.value}" for a, b in pairwise(states))


@pytest.mark.timeout(600)  # A life that fails is made as short as it can be, which takes a while.
def test_in_whatever_order_the_ledger_is_used_it_does_as_foretold(db: Database) -> None:
    tally: Counter[str] = Counter()
    kind = db.writer.dialect.name
    # The verbs are the same on every database; a server answers them more slowly than a file.
    share = 1 if kind == "sqlite" else 4
    profile = settings(parent=PROFILE, max_examples=PROFILE.max_examples // share)
    run_state_machine_as_test(type("LedgerHere", (Ledger,), {"db": db, "tally": tally}), settings=profile)
    drawn = {f"{origin.value} → {to.value}" for origin, targets in TRANSITIONS.items() for to in targets}
    refusals = {"LeaseLost", "IllegalTransition", "JobBusy", "IdempotencyConflict"}
    if kind == "sqlite":  # Lives that are too short to get anywhere would tell nothing.
        assert len(tally.keys() & (drawn | refusals)) >= 0.5 * len(drawn | refusals), tally


person = st.lists(st.sampled_from(["cancel", "pause", "unpause"]), max_size=2).map(lambda acts: ["cancel", *acts])
holder = st.tuples(
    st.lists(st.sampled_from(["beat", "started", "acknowledge", "step"]), max_size=3),
    st.sampled_from(["succeeded", "failed", "stopped", "halted", "release", "retry"]),
).map(lambda told: [*told[0], told[1]])


@settings(parent=PROFILE)
@given(person=person, holder=holder, turns=st.lists(st.booleans(), min_size=7, max_size=7), again=st.booleans())
def test_a_cancel_and_a_finish_in_any_order_leave_one_end(
    db: Database, person: list[str], holder: list[str], turns: list[bool], again: bool
) -> None:
    with db.write() as session:
        job = queue.enqueue(session, NewJob("tale", {}, 10)).job
        claimed = queue.claim(session, "w1", now=0.0)
        assert claimed is not None
        fence = claimed.fence
        acts: dict[str, Callable[[], object]] = {
            "cancel": lambda: queue.request_cancel(session, job),
            "pause": lambda: queue.request_pause(session, job),
            "unpause": lambda: queue.unpause(session, job),
            "beat": lambda: lease.beat(session, job.id, fence),
            "started": lambda: feed.record(session, job.id, fence, [("started", {})]),
            "step": lambda: feed.record(session, job.id, fence, [("step", {"step": 1})]),
            "acknowledge": lambda: lease.acknowledge_stop(session, job.id, fence),
            "succeeded": lambda: lease.finish(session, job.id, fence, Succeeded()),
            "failed": lambda: lease.finish(session, job.id, fence, CRASH),
            "stopped": lambda: lease.finish(session, job.id, fence, Stopped()),
            "halted": lambda: lease.finish(session, job.id, fence, FULL),
            "release": lambda: lease.release(session, job.id, fence),
            "retry": lambda: lease.retry(session, job.id, fence, CRASH, delay=0.0, now=0.0),
        }
        ends: list[State] = []
        for act in [*merged(person, holder, turns), *(holder[-1:] if again else [])]:
            with suppress(LeaseLost, IllegalTransition, JobBusy):
                acts[act]()
            session.refresh(job)
            if job.state.value in FINAL:
                ends.append(job.state)
        told = [(event.kind, json.loads(event.data).get("state")) for event in feed.after(session, job.id, 0)]
        session.rollback()
    # Whoever came first, the job was called off, so it has ended, once, and stayed as it ended.
    assert len(set(ends)) == 1
    assert [told.index(said) for said in told if said[0] == "done"] == [len(told) - 1]
    assert told[-2:] == [("state", ends[0]), ("done", ends[0])]


def merged(first: list[str], second: list[str], turns: list[bool]) -> list[str]:
    """Both in their own order, taking turns."""
    first, second, order = [*first], [*second], []
    for turn in turns:
        if first and (turn or not second):
            order.append(first.pop(0))
        elif second:
            order.append(second.pop(0))
    return order + first + second
