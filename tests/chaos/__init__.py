"""Kill everything at random while it works, then see whether the promise was kept.

    world.py     the service and the workers as processes, and the ways to kill them
    storm.py     people who submit, watch, pause and cancel, while things are killed
    verdict.py   what must hold afterwards, over the whole ledger

`make chaos` runs it for long; a short one is among the tests.
"""
