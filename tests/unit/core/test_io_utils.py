from __future__ import annotations

import sys
from pathlib import Path

import pytest

from core.io_utils import (
    generate_output_filename,
    get_data_source_name,
    get_model_name,
    restore_stdout,
    setup_stdout_capture,
    write_output_file,
)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("sources/training_data_final_merged.md", "training_data_final_merged"),
        ("my tale (2).txt", "my_tale_2"),
        ("/a/b/../…", "source"),
        ("x" * 300 + ".md", "x" * 80),
    ],
)
def test_a_source_has_a_name_that_fits_in_a_file_name(path: str, name: str) -> None:
    assert get_data_source_name(path) == name


def test_output_is_shown_and_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tee, original = setup_stdout_capture(True)
    sys.stdout.write("🚀 hello\n")
    restore_stdout(original)
    sys.stdout.write("not kept\n")
    assert tee is not None
    assert capsys.readouterr().out == "🚀 hello\nnot kept\n"
    kept = write_output_file(tmp_path / "deep" / "out.txt", {"batch_size": 4}, tee.captured()).read_text()
    assert "batch_size = 4" in kept
    assert kept.endswith("🚀 hello\n")


def test_without_capture_stdout_is_left_alone() -> None:
    before = sys.stdout
    tee, original = setup_stdout_capture(False)
    assert (tee, original, sys.stdout) == (None, before, before)


def test_no_two_runs_share_an_output_file() -> None:
    names = {generate_output_filename("gpt2", "tale", 0, 100) for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith("output_gpt2_tale_step000000-000100_") for name in names)


def test_a_model_is_named_by_itself_or_by_its_class() -> None:
    class Named:
        name = "gpt2"

    assert (get_model_name(Named()), get_model_name(object())) == ("gpt2", "object")
