"""Pretrained models over HTTP: the base is a name below the models root, whole or through LoRA."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Ratchet
from tests.tiny_models import make_gpt2_folder, make_model_folder

KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"base_model": "tiny-gpt2"},
    "gpt2_lora": {"base_model": "tiny-gpt2", "use_lora": True},
    "tiny-llama": {"base_model": "tiny-llama", "model_type": "causal_lm"},
    "tiny-llama_lora": {"base_model": "tiny-llama", "model_type": "causal_lm", "use_lora": True},
}
TINY = {"model_type": "gpt2", "training_steps": 6, "checkpoint_interval": 3, "eval_interval": 3, "max_new_tokens": 5}

Trained = Callable[[str], tuple[dict[str, Any], str]]


@pytest.fixture(scope="module")
def ratchet(
    tmp_path_factory: pytest.TempPathFactory, started: Callable[..., Any], bundled_source: Path
) -> Iterator[Ratchet]:
    folder = tmp_path_factory.mktemp("gpt2")
    text = bundled_source.read_text()[:50_000]
    make_gpt2_folder(folder / "models" / "tiny-gpt2", text)
    make_model_folder(folder / "models" / "tiny-llama", text, "llama")
    with started(folder / "data", "--models", str(folder / "models"), RATCHET_WARM_CHILD="false") as up:
        yield up


@pytest.fixture(scope="module")
def trained(ratchet: Ratchet) -> Trained:
    """A finished run and what it said, once for each kind."""

    @functools.cache
    def trained(kind: str) -> tuple[dict[str, Any], str]:
        job = ratchet.submit(**{**TINY, **KINDS[kind]})
        text = ratchet.follow(job["id"])
        return dict(ratchet.http.get(f"/jobs/{job['id']}").json()), text

    return trained


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_pretrained_model_is_trained_resumed_and_talked_to(ratchet: Ratchet, trained: Trained, kind: str) -> None:
    job, text = trained(kind)
    assert "✅ Training finished at step 6" in text
    assert "✨ The model writes after 'QUESTION: '" in text
    middle = ratchet.http.get("/checkpoints", params={"job": job["id"]}).json()["data"][1]
    assert middle["name"].startswith(f"checkpoint_{kind}_training")
    resumed = ratchet.http.post(f"/jobs/{middle['id']}/resume", json={"training_steps": 2}).json()
    assert "✅ Training finished at step 5" in ratchet.follow(resumed["id"])
    ask = {"checkpoint": middle["id"], "prompt": "QUESTION: ", "max_new_tokens": 5}
    assert ratchet.http.post("/generate", json=ask).json()["usage"]["completion_tokens"] == 5


def test_a_base_model_can_be_talked_to_as_it_is(ratchet: Ratchet) -> None:
    answer = ratchet.http.post("/generate", json={"model": "tiny-gpt2", "prompt": "Q", "max_new_tokens": 4})
    assert answer.json()["usage"]["completion_tokens"] == 4


def test_a_model_that_is_not_named_is_asked_for(ratchet: Ratchet) -> None:
    answer = ratchet.http.post("/jobs", json={**TINY, "model_type": "causal_lm"})
    assert answer.status_code == 422
    assert [item["field"] for item in answer.json()["errors"]] == ["base_model"]


@pytest.mark.parametrize("name", ["/etc", "../models/tiny-gpt2", "./tiny-gpt2", "a/b/c"])
def test_a_path_is_no_name_of_a_model(ratchet: Ratchet, name: str) -> None:
    answer = ratchet.http.post("/jobs", json={**TINY, "base_model": name})
    assert (answer.status_code, answer.json()["code"]) == (422, "model_forbidden")
    assert ratchet.http.post("/generate", json={"model": name, "prompt": "Q"}).status_code == 422


@pytest.mark.parametrize("use_lora", [False, True])
def test_a_checkpoint_is_exported_and_is_the_base_of_the_next_run(
    ratchet: Ratchet, trained: Trained, use_lora: bool
) -> None:
    checkpoint = trained("tiny-llama_lora" if use_lora else "tiny-llama")[0]["checkpoint"]
    name = f"exported_{use_lora}"
    answer = ratchet.http.post(f"/checkpoints/{checkpoint}/export", json={"name": name, "merge": True})
    assert (answer.status_code, answer.json()["kind"]) == (201, "model"), answer.text
    again = ratchet.http.post(f"/checkpoints/{checkpoint}/export", json={"name": name, "merge": True})
    assert (again.status_code, again.json()["code"]) == (409, "model_exists")
    ask = {"prompt": "QUESTION: ", "max_new_tokens": 5, "temperature": 0}
    texts = [
        ratchet.http.post("/generate", json={**ask, **which}).json()["choices"]
        for which in ({"checkpoint": checkpoint}, {"model": name})
    ]
    assert texts[0] == texts[1]
    following = ratchet.submit(**{**TINY, "model_type": "causal_lm", "base_model": name})
    assert "✅ Training finished at step 6" in ratchet.follow(following["id"])


def test_a_model_from_scratch_is_not_exported_but_downloaded(ratchet: Ratchet) -> None:
    job = ratchet.submit(training_steps=2, checkpoint_interval=1, max_new_tokens=0)
    ratchet.follow(job["id"])
    checkpoint = ratchet.http.get(f"/jobs/{job['id']}").json()["checkpoint"]
    answer = ratchet.http.post(f"/checkpoints/{checkpoint}/export")
    assert (answer.status_code, answer.json()["code"]) == (409, "export_unsupported")
    assert "download its folder instead" in answer.json()["detail"]
