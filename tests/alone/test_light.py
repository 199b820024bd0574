from __future__ import annotations

import subprocess
import sys
import time

from jobs.settings import PROJECT

BARE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "peft", "numpy", "safetensors", "worker"}:
            raise ImportError(f"{name} is not for the service")
sys.meta_path.insert(0, Refuse())
import service.app, service.server
"""


def seconds_to_import() -> float:
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", BARE], cwd=PROJECT, check=True)
    return time.monotonic() - begun


def test_the_service_starts_fast_and_without_what_trains() -> None:
    # The best of three: what else the machine does is not the service's doing.
    assert any(seconds_to_import() < 1.5 for _ in range(3))
