from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from client.api import Ratchet
from client.cli import main
from client.downloads import unpack
from client.errors import ApiError, ClientError
from core.checkpointing import CheckpointStore, verify
from core.checkpoints.manifest import Checkpoint, new_manifest, read_manifest


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    manifest = new_manifest(model="Bigram", source="tale.md", step=1, end_step=2, config={})
    store = CheckpointStore(tmp_path / "theirs")
    return store.publish(manifest, lambda folder: (folder / "model.safetensors").write_bytes(b"w" * 5000) and None)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return tmp_path / "mine"


def tar_of(folder: Path, *more: tarfile.TarInfo) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, f"{folder.name}/{path.name}")
        for member in more:
            tar.addfile(member)
    return content.getvalue()


def pieces_of(content: bytes, size: int = 777) -> Iterator[bytes]:
    return (content[at : at + size] for at in range(0, len(content), size))


def test_a_checkpoint_is_unpacked_whole_and_can_be_verified(saved: Checkpoint, mine: Path) -> None:
    folder = unpack(pieces_of(tar_of(saved.path)), saved.path.name, mine)
    assert folder == mine / saved.path.name
    verify(read_manifest(folder))
    assert list(mine.iterdir()) == [folder]


def broken_off(content: bytes) -> Iterator[bytes]:
    yield content
    raise httpx2.RemoteProtocolError("peer closed connection")


@pytest.mark.parametrize("num_bytes", [0, 100, 512, 3000, -1024, -1, None])
def test_of_a_download_that_breaks_off_anywhere_nothing_stays(
    saved: Checkpoint, mine: Path, num_bytes: int | None
) -> None:
    pieces = broken_off(tar_of(saved.path)[:num_bytes])
    with pytest.raises(ClientError, match=r"broke off \(peer closed connection\); nothing of it was kept"):
        unpack(pieces, saved.path.name, mine)
    assert list(mine.iterdir()) == []


@pytest.mark.parametrize("num_bytes", [0, 700, 3000, 4000])
def test_a_tar_without_its_end_is_not_taken_for_whole(saved: Checkpoint, mine: Path, num_bytes: int) -> None:
    with pytest.raises(ClientError, match="What came is not"):
        unpack(pieces_of(tar_of(saved.path)[:num_bytes]), saved.path.name, mine)
    assert list(mine.iterdir()) == []


def test_a_file_that_was_damaged_on_the_way_is_named(saved: Checkpoint, mine: Path) -> None:
    with pytest.raises(ClientError, match=r"not whole.*model\.safetensors"):
        unpack(pieces_of(tar_of(saved.path).replace(b"wwwww", b"wwvww", 1)), saved.path.name, mine)
    assert list(mine.iterdir()) == []


def evil(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = "/etc/passwd"
    return member


@pytest.mark.parametrize(
    "member",
    [
        lambda name: evil("../outside"),
        lambda name: evil("/tmp/outside"),
        lambda name: evil(f"{name}/../../outside"),
        lambda name: evil(f"{name}/deeper/file"),
        lambda name: evil("another/file"),
        lambda name: evil(f"{name}/link", tarfile.SYMTYPE),
        lambda name: evil(f"{name}/link", tarfile.LNKTYPE),
        lambda name: evil(f"{name}/pipe", tarfile.FIFOTYPE),
    ],
)
def test_a_tar_that_holds_anything_but_a_checkpoints_files_is_refused(
    saved: Checkpoint, mine: Path, member: Callable[[str], tarfile.TarInfo]
) -> None:
    with pytest.raises(ClientError, match="is no file of it"):
        unpack(pieces_of(tar_of(saved.path, member(saved.path.name))), saved.path.name, mine)
    assert list(mine.iterdir()) == []
    assert not (mine.parent / "outside").exists()


@pytest.mark.parametrize("name", ["sitecustomize.py", "PINNED", "optimizer.safetensors"])
def test_a_file_that_the_manifest_does_not_list_is_refused(saved: Checkpoint, mine: Path, name: str) -> None:
    with pytest.raises(ClientError, match=f"lists no file '{name}'"):
        unpack(pieces_of(tar_of(saved.path, evil(f"{saved.path.name}/{name}"))), saved.path.name, mine)
    assert list(mine.iterdir()) == []


def test_a_checkpoint_under_anothers_name_is_refused(saved: Checkpoint, mine: Path) -> None:
    other = saved.path.rename(saved.path.with_name("checkpoint_other"))
    with pytest.raises(ClientError, match=f"'checkpoint_other', and its manifest says '{saved.manifest.name}'"):
        unpack(pieces_of(tar_of(other)), other.name, mine)
    assert list(mine.iterdir()) == []


def test_what_is_no_tar_at_all_is_said(mine: Path) -> None:
    with pytest.raises(ClientError, match="is not the checkpoint"):
        unpack(iter([b"<html>" * 1000]), "checkpoint_x", mine)


@pytest.mark.parametrize("name", ["", "..", ".", "../outside", "/tmp/outside", "a/b"])
def test_a_name_that_leads_elsewhere_is_refused(mine: Path, name: str) -> None:
    with pytest.raises(ClientError, match="no folder can be called"):
        unpack(iter([]), name, mine)


def test_what_is_there_already_is_not_touched(saved: Checkpoint) -> None:
    with pytest.raises(ClientError, match="is there already"):
        unpack(pieces_of(tar_of(saved.path)), saved.path.name, saved.path.parent)
    verify(read_manifest(saved.path))


def test_a_place_that_cannot_be_written_is_said(saved: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ClientError, match="cannot be written"):
        unpack(pieces_of(tar_of(saved.path)), saved.path.name, tmp_path / "file")


@pytest.fixture
def api(saved: Checkpoint) -> Iterator[Ratchet]:
    def answer(request: httpx2.Request) -> httpx2.Response:
        told: dict[str, Any] = {"id": saved.manifest.id, "name": saved.path.name}
        if request.url.path == f"/checkpoints/{saved.manifest.id}/download":
            return httpx2.Response(200, content=tar_of(saved.path))
        if request.url.path == "/checkpoints/latest":
            return httpx2.Response(200, json=told)
        if request.url.path == "/jobs/job_1":
            return httpx2.Response(200, json={"checkpoint": "latest"})
        if request.url.path == "/checkpoints/spoilt":
            return httpx2.Response(200, json={**told, "id": "spoilt"})
        return httpx2.Response(409, json={"detail": "It is damaged.", "code": "checkpoint_corrupt"})

    with Ratchet("http://127.0.0.1:1", "", transport=httpx2.MockTransport(answer)) as api:
        yield api


def test_the_sdk_fetches_what_the_service_names(api: Ratchet, saved: Checkpoint, mine: Path) -> None:
    assert api.download("latest", mine) == mine / saved.path.name


def test_what_the_service_refuses_is_said_and_leaves_nothing(api: Ratchet, mine: Path) -> None:
    with pytest.raises(ApiError, match="damaged"):
        api.download("spoilt", mine)
    assert not mine.exists()


def test_the_command_prints_where_the_checkpoint_is(
    api: Ratchet, saved: Checkpoint, mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("client.commands.models.Ratchet", lambda: api)
    with pytest.raises(SystemExit) as left:
        main(["download", "job_1", "--to", str(mine)])
    assert (left.value.code, capsys.readouterr().out) == (0, f"{mine / saved.path.name}\n")


@pytest.mark.parametrize(("size_bytes", "least", "most"), [(0, 60, 600), (100 * 10**9, 2000, 7200)])
def test_the_first_byte_is_waited_for_as_long_as_the_service_may_hash(
    saved: Checkpoint, mine: Path, size_bytes: int, least: float, most: float
) -> None:
    waits: list[float] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/download"):
            waits.append(request.extensions["timeout"]["read"])
            return httpx2.Response(200, content=tar_of(saved.path))
        return httpx2.Response(200, json={"id": "c", "name": saved.path.name, "size_bytes": size_bytes})

    with Ratchet("http://127.0.0.1:1", "", transport=httpx2.MockTransport(answer)) as api:
        api.download("c", mine)
    assert least < waits[0] < most
