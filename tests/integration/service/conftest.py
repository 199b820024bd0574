from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from core.checkpointing import CheckpointStore
from core.checkpoints.manifest import Checkpoint, new_manifest
from core.config import TrainingConfig, config_to_dict
from core.sources.files import SourceFolder
from jobs import feed, lease, queue
from jobs.database import Database
from jobs.lease import Outcome, Succeeded
from jobs.settings import PROJECT
from jobs.tables import Job, Worker
from jobs.workers import register_worker
from service.app import create_app
from service.server import Server, listen
from service.settings import ServiceSettings

TALE = "Once upon a time there was a little engine that could. " * 20

BODY: dict[str, Any] = {"source": "tale.md", "test_mode": True}

URL = "http://127.0.0.1"

TOKEN = "between us"


@pytest.fixture
def settings(migrated: Path, tmp_path: Path) -> ServiceSettings:
    shutil.copy(migrated, tmp_path / "ratchet.db")
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "tale.md").write_text(TALE)
    given: dict[str, Any] = {"_env_file": None, "port": 0, "poll_seconds": 0.01}
    return ServiceSettings(data=tmp_path, sources=tmp_path / "sources", models=tmp_path / "models", **given)


@pytest.fixture
def ledger(settings: ServiceSettings) -> Iterator[Database]:
    """The ledger as a worker would open it."""
    ledger = Database(settings.database_url)
    yield ledger
    ledger.close()


Serve = Callable[..., TestClient]


@pytest.fixture
def serve(settings: ServiceSettings) -> Iterator[Serve]:
    """The service with some settings changed."""
    with ExitStack() as stack:

        def serve(**changes: Any) -> TestClient:
            app = create_app(settings.model_copy(update=changes))
            return stack.enter_context(TestClient(app, base_url=URL))

        yield serve


@pytest.fixture
def client(serve: Serve) -> TestClient:
    return serve()


@dataclass
class Running:
    """A service in a thread of its own, on a real port."""

    server: Server
    url: str
    thread: threading.Thread

    def stop(self) -> float:
        """Ask it to end; the seconds that took."""
        begun = time.monotonic()
        self.server.should_exit = True
        self.thread.join(timeout=20)
        assert not self.thread.is_alive()
        return time.monotonic() - begun


@pytest.fixture
def run_service(settings: ServiceSettings) -> Callable[..., AbstractContextManager[Running]]:
    @contextmanager
    def run_service(**changes: Any) -> Iterator[Running]:
        told = settings.model_copy(update=changes)
        listening = listen(told)
        server = Server(create_app(told), told)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        running = Running(server, f"{URL}:{listening.getsockname()[1]}", thread)
        try:
            while not server.started:
                time.sleep(0.01)
            yield running
        finally:
            running.stop()

    return run_service


@pytest.fixture
def running(run_service: Callable[..., AbstractContextManager[Running]]) -> Iterator[Running]:
    with run_service() as running:
        yield running


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`python -m service` on the test's own data."""
    started = []

    def start(**variables: str) -> subprocess.Popen[str]:
        told = {"RATCHET_DATA": str(tmp_path), "RATCHET_PORT": "0", **variables}
        process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            env={**os.environ, **told},
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def submit(ledger: Database) -> Callable[..., Job]:
    """A job in line, without a request."""

    def submit(**given: Any) -> Job:
        config = config_to_dict(TrainingConfig(**BODY))
        spec = queue.NewJob(**{"name": "tale", "config": config, "training_steps": 20, **given})
        with ledger.write() as session:
            return queue.enqueue(session, spec).job

    return submit


class Hand:
    """What a worker does to a job, by hand."""

    def __init__(self, ledger: Database) -> None:
        self._ledger = ledger

    def claim(self) -> Job:
        with self._ledger.write() as session:
            job = queue.claim(session, "w1", time.time())
            assert job is not None
            feed.record(session, job.id, job.fence, [("started", {"end_step": job.start_step + job.training_steps})])
            return job

    def say(self, job: Job, *events: feed.Said) -> None:
        with self._ledger.write() as session:
            feed.record(session, job.id, job.fence, events)

    def finish(self, job: Job, outcome: Outcome | None = None) -> None:
        with self._ledger.write() as session:
            lease.finish(session, job.id, job.fence, outcome or Succeeded())


@pytest.fixture
def hand(ledger: Database) -> Hand:
    return Hand(ledger)


Enlist = Callable[..., None]


@pytest.fixture
def enlist(ledger: Database) -> Enlist:
    """A worker on the list, heard of so many seconds ago."""

    def enlist(worker_id: str, url: str | None, age: float = 0, **given: Any) -> None:
        moment = time.time() - age
        told = {"hostname": "h", "pid": 1, "version": "1", "started_at": moment, "seen_at": moment, **given}
        with ledger.write() as session:
            register_worker(session, Worker(id=worker_id, **told, inference_url=url, inference_token=TOKEN))

    return enlist


Save = Callable[..., Checkpoint]


@pytest.fixture
def save(settings: ServiceSettings) -> Save:
    """A checkpoint's folder on disk, with a file that only looks like weights."""

    def save(step: int = 10, end_step: int = 20, **given: Any) -> Checkpoint:
        config = config_to_dict(TrainingConfig(**{**BODY, **given.pop("config", {})}))
        sha256 = SourceFolder(settings.sources).inspect("tale.md").sha256
        more = {"hashes": {"source": sha256}, "train_loss": 2.0, "val_loss": 2.5, **given}
        manifest = new_manifest(model="Bigram", source="tale.md", step=step, end_step=end_step, config=config, **more)
        store = CheckpointStore(settings.checkpoints)
        return store.publish(manifest, lambda folder: (folder / "model.safetensors").write_bytes(b"weights") and None)

    return save


@pytest.fixture
def finished(submit: Callable[..., Job], hand: Hand, save: Save) -> Callable[..., tuple[Job, Checkpoint]]:
    """A job that has succeeded, and its final checkpoint."""

    def finished(**given: Any) -> tuple[Job, Checkpoint]:
        submit(**given)
        job = hand.claim()
        saved = save(step=20, job_id=job.id)
        said = {"step": 20, "id": saved.manifest.id, "name": saved.manifest.name, "size_bytes": 7, "val_loss": 2.5}
        hand.say(job, ("log", {"line": "🚀 Training"}), ("step", {"step": 20, "loss": 2.0}), ("checkpoint", said))
        hand.finish(job)
        return job, saved

    return finished


Answers = Callable[..., list[httpx2.Request]]


@pytest.fixture
def worker(client: TestClient, enlist: Enlist) -> Answers:
    """Lets a worker's generation process answer so; what it was asked."""
    enlist("w1", "http://worker")

    def worker(status: int, body: Any) -> list[httpx2.Request]:
        asked: list[httpx2.Request] = []

        def answer(request: httpx2.Request) -> httpx2.Response:
            asked.append(request)
            return httpx2.Response(status, json=body)

        client.app.state.inference._http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))  # type: ignore[attr-defined]
        return asked

    return worker
