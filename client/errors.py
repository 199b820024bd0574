"""What can go wrong on the way to the service and back.

ClientError
├── ServiceUnreachable      nobody answers at that address
├── ApiError                the service answered with a problem
├── UnusableSetting         the client itself is told what it cannot use
└── JobFailed               the job that was followed did not reach its end
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import httpx2

NOT_RATCHET = "not_ratchet"
"""The code for an answer that no Ratchet gives: something else listens at the address."""


class ClientError(Exception):
    """A failure said in one sentence, for a person."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ServiceUnreachable(ClientError):
    """The connection could not be made, or was lost before an answer came."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"There is no answer from {url} ({reason}).")
        self.url = url


class ApiError(ClientError):
    """A problem document (RFC 9457) that the service answered with.

    Args:
        status: The HTTP status; 0 for a problem said in the middle of a stream.
        code: Stable, for programs.
        problems: (field, sentence) for each value that cannot be used.
    """

    def __init__(self, status: int, code: str, message: str, problems: list[tuple[str, str]]) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.problems = problems


class UnusableSetting(ClientError):
    """A `RATCHET_*` setting of the client's that no request can be made with."""


class JobFailed(ClientError):
    """A followed job ended in any state but `succeeded`."""


def problem_of(response: httpx2.Response) -> ApiError:
    """The problem an answer stands for; the body has been read. A proxy's HTML page becomes a sentence as well."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if isinstance(document, Mapping):
        return problem_in(document, response.status_code)
    return ApiError(response.status_code, "http_error", f"The service answered {_spoken(response.status_code)}.", [])


def problem_in(document: Mapping[str, Any], status: int = 0) -> ApiError:
    """The problem that a decoded document describes."""
    said = document.get("detail") or document.get("message") or document.get("title")
    message = said if isinstance(said, str) else f"The service answered {_spoken(status)}."
    problems = [_field_and_sentence(item) for item in document.get("errors") or []]
    return ApiError(status, str(document.get("code") or "http_error"), message, problems)


def _field_and_sentence(item: Any) -> tuple[str, str]:
    if not isinstance(item, Mapping):
        return "", str(item)
    field = item.get("field") or item.get("pointer") or ""
    return str(field), str(item.get("message") or item.get("detail") or "")


def _spoken(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"with status {status}"


def not_ratchet(status: int) -> ApiError:
    """What to raise for an answer of another program's."""
    return ApiError(status, NOT_RATCHET, "What answers at this address is not Ratchet.", [])
