"""Libraries that would bring others along are imported without those."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT

ADAPTERS = """
import sys
from core.libraries import import_bitsandbytes, import_peft
import_peft().LoraConfig(r=2)
assert "bitsandbytes" not in sys.modules
from peft.import_utils import is_bnb_4bit_available, is_bnb_available
import_bitsandbytes("quantization", "nf4", "none")
assert "bitsandbytes" in sys.modules
assert not is_bnb_available() and not is_bnb_4bit_available()
"""

KERNELS = """
import sys
from core.libraries import import_bitsandbytes
before = set(sys.modules)
assert import_bitsandbytes("quantization", "nf4", "none").optim.AdamW8bit
assert "kernels" not in sys.modules
import kernels
assert import_bitsandbytes("quantization", "nf4", "none") is sys.modules["bitsandbytes"]
assert sys.modules["kernels"] is kernels
"""


@pytest.mark.parametrize("program", [ADAPTERS, KERNELS], ids=["adapters", "kernels"])
def test_what_nobody_asked_for_is_not_imported_nor_fetched_and_nothing_is_said_of_it(
    tmp_path: Path, program: str
) -> None:
    # A package that would fetch code: whoever imports it while bitsandbytes is loading is told so.
    (tmp_path / "kernels.py").write_text(
        "import sys\nhalf = sys.modules.get('bitsandbytes')\n"
        "if half and not hasattr(half, '__version__'):\n    sys.exit('asked for by bitsandbytes')\n"
    )
    paths = os.pathsep.join([str(PROJECT), str(tmp_path)])
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
