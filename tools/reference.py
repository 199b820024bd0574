"""Writes the reference pages from the code: `python -m tools.reference`, or `--check` to compare what is committed.

`docs/settings.md` has every setting with its variable, default, bounds and the resume modes that may change it;
`docs/api.md` has every route.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from core.checkpoints.resume_rules import ResumeMode, may_change
from core.config import DEFAULTS, ENVIRONMENT, ScriptConfig, TrainingConfig
from jobs.settings import PROJECT, LedgerSettings
from service.app import create_app
from service.settings import ServiceSettings
from worker.settings import WorkerSettings

SETTINGS_INTRO = """# Settings

Written by `make docs` from the code; change it there.

## Of a run

A script reads the variable; a request has the same setting under the name in the third column. `TRAINING_STEPS` on a
resume is `RESUME_STEPS`, `resume_steps` in a request. The column before the last says in which resume modes a setting
may differ from the checkpoint's: e `exact`, x `extend`, w `warm_start` (`RESUME_MODE`, `mode` in a request).

| variable | default | in a request | bounds | may change | |
| --- | --- | --- | --- | --- | --- |
"""

ALONE = """| `CHECKPOINT_PATH` | | | | | Resume from this: a folder, a `.pt` file, or a name below `CHECKPOINT_DIR`. |
| `RESUME_STEPS` | what is left, or all again | `resume_steps` | | | How many more updates a resume makes. |
| `RESUME_MODE` | `extend` | `mode` | | | `exact`, `extend` or `warm_start`. |
"""

DEFAULTS_INTRO = """
### Defaults that depend on the kind of run

| `MODEL_TYPE` | `TEST_MODE` | {names} |
| --- | --- | {rule} |
"""

DEFAULTS_NOTE = """
Pretrained models have their own three sizes. `LEARNING_RATE` is 0.001 from scratch, 3e-05 for pretrained models, 0.0002
for those with LoRA. `WARMUP_STEPS` is a tenth of the run, at most 100.
"""


API_INTRO = """# HTTP API

Written by `make docs` from the code. A running service has the whole schema at `/openapi.json`, and for people at
`/docs`.

| route | does |
| --- | --- |
"""

TABLE_INTRO = """
## {title}

Also from a `.env` file in the current folder.

| variable | default | |
| --- | --- | --- |
"""


def settings_page() -> str:
    """The page of all settings."""
    rows = [_training_row(variable, name) for variable, name in ENVIRONMENT.items()]
    kinds = [
        f"| `{kind}` | `{test}` | {' | '.join(str(value) for value in values.values())} |"
        for (kind, test), values in DEFAULTS.items()
    ]
    names = list(next(iter(DEFAULTS.values())))
    head = DEFAULTS_INTRO.format(names=" | ".join(names), rule=" | ".join("---" for _ in names))
    parts = [SETTINGS_INTRO, *(f"{row}\n" for row in rows), ALONE, head, *(f"{row}\n" for row in kinds), DEFAULTS_NOTE]
    return "".join([*parts, *_process_tables()])


def api_page() -> str:
    """The page of all routes."""
    schema = create_app(ServiceSettings(_env_file=None)).openapi()
    lines = [API_INTRO]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            first = (operation.get("description") or operation["summary"]).split("\n\n")[0].replace("\n", " ")
            lines.append(f"| `{method.upper()} {path}` | {first.replace('|', ',')} |\n")
    return "".join(lines)


PAGES = {"docs/settings.md": settings_page, "docs/api.md": api_page}


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` say which are not what the code says."""
    stale = []
    for name, page in PAGES.items():
        path = PROJECT / name
        if "--check" not in arguments:
            path.write_text(page(), encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != page():
            stale.append(name)
    if stale:
        sys.stderr.write(f"{', '.join(stale)}: not what the code says; run make docs\n")
    return 1 if stale else 0


def _training_row(variable: str, name: str) -> str:
    field = ScriptConfig.model_fields[name]
    in_request = f"`{name}`" if name in TrainingConfig.model_fields else ""
    modes = "".join(
        letter for letter, mode in zip("exw", ResumeMode, strict=True) if in_request and may_change(name, mode)
    )
    default = f"sources/{field.default}" if name == "source" else _shown(field.default)
    told = [
        default if name not in _chosen() else "see below",
        in_request,
        _bounds(field),
        modes,
        field.description or "",
    ]
    return f"| `{variable}` | {' | '.join(told)} |"


def _chosen() -> set[str]:
    return {"learning_rate", "warmup_steps", *next(iter(DEFAULTS.values()))}


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {getattr(item, name):g}"
        for item in field.metadata
        for name, sign in signs.items()
        if hasattr(item, name)
    ]
    return ", ".join(found)


def _process_tables() -> Iterator[str]:
    shared = LedgerSettings.model_fields
    yield _table("Of service and worker", LedgerSettings, shared)
    for title, kind in (("Of the service", ServiceSettings), ("Of a worker", WorkerSettings)):
        yield _table(title, kind, {name: field for name, field in kind.model_fields.items() if name not in shared})


def _table(title: str, kind: type[BaseSettings], fields: dict[str, FieldInfo]) -> str:
    rows = [TABLE_INTRO.format(title=title)]
    for name, field in fields.items():
        variable = f"RATCHET_{name.upper()}"
        alias = ", also `BASE_MODEL`" if name == "base_model" else ""
        rows.append(f"| `{variable}`{alias} | {_shown(field.default)} | {field.description} |\n")
    return "".join(rows)


def _shown(default: Any) -> str:
    if isinstance(default, Path):
        return f"`{default.relative_to(PROJECT)}`" if default.is_relative_to(PROJECT) else f"`{default}`"
    if default in (None, "", (), PydanticUndefined):
        return ""
    return f"`{default}`"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
