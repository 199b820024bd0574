"""Parquet read by a process of its own, which may die of it: a page of a few bytes can say that it is gigabytes.

What the process may take is bounded in memory and in time; what it finds, or why it found nothing, comes back as JSON.
Light, on both sides: no more than the standard library, and pyarrow over there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from core.errors import SourceError, SourceNoRows, SourceNotReadable, StorageError
from core.machine.processes import exit_with_parent
from core.sources import facts
from core.sources.facts import SourceFacts
from core.sources.rows import NO_COLUMNS, BadRow, RowKind, SourceFormat, format_of

MEMORY_BYTES = 1 << 30
"""Of the process's own. Rows are read a few at a time, so only what is hostile, or has giant pages, takes as much."""

SECONDS = 60.0
SECONDS_PER_MIB = 1.0
"""Beside those, for each MiB of the file."""

_PROJECT = Path(__file__).resolve().parents[2]


def facts_apart(file: BinaryIO, name: str, columns: Mapping[str, str] = NO_COLUMNS) -> SourceFacts:
    """As `core.sources.facts.facts_of`; a file that could take this process down is read by another one.

    Raises:
        SourceError: it cannot be used; `SourceNotReadable` also if reading it takes too much time or memory.
        StorageError: no process can be started now.
    """
    if format_of(name) is not SourceFormat.PARQUET:
        return facts.facts_of(file, name, columns)
    seconds = SECONDS + SECONDS_PER_MIB * os.fstat(file.fileno()).st_size / (1 << 20)
    return _told(_answer(file, name, columns, seconds), name)


def _answer(file: BinaryIO, name: str, columns: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """What the other process says of a file."""
    asked = json.dumps([file.fileno(), name, dict(columns), MEMORY_BYTES, seconds, os.getpid()])
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[file.fileno()],
            env=_environment(),
        )
    except OSError as error:
        raise StorageError(f"source '{name}' cannot be looked at now: {error.strerror}; try again") from None
    with process:
        try:
            told, _ = process.communicate(asked.encode(), timeout=seconds)
        except subprocess.TimeoutExpired:
            raise SourceNotReadable(_too_slow(name, seconds), may_pass=True) from None
        finally:
            process.kill()
    if process.returncode == -signal.SIGXCPU:
        raise SourceNotReadable(_too_slow(name, seconds))
    if process.returncode != 0:
        said = f"reading it ended the process that did, which may take {MEMORY_BYTES >> 20} MiB of memory"
        refused = f"source '{name}' cannot be read as Parquet: {said}; write it with smaller row groups"
        # Memory that it may not have it answers with. Who else ends a process may be after memory for another one.
        raise SourceNotReadable(refused, may_pass=True)
    answer: dict[str, Any] = json.loads(told)
    return answer


def _environment() -> dict[str, str]:
    """Where Python and its libraries are found, and no secret."""
    found = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    paths = [str(_PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **found,
        "PYTHONPATH": os.pathsep.join(paths),
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "OMP_NUM_THREADS": "1",
    }


def _too_slow(name: str, seconds: float) -> str:
    return f"source '{name}' cannot be read as Parquet: it takes longer than {seconds:.0f} seconds to look through"


def _told(answer: dict[str, Any], name: str) -> SourceFacts:
    """The answer as facts.

    Raises:
        SourceError: it is why there are none.
    """
    if "code" in answer:
        kinds = {kind.code: kind for kind in SourceError.__subclasses__()}
        kind = kinds.get(answer["code"], SourceNotReadable)
        bad_rows = [(number, reason) for number, reason in answer["bad_rows"]]
        raise SourceNoRows(answer["message"], bad_rows) if kind is SourceNoRows else kind(answer["message"])
    found = answer["facts"]
    bad = tuple(BadRow(**row) for row in found.pop("bad_rows"))
    return SourceFacts(
        **{**found, "format": SourceFormat(found["format"]), "kind": RowKind(found["kind"])}, bad_rows=bad
    )


def main() -> None:
    """Look at the file that is asked for on standard input, within limits, and say what is in it."""
    handle, name, columns, memory_bytes, seconds, parent = json.loads(sys.stdin.readline())
    exit_with_parent(signal.SIGKILL, parent=parent)
    _limit(memory_bytes, seconds)
    try:
        with os.fdopen(handle, "rb") as file:
            answer: dict[str, Any] = {"facts": asdict(facts.facts_of(file, name, columns))}
    except MemoryError:
        said = f"source '{name}' cannot be read as Parquet: it takes more than {memory_bytes >> 20} MiB of memory"
        answer = {
            "code": SourceNotReadable.code,
            "message": f"{said}; write it with smaller row groups",
            "bad_rows": (),
        }
    except SourceError as error:
        answer = {"code": error.code, "message": error.message, "bad_rows": getattr(error, "bad_rows", ())}
    sys.stdout.write(json.dumps(answer))


def _limit(memory_bytes: int, seconds: float) -> None:
    import resource

    # What a process has for itself: libraries and what they set aside without using it are not counted.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    # At the first of them comes the signal that says why, at the second the one that nothing survives.
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 6))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
