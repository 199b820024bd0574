"""What the service's process promises when it is killed, when its disk fails it, and when others hold its ledger."""

from __future__ import annotations

import shutil
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from jobs.database import BUSY_SECONDS, Database
from jobs.lease import LeaseScanner
from jobs.tables import Job
from service import app as service_app
from service import deps, server
from service.settings import ServiceSettings
from tests.faults import ServiceProcess, fill, on_a_disk_of, on_a_sealed_disk, writes_refused
from tests.integration.service.conftest import BODY, Hand, Running

Start = Callable[..., ServiceProcess]


@pytest.fixture
def start(settings: ServiceSettings, tmp_path: Path) -> Iterator[Start]:
    """The service as a process of its own, on the test's ledger and sources."""
    started: list[ServiceProcess] = []

    def start(**given: Any) -> ServiceProcess:
        started.append(ServiceProcess(tmp_path, **{"RATCHET_SOURCES": str(settings.sources), **given}))
        return started[-1]

    yield start
    for service in started:
        service.end()


@pytest.fixture
def path(settings: ServiceSettings) -> Path:
    """The ledger's file."""
    return settings.data / "ratchet.db"


def whole(path: Path) -> list[str]:
    """Ids of all jobs in a ledger where nothing is half done: none lacks an event, no event lacks its job."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        logs = connection.execute("SELECT job_id, count(*), min(seq), max(seq) FROM event GROUP BY job_id").fetchall()
        jobs = connection.execute("SELECT id, last_seq FROM job ORDER BY seq").fetchall()
    assert {job_id: (last, 1, last) for job_id, last in jobs} == {job_id: tuple(log) for job_id, *log in logs}
    return [job_id for job_id, _ in jobs]


# Killed.


def test_a_service_killed_before_it_commits_has_made_nothing_and_the_request_can_be_repeated(
    start: Start, path: Path
) -> None:
    service = start(RATCHET_FAILPOINT="intake.committing:kill")
    with pytest.raises(httpx2.TransportError):
        service.submit(BODY, "k")
    assert service.wait() == -signal.SIGKILL
    assert whole(path) == []
    service = start()
    answer = service.submit(BODY, "k")
    assert (answer.status_code, "idempotency-replayed" in answer.headers) == (201, False)
    assert whole(path) == [answer.json()["id"]]


def test_a_service_killed_after_it_committed_gives_the_repeated_request_the_same_job(start: Start, path: Path) -> None:
    service = start(RATCHET_FAILPOINT="intake.committed:kill")
    with pytest.raises(httpx2.TransportError):
        service.submit(BODY, "k")
    assert service.wait() == -signal.SIGKILL
    (job_id,) = whole(path)
    service = start()
    answers = [service.submit(BODY, "k") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert [answer.headers["idempotency-replayed"] for answer in answers] == ["true", "true"]
    assert {answer.json()["id"] for answer in answers} == {job_id}
    assert whole(path) == [job_id]


def test_ten_repeats_at_once_while_the_first_is_not_done_make_one_job(start: Start, path: Path) -> None:
    service = start(RATCHET_FAILPOINT="intake.committing:sleep=0.3")
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda _: service.submit(BODY, "k"), range(10)))
    assert [answer.status_code for answer in answers] == [201] * 10
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 9
    assert {answer.json()["id"] for answer in answers} == set(whole(path))


# Told to end.


@pytest.fixture
def once(tmp_path: Path) -> Path:
    """Where a failpoint leaves its name when it acts."""
    (tmp_path / "once").mkdir()
    return tmp_path / "once"


def test_a_request_under_way_is_answered_before_the_service_ends(start: Start, path: Path, once: Path) -> None:
    service = start(RATCHET_FAILPOINT="intake.committing:sleep=1", RATCHET_FAILPOINT_ONCE=str(once))
    with ThreadPoolExecutor(1) as thread:
        sent = thread.submit(service.submit, BODY)
        until((once / "intake.committing").exists)
        service.process.send_signal(signal.SIGTERM)
        answer = sent.result(timeout=20)
    assert answer.status_code == 201
    assert service.wait() == 0
    assert whole(path) == [answer.json()["id"]]
    assert "Traceback" not in service.log.read_text()


def test_a_request_that_takes_too_long_is_told_that_it_may_have_been_done_and_can_be_repeated(
    run_service: Callable[..., AbstractContextManager[Running]],
    path: Path,
    once: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "GRACE_SECONDS", 0.3)
    monkeypatch.setenv("RATCHET_FAILPOINT", "intake.committing:sleep=2")
    monkeypatch.setenv("RATCHET_FAILPOINT_ONCE", str(once))
    key = {"Idempotency-Key": "k"}
    with run_service() as running, ThreadPoolExecutor(1) as thread:
        sent = thread.submit(httpx2.post, f"{running.url}/jobs", json=BODY, headers=key, timeout=20)
        until((once / "intake.committing").exists)
        running.stop()
    answer = sent.result()
    assert (answer.status_code, answer.json()["code"]) == (503, "stopping")
    assert "Idempotency-Key" in answer.json()["hint"]
    with run_service() as running:
        again = httpx2.post(f"{running.url}/jobs", json=BODY, headers=key, timeout=20)
    assert again.status_code == 201
    assert whole(path) == [again.json()["id"]]


# A ledger that others keep locked.


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Someone else writes, and does not come to an end."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def until(holds: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_locked_ledger_is_a_503_in_time_and_reading_goes_on(start: Start, path: Path) -> None:
    service = start()
    with locked(path), ThreadPoolExecutor(1) as thread:
        begun = time.monotonic()
        sent = thread.submit(service.submit, BODY, "k")
        num_looks = 0
        while not sent.done():
            assert service.jobs() == []
            num_looks += 1
            time.sleep(0.1)
        assert num_looks > 4, "who looks does not wait for the lock, which would be as long as the request does"
        answer = sent.result()
        assert BUSY_SECONDS - 0.5 < time.monotonic() - begun < BUSY_SECONDS + 3
        assert (answer.status_code, answer.json()["code"]) == (503, "ledger_unavailable")
        assert "busy" in answer.json()["detail"]
        assert "Idempotency-Key" in answer.json()["hint"]
        assert int(answer.headers["retry-after"]) > 0
    until(service.is_ready)
    assert service.submit(BODY, "k").status_code == 201
    assert len(whole(path)) == 1


@pytest.fixture
def impatient(
    run_service: Callable[..., AbstractContextManager[Running]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Running]:
    """A service that waits for its ledger for half a second only."""
    monkeypatch.setattr(service_app, "Database", partial(Database, busy_seconds=0.5))
    monkeypatch.setattr(deps, "BUSY_SECONDS", 0.5)
    with run_service() as running:
        yield running


def test_however_many_wait_for_a_locked_ledger_all_are_told_in_time_and_others_can_look(
    impatient: Running, path: Path
) -> None:
    # A client for each would take longer to make than its answer may take to come.
    limits = httpx2.Limits(max_connections=None)
    people = httpx2.Client(base_url=impatient.url, timeout=30, limits=limits, trust_env=False)

    def submit(_: int) -> tuple[int, float]:
        begun = time.monotonic()
        answer = people.post("/jobs", json=BODY)
        return answer.status_code, time.monotonic() - begun

    with people, ThreadPoolExecutor(80) as threads:
        with locked(path):
            sent = [threads.submit(submit, number) for number in range(80)]
            until(lambda: any(each.done() for each in sent))
            slowest = 0.0
            while not all(each.done() for each in sent):
                begun = time.monotonic()
                assert people.get("/jobs").json()["data"] == []
                slowest = max(slowest, time.monotonic() - begun)
            answers = [each.result() for each in sent]
        assert {status for status, _ in answers} == {503}
        # Outside, in line and at the lock: each of them as long as a transaction may wait, and some for a slow machine.
        assert max(waited for _, waited in answers) < 3 * 0.5 + 2
        assert slowest < 2
    assert httpx2.post(f"{impatient.url}/jobs", json=BODY).status_code == 201


def test_a_ledger_that_is_busy_for_a_moment_is_ready_and_one_that_stays_locked_is_not(
    impatient: Running, path: Path
) -> None:
    def ready() -> int:
        return httpx2.get(f"{impatient.url}/readyz").status_code

    with ThreadPoolExecutor(1) as thread, locked(path):
        asked = thread.submit(ready)
        time.sleep(0.1)
    assert asked.result() == 200
    with locked(path):
        assert ready() == 200  # It has just been proven, and nobody was turned away since.
        assert httpx2.post(f"{impatient.url}/jobs", json=BODY).status_code == 503
        assert ready() == 503
        assert httpx2.get(f"{impatient.url}/livez").status_code == 200
    until(lambda: ready() == 200)


def test_asking_whether_the_service_is_ready_costs_a_write_now_and_then_only(client: TestClient, path: Path) -> None:
    journal = path.with_name("ratchet.db-wal")
    assert client.get("/readyz").status_code == 200
    written = journal.read_bytes()
    assert written
    assert [client.get("/readyz").status_code for _ in range(10)] == [200] * 10
    assert journal.read_bytes() == written


# A disk that is full, broken or sealed.


def test_a_full_disk_is_said_to_be_full_reading_goes_on_and_room_is_enough_to_recover(
    start: Start, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    service = start(before=on_a_disk_of("1m", disk), data=disk)
    assert service.is_ready()
    filler = fill(service.sees(disk))
    accepted = []
    for number in range(30):
        answer = service.submit(BODY, f"k{number}")
        if answer.status_code != 201:
            break
        accepted.append(answer.json()["id"])
    assert (answer.status_code, answer.json()["code"]) == (503, "ledger_unavailable")
    assert "disk" in answer.json()["detail"]
    assert "full" in answer.json()["detail"]
    assert answer.headers["retry-after"]
    assert [job["id"] for job in service.jobs()] == accepted[::-1]
    assert not service.is_ready()
    filler.unlink()
    again = service.submit(BODY, f"k{number}")
    assert again.status_code == 201
    until(service.is_ready)
    seen = tmp_path / "seen"
    seen.mkdir()
    for name in ("ratchet.db", "ratchet.db-wal"):
        shutil.copy(service.sees(disk) / name, seen)
    assert whole(seen / "ratchet.db") == [*accepted, again.json()["id"]]
    assert "Traceback" not in service.log.read_text()


def test_a_broken_disk_is_an_outage_that_reading_and_the_process_survive(start: Start, path: Path) -> None:
    service = start()
    with writes_refused(service.process):
        assert not service.is_ready()
        answer = service.submit(BODY, "k")
        assert (answer.status_code, answer.json()["code"]) == (503, "ledger_unavailable")
        assert "disk" in answer.json()["detail"]
        assert answer.headers["retry-after"]
        assert service.jobs() == []
        assert service.http.get("/livez").status_code == 200
    assert service.submit(BODY, "k").status_code == 201
    until(service.is_ready)
    assert service.is_ready()
    with writes_refused(service.process):
        assert service.submit(BODY).status_code == 503
        assert not service.is_ready()
    assert len(whole(path)) == 1
    assert "Traceback" not in service.log.read_text()


def test_a_ledger_that_cannot_be_written_is_one_sentence_at_the_start(start: Start, tmp_path: Path) -> None:
    service = start(before=on_a_sealed_disk(tmp_path))
    assert service.wait() == 2
    (said,) = service.log.read_text().splitlines()
    assert "Read-only file system" in said


# A wall clock that is set.


def test_a_wall_clock_that_is_set_loses_nothing_from_pages_and_streams(
    client: TestClient, submit: Callable[..., Job], hand: Hand, wall_clock: Callable[[float], None]
) -> None:
    told = submit(name="told")
    jobs = [told.id]
    claimed = hand.claim()
    for hours in (1, -1, 0, -2):
        wall_clock(hours)
        jobs.append(submit().id)
        hand.say(claimed, ("log", {"line": f"{hours}"}))
    hand.finish(claimed)
    text = client.get(f"/jobs/{told.id}/events").text
    numbers = [int(line.removeprefix("id: ")) for line in text.splitlines() if line.startswith("id: ")]
    assert numbers == list(range(1, len(numbers) + 1))
    assert text.split("event: ")[-1].startswith("done")
    paged: list[str] = []
    page: dict[str, Any] = {"has_more": True}
    while page["has_more"]:
        page = client.get("/jobs", params={"limit": 1, **({"after": paged[-1]} if paged else {})}).json()
        paged += [job["id"] for job in page["data"]]
    assert sorted(paged) == sorted(jobs)


def test_a_wall_clock_that_is_set_ends_no_lease_and_keeps_none(
    ledger: Database, submit: Callable[..., Job], hand: Hand, wall_clock: Callable[[float], None]
) -> None:
    submit()
    held = hand.claim()
    seconds = 0.0
    scanner = LeaseScanner(30.0, lambda: seconds)

    def lost() -> list[str]:
        with ledger.write() as session:
            return [job.id for job in scanner.scan(session)]

    for hours in (0, 1, -1):
        wall_clock(hours)
        assert lost() == []
        seconds += 10.0
    assert lost() == [held.id]


@pytest.fixture
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the wall clock so many hours from what it is."""
    true_time = time.time
    return lambda hours: monkeypatch.setattr(time, "time", lambda: true_time() + 3600 * hours)


# Bodies that are a burden.

CHUNKED = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20)


def test_bodies_without_end_are_refused_and_take_no_memory(start: Start) -> None:
    service = start()
    assert service.is_ready()
    before = service.peak_bytes()

    def pour(_: int) -> bytes:
        with connect(service.url) as connection:
            connection.sendall(CHUNKED)
            with suppress(ConnectionError):
                for _ in range(1_000):
                    connection.sendall(CHUNK)
            with suppress(ConnectionError):
                return connection.recv(65_536)
            return b""

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(pour, range(64)))
    # The connection is closed while the client still sends, so some never read why.
    assert {answer.split(b" ")[1] for answer in answers if answer} <= {b"413"}
    assert service.peak_bytes() - before < 48 << 20  # Sixteen at a time of a MiB each, of four GiB in all.
    assert service.is_ready()


def test_a_body_that_drips_has_no_more_time_than_one_that_stalls(
    run_service: Callable[..., AbstractContextManager[Running]],
) -> None:
    with run_service(body_seconds=0.5) as running, connect(running.url) as connection:
        begun = time.monotonic()
        connection.sendall(CHUNKED)
        connection.settimeout(0.05)
        answer = b""
        while not answer:
            assert time.monotonic() - begun < 5
            connection.sendall(b"1\r\n \r\n")
            with suppress(TimeoutError):
                answer = connection.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 408 ")
