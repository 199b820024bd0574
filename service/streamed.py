"""Bodies that may be as large as a file: no bound on their time, but one on their sender's silence."""

from __future__ import annotations

import time

import anyio
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

MIN_BYTES = 16 << 10
"""That have to arrive in each stretch of waiting: a byte now and then would keep a place for ever."""


def is_streamed(scope: Scope) -> bool:
    """Whether a request's body is a file, which its route takes piece by piece and counts itself."""
    return scope["method"] == "PUT" and str(scope["path"]).startswith("/sources/")


def streamed(receive: Receive, send: Send, max_seconds: float) -> tuple[Receive, Send]:
    """The two ends of a connection whose sender is let go if it lets us wait for `max_seconds` and brings too little.

    Only waiting counts: a slow disk of ours is not the sender's fault. An answer given before the body has come to its
    end closes the connection, which spares us the rest of it.
    """
    waited, num_bytes, complete = 0.0, 0, False

    async def attentive() -> Message:
        nonlocal waited, num_bytes, complete
        if complete:
            return await receive()  # Waits for the reader to go away, for as long as it stays.
        begun = time.monotonic()
        try:
            with anyio.fail_after(max(0.0, max_seconds - waited)):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, "The body did not arrive in time", {"Connection": "close"}) from None
        waited += time.monotonic() - begun
        num_bytes += len(message.get("body", b""))
        if num_bytes >= MIN_BYTES:
            waited, num_bytes = 0.0, 0
        complete = not message.get("more_body", False)
        return message

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start" and not complete:
            MutableHeaders(scope=message)["Connection"] = "close"
        await send(message)

    return attentive, closing
