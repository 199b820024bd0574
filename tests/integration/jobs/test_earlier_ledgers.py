"""A ledger of every earlier revision is brought up to date with all it holds, even if that is broken off on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text

from jobs import catalog, feed, lease, migrations, queue, shelf
from jobs.database import Database
from jobs.queue import NewJob
from jobs.tables import State
from tests.conftest import PROJECT

LEDGERS = Path(__file__).parent / "ledgers"


def alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return config


REVISIONS = [script.revision for script in ScriptDirectory.from_config(alembic()).walk_revisions()]
EARLIER = REVISIONS[:0:-1]

Made = Callable[[str], Database]


@pytest.fixture(params=["sqlite", "postgresql"])
def made_by(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    """A ledger as a release of that revision left it."""

    def made_by(revision: str) -> Database:
        if request.param == "sqlite":
            (tmp_path / "ratchet.db").touch()
            url = f"sqlite:///{tmp_path / 'ratchet.db'}"
        else:
            url = request.getfixturevalue("postgres").make_database()
        database = Database(url)
        request.addfinalizer(database.close)
        with database.writer.begin() as connection:
            config = alembic()
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            for statement in (LEDGERS / f"{revision}.sql").read_text().split(";\n"):
                if statement.strip():
                    connection.exec_driver_sql(statement)
        return database

    return made_by


def holds_everything(ledger: Database) -> None:
    with ledger.read() as session:
        ended = catalog.get_job(session, "local", "job_ended")
        assert (ended.state, ended.val_loss, ended.meta) == (State.SUCCEEDED, 1.75, {"team": "red"})
        assert [event.seq for event in feed.after(session, "job_ended", 0)] == [1, 2, 3, 4, 5]
        checkpoint = catalog.find_checkpoint(session, "local", "checkpoint_c1")
        assert (checkpoint.job_id, checkpoint.run, checkpoint.removed_at) == ("job_ended", "job_ended", None)
        held = catalog.get_job(session, "local", "job_held")
        assert (held.state, held.fence, held.parent_checkpoint) == (State.RUNNING, 1, "c1")
        repeated = queue.made_before(session, "local", "key", "hash")
        assert repeated is not None
        assert repeated.id == "job_ended"


def works(ledger: Database) -> None:
    with ledger.write() as session:
        assert feed.record(session, "job_held", 1, [("step", {"step": 26, "loss": 1.0})]) == 4
        assert lease.finish(session, "job_held", 1, lease.Succeeded()).state is State.SUCCEEDED
        claimed = queue.claim(session, "w2", now=2000.0)
        assert claimed is not None
        assert claimed.id == "job_queued"
        assert queue.enqueue(session, NewJob("new", {}, 10)).job.seq == 4
        shelf.remove(session, catalog.find_checkpoint(session, "local", "c1"), lambda _: True)
        assert catalog.get_job(session, "local", "job_ended").checkpoint is None


def test_every_earlier_revision_has_a_ledger_here() -> None:
    assert sorted(path.stem for path in LEDGERS.glob("*.sql")) == EARLIER
    assert REVISIONS[0] == migrations.REVISION


@pytest.mark.parametrize("revision", EARLIER)
def test_an_earlier_ledger_loads_with_all_it_holds_and_works_on(made_by: Made, revision: str) -> None:
    ledger = made_by(revision)
    ledger.migrate()
    holds_everything(ledger)
    works(ledger)


def test_a_ledger_that_goes_back_forgets_what_is_gone(made_by: Made) -> None:
    ledger = made_by("0002")
    ledger.migrate()
    works(ledger)
    with ledger.writer.begin() as connection:
        config = alembic()
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")
        assert connection.execute(text("SELECT count(*) FROM checkpoint")).scalar() == 0
        assert connection.execute(text("SELECT count(*) FROM job")).scalar() == 4


@pytest.mark.parametrize("site", ["migration.backed_up", "migration.committing"])
@pytest.mark.parametrize("revision", EARLIER)
def test_a_migration_that_is_killed_on_the_way_can_be_run_again(made_by: Made, revision: str, site: str) -> None:
    ledger = made_by(revision)
    code = "import sys; from jobs.database import Database; Database(sys.argv[1]).migrate()"
    told = {**os.environ, "RATCHET_FAILPOINT": f"{site}:kill"}
    killed = subprocess.run([sys.executable, "-c", code, ledger.url], cwd=PROJECT, env=told, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    with ledger.writer.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == revision
    ledger.migrate()
    holds_everything(ledger)
    works(ledger)


@pytest.mark.parametrize("revision", EARLIER)
def test_a_ledger_in_a_file_is_backed_up_as_it_was(tmp_path: Path, made_by: Made, revision: str) -> None:
    ledger = made_by(revision)
    ledger.migrate()
    for backup in tmp_path.glob("*.bak"):
        copy = Database(f"sqlite:///{backup}")
        with copy.reader.connect() as connection:
            assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == revision
            assert connection.execute(text("SELECT count(*) FROM job")).scalar() == 3
        copy.close()
    assert len(list(tmp_path.glob("*.bak"))) == (1 if ledger.url.startswith("sqlite") else 0)
