"""What is there to work with, and who works."""

from __future__ import annotations

from typing import Any

import typer

from client import tables
from client.api import Ratchet
from client.command_name import command_name
from client.commands.connection import AsJson, print_json, print_table
from client.errors import NOT_RATCHET, ApiError

app = typer.Typer()

NUM_RECENT_JOBS = 5


@app.command()
def status(as_json: AsJson = False) -> None:
    """Say whether the service is ready, who works, and what was asked of it lately."""
    with Ratchet() as api:
        health = _health(api)
        workers, recent = api.workers(), api.jobs(limit=NUM_RECENT_JOBS)
    if as_json:
        print_json({"url": api.url, "health": health, "workers": workers, "jobs": recent})
        return
    typer.echo(f"Ratchet at {api.url} is {health['status']}.")
    if workers:
        print_table(tables.workers, workers)
    else:
        typer.echo(f"No worker is there; jobs wait. Start one with: {command_name()} work")
    if recent:
        print_table(tables.jobs, recent)


def _health(api: Ratchet) -> dict[str, Any]:
    """An unready service still answers; what it says about that is the status."""
    try:
        return {**api.health(), "status": "ready"}
    except ApiError as error:
        if error.code == NOT_RATCHET:
            raise
        return {"status": f"not ready: {error.message}"}
