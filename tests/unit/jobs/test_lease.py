from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jobs import feed, lease, queue
from jobs.errors import IllegalTransition, LeaseLost
from jobs.lease import Failed, LeaseScanner, Stopped, Succeeded
from jobs.tables import HELD, State, Stop

CRASH = Failed("crashed", "It crashed.")
SAVED = ("checkpoint", {"step": 5, "id": "c1", "name": "checkpoint_c1", "size_bytes": 3})

WRITES: dict[str, Callable[[Any, str, int], Any]] = {
    "beat": lease.beat,
    "acknowledge_stop": lease.acknowledge_stop,
    "release": lease.release,
    "succeed": lambda session, job_id, fence: lease.finish(session, job_id, fence, Succeeded()),
    "fail": lambda session, job_id, fence: lease.finish(session, job_id, fence, CRASH),
    "stop": lambda session, job_id, fence: lease.finish(session, job_id, fence, Stopped()),
    "retry": lambda session, job_id, fence: lease.retry(session, job_id, fence, CRASH, delay=0),
    "record": lambda session, job_id, fence: feed.record(session, job_id, fence, [("log", {"line": "hello"})]),
    "start": lambda session, job_id, fence: feed.record(session, job_id, fence, [("started", {})]),
    "save": lambda session, job_id, fence: feed.record(session, job_id, fence, [SAVED]),
}


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def claim_again(session: Any) -> Any:
    queue.wake_due(session, now=1e12)
    return queue.claim(session, "w1", now=1e12)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_no_write_of_an_earlier_holder_lands(session: Any, bring: Any, story: Any, write: Any) -> None:
    job = bring(State.STARTING)
    lease.retry(session, job.id, job.fence, CRASH, delay=0)
    again = claim_again(session)
    before = story(again)
    with pytest.raises(LeaseLost):
        write(session, again.id, again.fence - 1)
    session.refresh(again)
    assert (again.state, story(again)) == (State.STARTING, before)


@pytest.mark.parametrize("state", [State.QUEUED, State.RETRY_WAIT, State.PAUSED])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_no_write_lands_on_a_job_that_was_taken_back(
    session: Any, bring: Any, story: Any, write: Any, state: State
) -> None:
    job = bring(state)
    before = story(job)
    with pytest.raises(LeaseLost):
        write(session, job.id, job.fence)
    session.refresh(job)
    assert (job.state, story(job)) == (state, before)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_job_that_was_deleted_has_no_holder(session: Any, write: Any) -> None:
    with pytest.raises(LeaseLost):
        write(session, "job_gone", 1)


@pytest.mark.parametrize("state", sorted(HELD))
def test_a_beat_renews_the_lease_of_a_held_job(session: Any, bring: Any, state: State) -> None:
    job = bring(state)
    before = job.heartbeat
    lease.beat(session, job.id, job.fence)
    session.refresh(job)
    assert job.heartbeat == before + 1


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING])
def test_a_worker_says_that_it_is_stopping(session: Any, bring: Any, state: State) -> None:
    job = queue.request_cancel(session, bring(state))
    assert lease.acknowledge_stop(session, job.id, job.fence).state is State.STOPPING
    with pytest.raises(IllegalTransition):
        lease.acknowledge_stop(session, job.id, job.fence)


@pytest.mark.parametrize(("request_stop", "end"), [("request_cancel", "cancelled"), ("request_pause", "paused")])
@pytest.mark.parametrize("acknowledged", [True, False])
def test_a_stopped_run_ends_as_it_was_asked_to(
    session: Any, bring: Any, request_stop: str, end: str, acknowledged: bool
) -> None:
    job = getattr(queue, request_stop)(session, bring(State.RUNNING))
    if acknowledged:
        lease.acknowledge_stop(session, job.id, job.fence)
    assert lease.finish(session, job.id, job.fence, Stopped()).state == end


@pytest.mark.parametrize("state", sorted(HELD))
def test_a_run_that_was_done_before_it_could_stop_has_succeeded(session: Any, bring: Any, state: State) -> None:
    job = bring(state)
    assert lease.finish(session, job.id, job.fence, Succeeded()).state is State.SUCCEEDED


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING])
def test_a_failed_run_keeps_its_cause(session: Any, bring: Any, state: State) -> None:
    job = bring(state)
    job = lease.finish(session, job.id, job.fence, CRASH)
    assert (job.state, job.error) == (State.FAILED, {"code": "crashed", "message": "It crashed."})


def test_a_run_that_fails_while_it_is_pausing_is_paused_and_keeps_the_cause(session: Any, bring: Any) -> None:
    job = bring(State.STOPPING)
    job = lease.finish(session, job.id, job.fence, CRASH)
    assert (job.state, job.error["code"]) == (State.PAUSED, "crashed")
    assert queue.unpause(session, job).error is None


def test_an_end_may_be_told_twice_by_the_same_holder(session: Any, bring: Any, story: Any) -> None:
    job = bring(State.SUCCEEDED)
    before = story(job)
    assert lease.finish(session, job.id, job.fence, Succeeded()).state is State.SUCCEEDED
    assert story(job) == before


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING])
def test_a_drained_job_goes_back_to_its_place_uncharged(session: Any, bring: Any, submit: Any, state: State) -> None:
    job = bring(state)
    submit("second")
    job = lease.release(session, job.id, job.fence)
    assert (job.state, job.attempt, job.worker_id) == (State.QUEUED, 0, None)
    assert claim_again(session).id == job.id


def test_a_pause_is_not_charged_either(session: Any, bring: Any) -> None:
    job = bring(State.STOPPING)
    assert lease.finish(session, job.id, job.fence, Stopped()).attempt == 0


def test_a_job_that_was_cancelled_is_not_put_back_in_line_by_a_drain(session: Any, bring: Any) -> None:
    job = queue.request_cancel(session, bring(State.RUNNING))
    assert lease.release(session, job.id, job.fence).state is State.CANCELLED


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING])
def test_a_failed_attempt_waits_and_then_goes_back_in_line(session: Any, bring: Any, state: State) -> None:
    job = bring(state)
    job = lease.retry(session, job.id, job.fence, CRASH, delay=30.0, now=100.0)
    assert (job.state, job.run_after, job.worker_id) == (State.RETRY_WAIT, 130.0, None)
    assert job.error == {"code": "crashed", "message": "It crashed."}


def test_two_failures_in_a_row_without_a_checkpoint_are_enough(session: Any, bring: Any) -> None:
    job = bring(State.RUNNING)
    assert lease.retry(session, job.id, job.fence, CRASH, delay=0).state is State.RETRY_WAIT
    again = claim_again(session)
    again = lease.retry(session, again.id, again.fence, CRASH, delay=0)
    assert (again.state, again.error["code"]) == (State.FAILED, "crashed")


def test_a_checkpoint_between_two_failures_makes_the_second_the_first(session: Any, bring: Any) -> None:
    job = bring(State.RUNNING)
    lease.retry(session, job.id, job.fence, CRASH, delay=0)
    again = claim_again(session)
    feed.record(session, again.id, again.fence, [("started", {}), SAVED])
    assert lease.retry(session, again.id, again.fence, CRASH, delay=0).state is State.RETRY_WAIT
    third = claim_again(session)
    assert lease.retry(session, third.id, third.fence, CRASH, delay=0).state is State.RETRY_WAIT


def test_five_attempts_are_the_last_even_if_each_made_progress(session: Any, bring: Any) -> None:
    job = bring(State.RUNNING)
    for _ in range(4):
        assert lease.retry(session, job.id, job.fence, CRASH, delay=0, made_progress=True).state is State.RETRY_WAIT
        job = claim_again(session)
    assert job.attempt == 5
    assert lease.retry(session, job.id, job.fence, CRASH, delay=0, made_progress=True).state is State.FAILED


@pytest.mark.parametrize(("request_stop", "end"), [("request_cancel", "cancelled"), ("request_pause", "paused")])
def test_a_crash_after_a_stop_was_asked_for_is_not_retried(
    session: Any, bring: Any, request_stop: str, end: str
) -> None:
    job = getattr(queue, request_stop)(session, bring(State.RUNNING))
    assert lease.retry(session, job.id, job.fence, CRASH, delay=0).state == end


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING])
def test_a_job_whose_holder_is_silent_for_the_whole_lease_is_taken_back(session: Any, bring: Any, state: State) -> None:
    clock, job = Clock(), bring(state)
    scanner = LeaseScanner(30.0, clock)
    assert scanner.scan(session) == []
    clock.seconds = 29.9
    assert scanner.scan(session) == []
    clock.seconds = 30.0
    assert [lost.id for lost in scanner.scan(session)] == [job.id]
    assert (job.state, job.error["code"]) == (State.RETRY_WAIT, "worker_lost")
    assert scanner.scan(session) == []


def test_a_beat_starts_the_lease_anew(session: Any, bring: Any) -> None:
    clock, job = Clock(), bring(State.RUNNING)
    scanner = LeaseScanner(30.0, clock)
    for seconds in range(0, 120, 20):
        clock.seconds = float(seconds)
        assert scanner.scan(session) == []
        lease.beat(session, job.id, job.fence)


def test_another_claim_starts_the_lease_anew(session: Any, bring: Any) -> None:
    clock, job = Clock(), bring(State.RUNNING)
    scanner = LeaseScanner(30.0, clock)
    scanner.scan(session)
    lease.release(session, job.id, job.fence)
    again = claim_again(session)
    clock.seconds = 30.0
    assert (again.heartbeat, scanner.scan(session)) == (0, [])


@pytest.mark.parametrize(("stop", "end"), [(Stop.CANCEL, "cancelled"), (Stop.PAUSE, "paused")])
@pytest.mark.parametrize("acknowledged", [True, False])
def test_a_lost_job_that_was_to_stop_ends_as_it_was_asked_to(
    session: Any, bring: Any, stop: Stop, end: str, acknowledged: bool
) -> None:
    clock, job = Clock(), bring(State.RUNNING)
    request = queue.request_cancel if stop is Stop.CANCEL else queue.request_pause
    request(session, job)
    if acknowledged:
        lease.acknowledge_stop(session, job.id, job.fence)
    scanner = LeaseScanner(30.0, clock)
    scanner.scan(session)
    clock.seconds = 31.0
    assert [lost.state for lost in scanner.scan(session)] == [end]


def test_a_scan_that_is_rolled_back_is_made_good_by_the_next(db: Any, bring: Any, session: Any) -> None:
    clock, job = Clock(), bring(State.RUNNING)
    scanner = LeaseScanner(30.0, clock)
    scanner.scan(session)
    clock.seconds = 30.0
    savepoint = session.begin_nested()
    scanner.scan(session)
    savepoint.rollback()
    assert [lost.id for lost in scanner.scan(session)] == [job.id]


def test_a_scanner_that_waited_long_for_its_answer_blames_nobody(session: Any, bring: Any) -> None:
    job = bring(State.RUNNING)
    moments = iter([0.0, 100.0, 101.0, 101.0])
    scanner = LeaseScanner(30.0, clock=lambda: next(moments))
    assert scanner.scan(session) == []
    assert scanner.scan(session) == []
    session.refresh(job)
    assert job.state is State.RUNNING
