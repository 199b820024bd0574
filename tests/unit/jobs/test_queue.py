from __future__ import annotations

import re
from typing import Any

import pytest

from jobs import lease, queue
from jobs.errors import IdempotencyConflict, IllegalTransition, JobBusy
from jobs.lease import Failed, Stopped, Succeeded
from jobs.tables import FINAL, State, Stop


def claimed_names(session: Any, now: float = 0.0) -> list[str]:
    names = []
    while (job := queue.claim(session, "w1", now)) is not None:
        names.append(job.name)
    return names


def test_a_new_job_is_queued_and_its_log_begins_with_that(submit: Any, story: Any) -> None:
    job = submit()
    assert re.fullmatch(r"job_[a-z0-9]{20}", job.id)
    assert (job.state, job.attempt, job.source, job.model_type) == (State.QUEUED, 0, "tale.md", "from_scratch")
    assert story(job) == [(1, "state", '{"state":"queued","attempt":0}')]


def test_jobs_are_claimed_by_priority_then_in_the_order_they_came(session: Any, submit: Any) -> None:
    for name, priority in [("a", 0), ("b", 5), ("c", 0), ("d", 5), ("e", -1)]:
        submit(name, priority=priority)
    assert claimed_names(session) == ["b", "d", "a", "c", "e"]


def test_a_job_is_not_claimed_before_its_time(session: Any, submit: Any) -> None:
    submit("later", run_after=100.0)
    submit("now")
    assert claimed_names(session, now=99.9) == ["now"]
    assert claimed_names(session, now=100.0) == ["later"]


def test_a_claim_hands_out_the_next_fence_and_charges_an_attempt(session: Any, submit: Any, story: Any) -> None:
    submit()
    job = queue.claim(session, "w1", now=0.0)
    assert (job.state, job.fence, job.attempt, job.worker_id) == (State.STARTING, 1, 1, "w1")
    lease.retry(session, job.id, 1, Failed("crashed", "It crashed."), delay=0, now=0.0)
    queue.wake_due(session, now=0.0)
    job = queue.claim(session, "w2", now=0.0)
    assert (job.fence, job.attempt, job.worker_id, job.error) == (2, 2, "w2", None)
    assert story(job)[-1] == (5, "state", '{"state":"starting","attempt":2}')


def test_nothing_to_claim_is_none(session: Any) -> None:
    assert queue.claim(session, "w1", now=0.0) is None


def test_the_same_request_again_finds_the_same_job(submit: Any, session: Any) -> None:
    spec = queue.NewJob("tale", {}, 10, idempotency_key="k", request_hash="h")
    first, second = queue.enqueue(session, spec), queue.enqueue(session, spec)
    assert (first.created, second.created) == (True, False)
    assert first.job.id == second.job.id


def test_another_request_under_the_same_key_is_refused(submit: Any) -> None:
    submit(idempotency_key="k", request_hash="h")
    with pytest.raises(IdempotencyConflict):
        submit(idempotency_key="k", request_hash="other")


def test_a_key_belongs_to_its_owner(submit: Any) -> None:
    mine = submit(owner="a", idempotency_key="k", request_hash="h")
    yours = submit(owner="b", idempotency_key="k", request_hash="other")
    assert mine.id != yours.id


@pytest.mark.parametrize("state", [State.QUEUED, State.RETRY_WAIT, State.PAUSED])
def test_cancel_acts_at_once_on_a_job_that_nobody_holds(session: Any, bring: Any, state: State) -> None:
    assert queue.request_cancel(session, bring(state)).state is State.CANCELLED


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING, State.STOPPING])
def test_cancel_asks_the_worker_that_holds_the_job(session: Any, bring: Any, state: State) -> None:
    job = queue.request_cancel(session, bring(state))
    assert (job.state, job.stop_requested) == (state, Stop.CANCEL)
    assert lease.beat(session, job.id, job.fence).stop_requested is Stop.CANCEL


@pytest.mark.parametrize("state", sorted(FINAL))
def test_cancel_leaves_a_final_job_as_it_is(session: Any, bring: Any, story: Any, state: State) -> None:
    job = bring(state)
    before = story(job)
    assert queue.request_cancel(session, job).state is state
    assert story(job) == before


@pytest.mark.parametrize("state", [State.QUEUED, State.RETRY_WAIT, State.PAUSED])
def test_pause_acts_at_once_on_a_job_that_nobody_holds(session: Any, bring: Any, state: State) -> None:
    assert queue.request_pause(session, bring(state)).state is State.PAUSED


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING])
def test_pause_asks_the_worker_that_holds_the_job(session: Any, bring: Any, state: State) -> None:
    job = queue.request_pause(session, bring(state))
    assert (job.state, job.stop_requested) == (state, Stop.PAUSE)


@pytest.mark.parametrize("state", sorted(FINAL))
def test_a_final_job_cannot_be_paused(session: Any, bring: Any, state: State) -> None:
    with pytest.raises(IllegalTransition):
        queue.request_pause(session, bring(state))


def test_cancel_wins_over_pause_in_either_order(session: Any, bring: Any) -> None:
    job = queue.request_cancel(session, bring(State.RUNNING))
    assert queue.request_pause(session, job).stop_requested is Stop.CANCEL
    job = queue.request_pause(session, bring(State.RUNNING))
    assert queue.request_cancel(session, job).stop_requested is Stop.CANCEL


def test_a_paused_job_goes_back_in_line_without_its_request(session: Any, bring: Any) -> None:
    job = bring(State.STOPPING)
    job = lease.finish(session, job.id, job.fence, Stopped())
    assert (job.state, job.worker_id) == (State.PAUSED, None)
    job = queue.unpause(session, job)
    assert (job.state, job.stop_requested) == (State.QUEUED, None)


def test_what_changes_as_a_job_goes_on_is_set_with_it(session: Any, bring: Any) -> None:
    changes = {"meta": {"a": "1"}, "diff": [], "training_steps": 7, "resume_key": "k", "resume_hash": "h"}
    job = queue.unpause(session, bring(State.PAUSED), **changes)
    session.refresh(job)
    assert (job.state, job.model_dump(include=set(changes))) == (State.QUEUED, changes)


def test_a_request_that_let_a_job_go_on_is_known_by_its_key(session: Any, bring: Any) -> None:
    job = queue.unpause(session, bring(State.PAUSED), resume_key="k", resume_hash="h")
    assert queue.made_before(session, job.owner, "k", "h") is job
    assert queue.made_before(session, "another", "k", "h") is None
    with pytest.raises(IdempotencyConflict):
        queue.made_before(session, job.owner, "k", "other")


def test_a_pause_that_has_not_begun_can_be_taken_back(session: Any, bring: Any) -> None:
    job = queue.unpause(session, queue.request_pause(session, bring(State.RUNNING)))
    assert (job.state, job.stop_requested) == (State.RUNNING, None)


def test_a_job_that_is_just_stopping_cannot_be_unpaused_yet(session: Any, bring: Any) -> None:
    with pytest.raises(JobBusy):
        queue.unpause(session, bring(State.STOPPING))


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.RETRY_WAIT, *sorted(FINAL)])
def test_only_a_paused_job_can_be_unpaused(session: Any, bring: Any, state: State) -> None:
    with pytest.raises(IllegalTransition):
        queue.unpause(session, bring(state))


def test_a_waiting_job_wakes_when_it_is_due_and_not_before(session: Any, bring: Any) -> None:
    job = bring(State.RETRY_WAIT)
    assert queue.wake_due(session, now=59.9) == []
    assert [woken.id for woken in queue.wake_due(session, now=60.0)] == [job.id]
    assert (job.state, job.run_after) == (State.QUEUED, None)


def test_a_woken_job_keeps_its_place_in_line(session: Any, bring: Any, submit: Any) -> None:
    first = bring(State.RETRY_WAIT)
    submit("second")
    queue.wake_due(session, now=60.0)
    assert queue.claim(session, "w1", now=60.0).id == first.id


def test_a_succeeded_job_stays_so_when_a_cancel_comes_too_late(session: Any, bring: Any) -> None:
    job = queue.request_cancel(session, bring(State.RUNNING))
    assert lease.finish(session, job.id, job.fence, Succeeded()).state is State.SUCCEEDED


def test_a_clock_that_is_set_back_does_not_make_a_retry_wait(session: Any, submit: Any) -> None:
    submit()
    job = queue.claim(session, "w1", now=1e6)
    lease.retry(session, job.id, job.fence, Failed("crashed", "It crashed."), delay=5.0, now=1e6)
    assert queue.wake_due(session, now=1e6 + 4) == []
    assert [woken.id for woken in queue.wake_due(session, now=1e6 - 3600)] == [job.id]
