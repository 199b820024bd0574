from __future__ import annotations

import subprocess
import sys

import pytest

from jobs.settings import PROJECT

PREPARE = """
import resource, sys
from service.server import prepare_for_crowds
from service.settings import ServiceSettings
resource.setrlimit(resource.RLIMIT_NOFILE, (100, int(sys.argv[1])))
prepare_for_crowds(ServiceSettings(_env_file=None, max_streams=300))
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(("allowed", "taken", "is_warned"), [(600, 500, False), (500, 500, False), (400, 400, True)])
def test_there_are_as_many_open_files_as_streams_if_the_system_allows_it(
    allowed: int, taken: int, is_warned: bool
) -> None:
    # In a process of its own: a limit that was lowered stays low.
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(allowed)], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == taken
    assert ("raise the limit of open files" in done.stderr) == is_warned
