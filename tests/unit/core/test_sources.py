from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.errors import SourceEmpty, SourceForbidden, SourceNotFound, SourceNotText, SourceTooShort
from core.sources import CHUNK_BYTES, SourceFolder, check_length, load_raw_text


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
