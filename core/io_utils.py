"""The console room: what a run from the command line shows, and the file that keeps it."""

from __future__ import annotations

import re
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO


class TeeOutput:
    """A text stream that writes to another and remembers everything it was given."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._written: list[str] = []

    def write(self, text: str) -> int:
        """Pass on and remember."""
        self._written.append(text)
        return self.stream.write(text)

    def flush(self) -> None:
        """Flush the stream behind."""
        self.stream.flush()

    def isatty(self) -> bool:
        """Whether the stream behind is a terminal."""
        return self.stream.isatty()

    @property
    def encoding(self) -> str:
        """Of the stream behind."""
        return self.stream.encoding

    def captured(self) -> str:
        """All that was written so far."""
        return "".join(self._written)


def setup_stdout_capture(enable: bool) -> tuple[TeeOutput | None, TextIO]:
    """Put a tee before stdout, if enabled; the second value is what `restore_stdout` takes."""
    original = sys.stdout
    if not enable:
        return None, original
    tee = TeeOutput(original)
    # TeeOutput has what print and flush need of a stream, which is all that a run asks of stdout.
    sys.stdout = tee
    return tee, original


def restore_stdout(original_stdout: TextIO) -> None:
    """Undo `setup_stdout_capture`."""
    sys.stdout = original_stdout


def get_data_source_name(path: str | Path) -> str:
    """A source's name as file names carry it: no folders, no suffix, only letters, digits, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", Path(path).stem)[:80].strip("_") or "source"


def get_model_name(model_instance: object) -> str:
    """A model's name as file names carry it."""
    return str(getattr(model_instance, "name", type(model_instance).__name__))


def generate_output_filename(model_name: str, source_name: str, start_step: int, end_step: int) -> str:
    """A name that says which run it was, and that no two runs share."""
    stamp = time.strftime("%Y%m%d_%H%M%S")
    return f"output_{model_name}_{source_name}_step{start_step:06d}-{end_step:06d}_{stamp}_{secrets.token_hex(2)}.txt"


def write_output_file(output_path: str | Path, hyperparameters: Mapping[str, Any], captured_output: str) -> Path:
    """Keep a run's hyperparameters and all that it printed."""
    path = Path(output_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = "\n".join(f"{name} = {value}" for name, value in hyperparameters.items())
    path.write_text(f"Hyperparameters\n\n{settings}\n\nOutput\n\n{captured_output}", encoding="utf-8")
    return path
