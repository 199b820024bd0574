"""The four trackers' libraries behind one seam: open, write numbers, write samples, close.

They are imported in the tracker's own process alone, by name, since none of them need be installed. What each does with
a run of a name that it knows already is in its docstring: steps that were computed again are to be there once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from textwrap import indent
from typing import Any, ClassVar, Protocol, TypeVar

PROJECT = "ratchet"
"""Of runs whose operator names no other one in the tracker's own variable."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Point:
    """Numbers of one step; `time` is in seconds since the epoch."""

    step: int
    time: float
    numbers: dict[str, float]


class Library(Protocol):
    """One tracker's run, opened when it is made."""

    def __init__(self, run: str, folder: str, config: dict[str, Any], start_step: int) -> None: ...

    def write(self, points: list[Point]) -> None:
        """Numbers, in order."""

    def write_sample(self, step: int, moment: float, name: str, text: str) -> None:
        """Text that the model wrote."""

    def close(self, *, failed: bool) -> None:
        """The run is over, or this attempt at it."""


class TensorBoard:
    """Event files in a folder of the run's name. A later attempt's file begins with the mark of a restart, at which
    TensorBoard drops what earlier files have of the steps from there on."""

    def __init__(self, run: str, folder: str, config: dict[str, Any], start_step: int) -> None:
        # Not torch's SummaryWriter, which takes torch along: seconds, and hundreds of megabytes.
        self._proto = import_module("tensorboard.compat.proto.event_pb2")
        self._summary = import_module("tensorboard.compat.proto.summary_pb2")
        self._text = import_module("tensorboard.plugins.text.summary_v2")
        writer = import_module("tensorboard.summary.writer.event_file_writer")
        self._writer = writer.EventFileWriter(str(Path(folder) / run))
        # The step it goes on from was written by the attempt before.
        first = start_step + 1 if start_step else 0
        start = self._proto.SessionLog(status=self._proto.SessionLog.START)
        now = time.time()
        self._writer.add_event(self._proto.Event(step=first, wall_time=now, session_log=start))
        self._add(first, now, self._text.text_pb("config", _as_code(_lines_of(config))))

    def write(self, points: list[Point]) -> None:
        """As one scalar each."""
        for point in points:
            values = [self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in point.numbers.items()]
            self._add(point.step, point.time, self._summary.Summary(value=values))
        self._writer.flush()

    def write_sample(self, step: int, moment: float, name: str, text: str) -> None:
        """As text."""
        self._add(step, moment, self._text.text_pb(name, _as_code(text)))
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """Its files do not say how a run ended."""
        self._writer.close()

    def _add(self, step: int, moment: float, summary: Any) -> None:
        self._writer.add_event(self._proto.Event(step=step, wall_time=moment, summary=summary))


class MLflow:
    """The experiment is `MLFLOW_EXPERIMENT_NAME` or `MLFLOW_EXPERIMENT_ID`; a run is found again by a tag, and keeps
    its parameters and the steps that it has."""

    TAG: ClassVar[str] = "ratchet.run"
    LAST_STEP: ClassVar[str] = "last_step"
    MOST_METRICS: ClassVar[int] = 1000
    MOST_PARAMS: ClassVar[int] = 100
    MOST_CHARACTERS: ClassVar[int] = 6000

    def __init__(self, run: str, folder: str, config: dict[str, Any], start_step: int) -> None:
        mlflow = import_module("mlflow")
        self._entities = import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        experiment = self._experiment(mlflow)
        found = self._client.search_runs([experiment], f"tags.`{self.TAG}` = '{run}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._last_step = int(found[0].data.metrics.get(self.LAST_STEP, -1))
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(experiment, tags={self.TAG: run}, run_name=run).info.run_id
        self._last_step = -1
        params = [
            self._entities.Param(name, str(value)[: self.MOST_CHARACTERS])
            for name, value in config.items()
            if value not in (None, "")
        ]
        for some in _in_parts(params, self.MOST_PARAMS):
            self._client.log_batch(self._id, params=some)

    @staticmethod
    def _experiment(mlflow: Any) -> str:
        known = os.environ.get("MLFLOW_EXPERIMENT_ID")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        # It makes the experiment if need be, also when another worker does at the same moment.
        experiment = mlflow.set_experiment(experiment_id=known) if known else mlflow.set_experiment(name)
        return str(experiment.experiment_id)

    def write(self, points: list[Point]) -> None:
        """Together, as many as one request may have."""
        new = [point for point in points if point.step > self._last_step]
        metrics = [
            self._entities.Metric(name, value, int(point.time * 1000), point.step)
            for point in new
            for name, value in point.numbers.items()
        ]
        if not metrics:
            return
        last = new[-1]
        metrics.append(self._entities.Metric(self.LAST_STEP, last.step, int(last.time * 1000), last.step))
        for some in _in_parts(metrics, self.MOST_METRICS):
            self._client.log_batch(self._id, metrics=some)

    def write_sample(self, step: int, moment: float, name: str, text: str) -> None:
        """As an artifact."""
        self._client.log_text(self._id, text, f"samples/step_{step:08d}_{name}.txt")

    def close(self, *, failed: bool) -> None:
        """Finished or failed; a later attempt says that it runs again."""
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


class WeightsAndBiases:
    """The project is `WANDB_PROJECT`. The run's name is its id there, too; steps that it has are ignored by wandb."""

    def __init__(self, run: str, folder: str, config: dict[str, Any], start_step: int) -> None:
        wandb = import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=run,
            name=run,
            resume="allow",
            config=config,
            allow_val_change=True,
            # Numbers, samples and hyperparameters go there: not the code, its repository or what is printed.
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )

    def write(self, points: list[Point]) -> None:
        """What has the same step is one row there."""
        for point in points:
            self._run.log(point.numbers, step=point.step)

    def write_sample(self, step: int, moment: float, name: str, text: str) -> None:
        """As a value of its step."""
        self._run.log({name: text}, step=step)

    def close(self, *, failed: bool) -> None:
        """Sends what is still here."""
        self._run.finish(exit_code=int(failed))


class Trackio:
    """The project is `TRACKIO_PROJECT`. A run is found again by its name, and keeps the steps that it has."""

    def __init__(self, run: str, folder: str, config: dict[str, Any], start_step: int) -> None:
        self._trackio = import_module("trackio")
        self._run = self._trackio.init(
            project=os.environ.get("TRACKIO_PROJECT") or PROJECT,
            name=run,
            config=config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        # Of a run that it found, what comes after its last step; it has no public name.
        self._next_step = getattr(self._run, "_next_step", 0)

    def write(self, points: list[Point]) -> None:
        """Each with its step."""
        for point in points:
            if point.step >= self._next_step:
                self._run.log(point.numbers, step=point.step)

    def write_sample(self, step: int, moment: float, name: str, text: str) -> None:
        """As Markdown that shows it as it is."""
        if step >= self._next_step:
            self._run.log({name: self._trackio.Markdown(_as_code(text))}, step=step)

    def close(self, *, failed: bool) -> None:
        """Sends what is still here; trackio does not say how a run ended."""
        self._run.finish()


LIBRARIES: dict[str, type[Library]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def _in_parts(items: list[Item], most: int) -> Iterator[list[Item]]:
    for begin in range(0, len(items), most):
        yield items[begin : begin + most]


def _lines_of(config: dict[str, Any]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in config.items())


def _as_code(text: str) -> str:
    """For Markdown: shown as it is, whatever a model wrote."""
    return indent(text, "    ", lambda _: True)
