from __future__ import annotations

import json

from tests.unit.client.conftest import JOB, FakeService, Ratchet

DONE = {"name": "mine", "path": "mine", "size_bytes": 3 << 20, "kind": "model"}


def test_a_checkpoint_becomes_a_model_of_that_name(service: FakeService, ratchet: Ratchet) -> None:
    service.lay("POST", "/checkpoints/c1/export", DONE, status=201)
    code, out, _ = ratchet("export", "c1", "--name", "mine", "--merge")
    assert (code, out) == (0, "The model mine (3.0 MiB) is below the models root.\n")
    assert service.last("/checkpoints/c1/export").body == {"name": "mine", "merge": True}
    assert json.loads(ratchet("export", "c1", "--json")[1]) == DONE
    assert service.last("/checkpoints/c1/export").body == {"merge": False}


def test_a_jobs_latest_checkpoint_is_exported(service: FakeService, ratchet: Ratchet) -> None:
    service.lay("GET", "/jobs/job_tale", {**JOB, "checkpoint": "c2"})
    service.lay("POST", "/checkpoints/c2/export", {**DONE, "kind": "adapter"}, status=201)
    assert ratchet("export", "job_tale")[1].startswith("The PEFT adapter mine")


def test_what_cannot_be_exported_is_one_sentence(service: FakeService, ratchet: Ratchet) -> None:
    said = {"code": "export_unsupported", "detail": "It is a model from scratch."}
    service.lay("POST", "/checkpoints/c1/export", said, status=409)
    assert ratchet("export", "c1") == (1, "", "It is a model from scratch.\n")
