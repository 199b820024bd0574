from __future__ import annotations

from jobs.settings import PROJECT
from worker.stacks import readable

DUMP = f"""\
Thread 0x00007f9c2b7fe6c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 331 in wait
  File "{PROJECT}/.venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1790 in _call_impl

Current thread 0x00007f9cb0b9b740 [main] (most recent call first):
  File "{PROJECT}/core/trainer.py", line 120 in update
  File "/home/somebody/secret/tricks.py", line 3 in trick
  File "<frozen runpy>", line 88 in _run_code
something else that the process said
"""


def test_stacks_keep_modules_and_lines_and_lose_folders_and_addresses() -> None:
    assert list(readable(DUMP.splitlines())) == [
        "thread 1, most recent call first:",
        "  threading.py, line 331 in wait",
        "  torch/nn/modules/module.py, line 1790 in _call_impl",
        "thread 2, most recent call first:",
        "  core/trainer.py, line 120 in update",
        "  tricks.py, line 3 in trick",
        "  <frozen runpy>, line 88 in _run_code",
    ]
