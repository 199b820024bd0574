"""Training data: what there is, what comes, what goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from client import tables, wording
from client.api import Ratchet
from client.command_name import command_name
from client.commands.connection import AsJson, print_json, print_list
from client.errors import ApiError
from core.events import printable

app = typer.Typer(help="List training data; add, show or remove some.", invoke_without_command=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A source's name.", show_default=False)]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column", metavar="FIELD=NAME", help="What a field is called in this file, as text=body; repeatable."
    ),
]

Tokenizer = Annotated[
    str | None,
    typer.Option(
        metavar="REF",
        help="Count tokens, too: 'characters', a base model's name, or a checkpoint's id or name.",
        show_default=False,
    ),
]


@app.callback()
def list_sources(context: typer.Context, tokenizer: Tokenizer = None, as_json: AsJson = False) -> None:
    """List training data; add, show or remove some."""
    if context.invoked_subcommand is not None:
        return
    with Ratchet() as api:
        found = api.sources(tokenizer=tokenizer)
    table = tables.sources if tokenizer is None else _with_tokens
    print_list(found, as_json, table, f"There are no sources. Add one with: {command_name()} sources add FILE")


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="UTF-8 text, .jsonl, .csv, .tsv or .parquet.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="By default the file's own.", show_default=False)] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace one of that name.")] = False,
    column: Columns = None,
    as_json: AsJson = False,
) -> None:
    """Send a file to the service as a source: all of it, or nothing if no row can be used."""
    columns = _columns(column)
    with Ratchet() as api, _progress(file) as show:
        try:
            found = api.upload_source(file, name, replace=replace, columns=columns, on_progress=show)
        except ApiError as error:
            if error.code != "source_exists":
                raise
            raise ApiError(error.status, error.code, f"{error.message}; --replace does so.", error.problems) from None
    print_json(found) if as_json else _tell(found)


@app.command()
def show(name: Name, column: Columns = None, tokenizer: Tokenizer = None, as_json: AsJson = False) -> None:
    """Say what is in a source, and which rows of it cannot be used."""
    with Ratchet() as api:
        found = api.source(name, tokenizer=tokenizer, **_columns(column))
    print_json(found) if as_json else _tell(found)


@app.command()
def rm(name: Name) -> None:
    """Remove a source, unless an unfinished job needs it."""
    with Ratchet() as api:
        api.delete_source(name)
    typer.echo(f"Source {name} is gone.")


def _columns(given: list[str] | None) -> dict[str, str]:
    pairs = [item.partition("=") for item in given or ()]
    for field, equals, name in pairs:
        if not field or not equals or not name:
            raise typer.BadParameter(f"{field!r} is not of the form FIELD=NAME, such as text=body")
    return {field: name for field, _, name in pairs}


def _tell(found: dict[str, Any]) -> None:
    if found["error"] is not None:
        typer.echo(printable(found["error"]))
    else:
        size, characters = wording.size(found["size_bytes"]), wording.rate(found["num_characters"])
        rows = f"{wording.rows(found)} rows" if found["format"] != "text" else "text"
        tokens = f", {_tokens(found)} tokens" if found.get("num_tokens") is not None else ""
        typer.echo(printable(f"{found['name']}: {rows}, {characters} characters{tokens}, {size}"))
    if found["num_bad_rows"]:
        typer.echo(f"{found['num_bad_rows']:,} cannot be used, and are left out:")
    place = "row" if found["format"] == "parquet" else "line"
    for row in found["bad_rows"]:
        typer.echo(printable(f"  {place} {row['number']} {row['reason']}"))


def _with_tokens(items: Sequence[tables.Row], width: int) -> Table:
    """Training data with the tokens that were asked for."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("source", "rows", "tokens", "size", "problem"):
        table.add_column(heading, no_wrap=True)
    for item in items:
        cells = (item["name"], wording.rows(item), _tokens(item), wording.size(item["size_bytes"]), item["error"] or "")
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _tokens(item: tables.Row) -> str:
    return ("about " if item.get("is_estimate") else "") + wording.rate(item.get("num_tokens"))


@contextmanager
def _progress(file: Path) -> Iterator[Callable[[int], object]]:
    """A line on standard error that a terminal alone gets, and that is gone at the end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        size_bytes = file.stat().st_size if file.is_file() else None
        task = progress.add_task(printable(file.name), total=size_bytes)

        def sent(num_bytes: int) -> None:
            # The service reads it all once more before it answers.
            said = "reading" if num_bytes == size_bytes else printable(file.name)
            progress.update(task, completed=num_bytes, description=said)

        yield sent
