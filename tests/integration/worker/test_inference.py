from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from core.assembly import assemble
from core.checkpointing import CheckpointStore, load_checkpoint
from core.checkpoints import opening
from core.config import TrainingConfig, parse
from core.sources.files import SourceText
from tests.integration.worker.conftest import TEXT, TINY
from tests.tiny_models import make_gpt2_folder
from worker.inference import Models
from worker.inference_process import InferenceProcess
from worker.inference_requests import Adopt, Ask
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
    """The checkpoint of the model from scratch, at the end of its run."""
    made = [item.manifest for item in CheckpointStore(root / "checkpoints") if item.manifest.model == "from_scratch"]
    return made[0].name


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


def test_a_legacy_file_becomes_a_checkpoint_once(process: InferenceProcess, ask: Any, root: Path, name: str) -> None:
    store = CheckpointStore(root / "checkpoints")
    content = load_checkpoint(root / "checkpoints" / name)
    legacy = "checkpoint_from_scratch_sums_step000010_abcdefg"
    said = {key: content[key] for key in ("step", "config", "model_state_dict")} | {
        "chars": content["tokenizer"].characters
    }
    torch.save(said, root / "checkpoints" / f"{legacy}.pt")
    headers = {"Authorization": f"Bearer {process.token}"}
    for _ in range(2):
        answer = httpx2.post(f"{process.url}/adopt", json={"name": f"{legacy}.pt"}, headers=headers, timeout=60)
        assert (answer.status_code, answer.json()) == (200, {"name": legacy})
    (adopted,) = [item for item in store if item.manifest.name == legacy]
    assert adopted.manifest.step == 10
    assert load_checkpoint(adopted.path)["rng"] is None
    assert lines(ask(checkpoint=legacy))[-1] == {"done": True}


def test_models_answer_while_a_legacy_file_is_looked_through(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Models(WorkerSettings(data=root, models=root / "models"))
    begun, may_end = threading.Event(), threading.Event()

    def adopt_slowly(*_: Any) -> None:
        begun.set()
        may_end.wait(60)

    monkeypatch.setattr(opening, "adopt_legacy", adopt_slowly)
    (root / "checkpoints" / "checkpoint_slow.pt").touch()
    with ThreadPoolExecutor() as threads:
        adopting = threads.submit(models.adopt, Adopt(name="checkpoint_slow.pt"))
        assert begun.wait(60)
        try:
            asking = threads.submit(models.get, Ask(checkpoint=name, prompts=["Q"]))
            assert asking.result(timeout=30)
            assert not adopting.done()
        finally:
            may_end.set()
        assert adopting.result(timeout=30) == {"name": "checkpoint_slow"}


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
        text = answer.iter_lines()  # held: dropped, it would close the connection
        next(text)
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


@pytest.fixture(scope="module")
def full(root: Path) -> str:
    """A full GPT-2 checkpoint, trained on a base below the models root."""
    make_gpt2_folder(root / "models" / "tiny", TEXT)
    given = {**TINY, "model_type": "gpt2", "base_model": "tiny", "training_steps": 3}
    store = CheckpointStore(root / "full")
    source = SourceText("sums.md", TEXT, "0" * 64)
    config = parse(TrainingConfig, given)
    assemble(config, source, lambda _: None, lambda: False, store=store, models_root=root / "models").train()
    made = next(iter(store))
    return made.path.rename(root / "checkpoints" / made.manifest.name).name


def export(process: InferenceProcess, **body: Any) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {process.token}"}
    return httpx2.post(f"{process.url}/export", json=body, headers=headers, timeout=60)


def test_a_checkpoint_is_exported_and_talked_to_as_a_model(
    process: InferenceProcess, ask: Any, root: Path, full: str
) -> None:
    answer = export(process, checkpoint=full, name="mine", merge=True)
    assert answer.status_code == 200, answer.text
    size = sum(path.stat().st_size for path in (root / "models" / "mine").iterdir())
    assert answer.json() == {"name": "mine", "path": "mine", "size_bytes": size, "kind": "model"}
    said = [lines(ask(**one, temperature=0)) for one in ({"model": "mine"}, {"checkpoint": full})]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"checkpoint": "checkpoint_nobody"}, 404, "checkpoint_not_found"),
        ({"checkpoint": "../checkpoints"}, 404, "checkpoint_not_found"),
        ({"checkpoint": "from_scratch"}, 409, "export_unsupported"),
        ({"checkpoint": "full", "name": "tiny"}, 409, "model_exists"),
        ({"checkpoint": "full", "name": "../up"}, 409, "export_unsupported"),
        ({"checkpoint": "full", "as": "onnx"}, 422, "generation_invalid"),
        ({}, 422, "generation_invalid"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    process: InferenceProcess, root: Path, name: str, full: str, body: dict[str, Any], status: int, code: str
) -> None:
    there = {"from_scratch": name, "full": full}
    told = {key: there.get(value, value) for key, value in body.items()}
    before = sorted((root / "models").iterdir())
    answer = export(process, **told)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert str(root) not in answer.json()["message"]
    assert sorted((root / "models").iterdir()) == before


def test_nobody_exports_without_the_token(process: InferenceProcess, full: str) -> None:
    assert httpx2.post(f"{process.url}/export", json={"checkpoint": full}).status_code == 401
