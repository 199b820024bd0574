"""Documents that cannot lie: what they show is what is there."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tools.reference import PAGES

README = (PROJECT / "README.md").read_text()
MARKDOWN = [*sorted(PROJECT.glob("docs/**/*.md")), PROJECT / "README.md", PROJECT / "CHANGELOG.md"]


def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True)
    return set(listed.stdout.split("\n"))


def shown_tree() -> dict[str, str]:
    (block,) = re.findall(r"## What is where\n\n```text\n(.*?)```", README, re.DOTALL)
    return dict(line.split(maxsplit=1) for line in block.splitlines())


def test_the_tree_shows_what_is_there() -> None:
    for name in shown_tree():
        path = PROJECT / name
        assert path.is_dir() if name.endswith("/") else path.is_file(), name


def test_the_tree_leaves_nothing_out_that_a_newcomer_would_look_for() -> None:
    top = {name.split("/")[0] + ("/" if "/" in name else "") for name in tracked() if name}
    quiet = {".ci/", ".dockerignore", ".gitignore", "CHANGELOG.md", "README.md"}
    assert top - quiet == set(shown_tree())


@pytest.mark.parametrize("name", list(PAGES))
def test_a_reference_page_is_what_the_code_says(name: str) -> None:
    assert (PROJECT / name).read_text() == PAGES[name](), "run make docs"


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_every_promise_about_faults_has_a_test() -> None:
    rows = re.findall(r"(?m)^\| (?!what happens|---).*$", (PROJECT / "docs/faults.md").read_text())
    told = {row: set(re.findall(r"`(test_\w+)`", row)) for row in rows}
    there = {
        name for path in PROJECT.glob("tests/**/test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert [row for row, names in told.items() if not names] == []
    assert set().union(*told.values()) - there == set()


def test_every_package_that_is_needed_has_its_reason() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["worker"]
    names = {re.split(r"[<>=\[]", item)[0] for item in needed}
    told = {name.strip() for row in re.findall(r"(?m)^\| ([^|]+) \|", README) for name in row.split(",")}
    assert names <= told


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.search(r"@[A-Z]+@|TODO|TBD", README)


def test_the_first_screen_has_the_two_commands() -> None:
    first_screen = README[:900]
    assert "$ make demo" in first_screen
    assert "$ make test" in README[:2800]
