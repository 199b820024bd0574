"""The outermost ring: every request gets an id, and what nobody expected becomes an answer without a stack trace."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import problem

log = logging.getLogger(__name__)

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
"""On every answer: nothing here is to be guessed at, framed by another site, or named to one."""


class Edge:
    """Pure ASGI, so that streams pass through untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _id_for(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_marked(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_marked)
        except asyncio.CancelledError:  # The end of the process did not wait for it; its thread may still be at work.
            log.warning("request %s was cut off: %s %s", request_id, scope["method"], scope["path"])
            if started:
                raise
            detail = "The service is stopping and could not wait for this request; it may have been done or not."
            cut_off = problem(scope, 503, detail, code="stopping")
            await cut_off(scope, receive, send_marked)
        except Exception:  # The edge of the process: whatever it is, the others' requests go on.
            log.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            if started:
                raise
            failure = problem(scope, 500, "The service made a mistake; it is written in its log.")
            await failure(scope, receive, send_marked)


def _id_for(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else secrets.token_hex(8)
