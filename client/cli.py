"""The `ratchet` command.

Exit codes: 0 it worked · 1 the job failed or the service refused · 2 usage or settings · 3 nobody answers · 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from client.command_name import command_name
from client.commands import bases, forecasts, keeping, models, overview, processes, runs, sources
from client.errors import ApiError, ClientError, ServiceUnreachable, UnusableSetting

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3

app = typer.Typer(
    help="Train language models on your own machine; nothing a run has learned is ever lost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for part in (processes, runs, forecasts, models, keeping, overview):
    app.registered_commands += part.app.registered_commands
app.add_typer(sources.app, name="sources")
app.add_typer(bases.app, name="models")


def _installed_version() -> str:
    try:
        return version("ratchet")
    except PackageNotFoundError:
        return "(a checkout that is not installed)"


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ratchet {_installed_version()}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The options that need no command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; always leaves by SystemExit."""
    try:
        app(args=arguments, prog_name="ratchet")
    except ServiceUnreachable as error:
        typer.echo(f"{error.message} Start the service with: {command_name()} up", err=True)
        sys.exit(EXIT_UNREACHABLE)
    except UnusableSetting as error:
        typer.echo(error.message, err=True)
        sys.exit(EXIT_USAGE)
    except ClientError as error:
        typer.echo(spoken(error), err=True)
        sys.exit(EXIT_REFUSED)


def spoken(error: ClientError) -> str:
    """One sentence, and under it each refused setting that it does not name."""
    if not isinstance(error, ApiError):
        return error.message
    if error.status == HTTPStatus.UNAUTHORIZED:
        return f"{error.message} Set RATCHET_API_KEY."
    left_out = [f"  {field}: {said}" for field, said in error.problems if field not in error.message]
    return "\n".join([error.message, *left_out])


if __name__ == "__main__":
    main()
