"""Trackers: what they are told, and that nothing they do reaches the run.

TensorBoard is itself. The others are played by small modules that write down how they are called, in the signatures of
the real ones (mlflow 3.17, wandb 0.31, trackio 0.43).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from core.assembly import assemble
from core.checkpointing import CheckpointStore, load_checkpoint
from core.config import TrainingConfig, parse
from core.errors import NonFiniteLoss
from core.events import Emit, Eval, Event, Log, Sample, Started, Step, Warned
from core.monitoring import trackers
from core.monitoring.tracker_libraries import LIBRARIES, Point
from core.monitoring.tracker_process import reason_of
from core.monitoring.trackers import name_of_run, remember_checkpoint, tracked
from core.sources.corpus import Corpus
from core.sources.files import SourceText

BEGINNING = """
import json, os
def note(*call):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(call) + chr(10))
class Settings:
    def __init__(self, **told): self.told = told
"""

WANDB = f"""{BEGINNING}
class Run:
    def log(self, data, step=None, commit=None):
        note("log", data, step)
    def finish(self, exit_code=None): note("finish", exit_code)
def init(entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None,
         config_exclude_keys=None, config_include_keys=None, allow_val_change=None, group=None, job_type=None,
         mode=None, force=None, reinit=None, resume=None, resume_from=None, fork_from=None, save_code=None,
         tensorboard=None, sync_tensorboard=None, monitor_gym=None, settings=None):
    note("init", project, id, name, resume, config["batch_size"], settings.told)
    return Run()
"""

TRACKIO = f"""{BEGINNING}
class Markdown:
    def __init__(self, text=""): self.text = text
class Run:
    def __init__(self): self._next_step = int(os.environ.get("NEXT_STEP", 0))
    def log(self, metrics, step=None):
        note("log", {{key: getattr(value, "text", value) for key, value in metrics.items()}}, step)
    def finish(self): note("finish")
def init(project, name=None, group=None, space_id=None, server_url=None, dataset_id=None, bucket_id=None, config=None,
         resume="never", settings=None, private=None, embed=True, auto_log_gpu=None, gpu_log_interval=10.0,
         auto_log_cpu=None, cpu_log_interval=10.0, webhook_url=None, webhook_min_level=None):
    note("init", project, name, resume, config["batch_size"])
    return Run()
"""


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of these tests end at once, and a tracker may begin late on a machine that does much else."""
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 60.0)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Any]]:
    """What was asked of the modules that play trackers."""
    file = tmp_path / "calls"
    monkeypatch.setenv("CALLS", str(file))
    return lambda: [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a module where the process of a tracker finds it."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    # Those that may be installed lead to no one's account.
    for name in ("WANDB_PROJECT", "TRACKIO_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)

    def play(name: str, program: str) -> None:
        (folder / f"{name}.py").write_text(program)

    return play


def config_of(*names: str, **others: Any) -> TrainingConfig:
    return parse(TrainingConfig, {"source": "sums.md", "trackers": names, **others})


def started(step: int = 0) -> Started:
    return Started(step, 100, 1, 1, "cpu", 1, 1)


def step(number: int) -> Step:
    return Step(number, 1 / number, 1e-3, 2.0, 100.0, 1 << 20, 0.5)


def track(folder: Path, events: list[Event], *names: str, run_name: str = "job_1") -> list[str]:
    """Tells trackers these events; returns the warnings."""
    heard: list[Event] = []
    with tracked(heard.append, config_of(*names), run_name=run_name, folder=folder) as emit:
        for event in events:
            emit(event)
    assert [event for event in heard if not isinstance(event, Warned)] == events
    return [event.message for event in heard if isinstance(event, Warned)]


def read_back(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def text_of(tensor: Any) -> str:
    return str(tensor.tensor_proto.string_val[0].decode())


def test_tensorboard_has_every_number_at_its_step_the_samples_and_the_configuration(tmp_path: Path) -> None:
    events = [
        started(),
        Eval(0, 3.0, 3.5, 0.25, 33.0),
        *map(step, range(1, 51)),
        Eval(50, 1.0, float("nan"), None, None),
        Sample(50, "# Title\n", "<b>text</b>"),
        Sample(50, "another", " one"),
    ]
    assert track(tmp_path, events, "tensorboard") == []
    found = read_back(tmp_path / "job_1")
    for name in ("loss", "lr", "grad_norm", "tokens_per_second", "memory_bytes"):
        points = [(point.step, point.value) for point in found.Scalars(name)]
        assert points == [(n, pytest.approx(getattr(step(n), name))) for n in range(1, 51)]
    assert [(point.step, point.value) for point in found.Scalars("train_loss")] == [(0, 3.0), (50, 1.0)]
    assert [(point.step, point.value) for point in found.Scalars("val_loss")] == [(0, 3.5)]
    assert [point.value for point in found.Scalars("val_accuracy")] == [0.25]
    assert abs(found.Scalars("loss")[-1].wall_time - time.time()) < 60
    assert text_of(found.Tensors("sample_1")[0]) == "    # Title\n    <b>text</b>"
    assert text_of(found.Tensors("sample_2")[0]) == "    another one"
    assert "    batch_size: 16\n" in text_of(found.Tensors("config")[0])


def test_in_tensorboard_steps_that_were_computed_again_are_there_once(tmp_path: Path) -> None:
    track(tmp_path, [started(), *map(step, range(1, 81))], "tensorboard")
    track(tmp_path, [started(50), *map(step, range(51, 101))], "tensorboard")
    assert [point.step for point in read_back(tmp_path / "job_1").Scalars("loss")] == list(range(1, 101))


def test_a_first_attempt_that_came_to_no_checkpoint_is_replaced_in_tensorboard(tmp_path: Path) -> None:
    track(tmp_path, [started(), Eval(0, 3.0, 3.0), *map(step, range(1, 9))], "tensorboard")
    track(tmp_path, [started(), Eval(0, 3.0, 3.0), step(1)], "tensorboard")
    found = read_back(tmp_path / "job_1")
    assert [point.step for point in found.Scalars("loss")] == [1]
    assert [point.step for point in found.Scalars("val_loss")] == [0]


def test_wandb_is_told_in_order_and_how_it_ended(play: Any, calls: Any, tmp_path: Path) -> None:
    play("wandb", WANDB)
    events = [started(), step(1), Sample(1, "a", "b"), step(2), Eval(2, 1.0, 2.0, 0.5, 7.4)]
    assert track(tmp_path, events, "wandb") == []
    settings = {"console": "off", "silent": True, "disable_git": True, "save_code": False}
    numbers = [{key: value for key, value in step(n).data().items() if key != "step"} for n in (1, 2)]
    assert calls() == [
        ["init", "ratchet", "job_1", "job_1", "allow", 16, settings],
        ["log", numbers[0], 1],
        ["log", {"sample_1": "ab"}, 1],
        ["log", numbers[1], 2],
        ["log", {"train_loss": 1.0, "val_loss": 2.0, "val_accuracy": 0.5, "val_perplexity": 7.4}, 2],
        ["finish", 0],
    ]


def test_a_run_that_fails_is_told_as_failed(play: Any, calls: Any, tmp_path: Path) -> None:
    play("wandb", WANDB)

    def fail() -> None:
        with tracked(lambda _: None, config_of("wandb"), run_name="job_1", folder=tmp_path) as emit:
            emit(started())
            raise NonFiniteLoss("the loss became nan")

    with pytest.raises(NonFiniteLoss):
        fail()
    assert calls()[-1] == ["finish", 1]


def test_trackio_keeps_the_steps_that_it_has(
    play: Any, calls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play("trackio", TRACKIO)
    monkeypatch.setenv("NEXT_STEP", "3")
    monkeypatch.setenv("TRACKIO_PROJECT", "sums")
    track(tmp_path, [started(), *map(step, range(1, 5)), Sample(4, "# a", "b")], "trackio")
    opened, *logged, end = calls()
    assert opened == ["init", "sums", "job_1", "allow", 16]
    assert [call[2] for call in logged] == [3, 4, 4]
    assert (logged[-1][1], end) == ({"sample_1": "    # ab"}, ["finish"])


class FakeMLflow(ModuleType):
    """The calls that MLflow gets, and the one run that it may have."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.calls: list[tuple[Any, ...]] = []
        self.runs: list[Any] = []

    def set_experiment(self, experiment_name: str | None = None, experiment_id: str | None = None) -> Any:
        self.calls.append(("experiment", experiment_name, experiment_id))
        return _Fields(experiment_id="7")

    def MlflowClient(self, tracking_uri: str | None = None) -> FakeMLflow:
        return self

    def search_runs(
        self, experiment_ids: list[str], filter_string: str = "", run_view_type: int = 1, max_results: int = 1000
    ) -> list[Any]:
        self.calls.append(("search", experiment_ids, filter_string))
        return self.runs

    def create_run(
        self, experiment_id: str, start_time: int | None = None, tags: Any = None, run_name: str | None = None
    ) -> Any:
        self.calls.append(("create", experiment_id, tags, run_name))
        self.runs = [_Fields(info=_Fields(run_id="r"), data=_Fields(metrics={}))]
        return self.runs[0]

    def update_run(self, run_id: str, status: str | None = None, name: str | None = None) -> None:
        self.calls.append(("update", run_id, status))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        assert len(metrics) <= 1000
        assert len(params) <= 100
        for metric in metrics:
            self.runs[0].data.metrics[metric[0]] = metric[1]
        self.calls.append(("batch", list(metrics), list(params)))

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        self.calls.append(("text", text, artifact_file))

    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
        self.calls.append(("end", run_id, status))


class _Fields:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMLflow:
    fake, entities = FakeMLflow(), ModuleType("mlflow.entities")
    entities.__dict__.update(
        Metric=lambda key, value, timestamp, step: (key, value, timestamp, step), Param=lambda key, value: (key, value)
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    return fake


def test_mlflow_gets_many_numbers_in_one_request_and_a_run_of_its_own(mlflow: FakeMLflow) -> None:
    config = {"batch_size": 16, "num_epochs": None, "columns": {"a": "x" * 9000}, **{f"p{n}": n for n in range(150)}}
    run = LIBRARIES["mlflow"]("job_1", "", config, 0)
    run.write([Point(n, 1.5, {"loss": n / 10, "lr": 1e-3}) for n in range(1, 801)])
    run.write_sample(800, 2.0, "sample_1", "ab")
    run.close(failed=False)
    kinds = [call[0] for call in mlflow.calls]
    assert kinds == ["experiment", "search", "create", "batch", "batch", "batch", "batch", "text", "end"]
    assert mlflow.calls[:3] == [
        ("experiment", "ratchet", None),
        ("search", ["7"], "tags.`ratchet.run` = 'job_1'"),
        ("create", "7", {"ratchet.run": "job_1"}, "job_1"),
    ]
    params = dict(mlflow.calls[3][2] + mlflow.calls[4][2])
    assert params["batch_size"] == "16"
    assert len(params["columns"]) == 6000
    assert "num_epochs" not in params
    assert mlflow.calls[5][1][:2] == [("loss", 0.1, 1500, 1), ("lr", 1e-3, 1500, 1)]
    assert len(mlflow.calls[5][1]) + len(mlflow.calls[6][1]) == 2 * 800 + 1
    assert mlflow.calls[-2:] == [("text", "ab", "samples/step_00000800_sample_1.txt"), ("end", "r", "FINISHED")]


def test_mlflow_finds_a_run_again_and_adds_only_the_steps_that_it_lacks(mlflow: FakeMLflow) -> None:
    LIBRARIES["mlflow"]("job_1", "", {"batch_size": 16}, 0).write([Point(n, 1.0, {"loss": 1.0}) for n in (1, 2, 3)])
    mlflow.calls.clear()
    again = LIBRARIES["mlflow"]("job_1", "", {"batch_size": 32}, 1)
    again.write([Point(2, 2.0, {"loss": 1.0})])
    again.write([Point(3, 2.0, {"loss": 1.0}), Point(4, 2.0, {"loss": 0.5})])
    again.close(failed=True)
    assert mlflow.calls[2:] == [
        ("update", "r", "RUNNING"),
        ("batch", [("loss", 0.5, 2000, 4), ("last_step", 4, 2000, 4)], []),
        ("end", "r", "FAILED"),
    ]


def test_mlflow_goes_where_the_operators_variables_say(mlflow: FakeMLflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "sums")
    LIBRARIES["mlflow"]("job_1", "", {}, 0)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "12")
    LIBRARIES["mlflow"]("job_2", "", {}, 0)
    assert [call for call in mlflow.calls if call[0] == "experiment"] == [
        ("experiment", "sums", None),
        ("experiment", None, "12"),
    ]


def test_a_library_that_is_not_there_is_one_warning_that_says_what_to_install(play: Any, tmp_path: Path) -> None:
    play("wandb", "raise ModuleNotFoundError(\"No module named 'wandb'\")")
    (warning,) = track(tmp_path, [started(), step(1)], "wandb", "tensorboard")
    assert warning == (
        "wandb is off for the rest of this run: it cannot be imported (No module named 'wandb'): "
        "pip install 'ratchet[wandb]'"
    )
    assert [point.step for point in read_back(tmp_path / "job_1").Scalars("loss")] == [1]


@pytest.mark.usefixtures("calls")
def test_a_tracker_that_fails_is_off_and_its_warning_comes_with_a_later_event(play: Any, tmp_path: Path) -> None:
    play("wandb", WANDB.replace('note("log"', 'raise OSError("no route to host\\nand a page more")  # '))
    heard: list[Event] = []
    with tracked(heard.append, config_of("wandb"), run_name="job_1", folder=tmp_path) as emit:
        emit(started())
        deadline = time.monotonic() + 20
        number = 0
        while not any(isinstance(event, Warned) for event in heard):
            assert time.monotonic() < deadline, "nothing was said"
            number += 1
            emit(step(number))
            time.sleep(0.01)
        emit(step(number + 1))
    (warning,) = [event for event in heard if isinstance(event, Warned)]
    assert warning.message == "wandb is off for the rest of this run: OSError: no route to host"
    assert heard[-1] == step(number + 1)


@pytest.mark.parametrize("program", ["import os; os._exit(7)", "import os; os.kill(os.getpid(), 9)"])
def test_a_library_that_takes_its_process_down_takes_nothing_else(play: Any, tmp_path: Path, program: str) -> None:
    play("wandb", program)
    (warning,) = track(tmp_path, [started(), step(1)], "wandb")
    assert warning.startswith("wandb is off for the rest of this run: its process ended with status ")


def has_ended(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def ends(pid: int) -> bool:
    """Waits for a process to end, for a while."""
    deadline = time.monotonic() + 10
    while not has_ended(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return has_ended(pid)


def test_one_that_hangs_slows_nothing_and_is_ended_with_the_run(
    play: Any, calls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 2.0)
    monkeypatch.setattr(trackers, "QUEUE_EVENTS", 50)
    play("wandb", f"{BEGINNING}\nimport time\nnote(os.getpid()); time.sleep(3600)")
    begun = time.monotonic()
    late, dropped = track(tmp_path, [started(), *map(step, range(1, 5001))], "wandb")
    assert time.monotonic() - begun < 10
    ((pid,),) = calls()
    assert ends(pid)
    assert late.startswith("wandb did not finish within 2 s")
    assert dropped.startswith("wandb could not keep up with the run: it was not told ")


def test_of_too_many_events_the_newest_are_told(
    play: Any, calls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "QUEUE_EVENTS", 10)
    play("wandb", f"import time; time.sleep(0.5)\n{WANDB}")
    (warning,) = track(tmp_path, [started(), *map(step, range(1, 20_001))], "wandb")
    told = [call[2] for call in calls() if call[0] == "log"]
    assert told[-10:] == list(range(19_991, 20_001))
    assert warning == f"wandb could not keep up with the run: it was not told {20_000 - len(told)} events"


def test_one_that_is_off_is_not_said_to_be_slow(play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "QUEUE_EVENTS", 5)
    play("wandb", "import time; time.sleep(0.3); raise OSError('no route to host')")
    (warning,) = track(tmp_path, [started(), *map(step, range(1, 5001))], "wandb")
    assert warning == "wandb is off for the rest of this run: OSError: no route to host"


def test_samples_that_are_refused_leave_the_numbers(play: Any, calls: Any, tmp_path: Path) -> None:
    play(
        "wandb",
        WANDB.replace('note("log"', 'if "sample_1" in data: raise PermissionError("no bucket")\n        note("log"'),
    )
    events = [started(), step(1), Sample(1, "a", "b"), step(2), Sample(2, "a", "b")]
    assert track(tmp_path, events, "wandb") == ["wandb takes no samples: PermissionError: no bucket"]
    assert [call[2] for call in calls() if call[0] == "log"] == [1, 2]


def test_what_libraries_print_read_and_leave_for_the_exit_harms_nobody(
    play: Any, calls: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    noisy = "import atexit, sys, time\nprint('hello'); sys.stderr.write('oh'); sys.stdin.read()\n"
    play("wandb", f"{noisy}atexit.register(time.sleep, 3600)\n{WANDB}")
    with tracked(lambda _: None, config_of("wandb"), run_name="job_1", folder=tmp_path) as emit:
        emit(started())
        time.sleep(0.5)  # The library reads meanwhile, and is not to get hold of what comes now.
        emit(step(1))
    assert [call[0] for call in calls()] == ["init", "log", "finish"]
    assert calls()[-1] == ["finish", 0]
    assert capfd.readouterr() == ("", "")


def test_the_process_of_a_tracker_ends_with_the_run_that_is_killed(play: Any, calls: Any, tmp_path: Path) -> None:
    play("wandb", f"{BEGINNING}\nimport time\nnote(os.getpid()); time.sleep(3600)")
    program = f"""
import os, pathlib, signal, time
from tests.unit.core.monitoring.test_trackers import config_of, started, tracked
with tracked(lambda _: None, config_of("wandb"), run_name="a", folder=pathlib.Path({str(tmp_path)!r})) as emit:
    emit(started())
    while not os.path.exists(os.environ["CALLS"]): time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = os.pathsep.join([str(Path(trackers.__file__).parents[2]), os.environ["PYTHONPATH"]])
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, timeout=60, check=False)
    ((pid,),) = calls()
    assert ends(pid)


def test_libraries_are_not_looked_for_in_the_folder_where_the_run_works(
    play: Any, calls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play("wandb", WANDB)
    (tmp_path / "wandb.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert track(tmp_path, [started(), step(1)], "wandb") == []
    assert calls()


def test_without_trackers_events_go_where_they_went(tmp_path: Path) -> None:
    emit: Emit = [].append
    with tracked(emit, config_of(), run_name="job_1", folder=tmp_path) as same:
        assert same is emit


def test_a_run_that_never_starts_leaves_nothing(play: Any, calls: Any, tmp_path: Path) -> None:
    play("wandb", WANDB)
    assert track(tmp_path, [Log("hello")], "wandb", "tensorboard") == []
    assert calls() == []
    assert not (tmp_path / "job_1").exists()


def test_a_process_that_cannot_be_started_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.sys, "executable", str(tmp_path / "nothing"))
    (warning,) = track(tmp_path, [started(), step(1)], "tensorboard")
    assert warning == "tensorboard is off for the rest of this run: No such file or directory"


def test_an_error_without_words_is_named() -> None:
    assert reason_of("wandb", ValueError()) == "ValueError: "
    assert len(reason_of("wandb", ValueError("x" * 5000))) < 400


def test_no_generator_that_training_draws_from_is_touched(play: Any, calls: Any, tmp_path: Path) -> None:
    play("wandb", f"import random; random.seed(1); random.random()\n{WANDB}")
    seeds = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()  # type: ignore[union-attr,index]
    assert track(tmp_path, [started(), *map(step, range(1, 101))], "tensorboard", "wandb") == []
    assert calls()
    after = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()  # type: ignore[union-attr,index]
    assert seeds[:2] == after[:2]
    assert torch.equal(seeds[2], after[2])


def test_a_tracked_run_that_resumes_learns_what_an_untracked_one_learns(
    tmp_path: Path, source: SourceText, store: CheckpointStore
) -> None:
    def losses(end: int, *names: str, resume: Any = None, store: CheckpointStore | None = None) -> list[float]:
        config = config_of(
            *names,
            test_mode=True,
            training_steps=12,
            checkpoint_interval=6,
            eval_interval=6,
            max_new_tokens=4,
            sample_interval=6,
            dropout=0.1,
            device="cpu",
        )
        heard: list[Event] = []
        with tracked(heard.append, config, run_name="job_1", folder=tmp_path / "tb") as emit:
            trainer = assemble(
                config, Corpus.of_one(source), emit, lambda: False, store=store, resume=resume, end_step=end
            )
            trainer.train()
        assert not any(isinstance(event, Warned) for event in heard)
        return [event.loss for event in heard if isinstance(event, Step)]

    plain = losses(12)
    first = losses(9, "tensorboard", store=store)
    half = next(item for item in store if item.manifest.step == 6)
    second = losses(12, "tensorboard", resume=load_checkpoint(half.path))
    assert first[:6] + second == plain
    found = read_back(tmp_path / "tb" / "job_1")
    points = [(point.step, point.value) for point in found.Scalars("loss")]
    assert points == [(number, pytest.approx(loss)) for number, loss in enumerate(plain, start=1)]


def test_a_script_goes_on_in_the_tracker_run_of_the_last_checkpoint_alone(tmp_path: Path) -> None:
    first = name_of_run(tmp_path, "bigram_sums", None)
    assert first.startswith("bigram_sums_")
    assert name_of_run(tmp_path, "bigram_sums", None) != first
    for checkpoint in ("c1", "c2"):
        remember_checkpoint(tmp_path, first, checkpoint)
    assert name_of_run(tmp_path, "bigram_sums", "c2") == first
    assert name_of_run(tmp_path, "bigram_sums", "c1") != first
    assert name_of_run(tmp_path, "bigram_sums", "c0") != first
    assert name_of_run(tmp_path, "bigram_sums", None) != first
    assert len(name_of_run(tmp_path, "x" * 500, None)) < 128
    assert name_of_run(tmp_path, "../a'b/c", None).startswith("_a_b_c_")


def test_a_place_that_cannot_be_written_stops_no_script(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    remember_checkpoint(tmp_path / "file", "name", "c1")
    assert name_of_run(tmp_path / "file", "bigram_sums", "c1").startswith("bigram_sums_")
