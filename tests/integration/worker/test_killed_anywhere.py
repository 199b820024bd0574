"""A kill at any place, of a training process or of its worker, costs time and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from core.assembly import assemble
from core.checkpointing import CheckpointStore, verify
from core.checkpoints.manifest import Checkpoint
from core.config import TrainingConfig, parse
from core.sources.files import SourceText
from jobs import catalog
from jobs.tables import FINAL, State
from tests.integration.worker.conftest import TEXT, TINY, Bench
from tests.tiny_models import make_model_folder

RUN = {"training_steps": 30, "checkpoint_interval": 10, "eval_interval": 15, "dropout": 0.1}
MANY = {"MAX_ATTEMPTS": 50, "MAX_FAILURES_IN_A_ROW": 50, "RETRY_SECONDS": 0}

CHILD_SITES = [
    "child.begun",
    "trainer.evaluating",
    "trainer.updating",
    "trainer.updated",
    "checkpoint.staged",
    "checkpoint.file",
    "checkpoint.manifest",
    "checkpoint.renaming",
    "checkpoint.renamed",
    "checkpoint.published",
    "child.finished",
]
WORKER_SITES = [
    "worker.claimed",
    "worker.assigned",
    "supervisor.recording",
    "supervisor.recorded",
    "checkpoint.retiring",
    "checkpoint.retired",
    "supervisor.concluding",
    "supervisor.concluded",
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the weights that the run ends with when nothing happens to it."""
    store = CheckpointStore(tmp_path_factory.mktemp("uninterrupted"))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = parse(TrainingConfig, {**TINY, **RUN})
    assemble(config, SourceText("sums.md", TEXT, "0" * 64), lambda _: None, lambda: False, store=store).train()
    torch.set_num_threads(num_threads)
    return weights_of(max(store, key=lambda item: item.manifest.step))


def weights_of(checkpoint: Checkpoint) -> str:
    return checkpoint.manifest.files["model.safetensors"].sha256


def assert_nothing_was_lost(bench: Bench, job_id: str, weights: str) -> list[tuple[str, dict[str, Any]]]:
    """It succeeded once, as if nothing had happened; the latest two checkpoints are whole and its log has no gap."""
    log = bench.log_of(job_id)
    assert bench.job(job_id).state is State.SUCCEEDED
    assert [data for kind, data in log if kind == "done"] == [{"state": "succeeded"}]
    checkpoints = CheckpointStore(bench.folder / "checkpoints").of_job(job_id)
    for item in checkpoints:
        verify(item)
    said = {data["id"]: data["step"] for kind, data in log if kind == "checkpoint"}
    assert sorted(said.values()) == [10, 20, 30]
    with bench.db.read() as session:
        assert [row.id for row in catalog.checkpoints_of(session, job_id)] == [item.manifest.id for item in checkpoints]
    assert [said[item.manifest.id] for item in checkpoints] == [30, 20]
    assert weights_of(checkpoints[0]) == weights
    assert not list((bench.folder / "checkpoints").glob("tmp-*"))
    return log


def killed_at(bench: Bench, sites: list[str]) -> dict[str, Any]:
    """A worker's settings by which whoever comes by one of these places first is killed there."""
    once = bench.folder / "once"
    once.mkdir(exist_ok=True)
    return {**MANY, "FAILPOINT": ";".join(f"{site}:kill" for site in sites), "FAILPOINT_ONCE": once}


def fired(bench: Bench) -> set[str]:
    return {path.name for path in (bench.folder / "once").iterdir()}


@pytest.mark.timeout(240)
def test_a_child_killed_at_every_place_in_turn_ends_as_if_nothing_had_happened(
    bench: Bench, uninterrupted: str
) -> None:
    job_id = bench.submit(**RUN)
    bench.worker(**killed_at(bench, CHILD_SITES))
    job = bench.until(job_id, *FINAL, seconds=200)
    log = assert_nothing_was_lost(bench, job_id, uninterrupted)
    assert fired(bench) == set(CHILD_SITES)
    assert job.attempt == len(CHILD_SITES) + 1
    assert bench.errors_of(job_id) == ["killed"] * len(CHILD_SITES)
    resumed = [data["from_step"] for kind, data in log if kind == "resumed"]
    assert resumed[-1] == RUN["training_steps"], "what was finished is not trained again"


@pytest.mark.timeout(240)
def test_a_worker_killed_at_every_place_in_turn_is_followed_by_another_that_goes_on(
    bench: Bench, uninterrupted: str
) -> None:
    job_id = bench.submit(**RUN)
    for _ in WORKER_SITES:
        worker = bench.worker(**killed_at(bench, WORKER_SITES), LEASE_SECONDS=1)
        assert bench.when(worker.poll) == -9
        assert bench.job(job_id).fence >= 1
    assert_nothing_was_lost(bench, job_id, uninterrupted)
    assert fired(bench) == set(WORKER_SITES)


KINDS: dict[str, dict[str, Any]] = {
    "from scratch, two processes": {"num_processes": 2, "precision": "bf16", "gradient_accumulation_steps": 2},
    "adapters from scratch": {"use_lora": True, "lora_dropout": 0.1},
    "gpt2": {"model_type": "gpt2", "precision": "bf16"},
    "llama": {"model_type": "causal_lm", "precision": "bf16"},
    "adapters of gpt2": {"model_type": "gpt2", "use_lora": True, "lora_dropout": 0.1},
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_run_of_any_kind_whose_processes_are_killed_ends_as_if_nothing_had_happened(bench: Bench, kind: str) -> None:
    family = "llama" if kind == "llama" else "gpt2"
    make_model_folder(bench.folder / "models" / "small", TEXT, family)
    run = {**RUN, "base_model": str(bench.folder / "models" / "small"), "learning_rate": 1e-3, **KINDS[kind]}
    # Every rank comes by these places, and whoever is first dies. What is killed at every other place, for each kind of
    # run, is in tests/unit/core/test_killed_and_resumed.py, where a process begins without an import.
    sites = ["trainer.updated", "checkpoint.renaming"]
    bench.worker(**killed_at(bench, sites))
    store, final = CheckpointStore(bench.folder / "checkpoints"), []
    for is_disturbed in (True, False):
        job_id = bench.submit(**run)
        job = bench.until(job_id, *FINAL, seconds=200)
        # Both may die in one attempt, each at another place.
        assert job.state is State.SUCCEEDED
        assert (job.attempt > 2) is is_disturbed
        final.append(store.of_job(job_id)[0])
    assert fired(bench) == set(sites)
    [ends, expected] = final
    assert ends.manifest.surroundings["world_size"] == str(run.get("num_processes", 1))
    assert (ends.step, ends.manifest.files) == (30, expected.manifest.files)
