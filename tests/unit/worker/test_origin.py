"""Where an attempt begins, what it supersedes, and what is left of that on the disk."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.checkpointing import CheckpointStore
from core.checkpoints.manifest import Checkpoint, new_manifest
from jobs import catalog, feed, lease, queue, removal, shelf
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
    """What stays there; the files of what was set aside go beside everything else, and soon."""
    deadline = time.monotonic() + 10
    while list(store.root.glob("tmp-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
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
            seen.append({path.name for path in store.root.glob("checkpoint_*")})
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


def test_a_sweep_removes_what_killed_saves_left_of_jobs_that_nobody_begins_again(
    db: Database, store: CheckpointStore, ancestor: tuple[Job, list[Checkpoint]]
) -> None:
    job, saved = ancestor
    left = store.root / f"tmp-{job.id}-0123456789"
    left.mkdir()
    os.utime(left, (1.0, 1.0))
    sweep(db, store)
    assert on_disk(store) == names(saved)


@pytest.mark.parametrize("name", [b"checkpoint_\xff", b"checkpoint_" + b"n" * 240], ids=["no UTF-8", "too long"])
def test_a_folder_that_no_program_of_ours_has_named_stops_nothing(
    db: Database, store: CheckpointStore, publish: Publish, tmp_path: Path, name: bytes
) -> None:
    job = claim(db)
    saved = publish(10, job.id)
    odd = os.fsencode(store.root) + b"/" + name
    shutil.copytree(os.fsencode(saved.path), odd)  # type: ignore[type-var]
    assert sweep(db, store) == set()
    assert attended(db, job, tmp_path, Child()).checkpoint == saved.manifest.id
    assert Path(os.fsdecode(odd)).exists()


def put_back(db: Database, store: CheckpointStore, saved: Checkpoint) -> None:
    """It is deleted, its folder goes, and a person copies it back from a backup."""
    shutil.copytree(saved.path, store.root / "backup")
    with db.write() as session:
        row = session.get(Row, saved.manifest.id)
        assert row
        shelf.remove(session, row, lambda _: False)
    removal.discard(db, store, [saved.manifest.name])
    store.sweep_retired()
    (store.root / "backup").rename(saved.path)


def test_a_folder_that_is_put_back_after_its_removal_is_left_alone(
    db: Database, store: CheckpointStore, ancestor: tuple[Job, list[Checkpoint]]
) -> None:
    _, saved = ancestor
    put_back(db, store, saved[0])
    assert sweep(db, store) == {saved[0].manifest.name}
    assert on_disk(store) == names(saved)


def test_a_run_does_not_begin_from_what_was_deleted_and_put_back(
    db: Database, store: CheckpointStore, publish: Publish, tmp_path: Path
) -> None:
    job = claim(db)
    saved = [publish(step, job.id) for step in (10, 20, 30)]
    with db.write() as session:
        feed.record(session, job.id, job.fence, [said_of(item) for item in (saved[2], saved[0], saved[1])])
    (saved[1].path / "weights").write_bytes(b"\1" * 1000)
    with db.write() as session:
        session.get(Job, job.id).checkpoint = None  # type: ignore[union-attr]
    put_back(db, store, saved[2])
    child = Child()
    attended(db, claimed_again(db, job), tmp_path, child)
    assert child.assignment
    assert child.assignment.resume == str(saved[0].path)
    assert saved[2].path.is_dir()


def test_nothing_is_noted_as_gone_while_the_checkpoints_root_is_away(
    db: Database, store: CheckpointStore, ancestor: tuple[Job, list[Checkpoint]]
) -> None:
    _, saved = ancestor
    marked(db, saved[0])
    away = store.root.rename(store.root.with_name("away"))
    sweep(db, store)
    away.rename(store.root)
    sweep(db, store)
    assert on_disk(store) == names(saved[1:])


def test_a_disk_that_takes_its_time_to_remove_files_does_not_keep_the_run_waiting(
    db: Database, store: CheckpointStore, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_done = threading.Event()
    monkeypatch.setattr(CheckpointStore, "sweep_retired", lambda _: is_done.wait(30))
    job = claim(db)
    saved = [publish(step, job.id) for step in (10, 20, 30)]
    begun = time.monotonic()
    assert attended(db, job, tmp_path, Child()).state is State.SUCCEEDED
    assert time.monotonic() - begun < 20
    is_done.set()
    assert {path.name for path in store.root.glob("checkpoint_*")} == names(saved[1:])


def claimed_again(db: Database, job: Job) -> Job:
    """As after a drain."""
    with db.write() as session:
        lease.release(session, job.id, job.fence)
        again = queue.claim(session, "w", 1.0)
    assert again
    return again


@pytest.fixture
def begun(db: Database, publish: Publish) -> tuple[Job, list[Checkpoint]]:
    """A run that has saved twice and is to go on."""
    job = claim(db)
    saved = [publish(step, job.id) for step in (10, 20)]
    with db.write() as session:
        feed.record(session, job.id, job.fence, [said_of(item) for item in saved])
    return claimed_again(db, job), saved


@pytest.mark.parametrize("fate", ["altered", "cut", "no manifest", "gone"])
def test_a_run_passes_over_what_cannot_be_read_of_its_own_and_says_so(
    db: Database, begun: tuple[Job, list[Checkpoint]], tmp_path: Path, fate: str
) -> None:
    job, saved = begun
    spoil(saved[1], fate)
    child = Child()
    assert attended(db, job, tmp_path, child).state is State.SUCCEEDED
    assert child.assignment
    assert child.assignment.resume == str(saved[0].path)
    (warning,) = warnings_of(db, job)
    assert saved[1].manifest.name in warning
    assert warning.endswith("it is passed over")
    assert str(tmp_path) not in warning


@pytest.mark.parametrize("fate", ["altered", "no manifest", "gone"])
@pytest.mark.parametrize("has_parent", [True, False])
def test_a_run_of_whose_checkpoints_none_can_be_read_waits_for_a_person(
    db: Database,
    ancestor: tuple[Job, list[Checkpoint]],
    publish: Publish,
    tmp_path: Path,
    fate: str,
    has_parent: bool,
) -> None:
    told = {"parent_checkpoint": ancestor[1][2].manifest.id, "start_step": 100} if has_parent else {}
    job = claim(db, **told)
    saved = publish(110, job.id)
    with db.write() as session:
        feed.record(session, job.id, job.fence, [said_of(saved)])
    spoil(saved, fate)
    child = Child()
    left = attended(db, claimed_again(db, job), tmp_path, child)
    assert child.assignment is None, "it neither begins anew nor goes back to what it resumed"
    assert left.error is not None
    assert (left.state, left.error["code"], left.attempt) == (State.PAUSED, "checkpoint_corrupt", 0)
    assert "bring it back and resume" in left.error["message"]
    assert [saved.manifest.name in warning for warning in warnings_of(db, job)] == [True]
    assert left.checkpoint == saved.manifest.id


def test_a_run_goes_on_once_its_checkpoints_are_back(
    db: Database, begun: tuple[Job, list[Checkpoint]], store: CheckpointStore, tmp_path: Path
) -> None:
    job, saved = begun
    away = store.root.rename(tmp_path / "away")
    store.root.mkdir()
    left = attended(db, job, tmp_path, Child())
    assert left.state is State.PAUSED
    store.root.rmdir()
    away.rename(store.root)
    with db.write() as session:
        queue.unpause(session, left)
        again = queue.claim(session, "w", 1.0)
    assert again
    child = Child()
    assert attended(db, again, tmp_path, child).state is State.SUCCEEDED
    assert child.assignment
    assert child.assignment.resume == str(saved[1].path)


@pytest.mark.parametrize("has_failed", [False, True])
def test_a_root_that_is_away_costs_an_attempt_before_the_run_waits_for_a_person(
    db: Database, begun: tuple[Job, list[Checkpoint]], store: CheckpointStore, tmp_path: Path, has_failed: bool
) -> None:
    job, _ = begun
    job.failures_in_a_row = int(has_failed)
    store.root.rename(tmp_path / "away")
    left = attended(db, job, tmp_path, Child())
    assert left.error is not None
    expected = (State.PAUSED, "checkpoint_corrupt") if has_failed else (State.RETRY_WAIT, "storage_error")
    assert (left.state, left.error["code"]) == expected


def refuse_to_read(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def refuse(path: Any, *told: Any) -> int:
        if Path(path).parent == folder:
            raise OSError(5, "Input/output error")
        return opened(path, *told)

    opened = os.open
    monkeypatch.setattr("core.machine.outside.os.open", refuse)


@pytest.mark.parametrize("has_failed", [False, True])
def test_a_checkpoint_that_the_disk_does_not_give_is_asked_for_again_and_passed_over_the_last_time(
    db: Database,
    begun: tuple[Job, list[Checkpoint]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_failed: bool,
) -> None:
    job, saved = begun
    job.failures_in_a_row = int(has_failed)
    refuse_to_read(monkeypatch, saved[1].path)
    child = Child()
    left = attended(db, job, tmp_path, child)
    if not has_failed:
        assert left.error is not None
        assert (left.state, left.error["code"], child.assignment) == (State.RETRY_WAIT, "storage_error", None)
        return
    assert child.assignment
    assert child.assignment.resume == str(saved[0].path)
    assert ["Input/output error" in warning for warning in warnings_of(db, job)] == [True]


def test_an_earlier_one_that_the_disk_does_not_give_is_no_obstacle(
    db: Database, begun: tuple[Job, list[Checkpoint]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, saved = begun
    refuse_to_read(monkeypatch, saved[0].path)
    child = Child()
    assert attended(db, job, tmp_path, child).state is State.SUCCEEDED
    assert child.assignment
    assert child.assignment.resume == str(saved[1].path)


def test_what_is_only_away_is_not_superseded_by_what_comes_after_it(
    db: Database, begun: tuple[Job, list[Checkpoint]], publish: Publish, tmp_path: Path
) -> None:
    job, saved = begun
    away = saved[1].path.rename(tmp_path / "away")
    steps = [20, 30, 40]

    class Saving(Child):
        def read(self, _: float) -> list[feed.Said]:
            return [said_of(publish(steps.pop(0), job.id))] if steps else super().read(_)

    attended(db, job, tmp_path, Saving())
    away.rename(saved[1].path)
    with db.read() as session:
        left = catalog.checkpoints_of(session, job.id)
    assert [row.step for row in left] == [40, 30, 20]
    assert left[-1].id == saved[1].manifest.id


def test_what_was_passed_over_is_said_also_if_the_run_cannot_be_started_then(
    db: Database, ancestor: tuple[Job, list[Checkpoint]], publish: Publish, tmp_path: Path
) -> None:
    _, saved = ancestor
    for item in saved:
        spoil(item, "altered")
    job = claim(db, parent_checkpoint=saved[2].manifest.id, start_step=100)
    never_said = publish(110, job.id)
    spoil(never_said, "altered")
    assert attended(db, job, tmp_path, Child()).state is State.FAILED
    assert [never_said.manifest.name in warning for warning in warnings_of(db, job)] == [True]


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
    monkeypatch.setattr("core.machine.disk.CHUNK_BYTES", 100)
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
