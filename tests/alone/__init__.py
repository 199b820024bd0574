"""Tests that measure time: nothing else may run beside them, so `make test` runs this folder last and by itself."""
