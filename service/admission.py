"""A few at a time, of what takes long: whoever comes while they are there is told so at once.

Requests wait in threads, of which there are forty. Were everybody let in, those who ask for something slow would keep
every thread, and those who only want to look would wait for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from core.errors import RatchetError


@contextmanager
def one_of(places: anyio.Semaphore, refusal: RatchetError) -> Iterator[None]:
    """A place until the end of the block; entered and left in the event loop.

    Raises:
        RatchetError: `refusal`, if all places are taken.
    """
    try:
        places.acquire_nowait()
    except anyio.WouldBlock:
        raise refusal from None
    try:
        yield
    finally:
        places.release()
