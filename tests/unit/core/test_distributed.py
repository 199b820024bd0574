from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from core.config import tokens_per_step
from core.distributed import ALONE, Ranks, join, together
from core.errors import ConfigError, DeviceUnavailable, RankLost

RANK = """
import json, sys, torch
from core.distributed import together
def main():
    with together(int(sys.argv[1]), "cpu", [sys.executable, *sys.argv]) as ranks:
        weights = [torch.zeros(2, requires_grad=True), torch.zeros(1, 3, requires_grad=True), torch.zeros(1)]
        weights[0].grad = torch.full((2,), float(ranks.rank))
        weights[1].grad = torch.full((1, 3), 2.0 * ranks.rank)
        ranks.average_gradients(weights)
        if ranks.rank == int(sys.argv[2]):
            raise SystemExit(7)
        said = {
            "gradients": [weight.grad.flatten().tolist() for weight in weights[:2]],
            "means": ranks.means(ranks.rank * 4.0, 1.0 - ranks.rank),
            "told": ranks.told(7 + ranks.rank, 9 - ranks.rank),
            "largest": [ranks.largest(ranks.rank), ranks.largest(5 - ranks.rank)],
            "agreed": [ranks.agree(ranks.rank == 0), ranks.agree(ranks.rank == 1)],
            "gathered": ranks.gather({"rank": ranks.rank}),
            "threads": torch.get_num_threads(),
        }
        if ranks.leads:
            print(json.dumps(said))
main()
"""


@pytest.fixture
def rank_program(tmp_path: Path) -> Path:
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    return program


def run(program: Path, num_processes: int, dies: int = -1) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(program), str(num_processes), str(dies)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PYTHONPATH": str(Path.cwd())})


def test_alone_nothing_is_asked_of_anybody() -> None:
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.ones(1)
    ALONE.average_gradients([weight])
    assert weight.grad.item() == 1.0
    assert (ALONE.leads, ALONE.means(3.0, 4.0), ALONE.agree(True), ALONE.gather("x")) == (True, [3.0, 4.0], True, ["x"])
    assert (ALONE.told(3, 4), ALONE.largest(3)) == ([3, 4], 3)


def test_two_ranks_average_agree_and_gather(rank_program: Path) -> None:
    done = run(rank_program, 2)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["gradients"] == [[0.5, 0.5], [1.0, 1.0, 1.0]]
    assert (said["means"], said["agreed"]) == ([2.0, 0.5], [True, False])
    assert (said["told"], said["largest"]) == ([7, 9], [1, 5])
    assert said["gathered"] == [{"rank": 0}, {"rank": 1}]


def test_a_rank_that_dies_ends_the_others_at_once(rank_program: Path) -> None:
    began = time.monotonic()
    done = run(rank_program, 2, dies=1)
    assert done.returncode == 1
    assert time.monotonic() - began < 30
    assert done.stdout == ""
    assert "RankLost: another process of this run is gone" in done.stderr


def test_a_rank_that_dies_before_it_joins_is_not_waited_for() -> None:
    began = time.monotonic()
    with pytest.raises(RankLost, match=r"process 1 of this run ended \(status 1\)"), together(2, "cpu", ["false"], {}):
        pass
    assert time.monotonic() - began < 10


def test_ranks_without_a_gpu_each_are_refused_before_any_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.distributed.select_device", lambda _: "cuda")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(DeviceUnavailable, match="a GPU of its own, and 1 can be seen"), together(2, "auto", ["x"], {}):
        pass


def test_a_scheduler_that_names_a_world_and_no_rank_has_made_no_ranks() -> None:
    assert join("cpu", {"WORLD_SIZE": "4"}) == ALONE


def test_ranks_that_this_machine_has_no_cores_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.distributed.num_cores", lambda: 2)
    before = torch.get_num_threads()
    with pytest.raises(ConfigError, match="at most 2"), together(3, "cpu", ["true"], {}):
        pass
    torch.set_num_threads(before)


def test_one_process_is_alone_without_any_ceremony() -> None:
    with together(1, "cpu", ["false"], {}) as ranks:
        assert ranks == Ranks()


def test_a_step_counts_the_tokens_of_all_ranks_and_batches() -> None:
    config = {"batch_size": 4, "block_size": 8, "gradient_accumulation_steps": 3, "num_processes": 2}
    assert tokens_per_step(config) == 192
    assert tokens_per_step({"batch_size": 4, "block_size": 8}) == 32
