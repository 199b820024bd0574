"""A Parquet file that is too much for the process that looks at it is one sentence, and nobody else notices."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import SourceColumns, SourceError, SourceNoRows, SourceNotReadable, StorageError
from core.sources import quarantine
from core.sources.facts import facts_of
from core.sources.files import SourceFolder
from core.sources.quarantine import facts_apart


def parquet(folder: Path, rows: list[dict[str, Any]], name: str = "a.parquet", **given: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / name, **given)
    return folder / name


def giant(folder: Path) -> Path:
    """A few kilobytes that become 256 MiB in one page."""
    texts = pa.array(["x" * (8 << 20)] * 32, pa.large_string())
    pq.write_table(
        pa.table({"text": texts}), folder / "giant.parquet", use_dictionary=False, compression="zstd",
        data_page_size=1 << 31, write_statistics=False,
    )  # fmt: skip
    return folder / "giant.parquet"


@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "one"}, {"text": "tw\u00f6"}, {"text": " "}],
        [{"prompt": "a", "completion": None}, {"prompt": "a", "completion": "b"}],
    ],
)
def test_what_is_found_apart_is_what_is_found_here(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    with parquet(tmp_path, rows).open("rb") as file:
        assert facts_apart(file, "a.parquet") == facts_of(file, "a.parquet")


@pytest.mark.parametrize(
    ("rows", "columns", "kind"),
    [
        ([{"text": " "}], {}, SourceNoRows),
        ([{"body": "x"}], {}, SourceColumns),
        ([{"body": "x"}], {"text": "none"}, SourceColumns),
    ],
)
def test_why_nothing_is_found_is_said_in_the_same_words(
    tmp_path: Path, rows: list[dict[str, Any]], columns: dict[str, str], kind: type[SourceError]
) -> None:
    said = []
    for look in (facts_apart, facts_of):
        with parquet(tmp_path, rows).open("rb") as file, pytest.raises(kind) as caught:
            look(file, "a.parquet", columns)
        said.append((caught.value.message, caught.value.field, getattr(caught.value, "bad_rows", None)))
    assert said[0] == said[1]


def test_columns_reach_the_other_process(tmp_path: Path) -> None:
    with parquet(tmp_path, [{"body": "x"}]).open("rb") as file:
        assert facts_apart(file, "a.parquet", {"text": "body"}).num_characters == 1


def test_what_takes_too_much_memory_is_refused_and_the_service_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "MEMORY_BYTES", 256 << 20)
    giant(tmp_path)
    parquet(tmp_path, [{"text": "small"}])
    folder = SourceFolder(tmp_path)
    with pytest.raises(SourceNotReadable, match=r"'giant.parquet' cannot be read as Parquet: .*smaller row groups"):
        folder.inspect("giant.parquet")
    assert folder.inspect("a.parquet").num_rows == 1


def test_what_takes_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "SECONDS", 0.01)
    with (
        parquet(tmp_path, [{"text": "x"}]).open("rb") as file,
        pytest.raises(SourceNotReadable, match="takes longer than 0 seconds to look through"),
    ):
        facts_apart(file, "a.parquet")


def test_a_process_that_is_killed_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    class Watched(start):  # type: ignore[misc,valid-type]
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__([sys.executable, "-c", "import time; time.sleep(60)"], *given[1:], **more)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Watched)

    def kill() -> None:
        while not started:
            time.sleep(0.01)
        os.kill(started[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with parquet(tmp_path, [{"text": "x"}]).open("rb") as file, pytest.raises(SourceNotReadable) as caught:
        facts_apart(file, "a.parquet")
    killer.join()
    assert "reading it ended the process that did, which may take 1024 MiB of memory" in caught.value.message
    assert started[0].poll() == -signal.SIGKILL


def test_no_process_to_be_had_is_no_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    parquet(tmp_path, [{"text": "x"}])
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", none)
        with pytest.raises(StorageError, match="cannot be looked at now: Resource"):
            SourceFolder(tmp_path).inspect("a.parquet")
    assert SourceFolder(tmp_path).inspect("a.parquet").num_rows == 1, "and it is not remembered"


def test_a_loaded_machine_is_no_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path, [{"text": "x"}])
    folder = SourceFolder(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(quarantine, "SECONDS", 0.01)
        with pytest.raises(SourceNotReadable, match="takes longer"):
            folder.inspect("a.parquet")
    assert folder.inspect("a.parquet").num_rows == 1, "it is looked at again"


def test_other_formats_are_read_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a text needs no process"))
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    assert SourceFolder(tmp_path).inspect("a.jsonl").num_rows == 1


def test_the_process_has_nothing_of_the_services_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []
    start = subprocess.Popen

    def started(*args: Any, **more: Any) -> Any:
        given.append(more["env"])
        return start(*args, **more)

    monkeypatch.setenv("RATCHET_API_KEY", "secret")
    monkeypatch.setattr(subprocess, "Popen", started)
    with parquet(tmp_path, [{"text": "x"}]).open("rb") as file:
        facts_apart(file, "a.parquet")
    assert not any("RATCHET" in name for name in given[0])


def test_an_error_without_rows_comes_back_too() -> None:
    with pytest.raises(SourceNotReadable, match="it is so"):
        quarantine._told({"code": "unheard_of", "message": "it is so", "bad_rows": ()}, "a.parquet")


def test_a_file_in_memory_is_no_file_to_hand_over() -> None:
    with pytest.raises(io.UnsupportedOperation):
        facts_apart(io.BytesIO(b""), "a.parquet")
