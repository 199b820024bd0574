from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlmodel import Session

from jobs import feed, lease, queue
from jobs.database import Database
from jobs.lease import Failed, Stopped, Succeeded
from jobs.queue import NewJob
from jobs.tables import Job, State

Submit = Callable[..., Job]
Bring = Callable[[State], Job]

CONFIG = {"source": "tale.md", "model_type": "from_scratch"}


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """One empty ledger of each kind for all tests of this folder: what a test writes is rolled back."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'ratchet.db'}"
    else:
        url = request.getfixturevalue("postgres").make_database()
    database = Database(url)
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def session(db: Database) -> Iterator[Session]:
    with db.write() as session:
        yield session
        session.rollback()


@pytest.fixture
def submit(session: Session) -> Submit:
    def submit(name: str = "tale", now: float | None = None, **given: Any) -> Job:
        spec = NewJob(**{"name": name, "config": CONFIG, "training_steps": 10, **given})
        return queue.enqueue(session, spec, now).job

    return submit


@pytest.fixture
def bring(session: Session, submit: Submit) -> Bring:
    """A new job, brought to a state by the verbs that a service and a worker would say."""

    def held() -> Job:
        submit()
        job = queue.claim(session, "w1", now=0.0)
        assert job is not None
        return job

    def running() -> Job:
        job = held()
        feed.record(session, job.id, job.fence, [("started", {"start_step": 0})])
        return job

    def stopping() -> Job:
        job = queue.request_pause(session, running())
        return lease.acknowledge_stop(session, job.id, job.fence)

    def ended(outcome: Succeeded | Failed | Stopped) -> Job:
        job = running()
        return lease.finish(session, job.id, job.fence, outcome)

    def retry_wait() -> Job:
        job = running()
        return lease.retry(session, job.id, job.fence, Failed("crashed", "It crashed."), delay=60.0, now=0.0)

    def bring(state: State) -> Job:
        ways: dict[State, Callable[[], Job]] = {
            State.QUEUED: submit,
            State.STARTING: held,
            State.RUNNING: running,
            State.STOPPING: stopping,
            State.RETRY_WAIT: retry_wait,
            State.PAUSED: lambda: queue.request_pause(session, submit()),
            State.SUCCEEDED: lambda: ended(Succeeded()),
            State.FAILED: lambda: ended(Failed("non_finite", "The loss is NaN.")),
            State.CANCELLED: lambda: queue.request_cancel(session, submit()),
        }
        job = ways[state]()
        session.refresh(job)
        assert job.state is state
        return job

    return bring


@pytest.fixture
def story(session: Session) -> Callable[[Job], list[tuple[int, str, str]]]:
    """What the log says of a job: number, kind, data."""

    def story(job: Job) -> list[tuple[int, str, str]]:
        return [(event.seq, event.kind, event.data) for event in feed.after(session, job.id, 0)]

    return story
