from __future__ import annotations

import gc

import pytest

from core.machine.processes import importing


def test_nobody_looks_for_garbage_while_something_is_imported_and_afterwards_somebody_does() -> None:
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()
