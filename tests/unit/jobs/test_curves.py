from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
from sqlmodel import Session

from jobs import curves, feed, lease, queue
from jobs.curves import M4, Curve
from jobs.lease import Failed, Succeeded
from jobs.tables import Job
from jobs.thinning import thin

Submit = Callable[..., Job]
Draw = Callable[..., Curve]


def steps(first: int, last: int, loss: float = 1.0) -> list[feed.Said]:
    return [("step", {"step": step, "loss": loss + step / 1000}) for step in range(first, last + 1)]


def evaluation(step: int, val_loss: float = 2.0) -> feed.Said:
    return ("eval", {"step": step, "train_loss": 1.0, "val_loss": val_loss})


def resumed(from_step: int) -> feed.Said:
    return ("resumed", {"attempt": 2, "from_step": from_step, "checkpoint": None})


@pytest.fixture
def draw(session: Session) -> Draw:
    def read() -> AbstractContextManager[Session]:
        return nullcontext(session)

    def draw(job: Job, **given: Any) -> Curve:
        session.refresh(job)
        return curves.draw(read, job, **{"num_points": 1000, **given})

    return draw


@pytest.fixture
def run(session: Session, submit: Submit) -> Callable[..., Job]:
    """A job that has said something and has ended."""

    def run(*said: feed.Said, **given: Any) -> Job:
        submit(**given)
        job = queue.claim(session, "w1", now=0.0)
        assert job is not None
        feed.record(session, job.id, job.fence, [("started", {}), *said])
        return lease.finish(session, job.id, job.fence, Succeeded())

    return run


Run = Callable[..., Job]


def numbers(points: list[dict[str, Any]]) -> list[int]:
    return [point["step"] for point in points]


def test_a_job_that_said_nothing_has_an_empty_curve(draw: Draw, submit: Submit) -> None:
    job = submit()
    curve = draw(job)
    assert (curve.steps, curve.evaluations, curve.downsampled) == ([], [], False)
    assert curve.segments == [curves.Segment(job.id, 0, 0, None, None)]


def test_a_curve_has_every_step_and_evaluation_in_order(draw: Draw, run: Run) -> None:
    job = run(evaluation(0), *steps(1, 5), evaluation(5), ("log", {"line": "x"}), *steps(6, 8))
    curve = draw(job)
    assert numbers(curve.steps) == list(range(1, 9))
    assert numbers(curve.evaluations) == [0, 5]
    assert curve.steps[2] == {"step": 3, "loss": 1.003}


def test_a_new_attempt_replaces_what_an_earlier_one_drew_beyond_its_beginning(
    draw: Draw, session: Session, submit: Submit
) -> None:
    submit()
    first = queue.claim(session, "w1", now=0.0)
    assert first is not None
    feed.record(session, first.id, first.fence, [("started", {}), *steps(1, 9), evaluation(9, 9.0)])
    lease.retry(session, first.id, first.fence, Failed("crashed", "It crashed."), delay=0.0, now=0.0)
    queue.wake_due(session, now=1.0)
    second = queue.claim(session, "w1", now=1.0)
    assert second is not None
    feed.record(session, second.id, second.fence, [resumed(5)])
    assert numbers(draw(second).steps) == [1, 2, 3, 4, 5]
    assert draw(second).evaluations == []
    feed.record(session, second.id, second.fence, [*steps(6, 7, loss=7.0)])
    curve = draw(second)
    assert numbers(curve.steps) == [1, 2, 3, 4, 5, 6, 7]
    assert [round(point["loss"]) for point in curve.steps] == [1, 1, 1, 1, 1, 7, 7]
    assert curve.segments[0].to_step == 7


def test_the_deepest_cut_counts_whatever_came_between(draw: Draw, run: Run) -> None:
    story = [*steps(1, 9), resumed(8), *steps(9, 12, 2.0), resumed(3), *steps(4, 6, 3.0), resumed(6), *steps(7, 7, 4.0)]
    curve = draw(run(*story))
    assert [(point["step"], int(point["loss"])) for point in curve.steps] == [
        *((step, 1) for step in (1, 2, 3)),
        *((step, 3) for step in (4, 5, 6)),
        (7, 4),
    ]


def test_a_step_that_is_measured_again_is_there_once(draw: Draw, run: Run) -> None:
    curve = draw(run(*steps(1, 5), evaluation(5, 2.0), resumed(5), evaluation(5, 3.0), *steps(6, 6)))
    assert [(point["step"], point["val_loss"]) for point in curve.evaluations] == [(5, 3.0)]


def test_a_log_of_several_pages_gives_the_same_curve(draw: Draw, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    job = run(*steps(1, 30), resumed(20), *steps(21, 25, 5.0), evaluation(25))
    whole = draw(job)
    for page in (1, 2, 3, 35):
        monkeypatch.setattr(curves, "PAGE", page)
        assert draw(job) == whole


def test_what_came_after_a_step_is_found_without_reading_what_came_before(
    draw: Draw, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run(evaluation(0), *steps(1, 200), evaluation(200))
    monkeypatch.setattr(curves, "PAGE", 10)
    pages: list[str] = []
    monkeypatch.setattr(curves, "from_json", lambda page: pages.append(page) or json.loads(page))
    curve = draw(job, after_step=195)
    assert (numbers(curve.steps), numbers(curve.evaluations)) == ([196, 197, 198, 199, 200], [200])
    assert len(pages) == 1
    assert numbers(draw(job, after_step=0).evaluations) == [200]
    assert draw(job, after_step=200).steps == []


def test_no_more_points_than_are_asked_for_with_both_ends_and_every_spike(draw: Draw, run: Run) -> None:
    story = steps(1, 3000)
    story[1234] = ("step", {"step": 1235, "loss": 99.0})
    story[2345] = ("step", {"step": 2346, "loss": -99.0})
    curve = draw(run(*story, evaluation(3000)), num_points=100)
    found = numbers(curve.steps)
    assert len(found) <= 100
    assert found == sorted(set(found))
    assert {1, 1235, 2346, 3000} <= set(found)
    assert curve.downsampled
    assert numbers(curve.evaluations) == [3000]


def test_a_log_that_was_thinned_keeps_its_curve(draw: Draw, session: Session, run: Run) -> None:
    job = run(*steps(1, 3000), evaluation(3000), training_steps=3000)
    session.refresh(job)
    while thin(session, job.finished_at + 1, kept_steps=100):
        pass
    found = numbers(draw(job, num_points=500).steps)
    assert (found[0], found[-1]) == (1, 3000)
    assert 90 < len(found) < 300
    assert not draw(job, num_points=500).downsampled


def test_a_loss_that_is_no_number_is_no_extreme() -> None:
    sampler = M4(4, 0, "loss")
    for step, loss in ((6, None), (5, 3.0), (4, None), (3, 1.0), (2, 2.0), (1, None)):
        sampler.add({"step": step, "loss": loss})
    assert numbers(sampler.points()) == [1, 3, 5, 6]


@pytest.mark.parametrize("seed", range(20))
def test_a_line_through_fewer_points_has_the_same_extremes_in_every_stretch(seed: int) -> None:
    chance = random.Random(seed)
    lowest = chance.randrange(100)
    all_steps = sorted(chance.sample(range(lowest, lowest + 5000), chance.randrange(50, 2000)), reverse=True)
    points = [{"step": step, "loss": chance.gauss(0, 1)} for step in all_steps]
    sampler = M4(40, lowest, "loss")
    for point in points:
        sampler.add(point)
    kept = sampler.points()
    assert len(kept) <= 40
    assert (kept[0], kept[-1]) == (points[-1], points[0])
    losses = [point["loss"] for point in points]
    assert {min(losses), max(losses)} <= {point["loss"] for point in kept}


@pytest.fixture
def heirs(run: Run) -> Callable[..., tuple[Job, Job, Job]]:
    """Three runs, each from a checkpoint in the midst of the one before."""

    def heirs(mode: str = "extend") -> tuple[Job, Job, Job]:
        first = run(evaluation(0), *steps(1, 10, 1.0), evaluation(10))
        told = {"parent_job": first.id, "parent_checkpoint": "c6", "resume_mode": "extend", "start_step": 6}
        second = run(resumed(6), evaluation(6), *steps(7, 14, 2.0), **told)
        start = 0 if mode == "warm_start" else 12
        told = {"parent_job": second.id, "parent_checkpoint": "c12", "resume_mode": mode, "start_step": start}
        third = run(resumed(start), *steps(start + 1, start + 4, 3.0), **told)
        return first, second, third

    return heirs


def test_runs_that_went_on_from_each_other_are_one_curve(draw: Draw, heirs: Any) -> None:
    first, second, third = heirs("exact")
    curve = draw(third, lineage=True)
    assert [(point["step"], int(point["loss"])) for point in curve.steps] == [
        *((step, 1) for step in range(1, 7)),
        *((step, 2) for step in range(7, 13)),
        *((step, 3) for step in range(13, 17)),
    ]
    assert numbers(curve.evaluations) == [0, 6]
    assert curve.missing is None
    assert curve.segments == [
        curves.Segment(first.id, 0, 6, None, None),
        curves.Segment(second.id, 6, 12, "c6", "extend"),
        curves.Segment(third.id, 12, 16, "c12", "exact"),
    ]


def test_without_its_lineage_a_curve_begins_where_its_run_does(draw: Draw, heirs: Any) -> None:
    *_, third = heirs()
    curve = draw(third)
    assert numbers(curve.steps) == [13, 14, 15, 16]
    assert curve.segments == [curves.Segment(third.id, 12, 16, "c12", "extend")]
    assert curve.missing is None


def test_a_warm_start_begins_anew_so_its_curve_ends_there(draw: Draw, heirs: Any) -> None:
    *_, third = heirs("warm_start")
    curve = draw(third, lineage=True)
    assert numbers(curve.steps) == [1, 2, 3, 4]
    assert (curve.segments, curve.missing) == ([curves.Segment(third.id, 0, 4, "c12", "warm_start")], None)


def test_runs_after_a_warm_start_count_from_it(draw: Draw, heirs: Any, run: Run) -> None:
    *_, third = heirs("warm_start")
    told = {"parent_job": third.id, "parent_checkpoint": "c3", "resume_mode": "extend", "start_step": 3}
    fourth = run(*steps(4, 5, 4.0), **told)
    curve = draw(fourth, lineage=True)
    assert [int(point["loss"]) for point in curve.steps] == [3, 3, 3, 4, 4]
    assert [segment.job for segment in curve.segments] == [third.id, fourth.id]


def test_a_curve_whose_beginning_was_deleted_says_so(draw: Draw, session: Session, heirs: Any) -> None:
    first, second, third = heirs()
    session.delete(session.get(Job, first.id))
    session.flush()
    curve = draw(third, lineage=True)
    assert numbers(curve.steps) == list(range(7, 17))
    assert [segment.job for segment in curve.segments] == [second.id, third.id]
    assert curve.missing == curves.Missing(job=first.id, checkpoint="c6", before_step=6)


def test_a_run_that_went_on_from_a_consoles_checkpoint_says_where_its_curve_begins(draw: Draw, run: Run) -> None:
    job = run(*steps(101, 103), parent_checkpoint="c100", resume_mode="exact", start_step=100)
    curve = draw(job, lineage=True)
    assert numbers(curve.steps) == [101, 102, 103]
    assert curve.missing == curves.Missing(job=None, checkpoint="c100", before_step=100)


def test_another_owners_run_is_not_part_of_a_curve(draw: Draw, run: Run) -> None:
    theirs = run(*steps(1, 10), owner="another")
    job = run(*steps(11, 12), parent_job=theirs.id, parent_checkpoint="c10", resume_mode="extend", start_step=10)
    curve = draw(job, lineage=True)
    assert numbers(curve.steps) == [11, 12]
    assert curve.missing == curves.Missing(job=theirs.id, checkpoint="c10", before_step=10)


def test_a_long_lineage_is_sampled_as_one_curve(draw: Draw, heirs: Any) -> None:
    *_, third = heirs()
    found = numbers(draw(third, lineage=True, num_points=8).steps)
    assert (found[0], found[-1]) == (1, 16)
    assert len(found) <= 8
    assert numbers(draw(third, lineage=True, after_step=11).steps) == [12, 13, 14, 15, 16]
