"""Training data at hand: look at it, send it, remove it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict
from typing import Annotated, Any
from urllib.parse import quote

import anyio
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from core.errors import (
    SourceError,
    SourceExists,
    SourceForbidden,
    SourceInUse,
    SourceNoRows,
    SourceNotFound,
    SourceNotReadable,
    SourceQuota,
    SourceTooLarge,
)
from core.sources.files import SourceFacts, SourceFolder
from core.sources.rows import NO_COLUMNS, SourceFormat, check_columns, format_of
from jobs.database import Database
from service import uploads
from service.admission import one_of
from service.deps import Checkpoints, Generation, Ledger, Owner, Settings
from service.errors import TooManyAtOnce
from service.problems import problem
from service.schemas import BadRowOut, Page, SourceOut
from service.token_counts import CountedSourceOut, TokenCounts, counted
from service.uploads import Room, Upload

MAX_AT_ONCE = 4
"""Sources that are received, and as many that are read for their facts: each keeps a thread and a disk busy."""

PIECE_BYTES = 1 << 20
"""Received before they are written."""

GLANCE_BYTES = 8 << 20
"""A larger source is not read to be listed."""

LISTING_BYTES = 64 << 20
"""Read for one page of a list, at most."""

PARQUET_BYTES = 4 << 20
"""What it costs beside its size to look at a Parquet file, which takes a process."""

TokenizerName = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=1024,
        description="Count tokens, too: `characters`, a base model's name, or a checkpoint's id or name.",
    ),
]


class _EncodedBody(SourceError):
    """The body is not the file, but something that it can be made of."""

    code = "content_encoding"


_STATUS: dict[type[SourceError], int] = {
    SourceNotFound: 404,
    SourceInUse: 409,
    SourceExists: 412,
    SourceTooLarge: 413,
    SourceQuota: 413,
    _EncodedBody: 415,
}
"""At a source's own address. Where a job names it, the same errors are about a field of the request."""


class SourceRoute(APIRoute):
    """Answers what is wrong with the source of the address."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's own handler, with its refusals."""
        handle = super().get_route_handler()

        async def answered(request: Request) -> Response:
            try:
                return await handle(request)
            except SourceError as error:
                return _refusal(request, error)

        return answered


router = APIRouter(tags=["sources"], route_class=SourceRoute)


def _token_counts(
    shelf: Checkpoints, ledger: Ledger, generation: Generation, settings: Settings, owner: Owner
) -> TokenCounts:
    return TokenCounts(shelf, ledger, generation, settings, owner)


Counts = Annotated[TokenCounts, Depends(_token_counts)]

_BODY = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}, "required": True}


@router.get("/sources")
def list_sources(
    settings: Settings,
    counts: Counts,
    limit: Annotated[int, Query(ge=1, le=200, description="Items in one page.")] = 200,
    after: Annotated[str | None, Query(description="Name of the last item of the page before.")] = None,
    tokenizer: TokenizerName = None,
) -> Page[CountedSourceOut]:
    """What is below the sources root, by name; one that cannot be used says why.

    A source of more than 8 MiB is not read for this: its rows are null until it was sent here, asked for by name, or
    named by a job. With `tokenizer` a worker counts for ten seconds at most, and reckons where a source is long; the
    tokens of those it did not come to are null. It takes a worker to count: 503 without.
    """
    folder = SourceFolder(settings.sources)
    names = sorted(folder.names(), key=_shown)
    begin = 0 if after is None else bisect_right(names, after, key=_shown)
    left, found = LISTING_BYTES, []
    for name in names[begin : begin + limit]:
        source = _listed(folder, name, 0)
        cost = (source.size_bytes or 0) + (PARQUET_BYTES if source.format is SourceFormat.PARQUET else 0)
        if _is_unread(source) and (source.size_bytes or 0) <= GLANCE_BYTES and cost <= left:
            left -= cost
            source = _listed(folder, name, GLANCE_BYTES)
        found.append(source)
    told = [counted(source) for source in found] if tokenizer is None else counts.of_many(found, tokenizer)
    return Page(data=told, has_more=begin + limit < len(names))


@router.get("/sources/{name:path}")
async def get_source(
    name: str, request: Request, settings: Settings, counts: Counts, tokenizer: TokenizerName = None
) -> CountedSourceOut:
    """One source, read for it if need be, with the first of its bad rows.

    `columns[text]=body` says that what rows call `text` is called `body` in this source. With `tokenizer` a worker
    counts its tokens, or reckons them from its first 8 MiB: 503 without a worker.
    """
    folder, columns = SourceFolder(settings.sources), _columns_in(request)
    found = await run_in_threadpool(_glance, folder, name, GLANCE_BYTES, columns)
    if _is_unread(found):
        with one_of(
            _places(request, "inspecting"), TooManyAtOnce(f"{MAX_AT_ONCE} sources are being read; wait a moment.")
        ):
            found = await run_in_threadpool(_inspected, folder, name, columns)
    return counted(found) if tokenizer is None else await run_in_threadpool(counts.of_one, found, columns, tokenizer)


@router.put(
    "/sources/{name:path}",
    status_code=201,
    response_model=SourceOut,
    responses={200: {"model": SourceOut, "description": "It was there, and is replaced."}},
    openapi_extra={"requestBody": _BODY},
)
async def put_source(
    name: str,
    request: Request,
    response: Response,
    settings: Settings,
    ledger: Ledger,
    if_none_match: Annotated[str | None, Header(description="`*`: replace nothing; 412 if it is there.")] = None,
) -> Any:
    """Send a file as a source: UTF-8 text, JSONL, CSV or Parquet, as its name ends; its bytes are the body.

    It is there whole or not at all, and not at all if no row of it can be used: 422 with the bad rows. A source that an
    unfinished job names is not replaced: 409. `columns[text]=body` says which column is which.
    """
    _check_headers(request)
    name, columns, may_replace = _addressable(name), _columns_in(request), if_none_match != "*"
    with one_of(
        _places(request, "receiving"), TooManyAtOnce(f"{MAX_AT_ONCE} sources are being received; wait a moment.")
    ):
        await run_in_threadpool(_check_replaceable, settings.sources, ledger, name, may_replace)
        upload = await run_in_threadpool(Upload, settings.sources, name, Room.of(settings))
        try:
            await _receive(request, upload)
            facts = await run_in_threadpool(upload.examine, columns)
            # A job may have come meanwhile.
            await run_in_threadpool(_check_replaceable, settings.sources, ledger, name, may_replace)
            is_new = await run_in_threadpool(upload.publish, may_replace=may_replace)
        except ClientDisconnect:
            return Response(status_code=204)  # Nobody is there to read it.
        finally:
            upload.close()
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/sources/{quote(name)}"
    return _out(name, facts)


@router.delete("/sources/{name:path}", status_code=204)
def delete_source(name: str, settings: Settings, ledger: Ledger) -> None:
    """Remove a source. One that an unfinished job names stays: 409."""
    _check_replaceable(settings.sources, ledger, name, True)
    uploads.delete(settings.sources, name)


def _check_headers(request: Request) -> None:
    if "multipart/" in request.headers.get("content-type", ""):
        raise SourceNotReadable("the body is a form: send the file itself, for example with curl -T")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise _EncodedBody(
            f"the body is encoded ({encoding[:40]!a}): send the file's own bytes, without Content-Encoding"
        )


def _addressable(name: str) -> str:
    """The name that a source is sent under."""
    parts = uploads.visible_parts(name)
    if len(parts) > 1 and parts[-1] == "preview":
        raise SourceForbidden(
            f"source {name!r} could not be looked at: its address is that of a preview of '{'/'.join(parts[:-1])}', "
            "so give it another name"
        )
    return "/".join(parts)


async def _receive(request: Request, upload: Upload) -> None:
    said = request.headers.get("content-length", "")
    # More digits than any size has are not worth reading as a number.
    if said.isdecimal():
        await run_in_threadpool(upload.expect, int(said[:18]))
    held = bytearray()
    async for piece in request.stream():
        held += piece
        if len(held) >= PIECE_BYTES:
            await run_in_threadpool(upload.write, bytes(held))
            held.clear()
    await run_in_threadpool(upload.write, bytes(held))


def _check_replaceable(root: Any, ledger: Database, name: str, may_replace: bool) -> None:
    if uploads.check_replaceable(root, name, may_replace=may_replace):
        with ledger.read() as session:
            uploads.check_unused(session, name)


def _places(request: Request, what: str) -> anyio.Semaphore:
    """Made when it is first asked for, in the event loop, which asks one at a time."""
    state = request.app.state
    if not hasattr(state, what):
        setattr(state, what, anyio.Semaphore(MAX_AT_ONCE))
    places: anyio.Semaphore = getattr(state, what)
    return places


def _columns_in(request: Request) -> Mapping[str, str]:
    columns = {
        name.removeprefix("columns[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("columns[") and name.endswith("]")
    }
    check_columns(columns)
    return columns


def _shown(name: str) -> str:
    """A name as JSON can carry it, whatever bytes it has on the disk."""
    return name.encode("utf-8", "backslashreplace").decode()


def _listed(folder: SourceFolder, name: str, at_most_bytes: int) -> SourceOut:
    if _shown(name) != name:
        return SourceOut(name=_shown(name), error="the file's name is not UTF-8; rename it")
    try:
        return _glance(folder, name, at_most_bytes, NO_COLUMNS)
    except SourceError as error:  # Gone since it was listed.
        return SourceOut(name=name, error=error.message)


def _is_unread(source: SourceOut) -> bool:
    return source.kind is None and source.error is None


def _glance(folder: SourceFolder, name: str, at_most_bytes: int, columns: Mapping[str, str]) -> SourceOut:
    """What is known, or found out by reading so much."""
    try:
        found = folder.glance(name, at_most_bytes, columns)
    except SourceError as error:
        return _unusable(folder, name, error)
    if isinstance(found, int):
        return SourceOut(name=name, size_bytes=found, format=format_of(name))
    return _out(name, found)


def _inspected(folder: SourceFolder, name: str, columns: Mapping[str, str]) -> SourceOut:
    try:
        return _out(name, folder.inspect(name, columns))
    except SourceError as error:
        return _unusable(folder, name, error)


def _out(name: str, facts: SourceFacts) -> SourceOut:
    return SourceOut(name=name, **asdict(facts))


def _unusable(folder: SourceFolder, name: str, error: SourceError) -> SourceOut:
    """A file that is there, and why it is of no use.

    Raises:
        SourceError: it is not even there.
    """
    try:
        with folder.open(name) as file:
            size_bytes = file.seek(0, 2)
    except SourceError:
        raise error from None
    bad_rows = _bad_rows_of(error)
    return SourceOut(name=name, size_bytes=size_bytes, format=format_of(name), bad_rows=bad_rows, error=error.message)


def _bad_rows_of(error: SourceError) -> list[BadRowOut]:
    told = error.bad_rows if isinstance(error, SourceNoRows) else ()
    return [BadRowOut(number=number, reason=reason) for number, reason in told]


def _refusal(request: Request, error: SourceError) -> Response:
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 422)
    more: dict[str, Any] = {}
    if isinstance(error, SourceNoRows):
        more["bad_rows"] = [row.model_dump() for row in _bad_rows_of(error)]
    fields = [(error.field or "source", error.message)] if status == 422 else []
    return problem(request.scope, status, error.message, code=error.code, field_errors=fields, **more)
