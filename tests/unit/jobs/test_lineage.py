from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import Session

from jobs import lineage
from jobs.lineage import MAX_LINKS, descend, trace
from jobs.tables import Checkpoint, Job

Shelve = Callable[..., Checkpoint]


@pytest.fixture
def shelve(session: Session) -> Shelve:
    def shelve(identity: str, parent: str | None = None, **given: Any) -> Checkpoint:
        told = {"name": f"checkpoint_{identity}", "path": f"checkpoint_{identity}", "step": 1, "created_at": 0.0}
        row = Checkpoint(id=identity, parent=parent, **{**told, **given})
        session.add(row)
        session.flush()
        return row

    return shelve


def test_a_chain_goes_from_a_checkpoint_to_the_first(
    session: Session, shelve: Shelve, submit: Callable[..., Job]
) -> None:
    fresh, more = submit(), submit(resume_mode="extend")
    shelve("a", job_id=fresh.id)
    shelve("b", "a", job_id=more.id)
    shelve("c", "b")
    shelve("beside", "a")
    links = trace(session, shelve("d", "c"))
    assert [(link.id, link.mode) for link in links] == [("d", None), ("c", None), ("b", "extend"), ("a", None)]
    assert [link.row.name for link in links if link.row] == [f"checkpoint_{name}" for name in "dcba"]


def test_a_parent_that_is_not_known_is_the_last_link(session: Session, shelve: Shelve) -> None:
    links = trace(session, shelve("b", "gone"))
    assert [(link.id, link.row is None) for link in links] == [("b", False), ("gone", True)]


def test_another_owners_checkpoint_is_not_known(session: Session, shelve: Shelve) -> None:
    shelve("theirs", "older", owner="another")
    links = trace(session, shelve("mine", "theirs"))
    assert [(link.id, link.row is None) for link in links] == [("mine", False), ("theirs", True)]


@pytest.mark.parametrize("ring", ["a", "ab", "abc"])
def test_a_chain_that_bites_its_tail_ends_there(session: Session, shelve: Shelve, ring: str) -> None:
    for name, parent in zip(ring, ring[1:] + ring[0], strict=True):
        last = shelve(name, parent)
    assert sorted(link.id for link in trace(session, last)) == sorted(ring)


def test_a_chain_is_followed_for_so_many_links(
    session: Session, shelve: Shelve, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_LINKS >= 100
    monkeypatch.setattr(lineage, "MAX_LINKS", 5)
    for number in range(10):
        last = shelve(str(number), str(number - 1))
    assert [link.id for link in trace(session, last)] == ["9", "8", "7", "6", "5"]


def test_a_chain_of_runs_that_is_too_long_to_follow_is_said_to_be_cut(
    session: Session, submit: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "MAX_LINKS", 3)
    runs = [submit()]
    for number in range(4):
        row = Checkpoint(id=f"c{number}", name=f"c{number}", path=f"c{number}", step=number, created_at=0.0)
        session.add(row)
        runs.append(submit(parent_job=runs[-1].id, parent_checkpoint=row.id, start_step=number, resume_mode="extend"))
    cut, whole = descend(session, runs[4]), descend(session, runs[2])
    assert [run.id for run in cut.runs] == [run.id for run in runs[4:1:-1]]
    assert cut.missing == lineage.Missing(runs[1].id, "c1", 1, is_cut=True)
    assert (len(whole.runs), whole.missing) == (3, None)
