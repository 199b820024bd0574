"""The images, without a container engine: the same files, the same install and start commands, in clean folders."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pip
import pytest
import yaml

from tests.conftest import PROJECT


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^#.*\n", "", text))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage → its instructions, those of the stage it is built from first."""
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for word, rest in instructions((PROJECT / "Dockerfile").read_text()):
        if word == "FROM":
            origin, _, name = rest.partition(" AS ")
            current = found[name] = list(found.get(origin, []))
        current.append((word, rest))
    return found


def of(stage: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for found, rest in stage if found == word]


class Box:
    """What a built image would hold: a virtual environment made by its install command, and an empty home."""

    def __init__(self, stage: list[tuple[str, str]], folder: Path, *, beside: Path | None = None) -> None:
        build, self.home, prefix = folder / "build", folder / "home", folder / "venv"
        self.home.mkdir(parents=True)
        for rest in of(stage, "COPY"):
            *sources, target = rest.split()
            for source in sources:
                _copy(PROJECT / source, build / target / (source if target == "./" else ""))
        venv.create(prefix)
        self.python = prefix / "bin" / "python"
        site = next((prefix / "lib").glob("python3*")) / "site-packages"
        # A pip of its own would be the same one, after as long as the rest of the install takes.
        (site / "pip").symlink_to(Path(pip.__file__).parent)
        if beside:
            # Torch is large and here already; everything else of the install goes its usual way.
            (site / "beside.pth").write_text(f"{beside}\n")
        (install,) = [rest for rest in of(stage, "RUN") if rest.startswith("pip install")]
        command = [str(self.python), "-m", *shlex.split(install)]
        subprocess.run(command, cwd=build, check=True, capture_output=True, timeout=110)
        shutil.rmtree(build)
        self.command = json.loads(of(stage, "CMD")[-1])

    @contextmanager
    def run(self, **env: str) -> Iterator[subprocess.Popen[str]]:
        """Start the image's command in its empty home."""
        given = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        process = subprocess.Popen(
            [self.python, *self.command[1:]], cwd=self.home, env={**given, **env}, stdout=subprocess.PIPE, text=True
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=40)
            assert process.stdout
            process.stdout.close()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", "X-API-Key": "sesame"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def test_service_image_without_torch_and_worker_image_train_a_job_together(
    stages: dict[str, list[tuple[str, str]]], tmp_path: Path, bundled_source: Path
) -> None:
    service = Box(stages["service"], tmp_path / "service")
    assert subprocess.run([service.python, "-c", "import torch"], capture_output=True).returncode == 1
    worker = Box(stages["worker"], tmp_path / "worker", beside=Path(sysconfig.get_path("purelib")))
    shared = tmp_path / "shared"
    shutil.copytree(bundled_source.parent, shared / "sources")
    places = {
        "RATCHET_DATA": str(shared / "data"),
        "RATCHET_SOURCES": str(shared / "sources"),
        "RATCHET_CHECKPOINTS": str(shared / "checkpoints"),
    }
    with service.run(**places, RATCHET_HOST="0.0.0.0", RATCHET_PORT="0", RATCHET_API_KEY="sesame") as serving:
        assert serving.stdout
        url = serving.stdout.readline().split()[-1]
        with urllib.request.urlopen(f"{url}/", timeout=10) as page:
            assert b"<title>Ratchet</title>" in page.read()
        with worker.run(**places):
            job = ask(f"{url}/jobs", {"test_mode": True, "training_steps": 3})
            deadline = time.monotonic() + 60
            while job["state"] not in ("succeeded", "failed"):
                assert time.monotonic() < deadline
                time.sleep(0.2)
                job = ask(f"{url}/jobs/{job['id']}")
            assert job["state"] == "succeeded", job["error"]
            said = ask(f"{url}/generate", {"checkpoint": job["checkpoint"], "prompt": "Q", "max_new_tokens": 3})
            assert said["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("name", ["service", "worker"])
def test_an_image_does_not_run_as_root_and_says_how_it_starts(
    stages: dict[str, list[tuple[str, str]]], name: str
) -> None:
    assert of(stages[name], "USER") == ["ratchet"]
    assert json.loads(of(stages[name], "CMD")[-1]) == ["python", "-m", name]
    assert all((PROJECT / path).exists() for rest in of(stages[name], "COPY") for path in rest.split()[:-1])


def test_compose_has_a_service_a_worker_a_gpu_profile_and_places_that_stay() -> None:
    said = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
    services = said["services"]
    assert set(services) == {"service", "worker", "worker-gpu"}
    assert services["worker-gpu"]["profiles"] == ["gpu"]
    assert services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert set(said["volumes"]) == {"ledger", "checkpoints", "models"}
    for service in services.values():
        targets = {volume.split(":")[1] for volume in service["volumes"]}
        assert targets == {"/data", "/checkpoints", "/sources", "/models"}
    assert services["service"]["ports"] == ["127.0.0.1:8000:8000"], "reachable from this machine alone"
    assert services["service"]["environment"]["RATCHET_API_KEY"].startswith("${RATCHET_API_KEY:?"), "no start without"
