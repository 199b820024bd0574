"""How commands reach the service and a person."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from client.api import Ratchet
from client.command_name import command_name
from client.errors import ClientError
from client.follow import View, announce_rest, follow
from client.tables import Row

PIPE_WIDTH = 200

EXIT_INTERRUPTED = 130

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for a program.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.", show_default=False)]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="How many, newest first.")]


def console() -> Console:
    """Standard output. Nobody wraps a table for a pipe, so there it has room."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def print_json(value: Any) -> None:
    """Indented JSON on standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(table: Callable[[Sequence[Row], int], Table], items: Sequence[Row]) -> None:
    """A list, in as many columns as there is room for."""
    out = console()
    out.print(table(items, out.width))


def print_list(found: Sequence[Row], as_json: bool, table: Callable[[Sequence[Row], int], Table], nothing: str) -> None:
    """A list as JSON or as a table; `nothing` is what to say of an empty one."""
    if as_json:
        print_json(found)
    elif found:
        print_table(table, found)
    else:
        typer.echo(nothing)


def watch(api: Ratchet, job: dict[str, Any], view: View) -> None:
    """Follow a job to its rest. Ctrl-C leaves the job alone."""
    try:
        announce_rest(console(), follow(api, job, view))
    except KeyboardInterrupt:
        again = f"{command_name()} logs -f {job['id']}"
        typer.echo(f"\nJob {job['id']} goes on without you. Come back with: {again}", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def latest_checkpoint(api: Ratchet, ref: str) -> str:
    """The checkpoint that `ref` means: itself, or the latest one of the job it names."""
    if not ref.startswith("job_") or ref.endswith(":best"):
        return ref
    checkpoint = api.job(ref)["checkpoint"]
    if checkpoint is None:
        raise ClientError(f"Job {ref} has no checkpoint yet.")
    return str(checkpoint)
