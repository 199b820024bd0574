"""What a run would do, and what it would see, before it begins."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client import wording
from client.api import Ratchet
from client.commands.connection import AsJson, console, print_json
from client.commands.training_options import accepts_training_options, given
from core.config import TrainingConfig
from core.events import printable

app = typer.Typer()

PREVIEWED = {
    *("model_type", "base_model", "tokenizer", "bpe_vocab_size"),
    *("block_size", "batch_size", "method", "columns", "packing", "seed"),
}
"""Settings that change what is in a batch."""

LEARNT, READ, PADDING = "green", "dim", "dim italic"

Source = Annotated[str | None, typer.Argument(help="Training text, under the sources root.")]


@app.command()
@accepts_training_options(without={"source"})
def preflight(
    source: Source = None,
    time: Annotated[bool, typer.Option("--time", help="Try three updates, to say how long the run takes.")] = False,
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Say what a run would do, and what to think over; starts nothing."""
    with Ratchet() as api:
        found = api.preflight(time=time, **given({"source": source, **settings}))
    if as_json:
        print_json(found)
        return
    out = console()
    out.print(_facts(found))
    for skipped in found["skipped_rows"]:
        _tell_skipped(skipped)
    for warning in found["warnings"]:
        out.print(Text(f"⚠️  {printable(warning)}", style="yellow"), soft_wrap=True)


@app.command()
@accepts_training_options(without={"source", *(TrainingConfig.model_fields.keys() - PREVIEWED)})
def preview(
    source: Annotated[str, typer.Argument(help="Training text, under the sources root.", show_default=False)],
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Show the first batch of a run on a source as the model would see it: what is learnt, and what only read."""
    with Ratchet() as api:
        found = api.preview(source, **given(settings))
    if as_json:
        print_json(found)
        return
    out = console()
    for number, row in enumerate(found["rows"]):
        _show_row(out, number, row)
    hidden = found["num_rows"] - len(found["rows"])
    if hidden > 0:
        out.print(Text(f"… and {hidden:,} more rows", style=READ))
    out.print(_legend(out, found))
    for warning in found["warnings"]:
        out.print(Text(f"⚠️  {printable(warning)}", style="yellow"), soft_wrap=True)


def _facts(found: dict[str, Any]) -> Table:
    memory = found["memory_bytes"] or {}
    about = "about " if found["is_estimate"] else ""
    table = Table.grid(padding=(0, 2))
    rows = {
        "method": found["method"],
        "tokens": f"{about}{wording.rate(found['num_train_tokens'])} to learn from, "
        f"{wording.rate(found['num_val_tokens'])} to validate with",
        "examples": about + wording.rate(found["num_examples"]) if found["num_examples"] is not None else None,
        "steps": f"{wording.rate(found['training_steps'])} of {found['tokens_per_step']:,} tokens each",
        "epochs": f"{_number(found['num_epochs'])}, of {wording.rate(found['steps_per_epoch'])} steps each",
        "parameters": f"{wording.rate(found['num_parameters'])}, {wording.rate(found['num_trainable'])} of them train",
        "memory": f"about {wording.size(memory.get('total'))} of the {wording.size(found['memory_at_hand_bytes'])} "
        f"at hand on {found['device'] or 'no device yet'}",
        "time": f"about {wording.duration(found['seconds'])}, {wording.small(found['seconds_per_step'])} s a step"
        if found["seconds"] is not None
        else None,
    }
    for name, said in rows.items():
        if said is not None:
            table.add_row(Text(name, style="bold"), Text(printable(said)))
    return table


def _number(value: float | None) -> str:
    return wording.MISSING if value is None else f"{value:,.1f}"


def _tell_skipped(skipped: dict[str, Any]) -> None:
    if not skipped["num"]:
        return
    typer.echo(printable(f"{skipped['num']:,} rows of {skipped['source']} cannot be used, and are left out:"))
    for row in skipped["first"]:
        typer.echo(printable(f"  {skipped['place']} {row['number']} {row['reason']}"))


def _show_row(out: Console, number: int, row: dict[str, Any]) -> None:
    """A row as it is: where another example begins in it, a line says so."""
    kind = f" ({row['answer']} answer)" if row["answer"] else ""
    out.print(Text(f"── row {number + 1}{kind} ──", style=PADDING))
    text, example = Text(), 0
    for piece in row["pieces"]:
        if piece["example"] != example:
            text.append("\n── another example ──\n", style=PADDING)
            example = piece["example"]
        said = "\n".join(map(printable, piece["text"].split("\n")))
        text.append(_marked(out, said) if piece["learnt"] else said, style=LEARNT if piece["learnt"] else READ)
    if row["is_cut"]:
        text.append("…", style=READ)
    if row["padding"]:
        text.append(f"[padding × {row['padding']}]", style=PADDING)
    out.print(text, soft_wrap=True)


def _marked(out: Console, learnt: str) -> str:
    """Where there are no colours, marks say it."""
    return learnt if out.color_system else f"⟦{learnt}⟧"


def _legend(out: Console, found: dict[str, Any]) -> Text:
    text = Text(f"{found['num_tokens']:,} tokens in {found['num_rows']:,} rows of {found['row_length']:,}: ")
    text.append(_marked(out, f"{found['num_learnt']:,} learnt"), style=LEARNT)
    text.append(f", {found['num_tokens'] - found['num_learnt']:,} only read", style=READ)
    text.append(f", {found['num_padding']:,} more are padding", style=PADDING)
    return text
