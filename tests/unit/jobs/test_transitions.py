from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from jobs.errors import IllegalTransition, JobNotFound, LeaseLost
from jobs.tables import FINAL, HELD, TRANSITIONS, State
from jobs.transitions import transition

LEGAL = [(origin, to) for origin in State for to in State if to in TRANSITIONS[origin]]
ILLEGAL = sorted(set(product(State, State)) - set(LEGAL))


@pytest.mark.parametrize(("origin", "to"), LEGAL)
def test_a_drawn_arrow_changes_the_state_and_the_log_says_so(
    session: Any, bring: Any, story: Any, origin: State, to: State
) -> None:
    job = bring(origin)
    before = job.last_seq
    job = transition(session, job.id, to, fence=None, now=7.0)
    assert job.state is to
    assert (job.finished_at == 7.0) is (to in FINAL)
    last = "done" if to in FINAL else "state"
    assert [seq for seq, _, _ in story(job)] == list(range(1, job.last_seq + 1))
    assert story(job)[before][:2] == (before + 1, "state")
    assert story(job)[-1][1] == last
    assert json.loads(story(job)[-1][2])["state"] == to


@pytest.mark.parametrize(("origin", "to"), ILLEGAL)
def test_an_arrow_that_is_not_drawn_is_refused_and_nothing_is_written(
    session: Any, bring: Any, story: Any, origin: State, to: State
) -> None:
    job = bring(origin)
    before = story(job)
    with pytest.raises(IllegalTransition, match=f"is {origin}; it cannot become {to}"):
        transition(session, job.id, to, fence=None)
    session.refresh(job)
    assert job.state is origin
    assert story(job) == before


@pytest.mark.parametrize(("origin", "to"), [arrow for arrow in LEGAL if arrow[0] in HELD])
def test_a_fence_of_the_past_moves_nothing(session: Any, bring: Any, origin: State, to: State) -> None:
    job = bring(origin)
    with pytest.raises(LeaseLost):
        transition(session, job.id, to, fence=job.fence - 1)


@pytest.mark.parametrize(("origin", "to"), [arrow for arrow in LEGAL if arrow[0] not in HELD])
def test_the_last_fence_speaks_for_no_one_while_the_job_is_not_held(
    session: Any, bring: Any, origin: State, to: State
) -> None:
    job = bring(origin)
    with pytest.raises(LeaseLost):
        transition(session, job.id, to, fence=job.fence)


def test_a_job_that_is_not_there_is_said_to_be_missing(session: Any) -> None:
    with pytest.raises(JobNotFound):
        transition(session, "job_nowhere", State.CANCELLED, fence=None)


def test_a_run_started_when_it_first_ran_whatever_came_later(session: Any, bring: Any) -> None:
    job = bring(State.STARTING)
    transition(session, job.id, State.RUNNING, fence=job.fence, now=5.0)
    transition(session, job.id, State.QUEUED, fence=job.fence, now=6.0)
    transition(session, job.id, State.STARTING, fence=None, now=7.0)
    assert transition(session, job.id, State.RUNNING, fence=job.fence, now=8.0).started_at == 5.0


def test_a_failure_is_told_with_its_cause(session: Any, bring: Any, story: Any) -> None:
    job = bring(State.RUNNING)
    cause = {"code": "crashed", "message": "It crashed."}
    transition(session, job.id, State.FAILED, fence=job.fence, error=cause)
    _, _, data = story(job)[-2]
    assert json.loads(data) == {"state": "failed", "attempt": 1, "error": cause}


def test_the_database_itself_refuses_a_state_that_does_not_exist(session: Any, bring: Any) -> None:
    job = bring(State.QUEUED)
    with pytest.raises(IntegrityError, match="ck_job_state"):
        session.execute(text("UPDATE job SET state = 'lost' WHERE id = :id"), {"id": job.id})
