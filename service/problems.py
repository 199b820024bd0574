"""Errors as RFC 9457 problem documents, all of one shape, and which error has which status."""

from __future__ import annotations

import http
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from core.config import problem_of
from core.errors import (
    CheckpointCorrupt,
    CheckpointMismatch,
    CheckpointNotFound,
    ConfigError,
    DeviceBusy,
    RatchetError,
    StorageError,
)
from core.events import finite
from jobs.errors import (
    CheckpointNeeded,
    CheckpointPinned,
    CheckpointRemoved,
    IllegalTransition,
    JobBusy,
    JobNotFound,
    LeaseLost,
    LedgerUnavailable,
)
from service import errors

RETRY_AFTER_SECONDS = 5

STATUS: dict[type[RatchetError], int] = {
    RatchetError: 422,
    JobNotFound: 404,
    CheckpointNotFound: 404,
    CheckpointRemoved: 410,
    CheckpointPinned: 409,
    CheckpointNeeded: 409,
    JobBusy: 409,
    IllegalTransition: 409,
    CheckpointMismatch: 409,
    CheckpointCorrupt: 409,
    errors.NothingSaved: 409,
    errors.PositionInvalid: 400,
    errors.BodyTooLarge: 413,
    errors.QueueFull: 429,
    errors.TooManyStreams: 429,
    errors.TooManyAtOnce: 429,
    LeaseLost: 500,
    errors.GenerationFailed: 502,
    LedgerUnavailable: 503,
    StorageError: 503,
    errors.WorkerUnavailable: 503,
    DeviceBusy: 503,
}
"""An error has the status of the nearest of its classes in here."""

HINTS: dict[int, str] = {
    400: "Correct the request, then send it again.",
    401: "Send the key as 'Authorization: Bearer <key>' or as 'X-API-Key: <key>'.",
    403: "Call the service from its own page or from a program, not from another site's page.",
    404: "List what there is, and use an id or a name from there.",
    405: "GET /docs lists the methods of every path.",
    408: "Send the request again, and its body without a break.",
    409: "Look at the current state first; this request does not fit it.",
    410: "Take another one; what is gone does not come back.",
    412: "Leave If-None-Match out to replace what is there.",
    413: "Send less in one request.",
    415: "Send the file's own bytes, without Content-Encoding.",
    421: "Call the service by its own address, or add the name to RATCHET_ALLOWED_HOSTS.",
    422: "Correct the fields named in errors, then send the request again.",
    429: "Wait as long as Retry-After says, then send the request again.",
    500: "Send the request again; if it fails again, look for the request id in the service's log.",
    502: "Send the request again; if it fails again, look into the worker's log.",
    # True also of a write whose outcome nobody knows, because the ledger broke off while it committed.
    503: "Wait as long as Retry-After says, then send the request again; under one Idempotency-Key it is done once.",
}

CODES: dict[int, str] = {
    400: "request_malformed",
    401: "unauthorized",
    403: "cross_site",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_too_slow",
    413: "body_too_large",
    421: "host_unknown",
    500: "internal",
}

FieldErrors = Iterable[tuple[str, str]]
"""(field, sentence) for each."""


def request_id_of(scope: Scope) -> str:
    """The id that `service.edge` gave this request."""
    return str(scope.get("state", {}).get("request_id", ""))


def problem(
    scope: Scope,
    status: int,
    detail: str,
    *,
    code: str | None = None,
    field_errors: FieldErrors = (),
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> Response:
    """The answer that says what is wrong; `members` are added to the document."""
    code = code or CODES.get(status, "request_refused")
    document = {
        "type": f"urn:ratchet:problem:{code}",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "errors": [{"field": field, "message": message} for field, message in field_errors],
        "hint": HINTS.get(status, HINTS[400]),
        "request_id": request_id_of(scope),
        **members,
    }
    more = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status in {429, 503} else {}
    return ProblemResponse(finite(document), status, {**more, **(headers or {})})


class ProblemResponse(JSONResponse):
    """JSON in ASCII: what a client sent may be quoted in it, and need not be encodable."""

    media_type = "application/problem+json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, allow_nan=False).encode()


def status_of(error: RatchetError) -> int:
    """The status of an error of ours."""
    if isinstance(error, errors.GenerationRefused):
        return error.status
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def answer_errors(app: FastAPI) -> None:
    """Let every error that a route raises be answered as a problem."""
    app.add_exception_handler(RatchetError, _told)
    app.add_exception_handler(RequestValidationError, _unfit)
    app.add_exception_handler(HTTPException, _plain)


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, RatchetError)
    if isinstance(error, LedgerUnavailable):
        request.app.state.readiness.doubt()
    return problem(
        request.scope,
        status_of(error),
        error.message,
        code=error.code,
        field_errors=_fields_of(error),
        **_differences_of(error),
    )


def _fields_of(error: RatchetError) -> FieldErrors:
    if isinstance(error, ConfigError):
        return error.problems
    if isinstance(error, CheckpointMismatch) and error.forbidden:
        return [(item.field, f"may not change from {item.before!r} to {item.after!r}") for item in error.forbidden]
    return [(error.field, error.message)] if error.field else []


def _differences_of(error: RatchetError) -> dict[str, Any]:
    if isinstance(error, CheckpointMismatch):
        return {"diff": [asdict(item) for item in error.differences]}
    return {}


async def _unfit(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # A body that both a route and its dependency read is complained about twice.
    fields = list(dict.fromkeys(_field_and_sentence(item, error.body) for item in error.errors()))
    detail = "; ".join(f"{field}: {message}" if field else message for field, message in fields)
    return problem(request.scope, 422, detail, code="request_invalid", field_errors=fields)


def _field_and_sentence(item: Mapping[str, Any], body: Any) -> tuple[str, str]:
    """The field as the client knows it."""
    if item["type"] == "json_invalid":
        return "", f"the body is not JSON: {item['ctx']['error']} at character {item['loc'][-1]}"
    if tuple(item["loc"]) == ("body",) and item["type"] != "value_error":
        return "", "the body must be a JSON object, sent as application/json"
    return problem_of({**item, "loc": _place(tuple(item["loc"]), body)})


def _place(loc: tuple[str | int, ...], body: Any) -> tuple[str | int, ...]:
    """Without what is no part of the request: the word before the field, and the branches of a union after it."""
    place = loc[1:2]
    at: Any = body.get(place[0]) if place and isinstance(body, dict) else None
    for part in loc[2:]:
        try:
            at = at[part]
        except (LookupError, TypeError):
            continue
        place = (*place, part)
    return place


async def _plain(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"There is nothing at {request.scope['path']}" if error.status_code == 404 else error.detail
    return problem(request.scope, error.status_code, f"{said.removesuffix('.')}.", headers=error.headers)
