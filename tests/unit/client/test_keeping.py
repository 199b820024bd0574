from __future__ import annotations

import json

import pytest

from tests.unit.client.conftest import FakeService, Ratchet


@pytest.mark.parametrize(
    ("command", "method", "said"), [("pin", "POST", "stays"), ("unpin", "DELETE", "is not pinned")]
)
def test_a_checkpoint_is_pinned_and_unpinned(
    service: FakeService, ratchet: Ratchet, command: str, method: str, said: str
) -> None:
    service.lay(method, "/checkpoints/c1/pin", {"id": "c1", "pinned": command == "pin"})
    code, out, _ = ratchet(command, "c1")
    assert (code, said in out) == (0, True)
    assert json.loads(ratchet(command, "c1", "--json")[1])["id"] == "c1"


def test_a_checkpoint_is_removed(service: FakeService, ratchet: Ratchet) -> None:
    service.lay("DELETE", "/checkpoints/c1", "", status=204)
    assert ratchet("rm", "c1")[:2] == (0, "Checkpoint c1 is gone.\n")


def test_one_that_has_to_stay_says_why(service: FakeService, ratchet: Ratchet) -> None:
    service.lay("DELETE", "/checkpoints/c1", {"code": "checkpoint_pinned", "detail": "It is pinned."}, status=409)
    assert ratchet("rm", "c1") == (1, "", "It is pinned.\n")
