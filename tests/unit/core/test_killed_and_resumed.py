"""Killed at any moment and begun again, any number of times, equals never killed: to the last bit, by SIGKILL."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.checkpointing import CheckpointStore, verify
from tests.unit.core.conftest import KINDS

SITES = [
    *("trainer.updating", "trainer.updated", "trainer.evaluating"),
    *("checkpoint.staged", "checkpoint.file", "checkpoint.manifest", "checkpoint.renaming", "checkpoint.renamed"),
    *("checkpoint.published", "checkpoint.retiring", "checkpoint.retired"),
]
KILLS = 3
WAYS: dict[str, dict[str, Any]] = {
    "plainly": {},
    "in bf16 with accumulation": {"precision": "bf16", "gradient_accumulation_steps": 2},
    "in fp16": {"precision": "fp16"},
    "with averages and a falling rate": {
        "ema_decay": 0.9,
        "lr_schedule": "cosine",
        "precision": "fp16",
        "gradient_accumulation_steps": 2,
        "optimizer": "muon",
    },
    "in two ranks": {"num_processes": 2},
    "in two ranks in bf16 with accumulation": {
        "num_processes": 2,
        "precision": "bf16",
        "gradient_accumulation_steps": 2,
    },
}

Outcome = dict[str, Any]
CarryOut = Callable[[Path, dict[str, Any], list[Any]], Outcome]


@pytest.fixture(scope="module")
def carry_out() -> Iterator[CarryOut]:
    """Runs a plan in a process that has imported torch and forks its attempts."""
    command = [sys.executable, "-m", "tests.unit.core.attempts"]
    runner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert runner.stdin
    assert runner.stdout

    def carry_out(folder: Path, plan: dict[str, Any], kills: list[Any]) -> Outcome:
        folder.mkdir()
        runner.stdin.write(json.dumps({**plan, "folder": str(folder), "kills": kills}) + "\n")
        runner.stdin.flush()
        outcome: Outcome = json.loads(runner.stdout.readline())
        assert "failed" not in outcome, outcome["failed"]
        return outcome

    yield carry_out
    runner.stdin.close()
    runner.wait(10)
    runner.stdout.close()


@pytest.fixture
def plan(tmp_path: Path, config: Any, source: Any) -> Callable[..., dict[str, Any]]:
    def plan(kind: str, **given: Any) -> dict[str, Any]:
        settings = {"training_steps": 16, "checkpoint_interval": 2, "keep_checkpoints": 1, "dropout": 0.1, **given}
        return {"config": config(kind, **settings).model_dump(mode="json"), "source": str(tmp_path / "sums.md")}

    return plan


def result(folder: Path) -> dict[str, Any]:
    """The final checkpoint, file by file, and everything that was said of each step, the last word counting."""
    store = CheckpointStore(folder / "checkpoints")
    final = max(store, key=lambda item: item.step)
    verify(final)
    said: dict[str, Any] = {}
    for line in (folder / "events").read_text().splitlines():
        kind, data = json.loads(line)
        said[f"{kind} {data.get('step')}"] = data
    files = {name: entry.sha256 for name, entry in final.manifest.files.items()}
    return {"step": final.step, "files": files, "said": said}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("kind", list(KINDS))
def test_killed_anywhere_and_begun_again_equals_never_killed(
    carry_out: CarryOut, plan: Callable[..., dict[str, Any]], tmp_path: Path, kind: str, way: str
) -> None:
    chance = random.Random(f"{kind} {way}")
    kills = [f"{chance.choice(SITES)}:kill@{chance.randint(1, 2)}" for _ in range(KILLS)]
    # What trains of an adapter is no matrix that Muon could make anything of.
    unfit = {"optimizer"} if kind.endswith("lora") else set()
    wanted = plan(kind, **{name: value for name, value in WAYS[way].items() if name not in unfit})
    carry_out(tmp_path / "undisturbed", wanted, [])
    outcome = carry_out(tmp_path / "killed", wanted, kills)
    assert outcome["num_killed"] == KILLS
    assert result(tmp_path / "killed") == result(tmp_path / "undisturbed")


def test_killed_at_random_moments_equals_never_killed(
    carry_out: CarryOut, plan: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    chance = random.Random(7)
    wanted = plan("from_scratch", training_steps=60, gradient_accumulation_steps=2)
    carry_out(tmp_path / "undisturbed", wanted, [])
    carry_out(tmp_path / "killed", wanted, [chance.uniform(0.02, 0.4) for _ in range(12)])
    assert result(tmp_path / "killed") == result(tmp_path / "undisturbed")


@pytest.mark.parametrize("short", [(1, "loss", 3), (0, "loss", 3), (0, "measure", 8)])
def test_a_rank_that_ran_short_of_memory_once_changes_all_of_them_for_good(
    carry_out: CarryOut, plan: Callable[..., dict[str, Any]], tmp_path: Path, short: tuple[int, str, int]
) -> None:
    """Whoever it was, the others know it before the next step; and the run that is begun again knows it, too."""
    wanted = {**plan("from_scratch", num_processes=2, eval_interval=8), "short": short}
    carry_out(tmp_path / "undisturbed", wanted, [])
    outcome = carry_out(tmp_path / "killed", wanted, ["trainer.updating:kill@12"])
    assert outcome["num_killed"] == 1
    undisturbed = result(tmp_path / "undisturbed")
    assert result(tmp_path / "killed") == undisturbed
    assert "computed in 2 parts" in undisturbed["said"]["warning None"]["message"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_two_ranks_learn_what_one_process_learns_from_twice_the_batches(
    carry_out: CarryOut, plan: Callable[..., dict[str, Any]], tmp_path: Path, kind: str, precision: str
) -> None:
    """To the last bit: halves are exact. But for dropout, of which each process draws its own."""
    settings = {"dropout": 0.0, "lora_dropout": 0.0, "precision": precision}
    carry_out(tmp_path / "ranks", plan(kind, num_processes=2, **settings), [])
    carry_out(tmp_path / "alone", plan(kind, gradient_accumulation_steps=2, **settings), [])
    ranks, alone = result(tmp_path / "ranks"), result(tmp_path / "alone")
    learnt = [name for name in alone["files"] if name.endswith(".safetensors")]
    assert len(learnt) >= 2
    assert {name: ranks["files"][name] for name in learnt} == {name: alone["files"][name] for name in learnt}
    losses = [
        [data["loss"] for told, data in run["said"].items() if told.startswith("step ")] for run in (ranks, alone)
    ]
    assert len(losses[0]) == 16
    assert losses[0] == losses[1]
