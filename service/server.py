"""The process around the application: its socket, the line that says it is ready, and its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.settings import ServiceSettings

log = logging.getLogger(__name__)

FAREWELL_SECONDS = 7
"""Connections that are still there so long after the farewell are cut off, as if their readers had left."""

GRACE_SECONDS = 8
"""Requests that still run after this long, whoever reads them, are given up."""

LAST_SECONDS = 9.5
"""After a signal; what is in order has ended long before."""

SPARE_FILES = 200
"""Open files beside those of the streams."""

UNSENT_BYTES = 32 << 10
"""That the system keeps of one connection beside what is on its way. It would keep megabytes, and ask for more only
when a third of them had left: a reader at the end of a slow link would seem to take nothing for minutes."""

COLLECT_AFTER = 20_000
"""Objects that may be made before the garbage collector looks at them. A step wakes all streams, and what a thousand of
them make on their way is gone a moment later; by Python's own threshold that alone leads to a full collection every few
seconds, for which all of them wait a quarter of a second."""


class Server(uvicorn.Server):
    """uvicorn, with a ready line at its start and a farewell to every stream at its end."""

    def __init__(self, app: FastAPI, settings: ServiceSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                access_log=False,
                server_header=False,
                log_level="warning",
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )
        self._app = app
        self._settings = settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and say where."""
        await super().startup(sockets)
        if self.started and sockets:
            sys.stdout.write(f"Ratchet is ready at {address_of(self._settings, sockets[0])}\n")
            sys.stdout.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams first: uvicorn would wait for them."""
        self._app.state.tails.close()
        cutting = asyncio.get_running_loop().call_later(FAREWELL_SECONDS, self._cut_off)
        await super().shutdown(sockets)
        cutting.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End, and let the kernel end the process if it is still there some seconds later.

        A thread that waits for a database which does not answer cannot be told to stop, and Python would wait for it.
        """
        if not signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, LAST_SECONDS)
        super().handle_exit(sig, frame)

    def _cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def listen(settings: ServiceSettings) -> socket.socket:
    """A socket on the address of the settings.

    Raises:
        OSError: the port is in use, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    both = settings.host == "::" and socket.has_dualstack_ipv6()
    listening = socket.create_server((settings.host, settings.port), family=family, backlog=2048, dualstack_ipv6=both)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # A stalled reader's connection is otherwise kept for as long as its unread bytes are, which may be forever.
        timeout_ms = int(settings.stalled_reader_seconds * 1000)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return listening


def prepare_for_crowds(settings: ServiceSettings) -> None:
    """Let this process have as many open files as streams, and leave what is loaded by now to no collection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_streams + SPARE_FILES
    if soft < wanted:
        possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
        if possible < wanted:
            log.warning(
                "%d streams may be open, but only %d files; raise the limit of open files",
                settings.max_streams,
                possible,
            )
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])


def address_of(settings: ServiceSettings, listening: socket.socket) -> str:
    """The URL to open on this machine."""
    port = listening.getsockname()[1]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
