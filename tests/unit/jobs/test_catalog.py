from __future__ import annotations

from typing import Any

import pytest

from core.errors import CheckpointNotFound
from jobs import catalog, feed, queue
from jobs.errors import JobBusy, JobNotFound
from jobs.tables import FINAL, Checkpoint, State


def saved(ref: str, created_at: float = 0.0, **given: Any) -> Checkpoint:
    return Checkpoint(id=ref, name=f"checkpoint_{ref}", path=ref, created_at=created_at, **{"step": 1, **given})


def test_another_owners_job_is_not_there(session: Any, submit: Any) -> None:
    job = submit(owner="a")
    assert catalog.get_job(session, "a", job.id) is job
    for owner, job_id in [("b", job.id), ("a", "job_nowhere")]:
        with pytest.raises(JobNotFound):
            catalog.get_job(session, owner, job_id)
    assert catalog.list_jobs(session, "b", 10) == ([], False)


def test_jobs_are_listed_newest_first_page_by_page(session: Any, submit: Any) -> None:
    for number, now in enumerate([1.0, 2.0, 2.0, 3.0, 4.0]):
        submit(str(number), now=now)
    names, after, more = [], None, True
    while more:
        page, more = catalog.list_jobs(session, "local", 2, after)
        names += [job.name for job in page]
        after = page[-1].id
    assert names[:2] == ["4", "3"]
    assert sorted(names[2:4]) == ["1", "2"]
    assert names[4:] == ["0"]


def test_a_page_after_a_job_that_is_not_there_is_refused(session: Any) -> None:
    with pytest.raises(JobNotFound):
        catalog.list_jobs(session, "local", 2, "job_nowhere")


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({"states": [State.CANCELLED]}, ["b"]),
        ({"states": [State.QUEUED, State.CANCELLED]}, ["b", "a"]),
        ({"source": "b.md"}, ["b"]),
        ({"model": "gpt2"}, ["a"]),
        ({"metadata": {'a "key"': "1"}}, ["a"]),
        ({"metadata": {'a "key"': "1", "flag": "true"}}, ["a"]),
        ({"metadata": {"flag": "false"}}, []),
        ({"source": "b.md", "model": "gpt2"}, []),
    ],
)
def test_jobs_are_filtered(session: Any, submit: Any, filters: dict[str, Any], names: list[str]) -> None:
    submit(
        "a",
        now=1.0,
        config={"source": "a.md", "model_type": "gpt2"},
        metadata={'a "key"': 1, "flag": True},
        owner="local",
    )
    queue.request_cancel(session, submit("b", now=2.0, config={"source": "b.md", "model_type": "from_scratch"}))
    assert [job.name for job in catalog.list_jobs(session, "local", 10, **filters)[0]] == names


@pytest.mark.parametrize("state", sorted(FINAL))
def test_a_finished_job_goes_with_its_events_and_leaves_its_checkpoints(session: Any, bring: Any, state: State) -> None:
    job = bring(state)
    catalog.adopt_checkpoint(session, saved("c1", job_id=job.id))
    catalog.delete_job(session, job)
    session.expire_all()
    assert feed.after(session, job.id, 0) == []
    assert catalog.find_checkpoint(session, "local", "c1").job_id is None


@pytest.mark.parametrize("state", sorted(set(State) - FINAL))
def test_a_job_that_is_not_final_is_not_deleted(session: Any, bring: Any, state: State) -> None:
    with pytest.raises(JobBusy):
        catalog.delete_job(session, bring(state))


def test_a_checkpoint_is_found_by_id_by_name_or_by_how_it_begins(session: Any) -> None:
    for ref in ["abc1", "abd2"]:
        catalog.adopt_checkpoint(session, saved(ref))
    for ref in ["abc1", "checkpoint_abc1", "abc", "checkpoint_abc"]:
        assert catalog.find_checkpoint(session, "local", ref).id == "abc1"


@pytest.mark.parametrize("ref", ["ab", "checkpoint", "xyz", "", "%", "ABC1"])
def test_a_checkpoint_that_is_not_there_or_not_the_only_one_is_not_found(session: Any, ref: str) -> None:
    for known in ["abc1", "abd2"]:
        catalog.adopt_checkpoint(session, saved(known))
    with pytest.raises(CheckpointNotFound):
        catalog.find_checkpoint(session, "local", ref)


def test_an_exact_id_wins_over_longer_ones(session: Any) -> None:
    for known in ["abc", "abcd"]:
        catalog.adopt_checkpoint(session, saved(known))
    assert catalog.find_checkpoint(session, "local", "abc").id == "abc"


def test_another_owners_checkpoint_is_not_there(session: Any) -> None:
    catalog.adopt_checkpoint(session, saved("c1", owner="a"))
    with pytest.raises(CheckpointNotFound):
        catalog.find_checkpoint(session, "b", "c1")
    assert catalog.list_checkpoints(session, "b", 10) == ([], False)


@pytest.mark.parametrize(("order", "expected"), [("newest", "dcba"), ("best", "bdac")])
@pytest.mark.parametrize("limit", [1, 2, 3, 10])
def test_checkpoints_are_listed_newest_or_best_first(session: Any, order: Any, expected: str, limit: int) -> None:
    for created_at, (ref, loss) in enumerate([("a", None), ("b", 1.0), ("c", None), ("d", 1.5)]):
        catalog.adopt_checkpoint(session, saved(ref, float(created_at), val_loss=loss))
    refs, after, more = "", None, True
    while more:
        page, more = catalog.list_checkpoints(session, "local", limit, after, order=order)
        refs += "".join(row.id for row in page)
        after = page[-1].id
    assert refs == expected


@pytest.mark.parametrize(
    ("filters", "refs"),
    [({"source": "a.md"}, ["a"]), ({"model": "gpt2"}, ["b"]), ({"job_id": "job_x"}, [])],
)
def test_checkpoints_are_filtered(session: Any, filters: dict[str, Any], refs: list[str]) -> None:
    catalog.adopt_checkpoint(session, saved("a", source="a.md"))
    catalog.adopt_checkpoint(session, saved("b", model="gpt2"))
    assert [row.id for row in catalog.list_checkpoints(session, "local", 10, **filters)[0]] == refs


def test_the_latest_checkpoint_of_a_job_has_the_most_steps(session: Any, submit: Any) -> None:
    job = submit()
    assert catalog.latest_checkpoint(session, job.id) is None
    for ref, step in [("a", 5), ("b", 20), ("c", 10)]:
        catalog.adopt_checkpoint(session, saved(ref, job_id=job.id, step=step))
    assert catalog.latest_checkpoint(session, job.id).id == "b"


def test_a_checkpoint_is_adopted_once(session: Any) -> None:
    assert catalog.adopt_checkpoint(session, saved("c1"))
    assert not catalog.adopt_checkpoint(session, saved("c1"))
