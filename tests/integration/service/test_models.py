"""`GET /models`: what a run can start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.settings import ServiceSettings
from tests.tiny_models import make_model_folder


@pytest.fixture
def root(settings: ServiceSettings) -> Path:
    return settings.models


def test_there_are_no_models_before_there_are_some(client: TestClient) -> None:
    assert client.get("/models").json() == {"data": [], "has_more": False}


def test_models_are_listed_with_what_is_known_of_them(client: TestClient, root: Path) -> None:
    make_model_folder(root / "tiny", "some text to learn tokens from " * 9, "llama")
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text("{")
    broken, tiny = client.get("/models").json()["data"]
    assert (broken["name"], broken["family"]) == ("broken", None)
    assert broken["error"] == "it has no *.safetensors"
    assert tiny.pop("size_bytes") > 10_000
    assert tiny.pop("num_parameters") > 2_000
    assert tiny == {
        "name": "tiny",
        "source": "folder",
        "family": "llama",
        "max_context": 64,
        "has_chat_template": False,
        "error": None,
    }


def test_no_place_on_the_machine_is_told(client: TestClient, root: Path) -> None:
    (root / "broken").mkdir(parents=True)
    (root / "broken" / "model.gguf").write_bytes(b"GGUF")
    assert str(root.parent) not in client.get("/models").text
