from __future__ import annotations

from typing import Any

import pytest

from jobs import line, queue
from jobs.errors import JobBusy
from jobs.tables import State


def claimed_in_turn(session: Any) -> list[str]:
    names = []
    while (job := queue.claim(session, "w1", now=0.0)) is not None:
        names.append(job.name)
    return names


@pytest.mark.parametrize(
    ("mover", "other", "then"),
    [
        ("d", "a", "dabc"),
        ("d", "c", "abdc"),
        ("a", "d", "bcad"),
        ("a", "b", "abcd"),
        ("c", "c", "abcd"),
    ],
)
def test_a_job_goes_in_front_of_another(session: Any, submit: Any, mover: str, other: str, then: str) -> None:
    jobs = {name: submit(name) for name in "abcd"}
    line.move_before(session, jobs[mover], jobs[other])
    assert [job.name for job in line.waiting(session, "local", 10)[0]] == list(then)
    assert claimed_in_turn(session) == list(then)


def test_it_takes_over_the_priority_of_the_other(session: Any, submit: Any) -> None:
    jobs = {name: submit(name, priority=priority) for name, priority in [("low", 0), ("high", 5), ("higher", 5)]}
    assert line.move_before(session, jobs["low"], jobs["higher"]).priority == 5
    assert claimed_in_turn(session) == ["high", "low", "higher"]


def test_places_stay_one_job_each(session: Any, submit: Any) -> None:
    jobs = [submit(str(number)) for number in range(6)]
    places = sorted(job.seq for job in jobs)
    line.move_before(session, jobs[5], jobs[0])
    line.move_before(session, jobs[1], jobs[4])
    for job in jobs:
        session.refresh(job)
    assert sorted(job.seq for job in jobs) == places
    assert submit("last").seq == places[-1] + 1


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSED, State.SUCCEEDED])
def test_only_those_who_wait_can_be_moved(session: Any, submit: Any, bring: Any, state: State) -> None:
    busy, waiting = bring(state), submit()
    for job, other in ((busy, waiting), (waiting, busy)):
        with pytest.raises(JobBusy, match=f"{busy.id} is {state}"):
            line.move_before(session, job, other)


def test_the_line_comes_in_pages(session: Any, submit: Any) -> None:
    for number in range(7):
        submit(str(number), priority=number % 3)
    seen: list[str] = []
    after, has_more = None, True
    while has_more:
        page, has_more = line.waiting(session, "local", 2, after)
        seen += [job.name for job in page]
        after = page[-1].id
    assert seen == claimed_in_turn(session)
