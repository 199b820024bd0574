"""Command line of the builder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.build_source.compose import compose

SOURCE = Path(__file__).resolve().parents[2] / "sources" / "training_data_final_merged.md"


def differs(path: Path, text: str) -> bool:
    """Return whether the file is missing or holds anything but this text."""
    return not path.is_file() or path.read_bytes() != text.encode("ascii")


def main(arguments: Sequence[str] | None = None, path: Path = SOURCE) -> int:
    """Write the file, or with --check only compare it, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.build_source", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare without writing")
    options = parser.parse_args(arguments)
    text = compose().text
    if not options.check:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("ascii"))
        return 0
    if differs(path, text):
        sys.stdout.write(f"{path.name} differs from what python -m tools.build_source makes.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
