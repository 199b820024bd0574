"""Which checkpoints stay."""

from __future__ import annotations

from typing import Annotated

import typer

from client.api import Ratchet
from client.commands.connection import AsJson, print_json

app = typer.Typer()

Ref = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's id or name.", show_default=False)]


@app.command()
def pin(ref: Ref, as_json: AsJson = False) -> None:
    """Keep a checkpoint, whatever comes after it."""
    with Ratchet() as api:
        found = api.pin(ref)
    print_json(found) if as_json else typer.echo(f"Checkpoint {found['id']} stays until it is unpinned.")


@app.command()
def unpin(ref: Ref, as_json: AsJson = False) -> None:
    """Let a pinned checkpoint go when newer ones supersede it."""
    with Ratchet() as api:
        found = api.unpin(ref)
    print_json(found) if as_json else typer.echo(f"Checkpoint {found['id']} is not pinned.")


@app.command()
def rm(ref: Ref) -> None:
    """Remove a checkpoint for good, unless it is pinned or an unfinished job needs it."""
    with Ratchet() as api:
        api.delete_checkpoint(ref)
    typer.echo(f"Checkpoint {ref} is gone.")
