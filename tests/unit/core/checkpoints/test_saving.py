from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from core.checkpointing import CheckpointStore, load_checkpoint
from core.checkpoints import saving
from core.checkpoints.saving import BackgroundWriter
from core.errors import DiskFull, StorageError
from core.events import CheckpointSaved, Event
from core.machine.disk import Meanwhile

SAVED = CheckpointSaved(3, "id", "name", 10, None, None)


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "LOOK_SECONDS", 0.01)


def test_what_is_published_is_told_once(run: Any) -> None:
    writer = BackgroundWriter()
    writer.begin(lambda _: [SAVED])
    assert writer.finished(wait=True) == [SAVED]
    assert writer.finished(wait=True) == []


def test_nobody_waits_for_a_save_unless_asked_to() -> None:
    may_go_on = threading.Event()

    def slowly(_: Meanwhile) -> list[Event]:
        assert may_go_on.wait(10)
        return [SAVED]

    writer = BackgroundWriter()
    writer.begin(slowly)
    assert writer.finished() == []
    may_go_on.set()
    assert writer.finished(wait=True) == [SAVED]


def test_what_the_disk_refused_is_raised_where_it_is_asked_for_and_another_can_begin() -> None:
    def refused(_: Meanwhile) -> list[Event]:
        raise DiskFull("no room")

    writer = BackgroundWriter()
    writer.begin(refused)
    with pytest.raises(DiskFull, match="no room"):
        writer.finished(wait=True)
    writer.begin(lambda _: [SAVED])
    assert writer.finished(wait=True) == [SAVED]


def test_who_waits_shows_life_only_while_the_writer_does() -> None:
    signs: list[None] = []
    stalled = threading.Event()

    def lively_then_stalled(meanwhile: Meanwhile) -> list[Event]:
        for _ in range(5):
            meanwhile()
            time.sleep(0.02)
        stalled.set()
        before = len(signs)
        time.sleep(0.2)
        # One sign may still have been on its way.
        assert len(signs) <= before + 1
        return [SAVED]

    writer = BackgroundWriter(lambda: signs.append(None))
    writer.begin(lively_then_stalled)
    assert writer.finished(wait=True) == [SAVED]
    assert stalled.is_set()
    assert len(signs) >= 2


def test_steps_are_made_while_a_checkpoint_is_written(
    run: Any, config: Any, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = run(config(training_steps=8, checkpoint_interval=4), store=store)
    publish = store.publish

    def only_after_two_more_steps(manifest: Any, *rest: Any, **more: Any) -> Any:
        deadline = time.monotonic() + 10
        while told.trainer.run.step < min(8, manifest.step + 2) and time.monotonic() < deadline:
            time.sleep(0.001)
        return publish(manifest, *rest, **more)

    monkeypatch.setattr(store, "publish", only_after_two_more_steps)
    told.trainer.train()
    kinds = [(event.kind, event.step) for event in told.events if event.kind in {"step", "checkpoint"}]
    assert kinds.index(("checkpoint", 4)) > kinds.index(("step", 6))
    assert kinds[-1] == ("checkpoint", 8)


def test_a_checkpoint_holds_its_own_step_however_far_the_run_has_come(
    run: Any, config: Any, store: CheckpointStore
) -> None:
    told = run(config(checkpoint_interval=1, learning_rate=1e-2), store=store)
    told.trainer.train()
    whole = run(config(training_steps=8, learning_rate=1e-2))
    whole.stop_at = 3
    whole.trainer.train()
    third = load_checkpoint(next(item.path for item in store if item.step == 3))
    for name, weight in whole.trainer.parts.model.state_dict().items():
        assert weight.equal(third["model_state_dict"][name])


def test_a_save_that_fails_ends_the_run_loudly_at_the_next_boundary(
    run: Any, config: Any, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = run(config(training_steps=400, checkpoint_interval=100, eval_interval=400), store=store)

    def refuse(*_: Any, **__: Any) -> Any:
        raise StorageError("the disk is broken")

    monkeypatch.setattr(store, "publish", refuse)
    with pytest.raises(StorageError, match="broken"):
        told.trainer.train()
    assert 100 <= told.trainer.run.step < 200


def test_an_error_in_a_step_does_not_lose_the_checkpoint_that_is_being_written(
    run: Any, config: Any, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = run(config(), store=store)
    publish = store.publish

    def slowly(*given: Any, **more: Any) -> Any:
        time.sleep(0.3)
        return publish(*given, **more)

    def fail(*_: Any) -> None:
        if told.trainer.run.step == 5:
            raise RuntimeError("a cosmic ray")

    monkeypatch.setattr(store, "publish", slowly)
    monkeypatch.setattr("core.trainer.Trainer.report_progress_if_due", fail)
    with pytest.raises(RuntimeError, match="cosmic"):
        told.trainer.train()
    assert [event.step for event in told.of("checkpoint")] == [4]


def test_where_there_is_no_room_nothing_is_begun(
    run: Any, config: Any, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = run(config(), store=store)
    written: list[Path] = []
    monkeypatch.setattr("core.state.Snapshot.write", lambda _, folder, **__: written.append(folder))
    monkeypatch.setattr("core.machine.disk.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 10}))
    with pytest.raises(DiskFull, match=r"takes about \d+ MiB and 0 MiB are free"):
        told.trainer.train()
    assert written == []
    assert list(store.root.iterdir()) == []


def test_what_does_not_read_back_as_it_was_written_is_never_published(
    run: Any, config: Any, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import torch as library

    honest = library.save_file

    def forgetful(tensors: Any, path: Path, **more: Any) -> None:
        honest({name: tensor * 0 for name, tensor in tensors.items()}, path, **more)

    monkeypatch.setattr(library, "save_file", forgetful)
    with pytest.raises(StorageError, match="does not read back"):
        run(config(), store=store).trainer.train()
    assert list(store) == []


def test_a_scripts_run_keeps_the_latest_the_best_and_the_pinned(run: Any, config: Any, store: CheckpointStore) -> None:
    told = run(config(checkpoint_interval=1, keep_checkpoints=2, eval_interval=8), store=store)
    emit = told.trainer.emit

    def pin_the_third(event: Any) -> None:
        emit(event)
        if event.kind == "checkpoint" and event.step == 3:
            (store.root / event.name / "PINNED").touch()

    told.trainer.emit = pin_the_third
    told.trainer.train()
    assert sorted(item.step for item in store) == [3, 7, 8]


def test_a_jobs_checkpoints_are_left_to_whoever_has_its_ledger(run: Any, config: Any, store: CheckpointStore) -> None:
    from core.checkpoints.saving import RunIdentity

    settings = config(checkpoint_interval=2, keep_checkpoints=1)
    run(settings, store=store, identity=RunIdentity("job_a", 1, 1)).trainer.train()
    assert sorted(item.step for item in store) == [2, 4, 6, 8]


def test_a_superseded_checkpoint_that_cannot_be_removed_is_a_warning_and_no_end(
    run: Any, config: Any, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store, "retire", refuse)
    told = run(config(checkpoint_interval=2, keep_checkpoints=1, eval_interval=8), store=store)
    told.trainer.train()
    assert [event.step for event in told.of("checkpoint")] == [2, 4, 6, 8]
    assert "could not be removed: Permission denied" in told.of("warning")[0].message


def test_who_is_interrupted_while_waiting_can_wait_again() -> None:
    may_go_on = threading.Event()

    def slowly(_: Meanwhile) -> list[Event]:
        assert may_go_on.wait(10)
        return [SAVED]

    def interrupt() -> None:
        raise KeyboardInterrupt

    writer = BackgroundWriter(interrupt)
    writer.begin(slowly)
    writer._show_life()
    writer._meanwhile = interrupt
    threading.Timer(0.05, writer._show_life).start()
    with pytest.raises(KeyboardInterrupt):
        writer.finished(wait=True)
    may_go_on.set()
    writer._meanwhile = lambda: None
    assert writer.finished(wait=True) == [SAVED]
