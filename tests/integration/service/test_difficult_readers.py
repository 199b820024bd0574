"""Readers that vanish at any byte, read nothing, or lose their service: none misses an event or sees one twice."""

from __future__ import annotations

import random
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import pytest

from jobs.tables import Job
from tests.integration.service.conftest import Hand, Running, Start, until

RunService = Callable[..., AbstractContextManager[Running]]

EVENT = re.compile(rb"id: (\d+)\nevent: (\w+)\ndata: [^\n]*\n\n")

RESET_AT_ONCE = struct.pack("ii", 1, 0)


class Reader:
    """Comes back with the number of the last whole event that it has."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.seen: list[int] = []
        self.ended = False

    def ask(self, url: str) -> socket.socket:
        host, port = url.removeprefix("http://").split(":")
        wire = socket.create_connection((host, int(port)), timeout=10)
        last = self.seen[-1] if self.seen else 0
        wire.sendall(
            f"GET /jobs/{self._job.id}/events HTTP/1.1\r\nHost: {host}\r\nLast-Event-ID: {last}\r\n\r\n".encode()
        )
        return wire

    def take(self, wire: socket.socket, num_bytes: int = 1 << 40) -> None:
        """Read on until so many bytes, the event `done`, or the end of the connection."""
        heard = b""
        while len(heard) < num_bytes and b"event: done" not in heard:
            try:
                piece = wire.recv(min(1 << 16, num_bytes - len(heard)))
            except ConnectionError:
                piece = b""
            if not piece:
                break
            heard += piece
        for event in EVENT.finditer(heard):
            self.seen.append(int(event[1]))
            self.ended = event[2] == b"done"


@contextmanager
def saying(hand: Hand, job: Job) -> Iterator[None]:
    """The job says something all the time, and ends afterwards."""
    enough = threading.Event()

    def say() -> None:
        while not enough.wait(0.01):
            hand.say(job, ("step", {"step": 1, "loss": 2.0}))
        hand.finish(job)

    thread = threading.Thread(target=say)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def assert_whole(reader: Reader) -> None:
    assert reader.ended
    assert reader.seen == list(range(1, len(reader.seen) + 1))


def test_readers_that_vanish_at_any_byte_miss_and_repeat_nothing(
    running: Running, submit: Callable[..., Job], hand: Hand
) -> None:
    submit()
    job = hand.claim()

    def come_and_go(reader: Reader, chance: random.Random) -> None:
        for _ in range(25):
            with reader.ask(running.url) as wire:
                reader.take(wire, chance.randrange(1500))
                if chance.random() < 0.5:
                    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_ONCE)

    readers = [Reader(job) for _ in range(8)]
    with saying(hand, job):
        threads = [
            threading.Thread(target=come_and_go, args=(reader, random.Random(number)))
            for number, reader in enumerate(readers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for reader in readers:
        with reader.ask(running.url) as wire:
            reader.take(wire)
        assert_whole(reader)
    until(lambda: running.server._app.state.tails.num_streams == 0)


def test_a_service_that_is_killed_takes_nothing_from_its_readers(
    start: Start, submit: Callable[..., Job], hand: Hand
) -> None:
    submit()
    job = hand.claim()
    urls: list[str] = []

    def started() -> subprocess.Popen[str]:
        process = start()
        assert process.stdout is not None
        urls.append(process.stdout.readline().split()[-1])
        return process

    def follow(reader: Reader) -> None:
        while not reader.ended:
            with suppress(ConnectionError), reader.ask(urls[-1]) as wire:
                reader.take(wire, 1500)
            time.sleep(0.01)

    process = started()
    readers = [Reader(job) for _ in range(4)]
    threads = [threading.Thread(target=follow, args=(reader,), daemon=True) for reader in readers]
    for thread in threads:
        thread.start()
    with saying(hand, job):
        for _ in range(4):
            before = [len(reader.seen) for reader in readers]
            until(lambda: all(len(reader.seen) > n + 10 for reader, n in zip(readers, before, strict=True)))  # noqa: B023
            process.kill()
            process.wait()
            process = started()
    for thread in threads:
        thread.join(timeout=10)
    for reader in readers:
        assert_whole(reader)


NUM_LINES = 2000


@pytest.fixture
def long_log(submit: Callable[..., Job], hand: Hand) -> Job:
    """A job with more to read than any buffer holds."""
    submit()
    job = hand.claim()
    hand.say(job, *[("log", {"line": "x" * 4000}) for _ in range(NUM_LINES)])
    return job


@contextmanager
def stalled(running: Running, job: Job) -> Iterator[tuple[Reader, socket.socket]]:
    """A reader that asks, and reads nothing."""
    reader = Reader(job)
    with reader.ask(running.url) as wire:
        until(lambda: running.server._app.state.tails.num_streams == 1)
        yield reader, wire


def test_a_stalled_reader_is_let_go_and_may_come_back(run_service: RunService, long_log: Job, hand: Hand) -> None:
    with run_service(stalled_reader_seconds=0.3) as running:
        with stalled(running, long_log) as (reader, wire):
            until(lambda: running.server._app.state.tails.num_streams == 0)
            hand.finish(long_log)
            reader.take(wire)
        assert not reader.ended
        with reader.ask(running.url) as wire:
            reader.take(wire)
        assert_whole(reader)
        assert len(reader.seen) == 4 + NUM_LINES + 2


def test_a_stalled_reader_does_not_hold_up_the_others(run_service: RunService, long_log: Job, hand: Hand) -> None:
    with run_service() as running, stalled(running, long_log):
        other = Reader(long_log)
        with other.ask(running.url) as wire:
            hand.finish(long_log)
            other.take(wire)
        assert_whole(other)


def test_a_stalled_reader_does_not_hold_up_the_end(
    run_service: RunService, long_log: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.server.FAREWELL_SECONDS", 0.5)
    with run_service() as running, stalled(running, long_log):
        time.sleep(0.2)
        assert running.stop() < 3
    assert caplog.records == []


def test_a_hundred_readers_hear_farewell_from_a_service_that_is_asked_to_end(
    start: Start, submit: Callable[..., Job]
) -> None:
    job = submit()
    process = start()
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    wires = [Reader(job).ask(url) for _ in range(100)]
    heard = [b""] * len(wires)
    for number, wire in enumerate(wires):
        while b"event: state" not in heard[number]:
            heard[number] += wire.recv(1 << 16)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, complaints = process.communicate(timeout=15)
    assert time.monotonic() - begun < 10
    assert (process.returncode, complaints) == (0, "")
    for number, wire in enumerate(wires):
        with wire:
            while piece := wire.recv(1 << 16):
                heard[number] += piece
    assert all(b": The service is stopping; come back to go on.\n\n" in text for text in heard)
