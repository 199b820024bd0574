"""Training texts at hand."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from core.errors import SourceError
from core.sources import SourceFolder
from service.deps import Settings
from service.schemas import Page, SourceOut

router = APIRouter(tags=["sources"])


@router.get("/sources")
def list_sources(settings: Settings) -> Page[SourceOut]:
    """The texts under the sources root; one that cannot be used says why."""
    folder = SourceFolder(settings.sources)
    return Page(data=[_facts(folder, name) for name in folder.names()])


def _facts(folder: SourceFolder, name: str) -> SourceOut:
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode()
        return SourceOut(name=shown, error="the file's name is not UTF-8; rename it")
    try:
        return SourceOut(name=name, **asdict(folder.inspect(name)))
    except SourceError as error:
        return SourceOut(name=name, error=error.message)
