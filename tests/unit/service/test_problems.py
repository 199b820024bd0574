from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from core import errors as core_errors
from core.errors import RatchetError
from jobs import errors as jobs_errors
from service import errors
from service.errors import GenerationRefused
from service.problems import HINTS, problem, status_of


def all_errors(kind: type[RatchetError] = RatchetError) -> Iterator[type[RatchetError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from all_errors(below)


@pytest.mark.parametrize("kind", sorted(set(all_errors()), key=lambda kind: kind.__name__))
def test_every_error_has_a_status_with_a_hint(kind: type[RatchetError]) -> None:
    if kind is not GenerationRefused:
        assert status_of(kind.__new__(kind)) in HINTS


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (core_errors.SourceNotFound("x"), 422),
        (core_errors.CheckpointNotFound("x"), 404),
        (core_errors.CheckpointCorrupt("x"), 409),
        (jobs_errors.JobNotFound("x"), 404),
        (jobs_errors.IdempotencyConflict("x"), 422),
        (jobs_errors.LedgerNewer("x"), 503),
        (errors.SourceChanged("x"), 409),
        (GenerationRefused(404, "checkpoint_not_found", "x"), 404),
    ],
)
def test_an_error_has_the_status_of_its_nearest_kind(error: RatchetError, status: int) -> None:
    assert status_of(error) == status


def test_a_problem_says_what_is_wrong_and_what_to_do() -> None:
    scope = {"type": "http", "state": {"request_id": "r1"}}
    answer = problem(scope, 429, "Too many.", code="queue_full", field_errors=[("a", "b")])
    assert answer.media_type == "application/problem+json"
    assert answer.headers["retry-after"] == "5"
    assert json.loads(answer.body) == {
        "type": "urn:ratchet:problem:queue_full",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "Too many.",
        "code": "queue_full",
        "errors": [{"field": "a", "message": "b"}],
        "hint": HINTS[429],
        "request_id": "r1",
    }


def test_what_cannot_be_encoded_can_still_be_quoted() -> None:
    assert b"\\ud800" in problem({"type": "http"}, 422, "not '\ud800'").body
