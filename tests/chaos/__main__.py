"""`python -m tests.chaos [--kills 2000] [--seconds 3600] [--seed N] [--workers 2] [--postgres]`; see the package."""

from __future__ import annotations

import argparse
import json
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from sqlmodel import func, select

from jobs.tables import Event, Job
from tests.chaos.storm import CONFIGS, Storm
from tests.chaos.verdict import num_half_removed, violations, weights_of
from tests.chaos.world import SERVICE_SITES, WORKER_SITES, World
from tests.postgres import PostgresServer

SETTLE_SECONDS = 180.0
MANY_KILLS = 1000
"""A storm of so many has to come by every failpoint."""
SHARE_WITH_FAILPOINTS = 0.8


def rage(
    folder: Path,
    *,
    seed: int,
    num_kills: int,
    seconds: float,
    num_workers: int = 2,
    postgres: PostgresServer | None = None,
    settle_seconds: float = SETTLE_SECONDS,
    between_kills: tuple[float, float] = (0.1, 2.0),
    say: Callable[[str], Any] = lambda _: None,
) -> dict[str, Any]:
    """Kill so many times, or for so long, whichever is first; then let everything settle, and judge.

    Returns:
        The summary; `violations` is empty if the promise was kept.
    """
    chance = random.Random(seed)
    world = World(folder, chance, num_workers, postgres)
    storm = Storm(world, seed)
    began = time.monotonic()
    try:
        uninterrupted = undisturbed(world, storm)
        storm.begin()
        deadline = time.monotonic() + seconds
        # Where processes come up slowly, the first kills may all come before any of them is at a failpoint.
        while (world.num_kills() < num_kills or not world.fired()) and time.monotonic() < deadline:
            world.keep_up(share_with_failpoints=SHARE_WITH_FAILPOINTS)
            time.sleep(chance.uniform(*between_kills))
            world.strike()
            if chance.random() < 0.02:
                say(f"{world.num_kills()} kills, {len(storm.answered)} jobs, {time.monotonic() - began:.0f} s")
        settle(world, storm, settle_seconds)
        found = violations(world, storm, uninterrupted)
        summary = summary_of(world, storm)
        if num_kills >= MANY_KILLS:
            found += [f"failpoint {site} was never hit" for site in summary["sites_never_hit"]]
    finally:
        world.close()
    found += [f"process {pid} outlived everything" for pid in world.left_over()]
    took = round(time.monotonic() - began, 1)
    return {"seed": seed, "seconds": took, **summary, "violations": found}


def undisturbed(world: World, storm: Storm) -> dict[int, str]:
    """Each configuration once, in peace: the weights that it comes to."""
    world.keep_up()
    world.wait_until_it_answers()
    with httpx2.Client(base_url=world.url, timeout=20) as http:
        ids = [storm.submit(http, number) for number in range(len(CONFIGS))]
        wait_for(lambda: storm.num_unfinished() == 0, 60)
        ends = [http.get(f"/jobs/{job_id}").json()["checkpoint"] for job_id in ids]
        names = [http.get(f"/checkpoints/{ref}").json()["path"] for ref in ends]
    storm.seed += 1
    return {kind: weights_of(world.store.root / name) for kind, name in enumerate(names)}


def settle(world: World, storm: Storm, seconds: float) -> None:
    """Stop killing; what is there goes on by itself until nothing is left to do."""
    for actor in world.actors:
        actor.kill()  # So that none is left with a failpoint in it.
    world.keep_up()
    storm.calm()
    wait_for(lambda: (world.keep_up(), storm.is_done())[1], seconds)
    wait_for(lambda: num_half_removed(world) == 0, 30)
    storm.end()


def wait_for(reached: Callable[[], bool], seconds: float) -> None:
    """Until it is so, or the time is over; the verdict will say what is missing."""
    deadline = time.monotonic() + seconds
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.1)


def summary_of(world: World, storm: Storm) -> dict[str, Any]:
    """How much happened."""
    with world.ledger.read() as session:
        states = Counter(session.exec(select(Job.state)).all())
        num_events = session.exec(select(func.count()).select_from(Event)).one()
        num_attempts = session.exec(select(func.sum(Job.fence))).one()
    fired = world.fired()
    return {
        "kills": world.num_kills(),
        "killed": dict(world.killed),
        "fired": dict(sorted(fired.items())),
        "sites_never_hit": sorted({*SERVICE_SITES, *WORKER_SITES} - set(fired)),
        "jobs": {state.value: count for state, count in states.items()},
        "claims": num_attempts,
        "events": num_events,
        "followed_to_the_end": len(storm.watched),
        "answers_to_submit": dict(storm.answers),
        "asked": dict(storm.asked),
    }


def main() -> int:
    """Rage, print the summary, and say by the exit status whether the promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=5400)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--postgres", action="store_true", help="keep the ledger on a PostgreSQL server of our own")
    parser.add_argument("--keep", action="store_true", help="leave the folder behind")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ratchet-chaos-"))
    sys.stderr.write(f"seed {given.seed}, in {folder}\n")
    server = PostgresServer() if given.postgres else None
    try:
        summary = rage(
            folder,
            seed=given.seed,
            num_kills=given.kills,
            seconds=given.seconds,
            num_workers=given.workers,
            postgres=server,
            say=lambda line: sys.stderr.write(f"{line}\n"),
        )
    finally:
        if server:
            server.close()
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    if given.keep or summary["violations"]:
        sys.stderr.write(f"everything is in {folder}\n")
    else:
        shutil.rmtree(folder)
    return 1 if summary["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
