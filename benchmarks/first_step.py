"""From `POST /jobs` to the first step's event at a reader, on an idle service, with the small model from scratch."""

from __future__ import annotations

import tempfile
import time

import httpx2
from _row import print_row, spread, started

ROUNDS = 8
IDLE_SECONDS = 8.0
"""After this long nothing imports anything any more: not generation, and not the worker's next child."""

CONFIG = {"training_steps": 2, "eval_interval": 1000, "eval_iters": 1, "enable_checkpoints": False, "max_new_tokens": 0}


def seconds_to_first_step(http: httpx2.Client) -> float:
    """One job on a worker that has been idle; returns when it has ended."""
    time.sleep(IDLE_SECONDS)
    began = time.perf_counter()
    job = http.post("/jobs", json=CONFIG).raise_for_status().json()
    took = float("nan")
    with http.stream("GET", f"/jobs/{job['id']}/events") as answer:
        for line in answer.iter_lines():
            if line == "event: step" and took != took:
                took = time.perf_counter() - began
    return took


def main() -> None:
    """Measure and print."""
    with (
        tempfile.TemporaryDirectory() as folder,
        started("client", "up", "--port", "0", "--data", folder) as (_, url),
        httpx2.Client(base_url=url, timeout=60) as http,
    ):
        while not http.get("/workers").json()["data"]:
            time.sleep(0.1)
        seconds = [seconds_to_first_step(http) for _ in range(ROUNDS)]
    print_row("first_step", seconds=spread(seconds), rounds=ROUNDS)


if __name__ == "__main__":
    main()
