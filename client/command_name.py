"""How this command is called, so that a hint can be typed as it stands."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def command_name() -> str:
    """`ratchet`, unless a shell here would not find it by that name: then as it was started."""
    started = Path(sys.argv[0])
    if started.resolve() == Path(__file__).with_name("__main__.py"):
        return f"{shlex.quote(sys.orig_argv[0])} -m {started.parent.name}"
    if started.name != "ratchet":
        return "ratchet"  # Another program's, such as the tour's.
    found = shutil.which("ratchet")
    is_on_path = found is not None and Path(found).resolve() == started.resolve()
    return "ratchet" if is_on_path else shlex.quote(sys.argv[0])
