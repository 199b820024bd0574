"""The models that a run can start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client import tables
from client.api import Ratchet
from client.command_name import command_name
from client.commands.connection import AsJson, print_list
from client.errors import ClientError
from client.small_models import SMALL_MODELS, Places, add

app = typer.Typer(help="List the base models at hand, or add one.")


@app.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the base models at hand, or add one."""
    if context.invoked_subcommand is not None:
        return
    with Ratchet() as api:
        found = api.models()
    nothing = f"There are no base models yet. A small real one comes with: {command_name()} models add smollm2"
    print_list(found, as_json, tables.models, nothing)


@app.command(name="add")
def add_model(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(SMALL_MODELS)}.", show_default=False)],
    models: Annotated[
        Path | None, typer.Option(help="Root of the base models.", show_default="RATCHET_MODELS, else models")
    ] = None,
) -> None:
    """Fetch a small model and lay it below the models root.

    Works on this machine's folders, without the service; a run then takes it as its base_model.
    """
    if name not in SMALL_MODELS:
        raise ClientError(f"There is no model '{name}' to be added; there is: {', '.join(SMALL_MODELS)}.")
    root = (models or Places().models).absolute()
    if not add(SMALL_MODELS[name], root, lambda line: typer.echo(line, err=True)):
        typer.echo(f"The model {name} is below {root} already.")
        return
    typer.echo(f"The model {name} is below {root}. Its weights are {SMALL_MODELS[name].origin}.")
    typer.echo(f"Train it with: {command_name()} train --model-type causal_lm --base-model {name} --use-lora")
