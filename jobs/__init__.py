"""The ledger that service and worker share: jobs, their events, checkpoints and workers, in one database.

Which verb is where:

    database.py      open, migrate, `write()` and `read()` transactions
    queue.py         enqueue, claim, request_cancel, request_pause, unpause, wake_due
    lease.py         what a job's holder says: beat, acknowledge_stop, finish, release, retry; and the LeaseScanner
    transitions.py   transition, the only way from state to state
    feed.py          record events, read them after a number
    line.py          the order of those who wait, and moving one in front of another
    thinning.py      fewer steps in the logs of old runs
    turns.py         taking turns, where the database does not make writers wait for each other
    shelf.py         which checkpoints may go: retention, pins, removals; removal.py: their folders follow
    catalog.py       find and list jobs and checkpoints
    workers.py       who is at work
    tables.py        the rows, and the state machine as a picture
    sqlite.py        what only SQLite does; postgres.py: what only PostgreSQL does

Each verb takes a session and leaves the transaction to its caller, so that several verbs can be one transaction;
but for `removal`, which waits for a disk before it writes.
"""
