from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from sqlmodel import Session

from jobs import queue
from jobs.tables import Job, State

Story = Callable[[Job], list[tuple[int, str, str]]]

DIFF = [{"field": "learning_rate", "before": 0.1, "after": 0.2}]


def said(story: Story, job: Job) -> list[dict[str, Any]]:
    return [json.loads(data) for _, _, data in story(job)]


def test_the_first_event_of_a_run_that_goes_on_says_from_where_how_and_what_differs(
    submit: Callable[..., Job], story: Story
) -> None:
    job = submit(parent_checkpoint="c1", resume_mode="extend", diff=DIFF)
    told = {"mode": "extend", "parent": "c1", "diff": DIFF}
    assert said(story, job) == [{"state": "queued", "attempt": 0, **told}]


def test_a_run_that_changes_nothing_says_so(submit: Callable[..., Job], story: Story) -> None:
    (first,) = said(story, submit(parent_checkpoint="c1", resume_mode="exact", diff=[]))
    assert first["diff"] == []


def test_a_fresh_run_has_nothing_to_say_of_another(submit: Callable[..., Job], story: Story) -> None:
    assert said(story, submit()) == [{"state": "queued", "attempt": 0}]


def test_a_paused_job_that_goes_on_with_changes_says_them(
    session: Session, bring: Callable[[State], Job], story: Story
) -> None:
    job = queue.unpause(session, bring(State.PAUSED), diff=DIFF)
    assert said(story, job)[-1] == {"state": "queued", "attempt": 0, "diff": DIFF}


def test_a_paused_job_that_goes_on_as_it_was_says_no_more_than_that(
    session: Session, bring: Callable[[State], Job], story: Story
) -> None:
    job = queue.unpause(session, bring(State.PAUSED))
    assert said(story, job)[-1] == {"state": "queued", "attempt": 0}
