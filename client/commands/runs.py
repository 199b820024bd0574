"""Jobs: start them, watch them, stop them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from client import tables
from client.api import Ratchet
from client.command_name import command_name
from client.commands.connection import AsJson, JobId, Limit, console, print_json, print_list, print_table, watch
from client.commands.training_options import accepts_training_options, given
from client.follow import PlainView, view_for
from core.checkpoints.resume_rules import ResumeMode
from core.events import line_of, printable

app = typer.Typer()

NUM_SHOWN_STEPS = 20
"""Of a curve, for a person at a terminal."""

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Watch it until it has ended.")]
Name = Annotated[str | None, typer.Option(help="What to call the job.", show_default=False)]


@app.command()
@accepts_training_options(without={"source"})
def train(
    source: Annotated[str | None, typer.Argument(help="Training text, under the sources root.")] = None,
    name: Name = None,
    priority: Annotated[int | None, typer.Option(help="Higher goes first.", show_default="0")] = None,
    follow: Follow = False,
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Start a fresh run."""
    with Ratchet() as api:
        job = api.train(**given({"source": source, "name": name, "priority": priority, **settings}))
        _show_started(api, job, follow, as_json)


@app.command()
@accepts_training_options()
def resume(
    ref: Annotated[str, typer.Argument(help="A checkpoint's id or name, or a job's id.", show_default=False)],
    mode: Annotated[ResumeMode | None, typer.Option(help="What may differ from before.", show_default="extend")] = None,
    name: Name = None,
    follow: Follow = False,
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Go on from a checkpoint, or with a paused or finished job.

    --training-steps counts the updates to add.
    """
    with Ratchet() as api:
        job = api.resume(ref, **given({"mode": mode, "name": name, **settings}))
        _show_started(api, job, follow, as_json)


@app.command()
def jobs(
    state: Annotated[str | None, typer.Option(help="Only those in this state.", show_default=False)] = None,
    source: Annotated[str | None, typer.Option(help="Only those on this text.", show_default=False)] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with Ratchet() as api:
        found = api.jobs(limit=limit, state=state, source=source)
    print_list(found, as_json, tables.jobs, f"There are no jobs. Start one with: {command_name()} train -f")


@app.command()
def logs(job: JobId, follow: Follow = False, as_json: AsJson = False) -> None:
    """Print what a job has said; with -f, go on until it has ended.

    --json prints every event, one a line.
    """
    with Ratchet() as api:
        if follow and not as_json:
            watch(api, api.job(job), PlainView(console()))
            return
        for event in api.events(job) if follow else api.recorded_events(job):
            line = tables.event_line(event) if as_json else line_of(event.kind, event.data)
            if line is not None:
                typer.echo(line if as_json else printable(line))


@app.command()
def metrics(
    job: JobId,
    points: Annotated[int | None, typer.Option(help="How many steps at most.", show_default=False)] = None,
    lineage: Annotated[bool, typer.Option("--lineage", help="Also the runs that it went on from.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for a spreadsheet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a job's loss by step."""
    with Ratchet() as api:
        if as_csv:
            typer.echo(api.metrics_csv(job, points=points, lineage=lineage), nl=False)
        elif as_json:
            print_json(api.metrics(job, points=points, lineage=lineage))
        elif steps := api.metrics(job, points=points or NUM_SHOWN_STEPS, lineage=lineage)["points"]:
            print_table(tables.steps, steps)
        else:
            typer.echo(f"Job {job} has made no step yet.")


@app.command()
def pause(job: JobId, as_json: AsJson = False) -> None:
    """Stop a job at its next step, with a checkpoint to go on from."""
    with Ratchet() as api:
        _show_asked(api.pause(job), "paused", as_json)


@app.command()
def cancel(job: JobId, as_json: AsJson = False) -> None:
    """Stop a job for good. Its final checkpoint is kept."""
    with Ratchet() as api:
        _show_asked(api.cancel(job), "cancelled", as_json)


def _show_started(api: Ratchet, job: dict[str, Any], follow: bool, as_json: bool) -> None:
    if as_json:
        print_json(job)
    else:
        typer.echo(f"Job {job['id']} ({job['name']}) is {job['state']}.", err=follow)
        for change in job.get("diff") or []:
            typer.echo(f"  {change['field']}: {change['before']} → {change['after']}", err=follow)
    if follow:
        watch(api, job, view_for(console(), job))
    elif not as_json:
        typer.echo(f"Watch it with: {command_name()} logs -f {job['id']}")


def _show_asked(job: dict[str, Any], wanted: str, as_json: bool) -> None:
    if as_json:
        print_json(job)
    elif job["state"] == wanted:
        typer.echo(f"Job {job['id']} is {wanted}.")
    else:
        typer.echo(f"Job {job['id']} is {job['state']}; it will be {wanted} at its next step.")
