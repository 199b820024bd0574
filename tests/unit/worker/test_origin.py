"""Where an attempt begins, what it supersedes, and what is left of that on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.checkpointing import CheckpointStore
from core.manifest import Checkpoint, new_manifest
from jobs import catalog, feed, lease, queue
from jobs.database import Database
from jobs.lease import Succeeded
from jobs.queue import NewJob
from jobs.tables import Checkpoint as Row
from jobs.tables import Job, State
from worker.assignment import Assignment
from worker.removal import sweep
from worker.settings import WorkerSettings
from worker.supervisor import Supervisor

KEEP_TWO = {"training_steps": 40, "keep_checkpoints": 2}


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = Database(f"sqlite:///{tmp_path / 'ratchet.db'}")
    db.migrate()
    yield db
    db.close()


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


Publish = Callable[..., Checkpoint]


@pytest.fixture
def publish(store: CheckpointStore) -> Publish:
    """A checkpoint on the disk alone."""

    def publish(step: int, job_id: str, fence: int = 0) -> Checkpoint:
        told = {"job_id": job_id, "run": job_id, "fence": fence}
        manifest = new_manifest(model="m", source="s", step=step, end_step=100, config={}, **told)
        return store.publish(manifest, lambda folder: (folder / "weights").write_bytes(bytes(1000)) and None)

    return publish


def said_of(saved: Checkpoint) -> feed.Said:
    return "checkpoint", {"id": saved.manifest.id, "name": saved.manifest.name, "step": saved.manifest.step}


def claim(db: Database, **given: Any) -> Job:
    spec = NewJob(**{"name": "a", "config": KEEP_TWO, "training_steps": 40, **given})
    with db.write() as session:
        queue.enqueue(session, spec)
        job = queue.claim(session, "w", 1.0)
    assert job
    return job


@pytest.fixture
def ancestor(db: Database, publish: Publish) -> tuple[Job, list[Checkpoint]]:
    """A run that has ended, with its checkpoints at 60, 80 and 100."""
    job = claim(db)
    saved = [publish(step, job.id) for step in (60, 80, 100)]
    with db.write() as session:
        feed.record(session, job.id, job.fence, [said_of(item) for item in saved])
        lease.finish(session, job.id, job.fence, Succeeded())
    return job, saved


class Child:
    """A process that says what the test gives it, one thing at a time, and has made all its steps then."""

    pid = 1
    ended = False
    exit_code = None
    silent_seconds = 0.0
    tail = ()

    def __init__(self, *told: feed.Said) -> None:
        self.told = [*told, ("outcome", {"outcome": "finished"})]
        self.assignment: Assignment | None = None

    def assign(self, assignment: Assignment) -> None:
        self.assignment = assignment

    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...
    def read(self, _: float) -> list[feed.Said]:
        return [self.told.pop(0)] if self.told else []


def attended(db: Database, job: Job, folder: Path, child: Child) -> Job:
    Supervisor(db, job, WorkerSettings(data=folder), lambda: False, lambda: child).attend()  # type: ignore[arg-type, return-value]
    with db.read() as session:
        return catalog.get_job(session, "local", job.id)


def names(saved: list[Checkpoint]) -> set[str]:
    return {item.manifest.name for item in saved}


def on_disk(store: CheckpointStore) -> set[str]:
    return {path.name for path in store.root.iterdir()}


def kept(db: Database, job: Job) -> list[int]:
    with db.read() as session:
        return [row.step for row in catalog.checkpoints_of(session, job.id)]


def warnings_of(db: Database, job: Job) -> list[str]:
    with db.read() as session:
        events = feed.after(session, job.id, 0)
    return [json.loads(event.data)["message"] for event in events if event.kind == "warning"]


def test_what_newer_ones_supersede_goes_while_the_run_goes_on(
    db: Database, store: CheckpointStore, publish: Publish, tmp_path: Path
) -> None:
    job = claim(db)
    steps, seen = [10, 20, 30], []

    class Saving(Child):
        def read(self, _: float) -> list[feed.Said]:
            seen.append({path.name for path in store.root.glob("*")})
            return [said_of(publish(steps.pop(0), job.id))] if steps else super().read(_)

    assert attended(db, job, tmp_path, Saving()).state is State.SUCCEEDED
    assert [len(names) for names in seen] == [0, 1, 2, 2]
    assert kept(db, job) == [30, 20]
    assert not any("step000010" in name for name in seen[-1])


def test_a_job_of_an_earlier_release_keeps_all(
    db: Database, store: CheckpointStore, publish: Publish, tmp_path: Path
) -> None:
    job = claim(db, config={"training_steps": 40})
    saved = [publish(step, job.id) for step in (10, 20, 30)]
    attended(db, job, tmp_path, Child())
    assert on_disk(store) == names(saved)
    assert kept(db, job) == [30, 20, 10]


def test_what_could_not_be_removed_is_no_reason_to_end_the_run(
    db: Database, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = claim(db)
    for step in (10, 20, 30):
        publish(step, job.id)
    monkeypatch.setenv("RATCHET_FAILPOINT", "checkpoint.retiring:error=EROFS")
    assert attended(db, job, tmp_path, Child()).state is State.SUCCEEDED
    assert kept(db, job) == [30, 20]


def marked(db: Database, saved: Checkpoint) -> None:
    """As a worker leaves it that is killed before it removes the folder."""
    with db.write() as session:
        row = session.get(Row, saved.manifest.id)
        assert row
        row.removed_at = 5.0
        session.add(row)


def test_the_next_attempt_removes_what_the_last_one_only_marked_and_does_not_begin_there(
    db: Database, store: CheckpointStore, publish: Publish, tmp_path: Path
) -> None:
    job = claim(db)
    saved = [publish(step, job.id) for step in (10, 20)]
    with db.write() as session:
        feed.record(session, job.id, job.fence, [said_of(item) for item in saved])
    marked(db, saved[1])
    with db.write() as session:
        lease.release(session, job.id, job.fence)
        again = queue.claim(session, "w", 1.0)
    assert again
    child = Child()
    attended(db, again, tmp_path, child)
    assert child.assignment
    assert child.assignment.resume == str(saved[0].path)
    assert on_disk(store) == names(saved[:1])
    with db.read() as session:
        numbers = [event.kind for event in feed.after(session, job.id, 0)]
    assert numbers.count("checkpoint") == 2, "what is gone is not said again"


def test_a_sweep_removes_folders_of_marked_ones_and_what_is_half_removed(
    db: Database, store: CheckpointStore, ancestor: tuple[Job, list[Checkpoint]]
) -> None:
    _, saved = ancestor
    marked(db, saved[0])
    saved[1].path.rename(store.root / f"tmp-gone-{saved[1].path.name}")
    sweep(db, store)
    assert on_disk(store) == names(saved[2:])


@pytest.mark.parametrize(
    ("mode", "start", "steps"), [("extend", 80, 60), ("exact", 80, 60), ("warm_start", 0, 40)], ids=str
)
@pytest.mark.parametrize("fate", ["altered", "cut", "no manifest", "gone"])
def test_a_run_whose_checkpoint_is_damaged_begins_at_the_whole_one_before_it(
    db: Database,
    ancestor: tuple[Job, list[Checkpoint]],
    tmp_path: Path,
    fate: str,
    mode: str,
    start: int,
    steps: int,
) -> None:
    _, (_, before, parent) = ancestor
    spoil(parent, fate)
    begin = 0 if mode == "warm_start" else 100
    job = claim(db, parent_checkpoint=parent.manifest.id, start_step=begin, resume_mode=mode)
    child = Child()
    left = attended(db, job, tmp_path, child)
    assert child.assignment
    assert (child.assignment.resume, child.assignment.parent) == (str(before.path), before.manifest.id)
    assert (child.assignment.end_step, child.assignment.mode) == (begin + 40, mode)
    assert (left.start_step, left.training_steps, left.parent_checkpoint) == (start, steps, before.manifest.id)
    assert left.config["training_steps"] == steps
    (warning,) = warnings_of(db, job)
    assert parent.manifest.name in warning
    assert f"'{before.manifest.name}' at step 80 instead" in warning


def spoil(saved: Checkpoint, fate: str) -> None:
    match fate:
        case "altered":
            (saved.path / "weights").write_bytes(b"\1" * 1000)
        case "cut":
            (saved.path / "weights").write_bytes(bytes(999))
        case "no manifest":
            (saved.path / "manifest.json").unlink()
        case "gone":
            saved.path.rename(saved.path.with_name("elsewhere"))


def test_a_run_without_any_whole_checkpoint_to_begin_at_fails_in_one_sentence(
    db: Database, ancestor: tuple[Job, list[Checkpoint]], tmp_path: Path
) -> None:
    _, saved = ancestor
    for item, fate in zip(saved, ("gone", "cut", "altered"), strict=True):
        spoil(item, fate)
    job = claim(db, parent_checkpoint=saved[2].manifest.id, start_step=100)
    left = attended(db, job, tmp_path, Child())
    assert left.error is not None
    assert (left.state, left.error["code"]) == (State.FAILED, "checkpoint_corrupt")
    assert saved[2].manifest.name in left.error["message"]
    assert str(tmp_path) not in left.error["message"]


def test_the_lease_is_kept_while_the_resumed_checkpoint_is_read(
    db: Database, ancestor: tuple[Job, list[Checkpoint]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.disk.CHUNK_BYTES", 100)
    _, saved = ancestor
    job = claim(db, parent_checkpoint=saved[2].manifest.id, start_step=100)
    settings = WorkerSettings(data=tmp_path, heartbeat_seconds=1e-9)
    Supervisor(db, job, settings, lambda: False, Child).attend()  # type: ignore[arg-type]
    with db.read() as session:
        assert session.get(Job, job.id).heartbeat >= 10  # type: ignore[union-attr]


def test_a_job_keeps_what_it_resumes_until_it_has_a_checkpoint_of_its_own(
    db: Database, store: CheckpointStore, publish: Publish, tmp_path: Path
) -> None:
    job = claim(db)
    first = publish(10, job.id)
    with db.write() as session:
        feed.record(session, job.id, job.fence, [said_of(first)])
        queue.enqueue(session, NewJob("heir", KEEP_TWO, 40, start_step=10, parent_checkpoint=first.manifest.id))
        lease.release(session, job.id, job.fence)
        again = queue.claim(session, "w", 1.0)
    assert again
    for step in (20, 30, 40):
        publish(step, job.id)
    attended(db, again, tmp_path, Child())
    assert kept(db, job) == [40, 30, 10]
    assert first.path.is_dir()


@pytest.mark.parametrize("is_whole", [True, False])
def test_what_a_run_published_and_did_not_come_to_say_counts_as_progress(
    db: Database, publish: Publish, tmp_path: Path, is_whole: bool
) -> None:
    job = claim(db)

    class Killed(Child):
        exit_code = -9  # type: ignore[assignment]

        def assign(self, assignment: Assignment) -> None:
            saved = [publish(step, job.id, job.fence) for step in (10, 20)]
            self.told = [said_of(saved[0])]
            if not is_whole:
                spoil(saved[1], "cut")

        @property
        def ended(self) -> bool:  # type: ignore[override]
            return not self.told

    with db.write() as session:
        row = session.get(Job, job.id)
        assert row
        row.failures_in_a_row = 1
        session.add(row)
    left = attended(db, job, tmp_path, Killed())
    assert left.state is State.RETRY_WAIT
    assert kept(db, job) == ([20, 10] if is_whole else [10])
    with db.read() as session:
        said = [event for event in feed.after(session, job.id, 0) if event.kind == "checkpoint"]
    assert len(said) == len(kept(db, job))
