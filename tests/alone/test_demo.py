"""The tour of the README, as `make demo` takes it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import PROJECT


def test_the_tour_trains_resumes_and_answers_within_ninety_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "client.demo"],
        cwd=PROJECT,
        env={**os.environ, "DEMO_EXIT": "1", "RATCHET_DEMO_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    took = time.monotonic() - began
    assert done.returncode == 0, done.stdout + done.stderr
    assert took <= 90
    losses = [float(loss) for loss in re.findall(r"✅ demo\S* is at step \d+ .*val loss ([\d.]+)", done.stdout)]
    assert len(losses) == 2
    assert losses[0] < 1.6, "characters of the bundled source, validation part"
    assert losses[1] < losses[0] + 0.1
    assert "🔄 Resuming from_scratch" in done.stdout
    assert re.search(r"ANSWER: \S+", done.stdout)
    assert re.search(r"http://127\.0\.0\.1:\d+/\n", done.stdout)
    assert len(re.findall(r"(?m)^  curl .*http://127\.0\.0\.1", done.stdout)) == 3
