"""A job's life, told in random order: people, workers, crashes and scans, against what must hold after each of them."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from jobs import feed, lease, queue
from jobs.database import Database
from jobs.errors import IllegalTransition, JobBusy, LeaseLost
from jobs.lease import Failed, LeaseScanner, Stopped, Succeeded
from jobs.queue import NewJob
from jobs.tables import FINAL, HELD, TRANSITIONS, State

CRASH = Failed("crashed", "It crashed.")


class Life(RuleBasedStateMachine):
    db: ClassVar[Database]

    def __init__(self) -> None:
        super().__init__()
        self._transaction = self.db.write()
        self.session = self._transaction.__enter__()
        self.job = queue.enqueue(self.session, NewJob("tale", {}, 10)).job
        self.clock = 0.0
        self.scanner = LeaseScanner(30.0, lambda: self.clock)
        self.num_checkpoints = 0

    def teardown(self) -> None:
        self.session.rollback()
        self._transaction.__exit__(None, None, None)

    @rule()
    def a_worker_claims(self) -> None:
        waits = self.job.state is State.QUEUED
        assert (queue.claim(self.session, "w", now=1e12) is not None) is waits

    @rule(verb=st.sampled_from([queue.request_cancel, queue.request_pause, queue.unpause]))
    def a_person_asks(self, verb: Any) -> None:
        try:
            verb(self.session, self.job)
        except (IllegalTransition, JobBusy):
            assert verb is not queue.request_cancel

    @precondition(lambda self: self.job.state in HELD)
    @rule(kind=st.sampled_from(["started", "step", "log", "checkpoint"]), count=st.integers(0, 3))
    def the_run_speaks(self, kind: str, count: int) -> None:
        self.num_checkpoints += 1
        ref = f"c{self.num_checkpoints}"
        data = {"step": self.num_checkpoints, "loss": 1.0, "id": ref, "name": f"checkpoint_{ref}"}
        feed.record(self.session, self.job.id, self.job.fence, [("log", {})] * count + [(kind, data)])

    @precondition(lambda self: self.job.state in {State.STARTING, State.RUNNING} and self.job.stop_requested)
    @rule()
    def the_worker_acknowledges(self) -> None:
        lease.acknowledge_stop(self.session, self.job.id, self.job.fence)

    @precondition(lambda self: self.job.state in HELD)
    @rule(outcome=st.sampled_from([Succeeded(), CRASH, Stopped()]))
    def the_run_ends(self, outcome: Any) -> None:
        lease.finish(self.session, self.job.id, self.job.fence, outcome)

    @precondition(lambda self: self.job.state in HELD)
    @rule(made_progress=st.sampled_from([True, False, None]))
    def the_run_crashes(self, made_progress: bool | None) -> None:
        lease.retry(self.session, self.job.id, self.job.fence, CRASH, delay=1.0, made_progress=made_progress)

    @precondition(lambda self: self.job.state in HELD)
    @rule()
    def the_worker_drains(self) -> None:
        lease.release(self.session, self.job.id, self.job.fence)

    @rule()
    def waiting_is_over(self) -> None:
        queue.wake_due(self.session, now=1e12)

    @rule(seconds=st.sampled_from([5.0, 31.0]), beats=st.booleans())
    def time_passes(self, seconds: float, beats: bool) -> None:
        if beats and self.job.state in HELD:
            lease.beat(self.session, self.job.id, self.job.fence)
        self.clock += seconds
        self.scanner.scan(self.session)

    @rule(outcome=st.sampled_from([Succeeded(), CRASH, Stopped()]))
    def a_ghost_of_an_earlier_holder_speaks(self, outcome: Any) -> None:
        before = (self.job.state, self.job.last_seq)
        ghost = self.job.fence - 1 if self.job.state in HELD else self.job.fence
        for write in (
            lambda: feed.record(self.session, self.job.id, ghost, [("log", {})]),
            lambda: lease.release(self.session, self.job.id, ghost),
            lambda: lease.beat(self.session, self.job.id, ghost),
        ):
            with pytest.raises(LeaseLost):
                write()
        # The last holder of a final job may repeat itself; anyone else is turned away.
        with suppress(LeaseLost):
            lease.finish(self.session, self.job.id, ghost, outcome)
        self.session.refresh(self.job)
        assert (self.job.state, self.job.last_seq) == before

    @invariant()
    def the_log_is_whole_and_every_arrow_in_it_is_drawn(self) -> None:
        self.session.refresh(self.job)
        events = feed.after(self.session, self.job.id, 0, limit=10_000)
        assert [event.seq for event in events] == list(range(1, self.job.last_seq + 1))
        states = [State(json.loads(event.data)["state"]) for event in events if event.kind == "state"]
        assert states[-1] is self.job.state
        assert all(to in TRANSITIONS[origin] for origin, to in pairwise(states))
        ends = [event.seq for event in events if event.kind == "done"]
        assert ends == ([self.job.last_seq] if self.job.state in FINAL else [])

    @invariant()
    def attempts_and_times_make_sense(self) -> None:
        assert 0 <= self.job.attempt <= lease.MAX_ATTEMPTS + 1
        assert (self.job.finished_at is not None) is (self.job.state in FINAL)
        assert (self.job.run_after is not None) is (self.job.state is State.RETRY_WAIT)
        assert (self.job.state in HELD) <= (self.job.worker_id == "w")


def test_whatever_happens_in_whatever_order_the_log_is_whole_and_only_the_holder_writes(db: Database) -> None:
    run_state_machine_as_test(
        type("LifeHere", (Life,), {"db": db}),
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
