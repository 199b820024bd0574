"""What training has left behind, and what it writes."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from client import tables, wording
from client.api import Ratchet
from client.commands.connection import AsJson, Limit, latest_checkpoint, print_json, print_table
from client.commands.training_options import given
from core.events import printable

app = typer.Typer()


@app.command()
def checkpoints(
    job: Annotated[str | None, typer.Option(help="Only those of this job.", show_default=False)] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List checkpoints, newest first."""
    with Ratchet() as api:
        found = api.checkpoints(limit=limit, job=job)
    if as_json:
        print_json(found)
    elif found:
        print_table(tables.checkpoints, found)
    else:
        typer.echo("There are no checkpoints yet.")


@app.command()
def download(
    ref: Annotated[str, typer.Argument(help="A checkpoint's id or name, or a job's id.", show_default=False)],
    to: Annotated[Path, typer.Option(help="The folder to put it into.")] = Path(),
) -> None:
    """Fetch a checkpoint: a folder that is whole, or nothing.

    Prints where it is, which is what CHECKPOINT_PATH takes.
    """
    with Ratchet() as api:
        typer.echo(api.download(latest_checkpoint(api, ref), to))


@app.command()
def generate(
    ref: Annotated[str, typer.Argument(help="A checkpoint's id or name, or a job's id.", show_default=False)],
    prompt: Annotated[str, typer.Argument(help="The text to go on from.", show_default=False)],
    stream: Annotated[bool, typer.Option(help="Print each token as it comes.")] = True,
    max_new_tokens: Annotated[int | None, typer.Option(help="Stop after this many.", show_default=False)] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.", show_default=False)] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from this many tokens.", show_default=False)] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from this much probability.", show_default=False)] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 avoids echoes.", show_default=False)] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; repeatable.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same text.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Let a checkpoint write on from a prompt."""
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    settings = given({**sampling, "repetition_penalty": repetition_penalty, "stop": stop, "seed": seed})
    with Ratchet() as api:
        checkpoint = latest_checkpoint(api, ref)
        if as_json:
            print_json(api.generate(checkpoint, prompt, **settings))
        elif stream:
            _write(token.text for token in api.generate_stream(checkpoint, prompt, **settings))
        else:
            _write(choice["text"] for choice in api.generate(checkpoint, prompt, **settings)["choices"])


@app.command()
def export(
    ref: Annotated[str, typer.Argument(help="A checkpoint's id or name, or a job's id.", show_default=False)],
    merge: Annotated[bool, typer.Option("--merge", help="Add adapters to their base.")] = False,
    name: Annotated[str | None, typer.Option(help="Of the folder.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder below the models root."""
    with Ratchet() as api:
        done = api.export(latest_checkpoint(api, ref), **given({"name": name, "merge": merge}))
    if as_json:
        print_json(done)
        return
    what = "PEFT adapter" if done["kind"] == "adapter" else "model"
    typer.echo(f"The {what} {done['name']} ({wording.size(done['size_bytes'])}) is below the models root.")


def _write(pieces: Iterable[str]) -> None:
    """A file gets the text as it is; a terminal would obey its control characters."""
    show = printable if sys.stdout.isatty() else str
    for piece in pieces:
        typer.echo(show(piece), nl=False)
    typer.echo()
