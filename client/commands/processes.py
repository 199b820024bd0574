"""Run the service and its workers on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from client.up import SERVICE, WORKER, Household, Up

app = typer.Typer()

PANEL = "Places"

Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on.", show_default="8000")]
Data = Annotated[
    Path | None, typer.Option(help="Folder of the ledger.", show_default="ratchet-data", rich_help_panel=PANEL)
]
Sources = Annotated[
    Path | None, typer.Option(help="Root of the training texts.", show_default="sources", rich_help_panel=PANEL)
]
Checkpoints = Annotated[
    Path | None,
    typer.Option(
        help="Root of the checkpoints.",
        show_default="checkpoints in the data folder if that is given",
        rich_help_panel=PANEL,
    ),
]
Models = Annotated[
    Path | None, typer.Option(help="Root of the base models.", show_default="models", rich_help_panel=PANEL)
]
Workers = Annotated[int, typer.Option(min=1, max=64, help="How many jobs train at a time.")]


@app.command()
def up(
    host: Host = None,
    port: Port = None,
    data: Data = None,
    sources: Sources = None,
    checkpoints: Checkpoints = None,
    models: Models = None,
    workers: Workers = 1,
) -> None:
    """Run the service and its workers until Ctrl-C.

    A second Ctrl-C does not wait for them.
    """
    environment = _listening(host, port) | _places(data, sources, checkpoints, models)
    household = Household(num_workers=workers, environment=environment)
    raise typer.Exit(Up(household, say=lambda line: typer.echo(line, err=True)).run())


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    data: Data = None,
    sources: Sources = None,
    checkpoints: Checkpoints = None,
    models: Models = None,
) -> None:
    """Run the service alone."""
    _become(SERVICE, _listening(host, port) | _places(data, sources, checkpoints, models))


@app.command()
def work(
    data: Data = None,
    sources: Sources = None,
    checkpoints: Checkpoints = None,
    models: Models = None,
) -> None:
    """Run one worker alone, on the same folders as its service."""
    _become(WORKER, _places(data, sources, checkpoints, models))


def _listening(host: str | None, port: int | None) -> dict[str, str]:
    return _told(RATCHET_HOST=host, RATCHET_PORT=port)


def _places(data: Path | None, sources: Path | None, checkpoints: Path | None, models: Path | None) -> dict[str, str]:
    return _told(RATCHET_DATA=data, RATCHET_SOURCES=sources, RATCHET_CHECKPOINTS=checkpoints, RATCHET_MODELS=models)


def _told(**settings: object) -> dict[str, str]:
    """What was not said on the command line is left to the environment and its `.env` file."""
    return {name: str(value) for name, value in settings.items() if value is not None}


def _become(command: Sequence[str], environment: dict[str, str]) -> NoReturn:
    os.execve(command[0], list(command), {**os.environ, **environment})
