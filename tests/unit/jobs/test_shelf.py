"""What may leave the shelf and what has to stay; on both kinds of ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from core.errors import CheckpointNotFound
from jobs import catalog, feed, lease, queue, shelf
from jobs.errors import CheckpointNeeded, CheckpointPinned, CheckpointRemoved, LeaseLost
from jobs.lease import Failed, Stopped, Succeeded
from jobs.tables import Checkpoint, Job, Removal, State

Made = Callable[..., Job]


def any_looks_whole(_: Checkpoint) -> bool:
    return True


@pytest.fixture
def made(session: Any, bring: Any) -> Made:
    """A running job that has saved at these steps, each with the validation loss given for it."""

    def made(*steps: int, **losses: float) -> Job:
        job: Job = bring(State.RUNNING)
        save(session, job, *steps, **losses)
        session.refresh(job)
        return job

    return made


def save(session: Any, job: Job, *steps: int, **losses: float) -> None:
    for step in steps:
        told = {"id": f"c{step}", "name": f"checkpoint_c{step}", "step": step, "val_loss": losses.get(f"loss{step}")}
        feed.record(session, job.id, job.fence, [("checkpoint", told)], now=float(step))


def retire(session: Any, job: Job, keep: int, lost: Any = (), missing: Any = ()) -> list[str]:
    return shelf.retire_superseded(session, job.id, job.fence, keep, lost, missing, now=100.0)


def left(session: Any, job: Job) -> list[str]:
    session.expire_all()
    return [row.id for row in catalog.checkpoints_of(session, job.id)]


@pytest.mark.parametrize(
    ("keep", "gone", "kept"),
    [
        (1, ["checkpoint_c3", "checkpoint_c2", "checkpoint_c1"], ["c4"]),
        (2, ["checkpoint_c2", "checkpoint_c1"], ["c4", "c3"]),
        (9, [], ["c4", "c3", "c2", "c1"]),
        (0, [], ["c4", "c3", "c2", "c1"]),
    ],
)
def test_the_latest_ones_of_a_run_are_kept(
    session: Any, made: Made, keep: int, gone: list[str], kept: list[str]
) -> None:
    job = made(1, 2, 3, 4)
    assert retire(session, job, keep) == gone
    assert left(session, job) == kept
    assert retire(session, job, keep) == []


def test_the_best_and_the_pinned_are_kept(session: Any, made: Made) -> None:
    job = made(1, 2, 3, 4, 5, loss1=2.0, loss2=1.0, loss4=3.0)
    shelf.set_pinned(session, session.get(Checkpoint, "c3"), True)
    retire(session, job, 1)
    assert left(session, job) == ["c5", "c3", "c2"]


def test_what_another_job_starts_from_is_kept_until_that_one_has_its_own(session: Any, made: Made, submit: Any) -> None:
    job = made(1, 2, 3)
    heir = submit("heir", parent_checkpoint="c1", priority=9)
    retire(session, job, 1)
    assert left(session, job) == ["c3", "c1"]
    heir = queue.claim(session, "w2", now=0.0)
    feed.record(session, heir.id, heir.fence, [("checkpoint", {"id": "d1", "name": "d1", "step": 9})])
    retire(session, job, 1)
    assert left(session, job) == ["c3"]


def test_what_an_ended_job_started_from_may_go(session: Any, made: Made, submit: Any) -> None:
    job = made(1, 2)
    queue.request_cancel(session, submit("heir", parent_checkpoint="c1"))
    retire(session, job, 1)
    assert left(session, job) == ["c2"]


def test_a_damaged_one_counts_for_nothing_and_goes_once_a_whole_one_is_as_far(session: Any, made: Made) -> None:
    job = made(1, 2, 4)
    lost = {"c2", "c4"}
    save(session, job, 3)
    assert retire(session, job, 2, lost) == ["checkpoint_c2"]
    assert left(session, job) == ["c4", "c3", "c1"]
    save(session, job, 5)
    assert sorted(retire(session, job, 1, lost)) == ["checkpoint_c1", "checkpoint_c3", "checkpoint_c4"]
    assert left(session, job) == ["c5"]


def test_the_last_whole_one_is_never_taken(session: Any, made: Made) -> None:
    job = made(1, 5, 6)
    assert retire(session, job, 1, {"c5", "c6"}) == []
    assert retire(session, job, 1, {"c1", "c5", "c6"}) == []


def test_one_that_was_not_found_counts_for_nothing_and_stays(session: Any, made: Made) -> None:
    job = made(1, 4)
    save(session, job, 2)
    assert retire(session, job, 1, missing={"c4"}) == ["checkpoint_c1"]
    save(session, job, 5)
    assert retire(session, job, 1, missing={"c4"}) == ["checkpoint_c2"]
    assert left(session, job) == ["c5", "c4"]
    assert retire(session, job, 1, missing={"c4", "c5"}) == []


def test_a_removal_is_finished_once(session: Any, made: Made) -> None:
    job = made(1, 2, 3)
    names = retire(session, job, 1)
    assert shelf.leaving_names(session) == sorted(names)
    shelf.set_discarded(session, ["checkpoint_c1", "checkpoint_c3", "other"], now=7.0)
    assert shelf.leaving_names(session) == ["checkpoint_c2"]
    shelf.set_discarded(session, names, now=8.0)
    session.expire_all()
    assert [session.get(Checkpoint, ref).discarded_at for ref in ("c1", "c2", "c3")] == [7.0, 8.0, None]
    assert shelf.removed_names(session, names) == set(names)


def test_only_the_holder_retires(session: Any, made: Made) -> None:
    job = made(1, 2)
    lease.finish(session, job.id, job.fence, Succeeded())
    with pytest.raises(LeaseLost):
        retire(session, job, 1)
    assert left(session, job) == ["c2", "c1"]


def test_one_that_is_gone_says_when_why_and_what_is_near(session: Any, made: Made) -> None:
    job = made(1, 2)
    retire(session, job, 1)
    for ref in ("c1", "checkpoint_c1", "checkpoint_c1"[:-1] + "1"):
        with pytest.raises(CheckpointRemoved) as told:
            catalog.find_checkpoint(session, "local", ref)
        assert told.value.message == (
            "Checkpoint c1 (step 1) was removed on 1970-01-01 00:01 UTC: newer ones of its run superseded it; "
            "the newest of its run is c2 (step 2)."
        )
    with pytest.raises(CheckpointNotFound) as other:
        catalog.find_checkpoint(session, "another", "c1")
    assert not isinstance(other.value, CheckpointRemoved)


def test_the_last_one_of_a_run_is_said_to_have_left_nothing(session: Any, made: Made) -> None:
    job = made(1)
    lease.finish(session, job.id, job.fence, Succeeded())
    shelf.remove(session, session.get(Checkpoint, "c1"), any_looks_whole)
    with pytest.raises(CheckpointRemoved, match=r"it was deleted; nothing of its run is left\.$"):
        catalog.find_checkpoint(session, "local", "c1")


def test_a_beginning_means_one_that_is_there(session: Any, made: Made) -> None:
    job = made(10, 11, 12)
    retire(session, job, 1)
    assert catalog.find_checkpoint(session, "local", "c1").id == "c12"


def test_lists_and_latest_leave_out_what_is_gone_and_pages_go_on_behind_it(session: Any, made: Made) -> None:
    job = made(1, 2, 3)
    first, more = catalog.list_checkpoints(session, "local", 2)
    assert ([row.id for row in first], more) == (["c3", "c2"], True)
    shelf.set_pinned(session, session.get(Checkpoint, "c1"), True)
    retire(session, job, 1)
    for order in ("newest", "best"):
        rows, _ = catalog.list_checkpoints(session, "local", 9, order=order)
        assert {row.id for row in rows} == {"c3", "c1"}
    assert [row.id for row in catalog.list_checkpoints(session, "local", 2, "c2")[0]] == ["c1"]
    assert catalog.latest_checkpoint(session, job.id).id == "c3"


def test_one_that_is_gone_is_not_adopted_again(session: Any, made: Made) -> None:
    job = made(1, 2)
    retire(session, job, 1)
    stray = Checkpoint(id="c1", name="checkpoint_c1", step=1, path="checkpoint_c1", created_at=0.0)
    assert not catalog.adopt_checkpoint(session, stray)
    assert shelf.known_names(session, ["checkpoint_c1", "checkpoint_c2", "other"]) == {"checkpoint_c1", "checkpoint_c2"}
    assert shelf.removed_names(session, ["checkpoint_c1", "checkpoint_c2", "other"]) == {"checkpoint_c1"}


def test_names_are_asked_for_in_portions(session: Any, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.shelf.NAMES_AT_ONCE", 2)
    made(1, 2, 3, 4, 5)
    names = {f"checkpoint_c{step}" for step in (1, 2, 3, 4, 5)}
    assert shelf.known_names(session, names | {"other"}) == names


def test_a_pinned_one_is_deleted_only_after_it_was_let_go(session: Any, made: Made) -> None:
    job = made(1)
    lease.finish(session, job.id, job.fence, Succeeded())
    row = shelf.set_pinned(session, session.get(Checkpoint, "c1"), True)
    with pytest.raises(CheckpointPinned):
        shelf.remove(session, row, any_looks_whole)
    shelf.set_pinned(session, row, False)
    shelf.remove(session, row, any_looks_whole, now=7.0)
    assert (row.removed_at, row.removed_because) == (7.0, Removal.DELETED)


@pytest.mark.parametrize("act", ["pin", "unpin", "remove"])
def test_nothing_can_be_done_to_one_that_is_gone(session: Any, made: Made, act: str) -> None:
    job = made(1, 2)
    retire(session, job, 1)
    row = session.get(Checkpoint, "c1")
    with pytest.raises(CheckpointRemoved):
        shelf.remove(session, row, any_looks_whole) if act == "remove" else shelf.set_pinned(session, row, act == "pin")


def test_an_unfinished_job_keeps_the_one_it_would_go_on_from(session: Any, made: Made) -> None:
    job = made(1, 2, 3)
    with pytest.raises(CheckpointNeeded, match=f"Job {job.id} is running and would go on from checkpoint c3"):
        shelf.remove(session, session.get(Checkpoint, "c3"), any_looks_whole)
    with pytest.raises(CheckpointNeeded):
        shelf.remove(session, session.get(Checkpoint, "c2"), lambda row: row.id != "c3")
    shelf.remove(session, session.get(Checkpoint, "c1"), any_looks_whole)
    assert left(session, job) == ["c3", "c2"]


def test_one_that_a_job_in_line_starts_from_is_not_deleted(session: Any, made: Made, submit: Any) -> None:
    job = made(1, 2)
    heir = submit("heir", parent_checkpoint="c1")
    lease.finish(session, job.id, job.fence, Succeeded())
    with pytest.raises(CheckpointNeeded, match=f"Job {heir.id} is queued and starts from checkpoint c1"):
        shelf.remove(session, session.get(Checkpoint, "c1"), any_looks_whole)
    assert shelf.remove_those_of(session, job) == ["checkpoint_c2"]
    session.expire_all()
    assert catalog.get_job(session, "local", job.id).checkpoint == "c1"


@pytest.mark.parametrize("outcome", [Succeeded(), Failed("non_finite", "The loss is NaN.")])
def test_an_ended_job_points_to_the_newest_that_is_left(session: Any, made: Made, outcome: Any) -> None:
    job = made(1, 2)
    lease.finish(session, job.id, job.fence, outcome)
    for ref, newest in (("c2", "c1"), ("c1", None)):
        shelf.remove(session, session.get(Checkpoint, ref), any_looks_whole)
        session.expire_all()
        assert catalog.get_job(session, "local", job.id).checkpoint == newest


def test_a_job_is_refused_that_would_start_from_one_that_is_gone(session: Any, made: Made, submit: Any) -> None:
    job = made(1, 2)
    retire(session, job, 1)
    with pytest.raises(CheckpointRemoved):
        submit(parent_checkpoint="c1")
    assert submit(parent_checkpoint="c2").parent_checkpoint == "c2"


def test_a_repeated_request_finds_its_job_also_after_its_checkpoint_is_gone(
    session: Any, made: Made, submit: Any
) -> None:
    job = made(1, 2)
    told = {"parent_checkpoint": "c1", "idempotency_key": "k", "request_hash": "h"}
    first = queue.request_cancel(session, submit(**told))
    retire(session, job, 1)
    assert submit(**told).id == first.id


@pytest.mark.parametrize(
    ("mode", "start", "steps"), [("extend", 80, 60), ("exact", 80, 60), ("warm_start", 0, 40)], ids=str
)
def test_a_job_that_starts_from_an_earlier_one_ends_where_it_was_to_end(
    session: Any, made: Made, submit: Any, mode: str, start: int, steps: int
) -> None:
    made(80, 100)
    begin = 0 if mode == "warm_start" else 100
    submit("heir", parent_checkpoint="c100", start_step=begin, training_steps=40, resume_mode=mode, priority=9)
    heir = queue.claim(session, "w2", now=0.0)
    changed = shelf.start_from_instead(session, heir.id, heir.fence, session.get(Checkpoint, "c80"))
    assert (changed.start_step, changed.training_steps, changed.parent_checkpoint) == (start, steps, "c80")
    assert changed.step == start
    with pytest.raises(LeaseLost):
        shelf.start_from_instead(session, heir.id, heir.fence + 1, session.get(Checkpoint, "c80"))


def test_the_earlier_ones_of_a_run_are_known_also_when_its_job_is_gone(session: Any, made: Made) -> None:
    job = made(1, 2, 3)
    lease.finish(session, job.id, job.fence, Stopped())
    queue.request_cancel(session, job)
    catalog.delete_job(session, job)
    session.expire_all()
    row = catalog.find_checkpoint(session, "local", "c3")
    assert row.job_id is None
    assert [each.id for each in catalog.earlier_of_run(session, row)] == ["c2", "c1"]


def test_a_log_is_removed_piece_by_piece(session: Any, made: Made) -> None:
    job = made(1, 2)
    catalog.delete_events(session, job, up_to_seq=3)
    assert next(event.seq for event in feed.after(session, job.id, 0)) == 4
