"""Requests to a service and its answers: a refusal is raised as `ApiError`, silence as `ServiceUnreachable`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx2

from client.errors import ServiceUnreachable, not_ratchet, problem_of
from client.settings import ClientSettings


class Wire:
    """A connection to a service.

    Args:
        settings: Where it listens, and the key.
        transport: Carries the requests; a test's way in.
    """

    def __init__(self, settings: ClientSettings, transport: httpx2.BaseTransport | None) -> None:
        self.url = settings.url
        self._http = httpx2.Client(
            base_url=self.url,
            headers=settings.headers,
            timeout=httpx2.Timeout(30.0, connect=5.0),
            transport=transport,
            # No proxy of the environment's can reach this machine's own loopback.
            trust_env=httpx2.URL(self.url).host not in {"127.0.0.1", "localhost", "::1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def _get(self, path: str) -> dict[str, Any]:
        return self._send("GET", path)

    def _list(self, path: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self._send("GET", path, params=given(params))["data"]
        return items

    def _send(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **request: Any
    ) -> dict[str, Any]:
        return object_in(
            self._answer(method, path, headers={"Accept": "application/json", **(headers or {})}, **request)
        )

    def _answer(self, method: str, path: str, **request: Any) -> httpx2.Response:
        with self._reaching():
            answer = self._http.request(method, path, **request)
        if answer.is_error:
            raise problem_of(answer)
        return answer

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turns what a connection can suffer into our own error."""
        try:
            yield
        except httpx2.TransportError as error:
            raise ServiceUnreachable(self.url, str(error) or type(error).__name__) from None


def given(params: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that were left out."""
    return {name: value for name, value in params.items() if value is not None}


def segment(name: str) -> str:
    """A name as one segment of a path, whatever a person typed."""
    return quote(name, safe="")


def object_in(answer: httpx2.Response) -> dict[str, Any]:
    """The JSON object of an answer.

    Raises:
        ApiError: it has none, so whoever answers is no service of ours.
    """
    try:
        document = answer.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise not_ratchet(answer.status_code)
    return document
