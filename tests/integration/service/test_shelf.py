"""Checkpoints that are pinned, removed, or damaged, as a client sees them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from core.checkpoints.manifest import PINNED, Checkpoint
from jobs import catalog, feed, shelf
from jobs.database import Database
from jobs.tables import Job
from tests.integration.service.conftest import Hand, Save

Finished = Callable[..., tuple[Job, Checkpoint]]


def said_of(saved: Checkpoint) -> feed.Said:
    return "checkpoint", {"step": saved.manifest.step, "id": saved.manifest.id, "name": saved.manifest.name}


@pytest.fixture
def running(submit: Callable[..., Job], hand: Hand, save: Save) -> tuple[Job, list[Checkpoint]]:
    """A job that a worker holds, and its checkpoints at 5, 10 and 15."""
    submit()
    job = hand.claim()
    saved = [save(step=step, job_id=job.id, run=job.id) for step in (5, 10, 15)]
    for item in saved:
        hand.say(job, said_of(item))
    return job, saved


@pytest.fixture
def ended(running: tuple[Job, list[Checkpoint]], hand: Hand) -> tuple[Job, list[Checkpoint]]:
    """The same job after its end."""
    hand.finish(running[0])
    return running


def listed(client: TestClient) -> set[str]:
    return {row["id"] for row in client.get("/checkpoints").json()["data"]}


def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_a_pin_is_kept_until_it_is_taken_back_however_often_either_is_said(
    client: TestClient, finished: Finished
) -> None:
    _, saved = finished()
    path = f"/checkpoints/{saved.manifest.id}"
    for verb, is_pinned in (("post", True), ("delete", False)):
        for _ in range(2):
            answer = getattr(client, verb)(f"{path}/pin")
            assert (answer.status_code, answer.json()["id"]) == (200, saved.manifest.id)
            assert answer.json()["pinned"] == client.get(path).json()["pinned"] == is_pinned
            assert (saved.path / PINNED).exists() == is_pinned


def test_a_pin_that_the_disk_refuses_can_be_said_again(client: TestClient, finished: Finished) -> None:
    _, saved = finished()
    (saved.path / PINNED).mkdir()
    assert client.post(f"/checkpoints/{saved.manifest.id}/pin").status_code == 200
    answer = client.delete(f"/checkpoints/{saved.manifest.id}/pin")
    assert code_of(answer) == (503, "storage_error")
    assert str(saved.path.parent) not in answer.text
    (saved.path / PINNED).rmdir()
    assert client.delete(f"/checkpoints/{saved.manifest.id}/pin").json()["pinned"] is False


def test_a_checkpoint_whose_folder_says_that_it_is_pinned_is_adopted_so(client: TestClient, save: Save) -> None:
    pinned, other = save(), save()
    (pinned.path / PINNED).touch()
    rows = {row["id"]: row["pinned"] for row in client.get("/checkpoints").json()["data"]}
    assert rows == {pinned.manifest.id: True, other.manifest.id: False}
    assert code_of(client.delete(f"/checkpoints/{pinned.manifest.id}")) == (409, "checkpoint_pinned")


def test_a_deleted_checkpoint_is_gone_everywhere_and_says_so(
    client: TestClient, ended: tuple[Job, list[Checkpoint]]
) -> None:
    job, (oldest, middle, newest) = ended
    ref = newest.manifest.id
    answer = client.delete(f"/checkpoints/{ref}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert not newest.path.exists()
    assert listed(client) == {oldest.manifest.id, middle.manifest.id}
    assert client.get("/checkpoints/latest").json()["id"] == middle.manifest.id
    assert client.get(f"/jobs/{job.id}").json()["checkpoint"] == middle.manifest.id
    for method, path, body in (
        ("GET", f"/checkpoints/{ref}", None),
        ("GET", f"/checkpoints/{newest.manifest.name}", None),
        ("DELETE", f"/checkpoints/{ref}", None),
        ("POST", f"/checkpoints/{ref}/pin", None),
        ("DELETE", f"/checkpoints/{ref}/pin", None),
        ("POST", f"/jobs/{ref}/resume", {}),
        ("POST", "/generate", {"checkpoint": ref, "prompt": "a"}),
    ):
        gone = client.request(method, path, json=body)
        assert code_of(gone) == (410, "checkpoint_removed"), path
        assert "it was deleted" in gone.json()["detail"]
        assert middle.manifest.id in gone.json()["detail"]
    assert client.post(f"/jobs/{job.id}/resume").json()["parent"] == middle.manifest.id


def test_a_folder_that_comes_back_does_not_bring_its_checkpoint_back(
    client: TestClient, save: Save, ledger: Database
) -> None:
    stray = save()
    client.delete(f"/checkpoints/{stray.manifest.id}")
    with ledger.read() as session:
        assert shelf.leaving_names(session) == [], "no worker has to finish it, nor will one remove what comes back"
    stray.path.mkdir()
    (stray.path / "manifest.json").write_text(stray.manifest.to_json())
    assert listed(client) == set()
    assert client.get(f"/checkpoints/{stray.manifest.id}").status_code == 410


@pytest.mark.parametrize("act", ["delete", "pin", "unpin"])
def test_what_cannot_be_undone_wants_a_whole_id_or_name(client: TestClient, save: Save, act: str) -> None:
    saved = save()
    for ref in ("latest", saved.manifest.id[:-1], "nope", "%00"):
        path = f"/checkpoints/{ref}" + ("" if act == "delete" else "/pin")
        answer = client.request("POST" if act == "pin" else "DELETE", path)
        assert code_of(answer) == (404, "checkpoint_not_found")
    assert listed(client) == {saved.manifest.id}


def test_what_cannot_be_undone_tolerates_the_suffix_after_a_whole_name(client: TestClient, save: Save) -> None:
    name = save().manifest.name
    for method, path, status in (("POST", "/pin", 200), ("DELETE", "/pin", 200), ("DELETE", "", 204)):
        assert client.request(method, f"/checkpoints/{name}.pt{path}").status_code == status
    assert listed(client) == set()


def test_what_an_unfinished_job_would_go_on_from_stays(
    client: TestClient, running: tuple[Job, list[Checkpoint]], hand: Hand
) -> None:
    job, (oldest, middle, newest) = running
    answer = client.delete(f"/checkpoints/{newest.manifest.id}")
    assert code_of(answer) == (409, "checkpoint_needed")
    assert job.id in answer.json()["detail"]
    (newest.path / "model.safetensors").unlink()
    assert client.delete(f"/checkpoints/{middle.manifest.id}").status_code == 409, "the newest that looks whole"
    assert client.delete(f"/checkpoints/{oldest.manifest.id}").status_code == 204
    hand.finish(job)
    assert client.delete(f"/checkpoints/{middle.manifest.id}").status_code == 204


def test_what_a_job_in_line_starts_from_stays(client: TestClient, ended: tuple[Job, list[Checkpoint]]) -> None:
    _, (oldest, *_) = ended
    heir = client.post(f"/jobs/{oldest.manifest.id}/resume").json()["id"]
    answer = client.delete(f"/checkpoints/{oldest.manifest.id}")
    assert code_of(answer) == (409, "checkpoint_needed")
    assert heir in answer.json()["detail"]
    client.post(f"/jobs/{heir}/cancel")
    assert client.delete(f"/checkpoints/{oldest.manifest.id}").status_code == 204


def test_a_job_goes_with_those_of_its_checkpoints_that_may_go(
    client: TestClient, ended: tuple[Job, list[Checkpoint]]
) -> None:
    job, (oldest, middle, newest) = ended
    client.post(f"/checkpoints/{oldest.manifest.id}/pin")
    client.post(f"/jobs/{middle.manifest.id}/resume")
    assert client.delete(f"/jobs/{job.id}?checkpoints=true").status_code == 204
    assert client.get(f"/jobs/{job.id}").status_code == 404
    assert listed(client) == {oldest.manifest.id, middle.manifest.id}
    assert (oldest.path.exists(), middle.path.exists(), newest.path.exists()) == (True, True, False)
    gone = client.get(f"/checkpoints/{newest.manifest.id}")
    assert gone.status_code == 410
    assert middle.manifest.id in gone.json()["detail"], "its run is known also without its job"


def test_a_job_goes_without_its_checkpoints_unless_they_are_asked_for(
    client: TestClient, ended: tuple[Job, list[Checkpoint]]
) -> None:
    job, saved = ended
    assert client.delete(f"/jobs/{job.id}").status_code == 204
    assert listed(client) == {item.manifest.id for item in saved}


def test_an_unfinished_job_keeps_all_it_has_when_its_removal_is_refused(
    client: TestClient, running: tuple[Job, list[Checkpoint]]
) -> None:
    job, saved = running
    assert code_of(client.delete(f"/jobs/{job.id}?checkpoints=true")) == (409, "job_busy")
    assert listed(client) == {item.manifest.id for item in saved}


def test_a_long_log_is_removed_in_pieces_between_which_others_may_write(
    client: TestClient, ended: tuple[Job, list[Checkpoint]], ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = ended
    monkeypatch.setattr("jobs.thinning.CHUNK", 3)
    pieces: list[tuple[str, int]] = []
    write = Database.write

    def counting(self: Database) -> Any:
        pieces.append(("write", 0))
        return write(self)

    monkeypatch.setattr(Database, "write", counting)
    with ledger.read() as session:
        last_seq = catalog.get_job(session, "local", job.id).last_seq
    assert client.delete(f"/jobs/{job.id}").status_code == 204
    assert len(pieces) == (last_seq - 1) // 3 + 1
    with ledger.read() as session:
        assert feed.after(session, job.id, 0) == []


def cut(saved: Checkpoint) -> None:
    (saved.path / "model.safetensors").write_bytes(b"short")


def drop(saved: Checkpoint) -> None:
    (saved.path / "model.safetensors").unlink()


def strip(saved: Checkpoint) -> None:
    (saved.path / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "named"), [(cut, "model.safetensors"), (drop, "model.safetensors"), (strip, "manifest")]
)
def test_a_checkpoint_that_does_not_look_whole_is_not_resumed_and_the_one_before_it_is_named(
    client: TestClient, ended: tuple[Job, list[Checkpoint]], spoil: Callable[[Checkpoint], None], named: str
) -> None:
    job, (oldest, middle, newest) = ended
    for item in (newest, middle):
        spoil(item)
    answer = client.post(f"/jobs/{newest.manifest.id}/resume")
    assert code_of(answer) == (409, "checkpoint_corrupt")
    assert named in answer.json()["detail"]
    assert f"the newest before it that looks whole is {oldest.manifest.id} (step 5)" in answer.json()["detail"]
    assert client.get("/checkpoints/latest").json()["id"] == oldest.manifest.id
    for ref in (job.id, "latest"):
        heir = client.post(f"/jobs/{ref}/resume").json()
        assert heir["parent"] == oldest.manifest.id
        assert f"goes on from {oldest.manifest.id} (step 5) instead" in warning_in(client, heir["id"])
        assert newest.manifest.name in warning_in(client, heir["id"])


def warning_in(client: TestClient, job_id: str) -> str:
    """What the log of a job in line warns of; it is there for programs and for people, and the numbers have no gap."""
    client.post(f"/jobs/{job_id}/cancel")
    events = client.get(f"/jobs/{job_id}/events?format=json").json()["data"]
    assert [(event["seq"], event["kind"]) for event in events[:2]] == [(1, "state"), (2, "warning")]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    message: str = events[1]["data"]["message"]
    assert events[0]["data"]["warning"] == message
    assert message in client.get(f"/jobs/{job_id}/events?format=text").text
    return message


def test_a_run_that_goes_on_from_what_was_asked_for_is_not_warned(
    client: TestClient, ended: tuple[Job, list[Checkpoint]]
) -> None:
    job, (*_, newest) = ended
    for ref in (job.id, "latest", newest.manifest.id):
        heir = client.post(f"/jobs/{ref}/resume").json()
        assert heir["parent"] == newest.manifest.id
        events = client.get(f"/jobs/{heir['id']}/events?format=json").json()["data"]
        assert [event["kind"] for event in events] == ["state"]
        assert "warning" not in events[0]["data"]


def test_the_latest_is_the_newest_whose_folder_is_there(
    client: TestClient, ended: tuple[Job, list[Checkpoint]]
) -> None:
    _, (oldest, middle, newest) = ended
    shutil.rmtree(newest.path)
    assert client.get("/checkpoints/latest").json()["id"] == middle.manifest.id
    heir = client.post("/jobs/latest/resume").json()
    assert heir["parent"] == middle.manifest.id
    assert f"'{newest.manifest.name}' is gone" in warning_in(client, heir["id"])
    for item in (oldest, middle):
        shutil.rmtree(item.path)
    assert client.get("/checkpoints/latest").json()["id"] == newest.manifest.id
    assert code_of(client.post("/jobs/latest/resume")) == (409, "checkpoint_corrupt")


def test_a_job_none_of_whose_checkpoints_looks_whole_says_what_is_wrong_with_the_newest(
    client: TestClient, ended: tuple[Job, list[Checkpoint]]
) -> None:
    job, saved = ended
    for item in saved:
        drop(item)
    answer = client.post(f"/jobs/{job.id}/resume")
    assert code_of(answer) == (409, "checkpoint_corrupt")
    assert saved[2].manifest.name in answer.json()["detail"]
    assert "no earlier one of its run is left" in answer.json()["detail"]


def test_the_earlier_ones_of_a_console_run_are_known_by_their_manifests(client: TestClient, save: Save) -> None:
    earlier, damaged, _other = save(step=5, run="run_1"), save(step=9, run="run_1"), save(step=7, run="run_2")
    drop(damaged)
    answer = client.post(f"/jobs/{damaged.manifest.id}/resume")
    assert earlier.manifest.id in answer.json()["detail"]


def test_what_a_worker_has_superseded_is_told_so(
    client: TestClient, running: tuple[Job, list[Checkpoint]], ledger: Database
) -> None:
    job, (oldest, _, newest) = running
    with ledger.write() as session:
        shelf.retire_superseded(session, job.id, job.fence, 1)
    answer = client.get(f"/checkpoints/{oldest.manifest.id}")
    assert code_of(answer) == (410, "checkpoint_removed")
    assert "newer ones of its run superseded it" in answer.json()["detail"]
    assert newest.manifest.id in answer.json()["detail"]


def test_a_folder_that_cannot_be_removed_now_is_left_to_a_worker(
    client: TestClient, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, saved = finished()
    monkeypatch.setenv("RATCHET_FAILPOINT", "checkpoint.retiring:error=EROFS")
    assert client.delete(f"/checkpoints/{saved.manifest.id}").status_code == 204
    assert client.get(f"/checkpoints/{saved.manifest.id}").status_code == 410
    assert listed(client) == set()


def test_a_job_of_an_earlier_release_keeps_all_also_after_it_was_changed(
    client: TestClient, submit: Callable[..., Job], ledger: Database
) -> None:
    job = submit()
    with ledger.write() as session:
        row = session.get(Job, job.id)
        assert row
        row.config = {name: value for name, value in row.config.items() if name != "keep_checkpoints"}
        session.add(row)
    client.post(f"/jobs/{job.id}/pause")
    changed = client.post(f"/jobs/{job.id}/resume", json={"learning_rate": 0.1}).json()
    assert changed["config"]["keep_checkpoints"] == 0
    assert [item["field"] for item in changed["diff"]] == ["learning_rate"]
