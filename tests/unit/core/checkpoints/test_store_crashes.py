from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.checkpointing import CheckpointStore, verify
from tests.unit.core.crashes import RUN

NUM_CRASHES = 150
SEED = 20


@pytest.fixture(scope="module")
def crashes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    root = tmp_path_factory.mktemp("crashes")
    command = [sys.executable, "-m", "tests.unit.core.crashes", str(root), str(SEED), str(NUM_CRASHES)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    return [json.loads(line) for line in said.stdout.splitlines()]


def test_whenever_a_save_is_killed_what_was_published_is_whole_and_the_newest_opens(
    crashes: list[dict[str, Any]],
) -> None:
    assert len(crashes) == NUM_CRASHES
    for crash in crashes:
        assert os.WIFSIGNALED(crash["status"]), f"call {crash['turn']} was never made"
        assert os.WTERMSIG(crash["status"]) == signal.SIGKILL
        listed = {item.manifest.name: item for item in CheckpointStore(Path(crash["folder"]))}
        for item in listed.values():
            verify(item)
        published = [name for what, name in crash["said"] if what == "published"]
        retired = {name for what, name in crash["said"] if what == "retired"}
        # The first may be on its way out once there is a second.
        kept = set(published) - retired - (set(published[:1]) if len(published) == 2 else set())
        assert kept <= set(listed), f"lost by a kill at call {crash['turn']}"
        assert not retired & set(listed)


def test_what_a_killed_save_or_removal_left_can_be_swept(crashes: list[dict[str, Any]]) -> None:
    left = 0
    for crash in crashes:
        store = CheckpointStore(Path(crash["folder"]))
        left += sum(1 for _ in store.root.glob("tmp-*"))
        store.sweep(RUN)
        store.sweep_retired()
        assert not list(store.root.glob("tmp-*"))
    assert left, "no kill came in the middle of anything"


def test_the_kills_came_at_every_stage(crashes: list[dict[str, Any]]) -> None:
    stages = {len(crash["said"]) for crash in crashes}
    assert stages >= {0, 1, 2}
