from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.checkpointing import CheckpointStore, load_checkpoint
from core.checkpoints.fallback import load_whole
from core.checkpoints.saving import RunIdentity
from core.errors import CheckpointCorrupt, CheckpointUnsafe

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json", "characters.json", "config.json"]


@pytest.fixture
def chain(run: Any, config: Any, store: CheckpointStore) -> list[Path]:
    """The folders of a run from 0 to 8 and of one that went on from it to 16, the earliest first."""
    run(config(), store=store).trainer.train()
    final = max(store, key=lambda item: item.step)
    identity = RunIdentity(parent=final.manifest.id)
    run(config(), store=store, identity=identity, resume=load_checkpoint(final.path)).trainer.train()
    return [item.path for item in sorted(store, key=lambda item: item.step)]


def damage(path: Path, how: str = "cut") -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[:-1] if how == "cut" else content)


def test_what_is_whole_is_taken_without_a_word(chain: list[Path]) -> None:
    content, told = load_whole(chain[-1])
    assert (content["name"], told) == (chain[-1].name, None)


@pytest.mark.parametrize("how", ["cut", "flipped"])
@pytest.mark.parametrize("file", FILES)
def test_whatever_file_is_damaged_the_one_before_is_taken_and_told(chain: list[Path], file: str, how: str) -> None:
    for later in chain[2:]:
        for name in later.iterdir():
            name.unlink()
        later.rmdir()
    earlier, named = chain[:2]
    damage(named / file, how)
    content, told = load_whole(named)
    assert content["name"] == earlier.name
    assert told is not None
    assert told.endswith(f"{earlier.name} is taken instead")


def test_before_the_first_of_a_run_is_the_one_that_it_began_at(chain: list[Path]) -> None:
    damage(chain[2] / "model.safetensors")
    assert load_whole(chain[2])[0]["name"] == chain[1].name


def test_what_is_damaged_before_it_is_passed_over_too(chain: list[Path]) -> None:
    for folder in chain[1:]:
        damage(folder / "state.json")
    assert load_whole(chain[3])[0]["name"] == chain[0].name


def test_of_names_that_two_runs_have_none_is_guessed(chain: list[Path]) -> None:
    damage(chain[3] / "manifest.json")
    with pytest.raises(CheckpointCorrupt, match="no whole one before it is there"):
        load_whole(chain[3])


def test_where_none_is_whole_it_is_said(chain: list[Path]) -> None:
    for folder in chain:
        damage(folder / "state.json")
    with pytest.raises(CheckpointCorrupt, match=r"is damaged: state\.json .* and no whole one before it is there"):
        load_whole(chain[1])


def test_a_file_that_is_refused_is_never_replaced_by_something_else(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_x_y_step000100_ab.pt"
    path.write_bytes(b"not a zip archive")
    with pytest.raises(CheckpointUnsafe):
        load_whole(path)
