"""Who may come in, asked before any route runs: the right name, the right site, the right key, a body of fair size.

Pure ASGI, so that streams pass through untouched. CORS stays off: no other site's page may read an answer.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import problem
from service.settings import ServiceSettings
from service.streamed import is_streamed, streamed

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_OPEN_PATHS = frozenset({"/livez", "/readyz", "/", "/web"})


class HostGuard:
    """Refuses requests that call the service by a name that is not its own.

    A hostile page can make its own name point at this machine (DNS rebinding) and would then share our origin; but the
    browser still sends that name. Addresses cannot be rebound, so a service that listens on all of its machine's lets
    any address through.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self.app = app
        self._names = {name.lower() for name in (*LOOPBACK_NAMES, settings.host, *settings.allowed_hosts)}
        self._any_address = settings.listens_everywhere

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_own(Headers(scope=scope).getlist("host")):
            refusal = problem(scope, 421, "This service does not go by the name in the Host header.")
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_own(self, hosts: list[str]) -> bool:
        if len(hosts) != 1:
            return False
        name = _name_in(hosts[0])
        return name in self._names or (self._any_address and _is_address(name))


class OriginGuard:
    """Refuses what another site's page would change here; programs send neither of these headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS and _is_cross_site(Headers(scope=scope)):
            refusal = problem(scope, 403, "A page of another site may not change anything here.")
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)


class KeyGuard:
    """Asks for the key everywhere but at the probes and the page, which hold nothing of anyone's."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope["path"]) and not self._is_shown(scope["headers"]):
            detail = "This service asks for an API key, and the request shows none that is right."
            refusal = problem(scope, 401, detail, headers={"WWW-Authenticate": "Bearer"})
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_shown(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        return any(hmac.compare_digest(key, self._key) for key in _keys_in(headers))


class BodyGuard:
    """Refuses bodies that are too large, said or found out, and those that never come to their end.

    A file on its way to the sources has limits of its own, see `service.streamed` and `service.uploads`.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_seconds: float) -> None:
        self.app = app
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if is_streamed(scope):
            await self.app(scope, *streamed(receive, send, self._max_seconds))
            return
        said = Headers(scope=scope).get("content-length", "0")
        # More digits than any size has are not worth reading as a number.
        if len(said) > 18 or (said.isdecimal() and int(said) > self._max_bytes):
            # Closing spares us the rest of a body that nobody will read.
            refusal = problem(scope, 413, self._too_large, headers={"Connection": "close"})
            await refusal(scope, receive, send)
            return
        await self.app(scope, self._counted(receive), send)

    @property
    def _too_large(self) -> str:
        return f"The body is larger than the {self._max_bytes} bytes that one request may have."

    def _counted(self, receive: Receive) -> Receive:
        deadline = time.monotonic() + self._max_seconds
        num_bytes, complete = 0, False

        async def counted() -> Message:
            nonlocal num_bytes, complete
            if complete:
                return await receive()  # Waits for the reader to go away, for as long as it stays.
            # HTTPException is the one thing that FastAPI lets through while it reads a body.
            try:
                with anyio.fail_after(max(0.0, deadline - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "The body did not arrive in time", {"Connection": "close"}) from None
            num_bytes += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if num_bytes > self._max_bytes:
                raise HTTPException(413, self._too_large, {"Connection": "close"})
            return message

        return counted


def _name_in(host: str) -> str:
    """The host without its port, as written in a Host header."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_cross_site(headers: Headers) -> bool:
    """By what only browsers say. The scheme is left out: a proxy before us may speak TLS where we do not."""
    if headers.get("sec-fetch-site", "") == "cross-site":
        return True
    return any(urlsplit(origin).netloc.lower() != headers.get("host", "").lower() for origin in _origins(headers))


def _origins(headers: Headers) -> list[str]:
    """A list that does not parse as a URL counts as a foreign site."""
    origins = []
    for origin in headers.getlist("origin"):
        try:
            urlsplit(origin)
        except ValueError:
            origin = "null"
        origins.append(origin)
    return origins


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith("/web/")


def _keys_in(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    keys = []
    for name, value in headers:
        if name == b"x-api-key":
            keys.append(value.strip())
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            keys.append(value[7:].strip())
    return keys
