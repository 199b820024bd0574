"""The scripts as a person runs them: environment variables in, text and checkpoints out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.tiny_models import make_gpt2_folder

# Each script has a core to itself at best.
PLAIN = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
SOURCE = "sources/training_data_final_merged.md"


@pytest.fixture
def folder(tmp_path: Path, bundled_source: Path) -> Path:
    """A copy of what the commands of the README stand on: the scripts, the rooms they import, the text."""
    lay_out(tmp_path, bundled_source)
    return tmp_path


def lay_out(folder: Path, source: Path) -> None:
    for name in ("training.py", "training_resume.py"):
        shutil.copy(PROJECT / name, folder)
    (folder / "core").symlink_to(PROJECT / "core")
    (folder / "sources").mkdir()
    shutil.copy(source, folder / "sources")


@pytest.fixture(scope="session")
def gpt2_of_the_source(tmp_path_factory: pytest.TempPathFactory, bundled_source: Path) -> Path:
    """GPT-2's architecture at a small size, its byte-level BPE trained on the bundled source."""
    return make_gpt2_folder(tmp_path_factory.mktemp("base") / "gpt2", bundled_source.read_text(), n_positions=128)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, gpt2_of_the_source: Path, bundled_source: Path
) -> Callable[[Path], Path]:
    """Puts the checkpoint of a run that is made once, of 20 steps, into a folder; its path there, at step 10."""
    first = tmp_path_factory.mktemp("trained")
    lay_out(first, bundled_source)
    tiny = {"TRAINING_DATA_SOURCE": SOURCE, "MODEL_TYPE": "gpt2", "BASE_MODEL": str(gpt2_of_the_source)}
    done = script(first, **tiny, TEST_MODE="True", TRAINING_STEPS="20", CHECKPOINT_INTERVAL="10", MAX_NEW_TOKENS="5")
    assert done.returncode == 0, done.stderr

    def trained(folder: Path) -> Path:
        shutil.copytree(first / "checkpoints", folder / "checkpoints")
        return next(path for path in checkpoints(folder) if "step000010" in path.name)

    return trained


def script(folder: Path, name: str = "training.py", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, name],
        cwd=folder,
        env={**PLAIN, "HOME": str(folder), **env},
        capture_output=True,
        text=True,
        timeout=100,
    )


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("checkpoint_*"))


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("❌ Error: ")
    return line


def test_a_fresh_gpt2_run_as_the_validation_command_has_it(folder: Path, gpt2_of_the_source: Path) -> None:
    done = script(
        folder,
        TRAINING_DATA_SOURCE=SOURCE,
        MODEL_TYPE="gpt2",
        USE_LORA="False",
        TRAINING_STEPS="200",
        LEARNING_RATE="5e-6",
        BLOCK_SIZE="128",
        BATCH_SIZE="8",
        ENABLE_CHECKPOINTS="False",
        USE_LR_WARMUP="False",
        ENABLE_OUTPUT_TO_FILE="False",
        BASE_MODEL=str(gpt2_of_the_source),
    )
    assert done.returncode == 0, done.stderr
    assert "📊 step 200/200" in done.stdout
    assert "✨ The model writes after 'QUESTION: ':" in done.stdout
    assert checkpoints(folder) == []
    assert list((folder / "outputs").iterdir()) == []


def test_a_fresh_run_from_scratch_as_the_validation_command_has_it(folder: Path) -> None:
    done = script(
        folder,
        TRAINING_DATA_SOURCE=SOURCE,
        MODEL_TYPE="from_scratch",
        TRAINING_STEPS="100",
        BATCH_SIZE="16",
        ENABLE_CHECKPOINTS="False",
        ENABLE_OUTPUT_TO_FILE="False",
    )
    assert done.returncode == 0, done.stderr
    assert "📊 step 100/100" in done.stdout
    assert "Net loss change since beginning: -" in done.stdout
    assert checkpoints(folder) == []


@pytest.mark.parametrize("name", ["training.py", "training_resume.py"])
def test_a_resume_as_the_validation_command_has_it(folder: Path, trained: Callable[[Path], Path], name: str) -> None:
    path = trained(folder)
    assert path.name.startswith("checkpoint_gpt2_training_data_final_merged_step000010_")
    done = script(folder, name, CHECKPOINT_PATH=f"checkpoints/{path.name}.pt", RESUME_STEPS="15")
    assert done.returncode == 0, done.stderr
    assert "🔄 Resuming gpt2 on sources/training_data_final_merged.md: steps 10 → 25" in done.stdout
    assert any("step000025" in path.name for path in checkpoints(folder))


def test_a_run_keeps_its_output_and_a_log_of_its_checkpoints(folder: Path) -> None:
    done = script(folder, TRAINING_DATA_SOURCE=SOURCE, TEST_MODE="1", CHECKPOINT_INTERVAL="10")
    assert done.returncode == 0, done.stderr
    (kept,) = (folder / "outputs").iterdir()
    assert "✅ Training finished at step 20" in kept.read_text()
    (log,) = (folder / "logs").iterdir()
    assert [line.split()[1] for line in log.read_text().splitlines()[1:]] == ["10", "20"]


@pytest.mark.parametrize("env", [{}, {"CHECKPOINT_PATH": ""}, {"CHECKPOINT_PATH": "  "}])
def test_the_older_script_asks_for_the_checkpoint_it_was_not_given(folder: Path, env: dict[str, str]) -> None:
    assert "CHECKPOINT_PATH must say" in one_sentence(script(folder, "training_resume.py", **env))


def test_an_empty_checkpoint_path_is_no_fresh_run(folder: Path) -> None:
    assert "CHECKPOINT_PATH must say" in one_sentence(script(folder, CHECKPOINT_PATH=""))


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"TRAINING_DATA_SOURCE": "sources/nowhere.md"}, "source 'sources/nowhere.md' does not exist"),
        ({"TRAINING_DATA_SOURCE": "empty.md"}, "source 'empty.md' is empty"),
        ({"TRAINING_DATA_SOURCE": "bad.md"}, "byte at offset 5 "),
        ({"TRAINING_DATA_SOURCE": "short.md"}, "has 12 tokens, but block_size 128 needs at least 129"),
        ({"BATCH_SIZE": "lots"}, "BATCH_SIZE: input should be a valid integer"),
        ({"N_EMBD": "130", "N_HEAD": "4"}, "n_embd (130) must be divisible by n_head (4)"),
        ({"MODEL_TYPE": "gpt3"}, "MODEL_TYPE: input should be 'gpt2', 'from_scratch' or 'causal_lm'"),
        ({"CHECKPOINT_PATH": "checkpoints/checkpoint_nobody"}, "no checkpoint at 'checkpoints/checkpoint_nobody'"),
        ({"CHECKPOINT_DIR": "empty.md"}, "File exists: 'empty.md'"),
        ({"DEVICE": "cuda:99"}, "device 'cuda:99' is not on this machine"),
    ],
)
def test_a_mistake_is_one_sentence(folder: Path, env: dict[str, str], said: str) -> None:
    (folder / "empty.md").write_text(" \n")
    (folder / "bad.md").write_bytes(b"hello\xff world")
    (folder / "short.md").write_text("far too thin")
    assert said in one_sentence(script(folder, **env))


def test_gpt2_without_weights_says_within_five_seconds_where_it_looked(folder: Path) -> None:
    began = time.monotonic()
    line = one_sentence(script(folder, TRAINING_DATA_SOURCE=SOURCE, MODEL_TYPE="gpt2", HF_HUB_OFFLINE="1"))
    # Python and torch start in the same time; the search itself has five seconds.
    assert time.monotonic() - began < 10
    for part in (
        "base model 'gpt2' cannot be had",
        "no folder",
        "nothing in the cache",
        "BASE_MODEL=",
        "hf download gpt2",
    ):
        assert part in line


def test_ctrl_c_saves_at_the_next_step(folder: Path) -> None:
    import signal

    process = subprocess.Popen(
        [sys.executable, "training.py"],
        cwd=folder,
        env={**PLAIN, "HOME": str(folder), "TEST_MODE": "1", "TRAINING_STEPS": "1000000"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    with process.stdout:
        for line in process.stdout:
            if "📊 step 10/" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.wait(timeout=30) == 0
    assert "🛑 Stopped at step" in rest
    assert "💾 Checkpoint saved" in rest
    assert checkpoints(folder)


@pytest.mark.parametrize(
    "kind",
    [
        {"NUM_PROCESSES": "1", "PRECISION": "bf16"},
        {"NUM_PROCESSES": "1", "PRECISION": "fp16", "MODEL_TYPE": "gpt2"},
        {"NUM_PROCESSES": "2", "MODEL_TYPE": "gpt2", "USE_LORA": "True", "LORA_DROPOUT": "0.1"},
    ],
    ids=["from scratch", "gpt2", "adapters of gpt2, two ranks"],
)
def test_a_script_killed_twice_and_resumed_by_hand_ends_as_if_never_killed(
    folder: Path, gpt2_of_the_source: Path, kind: dict[str, str]
) -> None:
    run = {
        **kind,
        "BASE_MODEL": str(gpt2_of_the_source),
        "TEST_MODE": "1",
        "TRAINING_STEPS": "40",
        "CHECKPOINT_INTERVAL": "10",
        "DROPOUT": "0.1",
        "GRADIENT_ACCUMULATION_STEPS": "2",
        "MAX_NEW_TOKENS": "0",
    }
    assert script(folder, CHECKPOINT_DIR="undisturbed", **run).returncode == 0
    assert script(folder, **run, RATCHET_FAILPOINT="trainer.updated:kill@25").returncode == -9
    resumed = {name: value for name, value in run.items() if name != "TRAINING_STEPS"}
    killed = script(
        folder, CHECKPOINT_PATH=checkpoints(folder)[-1].name, **resumed, RATCHET_FAILPOINT="trainer.updating:kill@15"
    )
    assert killed.returncode == -9
    done = script(folder, CHECKPOINT_PATH=str(checkpoints(folder)[-1]), **resumed)
    assert done.returncode == 0, done.stderr
    assert "📂 Going on from" in done.stdout
    assert "not bit-exact" not in done.stdout
    [undisturbed] = (folder / "undisturbed").glob("checkpoint_*step000040*")
    ended = checkpoints(folder)[-1]
    names = {path.name for path in undisturbed.iterdir()} - {"manifest.json"}
    assert {path.name for path in ended.iterdir()} - {"manifest.json"} == names >= {"optimizer.safetensors"}
    for name in names:
        assert (ended / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it_and_says_so(folder: Path) -> None:
    run = {"TEST_MODE": "1", "TRAINING_STEPS": "20", "CHECKPOINT_INTERVAL": "10", "MAX_NEW_TOKENS": "0"}
    script(folder, **run)
    earlier, latest = checkpoints(folder)
    (latest / "model.safetensors").write_bytes((latest / "model.safetensors").read_bytes()[:-1])
    done = script(folder, CHECKPOINT_PATH=str(latest), RESUME_STEPS="5", MAX_NEW_TOKENS="0")
    assert done.returncode == 0, done.stderr
    assert f"⚠️  checkpoint '{latest.name}' is damaged: model.safetensors is not what was saved; {earlier.name} is" in (
        done.stdout
    )
    assert "steps 10 → 15" in done.stdout


def test_more_processes_than_cores_are_one_sentence(folder: Path) -> None:
    assert "num_processes: must be at most" in one_sentence(script(folder, NUM_PROCESSES="999"))
