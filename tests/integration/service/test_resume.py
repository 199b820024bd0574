from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from core.bases.fingerprints import of_small_files
from core.checkpoints.manifest import Checkpoint, read_manifest, seal_of
from core.config import TrainingConfig, config_to_dict
from core.errors import StorageError
from core.sources.corpus import sha256_of_all
from core.sources.files import SourceFolder
from jobs.lease import Stopped
from jobs.tables import Job
from service.settings import ServiceSettings
from tests.conftest import skip_unless
from tests.integration.service.conftest import BODY, TALE, Hand, Save


def takes_any_name(folder: Path) -> bool:
    """Whether a name there may be any bytes, as on Linux; elsewhere it has to be text."""
    try:
        (folder / "\udcff").touch()
        (folder / "\udcff").unlink()
    except OSError:
        return False
    return True


Finished = Callable[..., tuple[Job, Checkpoint]]


def test_a_paused_job_goes_on_itself(client: TestClient, submit: Callable[..., Job]) -> None:
    job = submit()
    client.post(f"/jobs/{job.id}/pause")
    answer = client.post(f"/jobs/{job.id}/resume")
    assert (answer.status_code, answer.json()["id"], answer.json()["state"]) == (200, job.id, "queued")


@pytest.fixture
def paused(client: TestClient, submit: Callable[..., Job], hand: Hand) -> Callable[..., str]:
    """The path of a job that was paused at step 15 of a run from 10 to 30."""

    def paused(**given: Any) -> str:
        submit(**{"start_step": 10, **given})
        job = hand.claim()
        hand.say(job, ("step", {"step": 15, "loss": 2.0}))
        client.post(f"/jobs/{job.id}/pause")
        hand.finish(job, Stopped())
        return f"/jobs/{job.id}"

    return paused


def test_a_paused_job_goes_on_with_other_settings(client: TestClient, paused: Callable[..., str]) -> None:
    path = paused(metadata={"a": "1"})
    body = {"learning_rate": 0.1, "resume_steps": 7, "name": "slower", "priority": 3}
    answer = client.post(f"{path}/resume", json=body)
    job = answer.json()
    assert (answer.status_code, job["state"], job["step"]) == (200, "queued", 15)
    assert (job["training_steps"], job["config"]["training_steps"], job["config"]["learning_rate"]) == (12, 12, 0.1)
    assert (job["name"], job["priority"], job["metadata"]) == ("slower", 3, {"a": "1"})
    assert job["diff"] == [
        {"field": "training_steps", "before": 20, "after": 12},
        {"field": "learning_rate", "before": 0.001, "after": 0.1},
    ]
    assert client.get(path).json() == job


def test_a_paused_job_makes_as_many_steps_as_before_unless_told(client: TestClient, paused: Callable[..., str]) -> None:
    job = client.post(f"{paused()}/resume", json={"batch_size": 2, "metadata": {"b": "2"}}).json()
    assert (job["training_steps"], job["config"]["training_steps"], job["metadata"]) == (20, 20, {"b": "2"})
    assert job["diff"] == [{"field": "batch_size", "before": 4, "after": 2}]


def test_a_paused_job_that_goes_on_unchanged_says_so_whatever_changed_before(
    client: TestClient, paused: Callable[..., str]
) -> None:
    path = paused()
    assert client.post(f"{path}/resume", json={"learning_rate": 0.1}).json()["diff"]
    client.post(f"{path}/pause")
    assert client.post(f"{path}/resume").json()["diff"] == []
    said = client.get(f"{path}/events?format=json").json()["data"][-1]
    assert (said["data"]["state"], said["data"]["diff"]) == ("queued", [])


def test_a_job_paused_before_its_first_step_takes_other_settings_too(
    client: TestClient, submit: Callable[..., Job]
) -> None:
    job = submit()
    client.post(f"/jobs/{job.id}/pause")
    answer = client.post(f"/jobs/{job.id}/resume", json={"learning_rate": 0.1, "training_steps": 5})
    assert (answer.status_code, answer.json()["training_steps"]) == (200, 5)


def test_an_exact_resume_that_is_changed_goes_on_as_the_change_asks(
    client: TestClient, submit: Callable[..., Job]
) -> None:
    for body, mode in (({"learning_rate": 0.1}, "extend"), ({}, "exact"), ({"training_steps": 5}, "extend")):
        path = f"/jobs/{submit(resume_mode='exact').id}"
        client.post(f"{path}/pause")
        assert client.post(f"{path}/resume", json=body).json()["mode"] == mode


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"mode": "warm_start"}, 409, "also a warm start"),
        ({"mode": "exact", "learning_rate": 0.1}, 409, "learning_rate: 0.001 → 0.1"),
        ({"n_embd": 64, "name": "new"}, 409, "n_embd: 32 → 64"),
        ({"source": "other.md"}, 409, "source: tale.md → other.md"),
        ({"base_model": "/etc"}, 409, "base_model: gpt2 → /etc"),
        ({"training_steps": 10_000_000}, 422, "training_steps"),
    ],
)
def test_what_a_paused_job_cannot_become_leaves_it_paused(
    client: TestClient, paused: Callable[..., str], body: dict[str, Any], status: int, said: str
) -> None:
    path = paused()
    before = client.get(path).json()
    assert (before["state"], before["stop_requested"]) == ("paused", None)
    answer = client.post(f"{path}/resume", json=body)
    assert (answer.status_code, said in answer.json()["detail"]) == (status, True), answer.text
    assert client.get(path).json() == before


@pytest.mark.parametrize("change", [{"training_steps": 5}, {"num_epochs": 2}], ids=str)
def test_a_paused_job_under_a_falling_rate_keeps_its_end_in_mode_exact(
    client: TestClient, change: dict[str, Any]
) -> None:
    body = {"source": "tale.md", "test_mode": True, "lr_schedule": "cosine"}
    path = f"/jobs/{client.post('/jobs', json=body).json()['id']}"
    client.post(f"{path}/pause")
    answer = client.post(f"{path}/resume", json={"mode": "exact", **change})
    assert (answer.status_code, [item["field"] for item in answer.json()["errors"]]) == (409, list(change)), answer.text
    assert client.post(f"{path}/resume", json=change).status_code == 200


def test_a_job_that_is_about_to_pause_cannot_be_changed_yet(
    client: TestClient, submit: Callable[..., Job], hand: Hand
) -> None:
    submit()
    path = f"/jobs/{hand.claim().id}"
    client.post(f"{path}/pause")
    answer = client.post(f"{path}/resume", json={"learning_rate": 0.1})
    assert (answer.status_code, answer.json()["code"]) == (409, "job_busy")
    assert "wait until it is paused" in answer.json()["detail"]
    assert client.post(f"{path}/resume").json()["stop_requested"] is None


def test_a_paused_job_whose_text_is_gone_stays_paused(
    client: TestClient, paused: Callable[..., str], settings: ServiceSettings
) -> None:
    path = paused()
    (settings.sources / "tale.md").unlink()
    answer = client.post(f"{path}/resume")
    assert (answer.status_code, answer.json()["code"]) == (422, "source_not_found")
    assert client.get(path).json()["state"] == "paused"


def test_a_paused_job_whose_text_has_changed_since_its_checkpoint_stays_paused(
    client: TestClient, submit: Callable[..., Job], hand: Hand, save: Save, settings: ServiceSettings
) -> None:
    submit()
    job = hand.claim()
    manifest = save(step=5, job_id=job.id).manifest
    hand.say(job, ("checkpoint", {"step": 5, "id": manifest.id, "name": manifest.name, "size_bytes": 7}))
    client.post(f"/jobs/{job.id}/pause")
    hand.finish(job, Stopped())
    (settings.sources / "tale.md").write_text(TALE + "!")
    answer = client.post(f"/jobs/{job.id}/resume")
    assert (answer.status_code, answer.json()["code"]) == (409, "source_changed")
    assert client.get(f"/jobs/{job.id}").json()["state"] == "paused"
    (settings.sources / "tale.md").write_text(TALE)
    assert client.post(f"/jobs/{job.id}/resume").status_code == 200


@pytest.mark.parametrize("mode", ["exact", "extend", "warm_start"])
@pytest.mark.parametrize(("file", "what"), [("tokenizer.json", "tokenizer"), ("config.json", "architecture")])
def test_adapters_go_on_on_the_base_alone_that_they_were_trained_on(
    client: TestClient, save: Save, settings: ServiceSettings, file: str, what: str, mode: str
) -> None:
    base = settings.models / "small"
    base.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (base / name).write_text("{}")
    told = {"model_type": "gpt2", "use_lora": True, "base_model": "small", "learning_rate": 1e-3}
    source = SourceFolder(settings.sources).inspect("tale.md").sha256
    saved = save(config=told, hashes={"source": source, **of_small_files(base)})
    path = f"/jobs/{saved.manifest.id}/resume"
    assert client.post(path, json={"mode": mode}).status_code == 201
    (base / file).write_text('{"another": 1}')
    answer = client.post(path, json={"mode": mode})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (409, "checkpoint_mismatch")
    assert f"its {what} changed" in problem["detail"]


def test_letting_a_job_go_on_can_be_repeated_under_its_key(
    client: TestClient, paused: Callable[..., str], hand: Hand
) -> None:
    path, key, body = paused(), {"Idempotency-Key": "k"}, {"learning_rate": 0.1}
    first = client.post(f"{path}/resume", json=body, headers=key)
    again = client.post(f"{path}/resume", json=body, headers=key)
    assert (first.status_code, again.status_code) == (200, 200)
    assert ("idempotency-replayed" in first.headers, again.headers["idempotency-replayed"]) == (False, "true")
    assert again.json() == first.json()
    hand.finish(hand.claim())
    assert client.post(f"{path}/resume", json=body, headers=key).json()["state"] == "succeeded"
    for elsewhere, other in ((f"{path}/resume", {"learning_rate": 0.2}), (f"{path}/resume", None), ("/jobs", BODY)):
        answer = client.post(elsewhere, json=other, headers=key)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_conflict")


def test_ten_repeats_at_once_let_a_job_go_on_once(client: TestClient, paused: Callable[..., str]) -> None:
    path, key = paused(), {"Idempotency-Key": "k"}
    with ThreadPoolExecutor(10) as threads:
        sent = [threads.submit(client.post, f"{path}/resume", headers=key) for _ in range(10)]
        answers = [each.result() for each in sent]
    assert [answer.status_code for answer in answers] == [200] * 10
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 9


def test_a_job_that_still_runs_points_to_its_checkpoints(
    client: TestClient, submit: Callable[..., Job], hand: Hand
) -> None:
    submit()
    answer = client.post(f"/jobs/{hand.claim().id}/resume")
    assert (answer.status_code, answer.json()["code"]) == (409, "job_busy")
    assert "POST /jobs/{checkpoint}/resume" in answer.json()["detail"]


def test_a_finished_job_is_followed_by_a_new_one(client: TestClient, finished: Finished) -> None:
    job, saved = finished()
    answer = client.post(f"/jobs/{job.id}/resume", json={"resume_steps": 5, "name": "more"})
    new = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/jobs/{new['id']}" != f"/jobs/{job.id}"
    assert (new["parent"], new["mode"], new["name"]) == (saved.manifest.id, "extend", "more")
    assert (new["start_step"], new["step"], new["training_steps"], new["progress"]) == (20, 20, 5, 0.0)
    assert new["diff"] == [{"field": "training_steps", "before": 20, "after": 5}]


@pytest.mark.parametrize("suffix", ["", ".pt"])
def test_a_checkpoint_is_named_by_id_or_name(client: TestClient, finished: Finished, suffix: str) -> None:
    _, saved = finished()
    for ref in (saved.manifest.id, saved.manifest.name, "latest"):
        answer = client.post(f"/jobs/{ref}{suffix}/resume")
        assert answer.status_code == 201
        assert answer.json()["parent"] == saved.manifest.id


def test_a_run_cut_short_makes_the_steps_it_had_left(client: TestClient, save: Save) -> None:
    new = client.post(f"/jobs/{save(step=15, end_step=20).manifest.id}/resume").json()
    assert (new["start_step"], new["training_steps"]) == (15, 5)


def test_a_warm_start_counts_from_zero_and_may_change_the_text(
    client: TestClient, save: Save, settings: ServiceSettings
) -> None:
    (settings.sources / "other.md").write_text(TALE)
    body = {"mode": "warm_start", "source": "other.md", "seed": 7}
    new = client.post(f"/jobs/{save().manifest.id}/resume", json=body).json()
    assert (new["start_step"], new["training_steps"], new["mode"]) == (0, 20, "warm_start")
    assert {item["field"] for item in new["diff"]} == {"source", "seed"}


@pytest.mark.parametrize(
    ("body", "forbidden"),
    [
        ({"n_embd": 64, "seed": 1, "learning_rate": 0.1}, ["seed", "n_embd"]),
        ({"mode": "exact", "learning_rate": 0.1}, ["learning_rate"]),
        ({"mode": "warm_start", "block_size": 16}, ["block_size"]),
        ({"base_model": "/etc"}, ["base_model"]),
    ],
)
def test_what_may_not_change_is_listed(
    client: TestClient, save: Save, body: dict[str, Any], forbidden: list[str]
) -> None:
    answer = client.post(f"/jobs/{save().manifest.id}/resume", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (409, "checkpoint_mismatch")
    assert sorted(item["field"] for item in problem["errors"]) == sorted(forbidden)
    assert {item["field"] for item in problem["diff"]} >= set(body) - {"mode"}


@pytest.mark.parametrize("mode", ["exact", "extend"])
@pytest.mark.parametrize("fate", ["edited", "gone"])
def test_a_run_goes_on_in_the_same_text_alone(
    client: TestClient, save: Save, settings: ServiceSettings, mode: str, fate: str
) -> None:
    saved = save()
    path = settings.sources / "tale.md"
    path.write_text(TALE + "!") if fate == "edited" else path.unlink()
    answer = client.post(f"/jobs/{saved.manifest.id}/resume", json={"mode": mode})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (409, "source_changed")
    assert problem["errors"][0]["field"] == "source"
    assert "tale.md" in problem["detail"]


def test_a_console_runs_checkpoint_finds_its_text_below_the_root(
    client: TestClient, save: Save, settings: ServiceSettings
) -> None:
    for source in ("sources/tale.md", f"{settings.sources}/tale.md"):
        answer = client.post(f"/jobs/{save(config={'source': source}).manifest.id}/resume")
        assert answer.status_code == 201
        assert answer.json()["config"]["source"] == "tale.md"
        assert "source" not in {item["field"] for item in answer.json()["diff"]}


@pytest.fixture
def save_of_two(save: Save, settings: ServiceSettings) -> Callable[..., Checkpoint]:
    """A checkpoint of a run on two texts below the root, which it names by paths of the console."""
    (settings.sources / "deep").mkdir()
    (settings.sources / "deep" / "other.md").write_text(TALE * 2)
    folder = SourceFolder(settings.sources)
    hashes = [folder.inspect(name).sha256 for name in ("tale.md", "deep/other.md")]

    def save_of_two(first: str, second: str) -> Checkpoint:
        shares = [{"source": first, "weight": 1.0}, {"source": second, "weight": 3.0}]
        return save(config={"source": first, "sources": shares}, hashes={"source": sha256_of_all(hashes)})

    return save_of_two


def test_a_console_run_on_several_texts_finds_each_below_the_root(
    client: TestClient, save_of_two: Callable[..., Checkpoint], settings: ServiceSettings
) -> None:
    for root in ("sources", settings.sources):
        saved = save_of_two(f"{root}/tale.md", f"{root}/deep/other.md")
        answer = client.post(f"/jobs/{saved.manifest.id}/resume")
        assert answer.status_code == 201, answer.text
        config = answer.json()["config"]
        assert config["source"] == "tale.md"
        assert [share["source"] for share in config["sources"]] == ["tale.md", "deep/other.md"]
        assert [share["weight"] for share in config["sources"]] == [1.0, 3.0]
        assert answer.json()["diff"] == [{"field": "training_steps", "before": 20, "after": 10}]


@pytest.mark.parametrize("elsewhere", ["/elsewhere/secret.md", "/elsewhere/tale.md"])
def test_of_several_texts_the_one_that_is_not_below_the_root_is_named(
    client: TestClient, save_of_two: Callable[..., Checkpoint], elsewhere: str
) -> None:
    answer = client.post(f"/jobs/{save_of_two('sources/tale.md', elsewhere).manifest.id}/resume")
    assert (answer.status_code, answer.json()["code"]) == (409, "source_changed")
    assert f"source '{elsewhere}' must be a name below the sources folder" in answer.json()["detail"]


@pytest.fixture
def save_of_rows(save: Save, settings: ServiceSettings) -> Callable[..., Checkpoint]:
    """A checkpoint at step 10 of a run that learns rows in their order, or of one on several sources."""

    def save_of_rows(*names: str) -> Checkpoint:
        for name in names:
            (settings.sources / name).write_text('{"prompt": "1 + 1", "completion": "2"}\n' * 9)
        hashes = [SourceFolder(settings.sources).inspect(name).sha256 for name in names]
        shares = [{"source": name} for name in names] if len(names) > 1 else []
        return save(config={"source": names[0], "sources": shares}, hashes={"source": sha256_of_all(hashes)})

    return save_of_rows


def test_what_an_earlier_release_learnt_as_text_goes_on_as_text_alone(
    client: TestClient, save_of_rows: Callable[..., Checkpoint], settings: ServiceSettings
) -> None:
    saved = save_of_rows("rows.jsonl")
    config = {name: value for name, value in saved.manifest.config.items() if name != "method"}
    (saved.path / "manifest.json").write_text(saved.manifest.model_copy(update={"config": config}).to_json())
    path = f"/jobs/{saved.manifest.id}/resume"
    answer = client.post(path)
    assert (answer.status_code, answer.json()["code"]) == (409, "checkpoint_mismatch")
    assert "learnt 'rows.jsonl' as plain text" in answer.json()["detail"]
    shutil.copy(settings.sources / "rows.jsonl", settings.sources / "rows.txt")
    assert client.post(path, json={"source": "rows.txt"}).status_code == 201
    assert client.post(path, json={"mode": "warm_start"}).status_code == 201


@pytest.mark.parametrize(("changed", "row"), [({"batch_size": 8}, 80), ({"gradient_accumulation_steps": 3}, 120)])
def test_batches_of_another_size_tell_which_row_comes_next(
    client: TestClient, save_of_rows: Callable[..., Checkpoint], changed: dict[str, Any], row: int
) -> None:
    path = f"/jobs/{save_of_rows('rows.jsonl').manifest.id}/resume"
    moved = {"field": "next_row", "before": 40, "after": row}
    assert moved in client.post(path, json=changed).json()["diff"]
    assert client.post(path, json={"learning_rate": 0.1}).json()["diff"][-1]["field"] == "learning_rate"
    warm = client.post(path, json={**changed, "mode": "warm_start"}).json()["diff"]
    assert {item["field"] for item in warm} == {*changed}


def test_what_is_drawn_at_random_has_no_next_row(
    client: TestClient, save: Save, save_of_rows: Callable[..., Checkpoint]
) -> None:
    for saved in (save(), save_of_rows("rows.jsonl", "more.jsonl")):
        answer = client.post(f"/jobs/{saved.manifest.id}/resume", json={"batch_size": 8})
        assert answer.status_code == 201, answer.text
        assert {item["field"] for item in answer.json()["diff"]} == {"training_steps", "batch_size"}


def test_a_paused_job_whose_batches_change_tells_which_row_comes_next(
    client: TestClient, paused: Callable[..., str], settings: ServiceSettings
) -> None:
    (settings.sources / "rows.jsonl").write_text('{"prompt": "1 + 1", "completion": "2"}\n' * 9)
    config = config_to_dict(TrainingConfig(**{**BODY, "source": "rows.jsonl"}))
    answer = client.post(f"{paused(config=config)}/resume", json={"batch_size": 2})
    assert answer.json()["diff"] == [
        {"field": "batch_size", "before": 4, "after": 2},
        {"field": "next_row", "before": 60, "after": 30},
    ]


def test_a_source_whose_name_is_too_long_is_refused_before_it_is_looked_for(
    client: TestClient, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save()
    config = {**saved.manifest.config, "source": "a/" * 1000}
    (saved.path / "manifest.json").write_text(saved.manifest.model_copy(update={"config": config}).to_json())
    looked_for: list[str] = []
    monkeypatch.setattr(SourceFolder, "open", lambda _, name: looked_for.append(name))
    answer = client.post(f"/jobs/{saved.manifest.id}/resume")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "source")
    assert looked_for == []


def test_a_job_without_a_checkpoint_cannot_go_on(client: TestClient, submit: Callable[..., Job]) -> None:
    job = submit()
    client.post(f"/jobs/{job.id}/cancel")
    answer = client.post(f"/jobs/{job.id}/resume")
    assert (answer.status_code, answer.json()["code"]) == (409, "nothing_saved")


def test_a_checkpoint_whose_folder_is_gone_is_said_to_be(client: TestClient, finished: Finished) -> None:
    _, saved = finished()
    (saved.path / "manifest.json").unlink()
    answer = client.post(f"/jobs/{saved.manifest.id}/resume")
    assert (answer.status_code, answer.json()["code"]) == (409, "checkpoint_corrupt")
    assert client.get(f"/checkpoints/{saved.manifest.id}").json()["manifest"] is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"mode": "sideways"}, "mode"),
        ({"lerning_rate": 1}, "lerning_rate"),
        ({"learning_rate": 99}, "learning_rate"),
        ({"resume_steps": 1, "training_steps": 2}, ""),
        ({"n_head": 5}, "n_head"),
    ],
)
def test_a_body_that_makes_no_sense_is_a_422(client: TestClient, save: Save, body: dict[str, Any], field: str) -> None:
    answer = client.post(f"/jobs/{save().manifest.id}/resume", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


def test_a_repeated_resume_makes_one_job(client: TestClient, save: Save) -> None:
    path, key = f"/jobs/{save().manifest.id}/resume", {"Idempotency-Key": "k"}
    first = client.post(path, headers=key)
    again = client.post(path, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json()["id"] == first.json()["id"]
    assert client.post(path, headers=key, json={"resume_steps": 3}).status_code == 422


def test_checkpoints_are_listed_with_those_of_the_console(
    client: TestClient, finished: Finished, save: Save, settings: ServiceSettings
) -> None:
    job, made = finished()
    stray = save(step=5, val_loss=1.0)
    (settings.checkpoints / "checkpoint_half").mkdir()
    (settings.checkpoints / "tmp-checkpoint_x").mkdir()
    (settings.checkpoints / "checkpoint_link").symlink_to(stray.path)
    listed = client.get("/checkpoints").json()
    assert [row["id"] for row in listed["data"]] == [stray.manifest.id, made.manifest.id]
    assert [row["job_id"] for row in listed["data"]] == [None, job.id]
    assert listed["data"][0]["size_bytes"] == 7
    assert client.get("/checkpoints?order=best").json()["data"][0]["id"] == stray.manifest.id
    assert [row["id"] for row in client.get(f"/checkpoints?job={job.id}").json()["data"]] == [made.manifest.id]
    assert client.get("/checkpoints?limit=1").json()["has_more"]
    assert client.get(f"/checkpoints?after={stray.manifest.id}").json()["data"][0]["id"] == made.manifest.id
    assert client.get("/checkpoints?model=gpt2").json()["data"] == []
    assert client.get(f"/checkpoints/{stray.manifest.name}").json()["manifest"]["step"] == 5


def test_a_checkpoint_that_its_job_has_not_reported_yet_is_left_to_it(
    client: TestClient, submit: Callable[..., Job], hand: Hand, save: Save
) -> None:
    submit()
    saved = save(job_id=hand.claim().id)
    assert client.get("/checkpoints").json()["data"] == []
    assert client.get(f"/checkpoints/{saved.manifest.id}").status_code == 404


def test_a_checkpoint_that_an_ended_job_never_reported_is_listed_as_its_own(
    client: TestClient, submit: Callable[..., Job], hand: Hand, save: Save
) -> None:
    submit()
    job = hand.claim()
    saved = save(job_id=job.id)
    hand.finish(job)
    assert [(row["id"], row["job_id"]) for row in client.get("/checkpoints").json()["data"]] == [
        (saved.manifest.id, job.id)
    ]


NONSENSE: list[dict[str, Any]] = [
    {"step": 10**30},
    {"step": "many"},
    {"created_at": 1e300},
    {"created_at": float("nan")},
    {"files": {"a": {}}},
    {"files": 7},
    {"job_id": ["x"]},
    {"config": "none"},
    {"id": "\ud800"},
]


def test_a_manifest_that_makes_no_sense_spoils_no_list(client: TestClient, save: Save) -> None:
    good = save()
    for nonsense in NONSENSE:
        manifest = save().path / "manifest.json"
        said = {**json.loads(manifest.read_text()), **nonsense}
        manifest.write_text(json.dumps({**said, "seal": seal_of(said)}))
    assert [row["id"] for row in client.get("/checkpoints").json()["data"]] == [good.manifest.id]


def test_a_folder_that_cannot_be_a_checkpoint_spoils_no_list(
    client: TestClient, save: Save, settings: ServiceSettings
) -> None:
    good = save()
    (settings.checkpoints / ("checkpoint_" + "x" * 240)).mkdir()
    skip_unless(takes_any_name(settings.checkpoints), "this file system takes UTF-8 names alone")
    (settings.checkpoints / "checkpoint_\udcff").mkdir()
    assert [row["id"] for row in client.get("/checkpoints").json()["data"]] == [good.manifest.id]
    assert client.post("/jobs/latest/resume").status_code == 201


def test_a_checkpoint_that_the_ledger_cannot_keep_spoils_no_list(
    client: TestClient, save: Save, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, vast, last = sorted((save(), save(), save()), key=lambda saved: saved.path.name)
    monkeypatch.setattr(
        "core.checkpoints.manifest.Manifest.size_bytes", property(lambda it: 2**63 * (it.id == vast.manifest.id))
    )
    rows = client.get("/checkpoints").json()["data"]
    assert {row["id"] for row in rows} == {first.manifest.id, last.manifest.id}
    assert f"checkpoint {vast.manifest.name} is not listed" in caplog.text


def test_a_checkpoint_that_the_disk_does_not_give_spoils_no_list(
    client: TestClient, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, unread = save(), save()

    def read(folder: Path) -> Checkpoint:
        if folder.name == unread.path.name:
            raise StorageError("Input/output error")
        return read_manifest(folder)

    monkeypatch.setattr("service.shelf.read_manifest", read)
    assert [row["id"] for row in client.get("/checkpoints").json()["data"]] == [good.manifest.id]
    monkeypatch.undo()
    assert len(client.get("/checkpoints").json()["data"]) == 2
    monkeypatch.setattr("service.shelf.read_manifest", read)
    answer = client.get(f"/checkpoints/{unread.manifest.id}")
    assert (answer.status_code, answer.json()["manifest"]) == (200, None)


def test_all_who_look_at_once_for_what_only_the_disk_knows_find_it(client: TestClient, save: Save) -> None:
    path = f"/checkpoints/{save().manifest.id}"
    with ThreadPoolExecutor(20) as people:
        answers = list(people.map(lambda _: client.get(path), range(20)))
    assert {answer.status_code for answer in answers} == {200}


def test_a_checkpoint_that_is_not_there_is_a_404(client: TestClient) -> None:
    for ref in ("nope", "%00", "x" * 4000, "%F4%8F%BF%BF", "%ff", "latest"):
        answer = client.get(f"/checkpoints/{ref}")
        assert (answer.status_code, answer.json()["code"]) == (404, "checkpoint_not_found")
        assert client.get(f"/checkpoints?after={ref}").status_code == 404


def test_sources_are_listed_and_bad_ones_say_why(client: TestClient, settings: ServiceSettings) -> None:
    (settings.sources / "empty.md").write_text("")
    (settings.sources / "latin.md").write_bytes(b"caf\xe9")
    (settings.sources / "deep").mkdir()
    (settings.sources / "deep" / "er.txt").write_text("é")
    (settings.sources / "link.md").symlink_to("/etc/passwd")
    rows = {row["name"]: row for row in client.get("/sources").json()["data"]}
    assert set(rows) == {"tale.md", "empty.md", "latin.md", "deep/er.txt"}
    assert (rows["deep/er.txt"]["size_bytes"], rows["deep/er.txt"]["num_characters"]) == (2, 1)
    assert rows["tale.md"]["error"] is None
    assert "nothing to learn" in rows["empty.md"]["error"]
    assert "offset 3" in rows["latin.md"]["error"]


def test_a_file_name_that_is_not_utf8_is_shown_all_the_same(client: TestClient, settings: ServiceSettings) -> None:
    skip_unless(takes_any_name(settings.sources), "this file system takes UTF-8 names alone")
    (settings.sources / "caf\udce9.md").write_text(TALE)
    rows = client.get("/sources").json()["data"]
    assert "rename it" in next(row["error"] for row in rows if row["name"].startswith("caf"))
