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


def test_there_is_always_room_in_front_of_a_job(session: Any, submit: Any) -> None:
    first, last = submit("first"), submit("last")
    others = [submit(f"{number:02}") for number in range(50)]
    for job in others:
        line.move_before(session, job, last)
    names = [job.name for job in line.waiting(session, "local", 100)[0]]
    assert names == ["first", *(f"{number:02}" for number in range(50)), "last"]
    line.move_before(session, submit("hasty"), first)
    submit("late")
    names = [job.name for job in line.waiting(session, "local", 100)[0]]
    assert (names[0], names[-1]) == ("hasty", "late")


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
