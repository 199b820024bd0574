"""The SDK: one method per thing the service does, over its public HTTP surface.

    ratchet = Ratchet()
    job = ratchet.train(source="tale.md", training_steps=200)
    for event in ratchet.events(job["id"]):
        print(event.kind, event.data)

Answers are the service's own JSON. What it refuses is raised as `ApiError`, and its silence as `ServiceUnreachable`.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from client.downloads import unpack
from client.errors import ServiceUnreachable, problem_in, problem_of
from client.events import PATIENCE_SECONDS, SILENCE_SECONDS, Event, JobStream
from client.settings import ClientSettings
from client.sse import Parser
from client.uploads import READING_SECONDS, Sending, as_query
from client.wire import Wire, given, segment

RETRY_WAITS_SECONDS = (0.2, 0.6, 1.2)

GENERATION_SECONDS = 600.0

DOWNLOAD_SECONDS = 300.0
"""Without a byte, until a download is given up; before the first one the service reads and hashes the checkpoint."""

HASHED_BYTES_PER_SECOND = 50e6
"""What a slow disk manages: a checkpoint of 100 GB is waited for 2,000 s longer than an empty one."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of generated text; `index` tells which of the `n` answers it belongs to."""

    index: int
    text: str


class Ratchet(Wire):
    """A connection to a service.

    Args:
        url: Where it listens; by default `RATCHET_URL`, else loopback port 8000.
        api_key: By default `RATCHET_API_KEY`; "" for none, which is enough for a service on loopback.
        patience_seconds: How long `events` keeps coming back to a service that is gone.
        transport: Carries the requests; a test's way in.

    Raises:
        UnusableSetting: the address is none, or the key cannot be sent.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        settings = ClientSettings.read(url=url, api_key=api_key)
        super().__init__(settings, transport)
        self._patience_seconds = patience_seconds

    def train(self, **config: Any) -> dict[str, Any]:
        """Put a fresh run in line: any field of `core.config.TrainingConfig`, `name`, `priority`, `metadata`."""
        return self._start("/jobs", config)

    def resume(self, ref: str, **overrides: Any) -> dict[str, Any]:
        """Go on from a checkpoint (id or name) or a job; `training_steps` counts the updates to add.

        Raises:
            ApiError: 409 if an override may not change in this `mode` (exact, extend or warm_start).
        """
        return self._start(f"/jobs/{segment(ref)}/resume", overrides)

    def job(self, job_id: str) -> dict[str, Any]:
        """One job with its progress."""
        return self._get(f"/jobs/{segment(job_id)}")

    def jobs(self, *, limit: int = 20, **filters: Any) -> list[dict[str, Any]]:
        """The newest jobs first; `filters` are `after` (an id), `state`, `source`, `model`, `metadata`."""
        return self._list("/jobs", {"limit": limit, **filters})

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Stop a job for good; its final checkpoint is kept."""
        return self._send("POST", f"/jobs/{segment(job_id)}/cancel")

    def pause(self, job_id: str) -> dict[str, Any]:
        """Stop a job at its next step, with a checkpoint to go on from."""
        return self._send("POST", f"/jobs/{segment(job_id)}/pause")

    def events(self, job_id: str, after: int = 0) -> Iterator[Event]:
        """What a job says, from the event numbered `after` + 1 on, live, until it has ended.

        A connection that breaks is made again where it broke off, so no event is lost or repeated.

        Raises:
            ServiceUnreachable: the first connection fails, or no later one succeeds for minutes.
        """
        path = f"/jobs/{segment(job_id)}/events"
        return JobStream(self._http, self.url, path, after, self._patience_seconds).events()

    def recorded_events(self, job_id: str, after: int = 0) -> Iterator[Event]:
        """What a job has said so far, and no more than that."""
        more = True
        while more:
            page = self._send("GET", f"/jobs/{segment(job_id)}/events", params={"after": after})
            for item in page["data"]:
                after = item["seq"]
                yield Event(after, item["kind"], item["data"])
            more = bool(page["has_more"])

    def metrics(self, job_id: str, **options: Any) -> dict[str, Any]:
        """A job's loss by step: `points`, `evaluations`, `segments`; `options` are `points` (how many at most),
        `after_step` and `lineage` (also the runs that it went on from)."""
        return self._send("GET", f"/jobs/{segment(job_id)}/metrics", params=given(options))

    def metrics_csv(self, job_id: str, **options: Any) -> str:
        """The same as CSV, a header first."""
        params = {**given(options), "format": "csv"}
        return self._answer("GET", f"/jobs/{segment(job_id)}/metrics", params=params).text

    def checkpoints(self, *, limit: int = 20, **filters: Any) -> list[dict[str, Any]]:
        """The newest checkpoints first; `filters` are `after`, `job`, `source`, `model`, `order`."""
        return self._list("/checkpoints", {"limit": limit, **filters})

    def checkpoint(self, ref: str) -> dict[str, Any]:
        """One checkpoint (id, name, `latest` or `<job>:best`) with its manifest and its lineage."""
        return self._get(f"/checkpoints/{segment(ref)}")

    def pin(self, ref: str) -> dict[str, Any]:
        """Keep a checkpoint (id or name), whatever comes after it."""
        return self._send("POST", f"/checkpoints/{segment(ref)}/pin")

    def unpin(self, ref: str) -> dict[str, Any]:
        """Let it go again when newer ones supersede it."""
        return self._send("DELETE", f"/checkpoints/{segment(ref)}/pin")

    def delete_checkpoint(self, ref: str) -> None:
        """Remove a checkpoint (id or name) for good.

        Raises:
            ApiError: 409 if it is pinned or an unfinished job needs it, 410 if it is gone already.
        """
        self._answer("DELETE", f"/checkpoints/{segment(ref)}")

    def download(self, ref: str, to: str | Path = ".") -> Path:
        """Fetch a checkpoint; returns its folder, which is in `to` and whole.

        Raises:
            ClientError: it could not be fetched or written; nothing of it is left then.
        """
        found = self.checkpoint(ref)
        path = f"/checkpoints/{segment(found['id'])}/download"
        hashing_seconds = found.get("size_bytes", 0) / HASHED_BYTES_PER_SECOND
        timeout = httpx2.Timeout(DOWNLOAD_SECONDS + hashing_seconds, connect=5.0)
        with self._reaching(), self._http.stream("GET", path, timeout=timeout) as answer:
            if answer.is_error:
                answer.read()
                raise problem_of(answer)
            return unpack(answer.iter_bytes(), str(found["name"]), Path(to))

    def generate(self, checkpoint: str, prompt: str, **settings: Any) -> dict[str, Any]:
        """Let a checkpoint go on from a prompt; `settings` are `max_new_tokens`, `temperature`, `stop` and so on."""
        body = {"checkpoint": checkpoint, "prompt": prompt, **settings, "stream": False}
        return self._send("POST", "/generate", json=body, timeout=GENERATION_SECONDS)

    def generate_stream(self, checkpoint: str, prompt: str, **settings: Any) -> Iterator[Token]:
        """The same, token by token.

        Raises:
            ApiError: also in mid-stream, if the model cannot go on.
        """
        body = {"checkpoint": checkpoint, "prompt": prompt, **settings, "stream": True}
        with self._reaching(), self._http.stream("POST", "/generate", json=body, timeout=SILENCE_SECONDS) as answer:
            if answer.is_error:
                answer.read()
                raise problem_of(answer)
            for message in Parser().parse(answer.iter_bytes()):
                data = json.loads(message.data)
                if message.event == "token":
                    yield Token(data.get("index", 0), data["text"])
                elif message.event == "error":
                    raise problem_in(data)
                elif message.event == "done":
                    return
        raise ServiceUnreachable(self.url, "the answer broke off")

    def export(self, checkpoint: str, **settings: Any) -> dict[str, Any]:
        """Write a checkpoint as a Hugging Face folder below the models root; `settings` are `name` and `merge`."""
        path = f"/checkpoints/{segment(checkpoint)}/export"
        return self._send("POST", path, json=settings, timeout=GENERATION_SECONDS)

    def sources(self, *, tokenizer: str | None = None) -> list[dict[str, Any]]:
        """All training data at hand, by name; with `tokenizer`, its tokens, as far as they can be had soon."""
        found: list[dict[str, Any]] = []
        more = True
        while more:
            after = found[-1]["name"] if found else None
            asked = given({"after": after, "tokenizer": tokenizer})
            page = self._send("GET", "/sources", params=asked, timeout=READING_SECONDS)
            found += page["data"]
            more = bool(page.get("has_more")) and bool(page["data"])
        return found

    def source(self, name: str, *, tokenizer: str | None = None, **columns: str) -> dict[str, Any]:
        """What is in one source, and the first of its bad rows; `columns` are as `prompt="question"`.

        With `tokenizer` (`characters`, a base model's name, or a checkpoint's), its tokens, too.
        """
        asked = {**as_query(columns), **given({"tokenizer": tokenizer})}
        return self._send("GET", f"/sources/{segment(name)}", params=asked, timeout=READING_SECONDS)

    def upload_source(
        self,
        path: str | Path,
        name: str | None = None,
        *,
        replace: bool = False,
        columns: Mapping[str, str] | None = None,
        on_progress: Callable[[int], object] = lambda _: None,
    ) -> dict[str, Any]:
        """Send a file as a source, piece by piece; returns what is in it.

        Args:
            name: Below the sources root; by default the file's own.
            columns: As for `source`.
            on_progress: Called with the number of bytes sent so far.

        Raises:
            ClientError: the file cannot be read.
            ApiError: 422 if no row can be used, 412 if it is not to be replaced, 409 if an unfinished job needs it.
        """
        with Sending(Path(path), on_progress) as sending:
            return self._send(
                "PUT",
                f"/sources/{segment(name or Path(path).name)}",
                content=iter(sending),
                headers=sending.headers(replace=replace),
                params=as_query(columns or {}),
                timeout=httpx2.Timeout(sending.patience_seconds, connect=5.0),
            )

    def preflight(self, *, time: bool = False, **config: Any) -> dict[str, Any]:
        """What a run of these settings, as for `train`, would do; starts nothing. With `time`, updates are tried."""
        return self._send(
            "POST", "/jobs/preflight", json=config, params={"time": time} if time else None, timeout=GENERATION_SECONDS
        )

    def preview(self, source: str, **options: Any) -> dict[str, Any]:
        """The first batch of a run on a source, in pieces; `options` are `model_type`, `batch_size`, `method`, …"""
        path = f"/sources/{segment(source)}/preview"
        return self._send("GET", path, params=given(options), timeout=GENERATION_SECONDS)

    def delete_source(self, name: str) -> None:
        """Remove a source, unless an unfinished job needs it."""
        self._answer("DELETE", f"/sources/{segment(name)}")

    def models(self) -> list[dict[str, Any]]:
        """The base models at hand."""
        return self._list("/models", {})

    def workers(self) -> list[dict[str, Any]]:
        """Who works on what, on which device."""
        return self._list("/workers", {})

    def health(self) -> dict[str, Any]:
        """What the service says of its own readiness.

        Raises:
            ApiError: it is there, but not ready.
        """
        return self._get("/readyz")

    def _start(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Post under a key of its own, so that a repeat after a lost answer finds the first one's job."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        for wait in RETRY_WAITS_SECONDS:
            try:
                return self._send("POST", path, json=body, headers=headers)
            except ServiceUnreachable:
                time.sleep(wait)
        return self._send("POST", path, json=body, headers=headers)
