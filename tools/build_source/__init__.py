"""Builds the bundled training text from facts kept in data packages.

`python -m tools.build_source` writes the file; `--check` only compares it.
"""
