"""What fault tests share: a service in a process that may be killed, and disks that fill up or refuse to be written.

A disk of its own is a tmpfs that one process alone sees, in name spaces which need no rights; its files are reached
through that process's entry in /proc. A disk that reports errors is a limit on the size of files, set on the process
from outside: from then on the kernel refuses every write, and the reading goes on.
"""

from __future__ import annotations

import functools
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from core.machine.processes import EXIT_WITH_PARENT
from tests.conftest import PROJECT, skip_unless

_MOUNT_AND_GO_ON = 'mount -t tmpfs -o size="$0" none "$1" && shift && exec "$@"'
_SEAL_AND_GO_ON = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


class ServiceProcess:
    """`python -m service`, started and ready.

    Args:
        folder: Gets the log, and the data unless `data` is given.
        before: Words of a command that runs this one.
        data: The data folder.
        variables: Further environment.
    """

    def __init__(self, folder: Path, *, before: Sequence[str] = (), data: Path | None = None, **variables: str) -> None:
        told = {"RATCHET_DATA": str(data or folder), "RATCHET_PORT": "0", EXIT_WITH_PARENT: str(os.getpid())}
        self.log = folder / "service.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-m", "service"],
                env={**os.environ, **told, **variables},
                cwd=PROJECT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        self.url = ready.split()[-1] if ready else ""
        self.http = httpx2.Client(base_url=self.url or "http://nowhere", timeout=30)

    def submit(self, body: dict[str, Any], key: str | None = None) -> httpx2.Response:
        return self.http.post("/jobs", json=body, headers={} if key is None else {"Idempotency-Key": key})

    def jobs(self) -> list[dict[str, Any]]:
        answer = self.http.get("/jobs", params={"limit": 200})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"])

    def is_ready(self) -> bool:
        return self.http.get("/readyz").status_code == 200

    def sees(self, folder: Path) -> Path:
        """The folder as this process has it, also where something is mounted there for it alone."""
        return Path(f"/proc/{self.process.pid}/root{folder}")

    def peak_bytes(self) -> int:
        """As much memory as it ever had."""
        told = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in told.splitlines() if line.startswith("VmHWM:")))

    def wait(self, seconds: float = 20) -> int:
        return self.process.wait(seconds)

    def end(self) -> None:
        self.http.close()
        self.process.kill()
        self.process.communicate()


def on_a_disk_of(size: str, folder: Path) -> list[str]:
    """Words before a command that let it find an empty disk of that size at `folder`."""
    return [*_alone(), _MOUNT_AND_GO_ON, size, str(folder)]


def on_a_sealed_disk(folder: Path) -> list[str]:
    """Words before a command for which `folder` cannot be written."""
    return [*_alone(), _SEAL_AND_GO_ON, str(folder)]


def _alone() -> list[str]:
    skip_unless(_may_mount(), "this machine does not let a user mount (unshare -Urm)")
    return ["unshare", "-Urm", "sh", "-c"]


@functools.cache
def _may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/tmp"], capture_output=True).returncode == 0
    )


@contextmanager
def writes_refused(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Let every write of this process to a file fail, as on a broken disk."""
    soft, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        if process.poll() is None:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (soft, hard))


def fill(folder: Path) -> Path:
    """Write a file that leaves no byte free; deleting it makes room again."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for piece in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * piece)
            except OSError:
                continue
    return path
