"""Command-line options for every hyperparameter, made from `core.config.TrainingConfig` itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, Optional, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from core.config import TrainingConfig

PANEL = "Training settings, with the defaults of a from-scratch run"


def accepts_training_options(without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command that ends in `**settings` one option per hyperparameter; those not given arrive as None."""

    def extend(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        parameters = [item for item in own.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
        fields = TrainingConfig.model_fields
        generated = [_parameter(name, field) for name, field in fields.items() if name not in without]
        # Typer reads a command's options from its signature, and so takes these for written ones.
        command.__signature__ = own.replace(parameters=[*parameters, *generated])  # type: ignore[attr-defined]  # on any function
        return command

    return extend


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that were on the command line; the service chooses the others."""
    return {name: value for name, value in settings.items() if value is not None}


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    option = typer.Option(
        *_flags(name, field),
        help=(field.description or "").replace("`", ""),
        show_default=False if field.default is PydanticUndefined else str(field.default),
        rich_help_panel=PANEL,
    )
    # Optional[…], since the annotation is a value here, which no type checker can read, and `type | None` would not
    # accept every one of them.
    annotation = Annotated[Optional[_typed(field)], option]  # type: ignore[valid-type]  # noqa: UP045
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _typed(field: FieldInfo) -> Any:
    """Lists and tables are JSON on a command line, which the service reads."""
    is_plain = field.annotation in (bool, int, float, str) or get_origin(field.annotation) is Literal
    if is_plain or field.annotation in (float | None, int | None):
        return field.annotation
    return str


def _flags(name: str, field: FieldInfo) -> tuple[str, ...]:
    flag = name.replace("_", "-")
    return (f"--{flag}/--no-{flag}",) if field.annotation is bool else (f"--{flag}",)
