"""Loss curves, drawn from the event log: each step once, from the attempt that counts, in as few points as are wanted.

The log is read from its end to its beginning, in pages. Going this way, an attempt that counts is met before those that
it replaced, so that one look at each event is enough; and the newest steps are found without reading the older ones.
What is kept is what the answer holds, whatever the length of the log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json
from sqlmodel import Session, col, select

from jobs.lineage import Descent, Missing, descend
from jobs.tables import Event, Job

PAGE = 2000

_DRAWN = ("step", "eval", "resumed")

Point = dict[str, Any]
"""The data of a `step` or an `eval` event."""

Read = Callable[[], AbstractContextManager[Session]]
"""Opens a transaction: `jobs.database.Database.read`."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One run's part of a curve, in steps: after `from_step`, up to and with `to_step`.

    `checkpoint` is the one that the run started from, and `mode` how; None for a fresh run.
    """

    job: str
    from_step: int
    to_step: int
    checkpoint: str | None
    mode: str | None


@dataclass(frozen=True, slots=True)
class Curve:
    """Steps and evaluations in ascending order; `downsampled` if there are more than these."""

    steps: list[Point]
    evaluations: list[Point]
    segments: list[Segment]
    missing: Missing | None
    downsampled: bool


def draw(read: Read, job: Job, *, num_points: int, after_step: int | None = None, lineage: bool = False) -> Curve:
    """The curve of a job as its log says at this moment.

    Args:
        read: Each page is a transaction of its own, since the log may be long and others must not wait for it.
        num_points: At most so many steps, and so many evaluations; at least 4.
        after_step: Only what was made after this step.
        lineage: Also the runs that it went on from, each up to the step that the next one started from. Steps count on
            through `exact` and `extend`; a `warm_start` begins at step 0 again, so nothing comes before it.
    """
    descent = Descent([job], None)
    if lineage:
        with read() as session:
            descent = descend(session, job)
    lowest = descent.runs[-1].start_step if after_step is None else after_step + 1
    pen = _Pen(M4(num_points, lowest, "loss"), M4(num_points, lowest, "val_loss"), lowest)
    for run in descent.runs:
        if pen.is_done:
            break
        pen.draw(_from_the_end(read, run))
        pen.cut(run.start_step)
    return Curve(
        steps=pen.steps.points(),
        evaluations=pen.evaluations.points(),
        segments=_segments(descent.runs),
        missing=descent.missing,
        downsampled=pen.steps.is_full or pen.evaluations.is_full,
    )


_LAST, _FIRST, _LOW, _HIGH = range(4)
_PER_STRETCH = 4


class M4:
    """Of many points, for each stretch of steps the first, the last, the lowest and the highest: the line through them
    covers the same pixels as the line through all, if a stretch is a pixel wide.

    Source: Jugel, Jerzak, Hackenbroich, Markl, "M4: A Visualization-Oriented Time Series Data Aggregation", VLDB 2014.

    Args:
        num_points: As many are kept at most; if no more are added, all of them.
        lowest: No step is lower.
        height: The field that is drawn over the steps; a point without it may only be a first or last one.
    """

    def __init__(self, num_points: int, lowest: int, height: str) -> None:
        self._num_points = num_points
        self._lowest = lowest
        self._height = height
        self._all: list[Point] = []
        self._width = 0
        self._stretches: dict[int, list[Point]] = {}

    @property
    def is_full(self) -> bool:
        """Whether there were more points than are kept."""
        return self._width > 0

    def add(self, point: Point) -> None:
        """One more point; steps descend from call to call."""
        if self._width:
            self._fold(point)
            return
        self._all.append(point)
        if len(self._all) > self._num_points:
            num_steps = self._all[0]["step"] - self._lowest + 1
            self._width = max(1, math.ceil(num_steps / max(1, self._num_points // _PER_STRETCH)))
            for kept in self._all:
                self._fold(kept)
            self._all.clear()

    def points(self) -> list[Point]:
        """Those that are kept, in ascending order."""
        if not self._width:
            return self._all[::-1]
        kept = {point["step"]: point for stretch in self._stretches.values() for point in stretch}
        return [kept[step] for step in sorted(kept)]

    def _fold(self, point: Point) -> None:
        at = max(0, point["step"] - self._lowest) // self._width
        stretch = self._stretches.get(at)
        if stretch is None:
            self._stretches[at] = [point] * _PER_STRETCH
            return
        stretch[_FIRST] = point
        height = point.get(self._height)
        if height is None:
            return
        low, high = stretch[_LOW].get(self._height), stretch[_HIGH].get(self._height)
        if low is None or height < low:
            stretch[_LOW] = point
        if high is None or height > high:
            stretch[_HIGH] = point


@dataclass
class _Pen:
    """Takes events from the last to the first, and draws those that nothing later has replaced."""

    steps: M4
    evaluations: M4
    lowest: int
    _reach: float = math.inf
    _step: float = math.inf
    _evaluation: float = math.inf

    @property
    def is_done(self) -> bool:
        """Whether nothing that was said before could be part of the curve."""
        return self._reach < self.lowest or self._step <= self.lowest

    def draw(self, events: Iterator[tuple[str, Point]]) -> None:
        """The events of one run, as far back as they matter."""
        for kind, data in events:
            if self.is_done:
                return
            if kind == "resumed":
                self.cut(data.get("from_step", math.inf))
                continue
            step = data.get("step")
            if not isinstance(step, int) or step > self._reach:
                continue
            if kind == "step" and step < self._step:
                self._step = step
                if step >= self.lowest:
                    self.steps.add(data)
            elif kind == "eval" and step < self._evaluation:
                self._evaluation = step
                if step >= self.lowest:
                    self.evaluations.add(data)

    def cut(self, step: int | float) -> None:
        """What comes now, and so was said before, counts up to this step."""
        self._reach = min(self._reach, step)


def _from_the_end(read: Read, run: Job) -> Iterator[tuple[str, Point]]:
    """Kind and data of a job's events, those alone that matter for its curve."""
    before = run.last_seq + 1
    drawn = select(Event.seq, Event.kind, Event.data).where(Event.job_id == run.id, col(Event.kind).in_(_DRAWN))
    newest_first = drawn.order_by(col(Event.seq).desc()).limit(PAGE)
    while True:
        with read() as session:
            # Straight from the table, and a page read as one document: a log may have a million events.
            page = session.connection().execute(newest_first.where(col(Event.seq) < before)).all()
        if page:
            _, kinds, data = zip(*page, strict=True)
            yield from zip(kinds, from_json(f"[{','.join(data)}]"), strict=True)
        if len(page) < PAGE:
            return
        before = page[-1][0]


def _segments(runs: list[Job]) -> list[Segment]:
    ends = [max(runs[0].step, runs[0].start_step), *(run.start_step for run in runs)]
    segments = [
        Segment(run.id, run.start_step, end, run.parent_checkpoint, run.resume_mode)
        for run, end in zip(runs, ends, strict=False)
    ]
    return segments[::-1]
