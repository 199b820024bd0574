"""A network that fails: a proxy on loopback that passes on, freezes, or swallows the answer to one command."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class Proxy:
    """Listens on a port of its own and passes everything on to another, in a thread of its own.

    Args:
        port: Of the server behind it, on loopback.
    """

    def __init__(self, port: int) -> None:
        self._behind = port
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._fatal_command: bytes | None = None
        self.num_cut = 0
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def freeze(self) -> None:
        """From now on nothing passes, and nobody is told."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def thaw(self) -> None:
        """What was held back passes, and what comes after it."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    def swallow_answer_to(self, command: bytes) -> None:
        """The next time a client says this, pass it on, and break the connection in place of the answer."""
        self._fatal_command = command

    def close(self) -> None:
        """Break everything and stop."""
        self.thaw()
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()

    def _do(self, what):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(timeout=10)

    async def _stop(self) -> None:
        self._server.close()
        self._cut()
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _cut(self) -> None:
        for pair in self._pairs:
            for writer in pair:
                writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self._behind)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, behind_writer)
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._pass(reader, behind_writer, pair), self._pass(behind_reader, writer, None))
        except asyncio.CancelledError:
            pass  # The end of the proxy; asyncio's own callback would call it an error.
        finally:
            self._pairs.discard(pair)
            for one in pair:
                one.transport.abort()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        asking: tuple[asyncio.StreamWriter, asyncio.StreamWriter] | None,
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                await self._flowing.wait()
                is_fatal = asking is not None and self._fatal_command is not None and self._fatal_command in data
                if is_fatal:
                    self._fatal_command = None
                    self.num_cut += 1
                writer.write(data)
                await writer.drain()
                if is_fatal and asking is not None:
                    asking[0].transport.abort()
                    # The server has to have read it before its side is broken, too.
                    await asyncio.sleep(0.2)
                    return
        writer.transport.abort()
