from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import (
    SourceAltered,
    SourceColumns,
    SourceEmpty,
    SourceForbidden,
    SourceNoRows,
    SourceNotFound,
    SourceNotReadable,
    SourceNotText,
    SourceTooShort,
)
from core.sources import facts as source_facts
from core.sources.files import CHUNK_BYTES, SourceFacts, SourceFolder, check_length, load_raw_text, source_file
from core.sources.quarantine import facts_apart
from core.sources.rows import BadRow, CompletionRow, RowKind, SourceFormat, TextRow
from tests.conftest import PROJECT


@pytest.fixture
def folder(tmp_path: Path) -> SourceFolder:
    root = tmp_path / "sources"
    (root / "deep").mkdir(parents=True)
    (root / "tale.md").write_text("Once upon a time")
    (root / "deep" / "poem.md").write_text("déjà")
    (tmp_path / "secret.md").write_text("not for you")
    return SourceFolder(root)


def test_texts_are_listed_by_their_names_below_the_root(folder: SourceFolder) -> None:
    (folder.root / ".hidden").write_text("x")
    assert folder.names() == ["deep/poem.md", "tale.md"]


def test_a_text_is_read_with_the_hash_of_its_bytes(folder: SourceFolder) -> None:
    read, facts = folder.read("deep/poem.md"), folder.inspect("deep/poem.md")
    assert read.text == "déjà"
    assert (facts.size_bytes, facts.num_characters, facts.sha256) == (6, 4, read.sha256)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.md",
        "deep/../../secret.md",
        "/etc/passwd",
        "..",
        "",
        ".",
        "a\x00b",
        "..\\secret.md",
        "deep",
        "x" * 300,
    ],
)
def test_no_name_leads_out_of_the_root(folder: SourceFolder, name: str) -> None:
    with pytest.raises((SourceForbidden, SourceNotFound)):
        folder.open(name)


@pytest.mark.parametrize("target", ["../secret.md", "tale.md", "/etc/passwd"])
def test_a_link_is_not_followed_wherever_it_points(folder: SourceFolder, target: str) -> None:
    (folder.root / "link.md").symlink_to(target)
    with pytest.raises(SourceForbidden):
        folder.open("link.md")
    assert "link.md" not in folder.names()


def test_a_linked_folder_on_the_way_is_not_followed(folder: SourceFolder) -> None:
    (folder.root / "out").symlink_to("..")
    with pytest.raises(SourceForbidden):
        folder.open("out/secret.md")


def test_a_pipe_is_refused_and_does_not_hold_the_caller(folder: SourceFolder) -> None:
    os.mkfifo(folder.root / "pipe.md")
    with pytest.raises(SourceForbidden, match="not a regular file"):
        folder.inspect("pipe.md")


def test_a_device_is_no_text() -> None:
    with pytest.raises(SourceForbidden):
        load_raw_text("/dev/zero")


@pytest.mark.parametrize("offset", [0, 5, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 7])
def test_bytes_that_are_not_utf8_are_named_by_their_offset(folder: SourceFolder, offset: int) -> None:
    (folder.root / "bad.md").write_bytes(b"a" * offset + b"\xff" + b"b" * 9)
    for attempt in (folder.inspect, folder.read):
        with pytest.raises(SourceNotText, match=rf"offset {offset} "):
            attempt("bad.md")


def test_a_character_cut_by_a_chunk_border_is_whole_again(folder: SourceFolder) -> None:
    (folder.root / "wide.md").write_bytes(b"a" * (CHUNK_BYTES - 1) + "é".encode())
    assert folder.inspect("wide.md").num_characters == CHUNK_BYTES


def test_a_file_that_ends_inside_a_character_is_named_by_its_offset(folder: SourceFolder) -> None:
    (folder.root / "cut.md").write_bytes(b"abc" + "é".encode()[:1])
    with pytest.raises(SourceNotText, match="offset 3 "):
        folder.inspect("cut.md")


@pytest.mark.parametrize("text", ["", " \n\t\n"])
def test_an_empty_text_is_refused(folder: SourceFolder, text: str) -> None:
    (folder.root / "empty.md").write_text(text)
    with pytest.raises(SourceEmpty):
        folder.inspect("empty.md")
    with pytest.raises(SourceEmpty):
        load_raw_text(folder.root / "empty.md")


def test_a_changed_file_is_inspected_anew(folder: SourceFolder) -> None:
    before = folder.inspect("tale.md").sha256
    (folder.root / "tale.md").write_text("Another tale, longer")
    assert folder.inspect("tale.md").sha256 != before


def test_one_block_and_its_next_token_are_just_enough() -> None:
    check_length(9, 8)
    with pytest.raises(SourceTooShort, match="has 8 tokens, but block_size 8 needs at least 9"):
        check_length(8, 8)


def test_a_missing_text_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match=str(tmp_path)):
        load_raw_text("nowhere.md")


# Rows.

PAIRS = [{"prompt": f"{n}+1?", "completion": str(n + 1)} for n in range(30)]


def lines_of(records: list[Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def table_of(records: list[Any]) -> bytes:
    rows = ["prompt,completion", *(f"{record['prompt']},{record['completion']}" for record in records)]
    return "\n".join(rows).encode()


def parquet_of(records: list[Any]) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), content)
    return content.getvalue()


@pytest.mark.parametrize(("name", "write"), [("a.jsonl", lines_of), ("a.csv", table_of), ("a.parquet", parquet_of)])
def test_the_facts_of_rows_are_the_same_in_every_format(
    folder: SourceFolder, name: str, write: Callable[[list[Any]], bytes]
) -> None:
    content = write([*PAIRS, {"prompt": "x", "completion": ""}])
    (folder.root / name).write_bytes(content)
    facts = folder.inspect(name)
    assert (facts.kind, facts.num_rows, facts.num_bad_rows) == (RowKind.COMPLETION, 30, 1)
    assert facts.num_characters == sum(len(pair["prompt"] + pair["completion"]) for pair in PAIRS)
    assert facts.bad_rows[0].reason == "has nothing in its 'completion'"
    assert (facts.size_bytes, facts.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert facts.format == name.removeprefix("a.")


def test_the_first_twenty_bad_rows_are_told_and_all_are_counted(folder: SourceFolder) -> None:
    (folder.root / "a.jsonl").write_bytes(b"{\n" * 50 + lines_of(PAIRS))
    facts = folder.inspect("a.jsonl")
    assert (facts.num_rows, facts.num_bad_rows) == (30, 50)
    assert [row.number for row in facts.bad_rows] == list(range(1, 21))


def test_without_one_row_that_can_be_used_the_first_three_are_told(folder: SourceFolder) -> None:
    (folder.root / "a.jsonl").write_bytes(b'{\n\n{"prompt": "a"}\n5\n6\n')
    with pytest.raises(SourceNoRows) as refusal:
        folder.inspect("a.jsonl")
    assert refusal.value.message == (
        "source 'a.jsonl' has no row that can be used: line 1 is no JSON: Expecting property name enclosed in double "
        "quotes at character 2; line 3 has no 'completion'; line 4 is no JSON object"
    )
    assert [number for number, _ in refusal.value.bad_rows] == [1, 3, 4, 5]
    (folder.root / "a.parquet").write_bytes(parquet_of([{"text": " "}]))
    with pytest.raises(SourceNoRows, match="used: row 1 has nothing in its 'text'"):
        folder.inspect("a.parquet")


@pytest.mark.parametrize("name", ["a.md", "a.jsonl", "a.csv", "a.parquet"])
def test_a_file_without_a_byte_is_empty_or_no_such_file(folder: SourceFolder, name: str) -> None:
    (folder.root / name).touch()
    with pytest.raises((SourceEmpty, SourceColumns, SourceNotReadable)):
        folder.inspect(name)


def test_a_text_of_which_only_some_pieces_are_blank_is_not_empty(folder: SourceFolder) -> None:
    (folder.root / "a.md").write_text(" " * (2 * CHUNK_BYTES) + "a")
    facts = folder.inspect("a.md")
    assert (facts.num_characters, facts.num_rows, facts.kind) == (2 * CHUNK_BYTES + 1, 3, RowKind.TEXT)


@pytest.fixture
def num_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read for their facts."""
    read: list[str] = []
    real = source_facts.facts_of

    def reading(file: BinaryIO, name: str, columns: Any) -> SourceFacts:
        read.append(name)
        time.sleep(0.05)
        return real(file, name, columns)

    monkeypatch.setattr(source_facts, "facts_of", reading)
    return read


def test_facts_are_remembered_for_each_map_of_columns(folder: SourceFolder, num_read: list[str]) -> None:
    (folder.root / "a.csv").write_text("q,prompt,completion\n1,22,3\n")
    plain = folder.inspect("a.csv")
    mapped = folder.inspect("a.csv", {"prompt": "q"})
    assert (plain.num_characters, mapped.num_characters) == (3, 2)
    assert plain.sha256 == mapped.sha256
    assert folder.inspect("a.csv") == plain
    assert len(num_read) == 2
    with pytest.raises(SourceColumns):
        folder.inspect("a.csv", {"prompt": "q", "text": "q"})


def test_that_a_file_cannot_be_used_is_remembered_too(folder: SourceFolder, num_read: list[str]) -> None:
    (folder.root / "bad.jsonl").write_text("{")
    for _ in range(3):
        with pytest.raises(SourceNoRows):
            folder.inspect("bad.jsonl")
    assert len(num_read) == 1


def test_of_many_who_ask_at_once_one_reads(folder: SourceFolder, num_read: list[str]) -> None:
    found: list[SourceFacts] = []
    threads = [threading.Thread(target=lambda: found.append(folder.inspect("tale.md"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == len(num_read) == 1
    assert len(found) == 8


def test_what_is_remembered_is_bounded(folder: SourceFolder, num_read: list[str]) -> None:
    memory = source_facts.FactsMemory(facts_apart, capacity=2)
    for name in ("tale.md", "deep/poem.md", "tale.md", "deep/poem.md"):
        with folder.open(name) as file:
            memory.facts(folder.root, name, file, {})
    assert len(num_read) == 2
    for number in range(3):
        (folder.root / f"{number}.md").write_text("x")
        with folder.open(f"{number}.md") as file:
            memory.facts(folder.root, f"{number}.md", file, {})
    with folder.open("tale.md") as file:
        assert memory.known(folder.root, "tale.md", file, {}) is None


def test_a_file_that_is_written_while_it_is_read_has_no_facts(
    folder: SourceFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = source_facts.facts_of

    def meanwhile(file: BinaryIO, name: str, columns: Any) -> SourceFacts:
        facts = real(file, name, columns)
        with (folder.root / name).open("a") as more:
            more.write(" and more")
        return facts

    monkeypatch.setattr(source_facts, "facts_of", meanwhile)
    with pytest.raises(SourceAltered, match="changed while it was read"):
        folder.inspect("tale.md")
    monkeypatch.undo()
    assert folder.inspect("tale.md").num_characters == len("Once upon a time and more")


def test_a_glance_reads_what_is_small_and_knows_what_was_read(folder: SourceFolder) -> None:
    assert folder.glance("tale.md", 15) == 16
    facts = folder.glance("tale.md", 16)
    assert isinstance(facts, SourceFacts)
    assert folder.glance("tale.md", 0) == facts


def test_rows_can_be_read_again_and_again(folder: SourceFolder) -> None:
    content = lines_of(PAIRS[:2]) + b"{\n"
    (folder.root / "a.jsonl").write_bytes(content)
    for source in (folder.file("a.jsonl"), source_file(folder.root / "a.jsonl")):
        assert (source.format, source.sha256) == (SourceFormat.JSONL, hashlib.sha256(content).hexdigest())
        for _ in range(2):
            assert [type(row) for row in source.rows()] == [CompletionRow, CompletionRow, BadRow]
        assert list(source.rows({"text": "prompt"}))[:2] == [TextRow("0+1?"), TextRow("1+1?")]
    assert source_file(folder.root / "a.jsonl").name == str(folder.root / "a.jsonl")


def test_rows_of_another_file_than_was_hashed_are_not_given(folder: SourceFolder) -> None:
    (folder.root / "a.jsonl").write_bytes(lines_of(PAIRS))
    source = folder.file("a.jsonl")
    reading = source.rows()
    assert isinstance(next(reading), CompletionRow)
    (folder.root / "new").write_bytes(lines_of(PAIRS))
    (folder.root / "new").rename(folder.root / "a.jsonl")
    assert len(list(reading)) == 29  # What is open stays as it was.
    with pytest.raises(SourceAltered, match=r"'a\.jsonl' changed"):
        next(source.rows())
    source = folder.file("a.jsonl")
    with (folder.root / "a.jsonl").open("ab") as more:
        reading = source.rows()
        next(reading)
        more.write(lines_of(PAIRS))
        more.flush()
        with pytest.raises(SourceAltered):
            list(reading)


@pytest.mark.parametrize("name", ["link.md", "deep", "pipe.md", "../secret.md"])
def test_rows_come_from_regular_files_below_the_root_alone(folder: SourceFolder, name: str) -> None:
    (folder.root / "link.md").symlink_to("tale.md")
    os.mkfifo(folder.root / "pipe.md")
    with pytest.raises(SourceForbidden):
        folder.file(name)
    assert [row.text for row in source_file(folder.root / "link.md").rows() if isinstance(row, TextRow)] == [
        "Once upon a time"
    ]


def test_folders_however_deep_are_listed_as_far_as_paths_reach(folder: SourceFolder) -> None:
    handle = os.open(folder.root, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=handle)
        below = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(handle)
    assert folder.names() == ["deep/poem.md", "tale.md"]
    subprocess.run(["rm", "-rf", folder.root / "d"], check=True)


def test_whoever_only_looks_at_sources_loads_nothing_that_reads_parquet(folder: SourceFolder) -> None:
    program = (
        "import sys, core.sources.files; print([name for name in ('pyarrow', 'numpy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
