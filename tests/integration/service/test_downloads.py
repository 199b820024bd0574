from __future__ import annotations

import io
import os
import socket
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import anyio
import httpx2
import pytest
from starlette.testclient import TestClient

from client.api import Ratchet
from client.errors import ClientError
from core.checkpointing import CheckpointStore, load_checkpoint, verify
from core.checkpoints.manifest import Checkpoint, new_manifest, read_manifest
from core.config import TrainingConfig
from core.sources.files import read_source
from jobs.database import Database
from jobs.tables import Checkpoint as Row
from jobs.tables import Job
from service import tarball
from service.routes.downloads import MAX_DOWNLOADS
from service.settings import ServiceSettings
from service.tarball import Tarball
from tests.integration.service.conftest import BODY, Running, until

Finished = Callable[..., tuple[Job, Checkpoint]]
RunService = Callable[..., AbstractContextManager[Running]]

LARGE = 48 << 20


@pytest.fixture
def large(settings: ServiceSettings) -> Checkpoint:
    """More than sockets and buffers on the way can hold."""
    manifest = new_manifest(model="Bigram", source="tale.md", step=1, end_step=2, config={})
    content = os.urandom(LARGE)
    store = CheckpointStore(settings.checkpoints)
    return store.publish(manifest, lambda folder: (folder / "model.safetensors").write_bytes(content) and None)


def open_files(folder: Path) -> list[str]:
    """Those of this process that are under the folder."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return [name for name in found if name.startswith(str(folder))]


def spoil_once_verified(saved: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Tarball.verify

    def verify_then_spoil(self: Tarball, is_wanted: Callable[[], bool]) -> bool:
        intact = whole(self, is_wanted)
        with (saved.path / "model.safetensors").open("r+b") as file:
            file.seek(LARGE - 10)
            file.write(b"otherwise")
        return intact

    monkeypatch.setattr(Tarball, "verify", verify_then_spoil)


def unpacked(content: bytes, folder: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.extractall(folder, filter="data")
    (top,) = folder.iterdir()
    return top


def test_a_download_is_a_tar_of_one_folder_that_verifies(
    client: TestClient, finished: Finished, tmp_path: Path
) -> None:
    _, saved = finished()
    answer = client.get(f"/checkpoints/{saved.manifest.id}/download", headers={"Range": "bytes=0-9"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-tar"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["content-disposition"] == f'attachment; filename="{saved.path.name}.tar"'
    assert answer.headers["accept-ranges"] == "none"
    folder = unpacked(answer.content, tmp_path / "there")
    assert folder.name == saved.path.name
    verify(read_manifest(folder))


def test_training_goes_on_from_what_was_unpacked(client: TestClient, settings: ServiceSettings, tmp_path: Path) -> None:
    from core.assembly import assemble

    config = TrainingConfig(**{**BODY, "training_steps": 2, "eval_iters": 1, "max_new_tokens": 0, "device": "cpu"})
    source = read_source(settings.sources / "tale.md")
    assemble(config, source, lambda _: None, lambda: False, store=CheckpointStore(settings.checkpoints)).train()
    answer = client.get("/checkpoints/latest/download")
    content = load_checkpoint(unpacked(answer.content, tmp_path / "there"))
    resumed = assemble(config, source, lambda _: None, lambda: False, resume=content)
    resumed.train()
    assert (content["step"], resumed.run.step) == (2, 4)


def test_a_damaged_file_is_named_before_anything_is_sent(client: TestClient, finished: Finished) -> None:
    _, saved = finished()
    (saved.path / "model.safetensors").write_bytes(b"otherwe")
    answer = client.get(f"/checkpoints/{saved.manifest.id}/download")
    assert (answer.status_code, answer.json()["code"]) == (409, "checkpoint_corrupt")
    assert "model.safetensors" in answer.json()["detail"]
    assert open_files(saved.path) == []


def test_what_is_not_there_cannot_be_downloaded(client: TestClient, finished: Finished, ledger: Database) -> None:
    first, second = finished()[1].manifest, finished()[1].manifest
    assert client.get("/checkpoints/nothing/download").status_code == 404
    assert client.delete(f"/checkpoints/{first.id}").status_code == 204
    assert client.get(f"/checkpoints/{first.id}/download").json()["code"] == "checkpoint_removed"
    with ledger.write() as session:
        row = session.get(Row, second.id)
        assert row is not None
        row.owner = "another"
        session.add(row)
    assert client.get(f"/checkpoints/{second.id}/download").status_code == 404


def test_a_file_that_changes_while_it_is_sent_breaks_the_connection_off(
    running: Running, large: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_once_verified(large, monkeypatch)
    received: list[int] = []
    url = f"{running.url}/checkpoints/{large.manifest.id}/download"
    with httpx2.stream("GET", url, timeout=30) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx2.RemoteProtocolError):
            received.extend(map(len, answer.iter_raw()))
    assert 0 < sum(received) < int(answer.headers["content-length"])
    until(lambda: open_files(large.path) == [])


def test_a_reader_that_goes_away_lets_go_of_the_files(running: Running, large: Checkpoint) -> None:
    url = f"{running.url}/checkpoints/{large.manifest.id}/download"
    for _ in range(MAX_DOWNLOADS + 1):
        with httpx2.stream("GET", url, timeout=30) as answer:
            pieces = answer.iter_raw()  # Were it let go of, the connection would be closed.
            assert next(pieces)
            assert open_files(large.path)
        until(lambda: open_files(large.path) == [])


def test_a_reader_that_takes_nothing_is_let_go(run_service: RunService, large: Checkpoint) -> None:
    with run_service(stalled_reader_seconds=0.2) as running:
        url = f"{running.url}/checkpoints/{large.manifest.id}/download"
        with httpx2.stream("GET", url, timeout=30) as answer:
            assert answer.status_code == 200
            until(lambda: open_files(large.path) == [])


def test_a_reader_at_the_end_of_a_slow_link_is_not_taken_for_one_that_stalls(
    run_service: RunService, large: Checkpoint
) -> None:
    with run_service(stalled_reader_seconds=1.0) as running, socket.socket() as wire:
        host, port = running.url.removeprefix("http://").split(":")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        wire.connect((host, int(port)))
        wire.sendall(f"GET /checkpoints/{large.manifest.id}/download HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        until(lambda: open_files(large.path) != [])
        assert wire.recv(1024).startswith(b"HTTP/1.1 200")
        for _ in range(25):
            time.sleep(0.1)
            wire.recv(48 << 10)
            assert open_files(large.path)


def test_the_event_loop_neither_reads_nor_hashes(
    running: Running, large: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = set()
    pread = os.pread

    def watched(*asked: int) -> bytes:
        readers.add(threading.get_ident())
        return pread(*asked)

    monkeypatch.setattr(tarball.os, "pread", watched)
    answer = httpx2.get(f"{running.url}/checkpoints/{large.manifest.id}/download", timeout=30)
    assert len(answer.content) == int(answer.headers["content-length"])
    assert readers
    assert running.thread.ident not in readers


def test_only_so_many_are_sent_at_the_same_time(client: TestClient, finished: Finished) -> None:
    _, saved = finished()
    path = f"/checkpoints/{saved.manifest.id}/download"
    client.app.state.downloads = anyio.Semaphore(1)  # type: ignore[attr-defined]  # the application's own
    assert [client.get(path).status_code for _ in range(3)] == [200, 200, 200]
    client.app.state.downloads = anyio.Semaphore(0)  # type: ignore[attr-defined]  # the application's own
    answer = client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_streams")
    assert answer.headers["retry-after"]


def test_the_client_fetches_a_checkpoint_that_is_whole(running: Running, large: Checkpoint, tmp_path: Path) -> None:
    with Ratchet(running.url, "") as api:
        folder = api.download("latest", tmp_path / "there")
    assert folder == tmp_path / "there" / large.path.name
    verify(read_manifest(folder))


def test_a_download_that_the_service_breaks_off_leaves_nothing(
    running: Running, large: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_once_verified(large, monkeypatch)
    with Ratchet(running.url, "") as api, pytest.raises(ClientError, match="broke off"):
        api.download("latest", tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []
