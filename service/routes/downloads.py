"""A checkpoint on its way to another machine."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from urllib.parse import quote

from anyio import from_thread
from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from core.errors import CheckpointCorrupt
from service.admission import one_of
from service.deps import Checkpoints, Owner, Settings, UntilAnswered
from service.errors import TooManyStreams
from service.settings import ServiceSettings
from service.sse import Stream
from service.tarball import Tarball

log = logging.getLogger(__name__)

router = APIRouter(tags=["checkpoints"])

MAX_DOWNLOADS = 8
"""At the same time: each has a dozen files open, and a thread now and then."""

PIECE_BYTES = 64 << 10
"""That leave at once. Before the next ones the connection gets rid of twice as many, for which a reader has as long as
it takes to count as stalled: 5 KiB a second are enough."""


class Download(Stream):
    """A tar of known length; if a file changes while it is sent, the connection ends before that length is reached."""

    def __init__(self, tarball: Tarball, settings: ServiceSettings) -> None:
        super().__init__(_sent(tarball), settings, "application/x-tar")
        self._name = tarball.name
        self.headers["Content-Length"] = str(tarball.size)
        self.headers["Content-Disposition"] = f"attachment; {_filename(f'{tarball.name}.tar')}"
        self.headers["Accept-Ranges"] = "none"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            await super().__call__(scope, receive, send)
        except* CheckpointCorrupt as group:
            # Without its end the answer is not complete, and so the server closes the connection.
            log.error("the download of %s was broken off: %s", self._name, group.exceptions[0])


def _filename(name: str) -> str:
    quoted = quote(name, safe="")
    return f'filename="{name}"' if quoted == name else f"filename*=utf-8''{quoted}"


async def _sent(tarball: Tarball) -> AsyncGenerator[bytes]:
    """Read and hashed in another thread, chunk by chunk, as fast as the reader takes them."""
    chunks = tarball.chunks()
    while (chunk := await run_in_threadpool(next, chunks, None)) is not None:
        for at in range(0, len(chunk), PIECE_BYTES):
            yield chunk[at : at + PIECE_BYTES]


async def _admitted(request: Request, until_answered: UntilAnswered) -> None:
    said = f"{MAX_DOWNLOADS} checkpoints are being downloaded, and no more are sent at the same time."
    until_answered.enter_context(one_of(request.app.state.downloads, TooManyStreams(said)))


@router.get(
    "/checkpoints/{ref}/download",
    response_model=None,
    responses={
        200: {
            "description": "A tar of the folder.",
            "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    dependencies=[Depends(_admitted)],
)
def download_checkpoint(
    ref: str, request: Request, shelf: Checkpoints, settings: Settings, owner: Owner, until_answered: UntilAnswered
) -> Response:
    """A checkpoint (id, name, `latest` or `<job>:best`) as an uncompressed tar of a folder for `CHECKPOINT_PATH`.

    Every file is compared with the manifest before the first byte is sent: 409 `checkpoint_corrupt` names one that
    differs. They are compared again while they are sent, and if one has changed the connection is broken off, so that
    fewer bytes than `Content-Length` arrive. `Range` is not supported: the answer is always the whole tar.
    """
    row = shelf.find(owner, ref)
    tarball = until_answered.enter_context(Tarball(settings.checkpoints, row.name))
    if not tarball.verify(lambda: not from_thread.run(request.is_disconnected)):
        return Response(status_code=204)  # Nobody is there to read it.
    return Download(tarball, settings)
