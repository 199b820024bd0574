"""Files of the older scripts, dropped into the checkpoints folder of a running service."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from core.checkpointing import CheckpointStore, load_checkpoint

NAME = "checkpoint_from_scratch_training_data_final_merged_step000040_abcdefg"


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_legacy_file_is_talked_to_and_resumed_and_a_malicious_one_is_refused_unopened(
    started: Callable[..., Any], tmp_path: Path
) -> None:
    root = tmp_path / "data" / "checkpoints"
    with started(tmp_path / "data", RATCHET_WARM_CHILD="false") as ratchet:
        ratchet.follow(ratchet.submit()["id"])
        newest = next(iter(CheckpointStore(root)))
        content = load_checkpoint(newest.path)
        said = {name: content[name] for name in ("step", "model_state_dict")} | {
            "chars": content["tokenizer"].characters
        }
        said["hyperparameters"] = {**content["config"], "TRAINING_DATA_SOURCE": "sources/training_data_final_merged.md"}
        del said["hyperparameters"]["source"]
        torch.save(said, root / f"{NAME}.pt")
        canary = tmp_path / "canary"
        torch.save({"model_state_dict": {}, "step": 1, "evil": Canary(canary)}, root / "checkpoint_evil.pt")

        ask = {"prompt": "QUESTION: ", "max_new_tokens": 5, "temperature": 0}
        legacy = ratchet.http.post("/generate", json={"checkpoint": f"{NAME}.pt", **ask})
        assert legacy.status_code == 200, legacy.text
        ours = ratchet.http.post("/generate", json={"checkpoint": newest.manifest.id, **ask})
        assert legacy.json()["choices"] == ours.json()["choices"]

        resumed = ratchet.http.post(f"/jobs/{NAME}.pt/resume", json={"resume_steps": 5})
        assert resumed.status_code == 201, resumed.text
        assert "✅ Training finished at step 45" in ratchet.follow(resumed.json()["id"])

        refused = ratchet.http.post("/generate", json={"checkpoint": "checkpoint_evil.pt", **ask})
        assert (refused.status_code, refused.json()["code"]) == (409, "checkpoint_unsafe")
        assert not canary.exists()
        assert ratchet.http.post("/jobs/checkpoint_evil.pt/resume").status_code == 409
        assert ratchet.http.get("/workers").json()["data"]
