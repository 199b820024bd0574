from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from core.assembly import assemble
from core.checkpointing import CheckpointStore, load_checkpoint
from core.config import TrainingConfig, parse
from core.sources import SourceText
from tests.integration.worker.conftest import TEXT, TINY
from worker.inference_process import InferenceProcess
from worker.settings import WorkerSettings


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inference")
    config = parse(TrainingConfig, {**TINY, "training_steps": 10})
    store = CheckpointStore(root / "checkpoints")
    assemble(config, SourceText("sums.md", TEXT, "0" * 64), lambda _: None, lambda: False, store=store).train()
    return root


@pytest.fixture(scope="module")
def process(root: Path) -> Iterator[InferenceProcess]:
    process = InferenceProcess(WorkerSettings(data=root, models=root / "models"))
    yield process
    process.close()


@pytest.fixture
def ask(process: InferenceProcess) -> Iterator[Any]:
    with httpx2.Client(
        base_url=process.url or "", headers={"Authorization": f"Bearer {process.token}"}, timeout=60
    ) as client:

        def ask(**body: Any) -> httpx2.Response:
            return client.post("/generate", json={"prompts": ["QUESTION: "], "max_new_tokens": 8, **body})

        yield ask


@pytest.fixture
def name(root: Path) -> str:
    return next(iter(CheckpointStore(root / "checkpoints"))).manifest.name


def lines(answer: httpx2.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def test_each_choice_comes_in_pieces_and_ends_with_its_counts(ask: Any, name: str) -> None:
    said = lines(ask(checkpoint=name, prompts=["QUESTION: ", "A"], n=2, seed=1))
    ends = [line for line in said if "finish_reason" in line]
    assert [line["index"] for line in ends] == [0, 1, 2, 3]
    assert [line["num_prompt_tokens"] for line in ends] == [10, 10, 1, 1]
    assert all(line["num_new_tokens"] == 8 and line["finish_reason"] == "length" for line in ends)
    assert said[-1] == {"done": True}


def test_the_same_seed_gives_the_same_texts_and_each_choice_its_own(ask: Any, name: str) -> None:
    def texts() -> list[str]:
        said = lines(ask(checkpoint=name, n=2, seed=5, temperature=1.0, max_new_tokens=20))
        return ["".join(line["text"] for line in said if line.get("index") == i and "text" in line) for i in (0, 1)]

    first, second = texts(), texts()
    assert first == second
    assert first[0] != first[1]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"checkpoint": "checkpoint_nobody"}, 404, "checkpoint_not_found"),
        ({"checkpoint": "../checkpoints"}, 404, "checkpoint_not_found"),
        ({"model": "no/such"}, 409, "model_unavailable"),
        ({"prompts": ["€"]}, 422, "generation_invalid"),
        ({"temperature": -1}, 422, "generation_invalid"),
        ({"prompts": []}, 422, "generation_invalid"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_the_first_byte(
    ask: Any, root: Path, name: str, body: dict[str, Any], status: int, code: str
) -> None:
    chosen = {} if "model" in body else {"checkpoint": name}
    answer = ask(**{**chosen, **body})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert str(root / "checkpoints") not in answer.json()["message"], "a client learns no path of this machine"


def test_a_legacy_file_becomes_a_checkpoint_once(process: InferenceProcess, ask: Any, root: Path) -> None:
    store = CheckpointStore(root / "checkpoints")
    content = load_checkpoint(next(iter(store)).path)
    legacy = "checkpoint_from_scratch_sums_step000010_abcdefg"
    said = {name: content[name] for name in ("step", "config", "model_state_dict")} | {"chars": content["characters"]}
    torch.save(said, root / "checkpoints" / f"{legacy}.pt")
    headers = {"Authorization": f"Bearer {process.token}"}
    for _ in range(2):
        answer = httpx2.post(f"{process.url}/adopt", json={"name": f"{legacy}.pt"}, headers=headers, timeout=60)
        assert (answer.status_code, answer.json()) == (200, {"name": legacy})
    (adopted,) = [item for item in store if item.manifest.name == legacy]
    assert adopted.manifest.step == 10
    assert load_checkpoint(adopted.path)["rng"] is None
    assert lines(ask(checkpoint=legacy))[-1] == {"done": True}


@pytest.mark.parametrize(
    ("name", "status"), [("checkpoint_gone.pt", 404), ("../checkpoint_x.pt", 422), ("notes.txt", 422), (".pt", 422)]
)
def test_only_a_legacy_file_below_the_root_is_adopted(process: InferenceProcess, name: str, status: int) -> None:
    headers = {"Authorization": f"Bearer {process.token}"}
    assert httpx2.post(f"{process.url}/adopt", json={"name": name}, headers=headers).status_code == status
    assert httpx2.post(f"{process.url}/adopt", json={"name": name}).status_code == 401


def test_without_the_token_nothing_is_said(process: InferenceProcess) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer é".encode()}):
        answer = httpx2.post(f"{process.url}/generate", json={}, headers=headers)
        assert answer.status_code == 401


def test_a_reader_that_goes_away_frees_the_turn_for_the_next(process: InferenceProcess, name: str) -> None:
    headers = {"Authorization": f"Bearer {process.token}"}
    body = {"checkpoint": name, "prompts": ["Q"], "max_new_tokens": 100_000}
    with httpx2.stream("POST", f"{process.url}/generate", json=body, headers=headers, timeout=60) as answer:
        next(answer.iter_lines())
    after = httpx2.post(f"{process.url}/generate", json={**body, "max_new_tokens": 3}, headers=headers, timeout=20)
    assert lines(after)[-1] == {"done": True}


def test_generation_that_died_is_started_again_at_a_new_address(root: Path) -> None:
    process = InferenceProcess(WorkerSettings(data=root))
    try:
        before = process.url
        assert not process.revive()
        process._process.kill()
        process._process.wait()
        assert process.revive()
        assert process.url != before
    finally:
        process.close()
