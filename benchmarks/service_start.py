"""The service alone: from its start to its ready line, and its memory then and after a hundred requests."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path

import httpx2
from _row import print_row, spread, started

ROUNDS = 7


def resident_mib(pid: int) -> float:
    """Memory of a process as Linux counts it."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return round(int(found.group(1)) / 1024, 1)


def main() -> None:
    """Measure and print."""
    seconds, fresh, used = [], [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            with started("service", RATCHET_PORT="0", RATCHET_DATA=folder) as (process, url):
                seconds.append(time.perf_counter() - began)
                fresh.append(resident_mib(process.pid))
                with httpx2.Client(base_url=url) as http:
                    for _ in range(100):
                        http.get("/jobs").raise_for_status()
                used.append(resident_mib(process.pid))
    print_row("service_start", seconds=spread(seconds), fresh_mib=max(fresh), after_100_requests_mib=max(used))


if __name__ == "__main__":
    main()
