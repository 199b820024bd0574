"""The ledger that service and worker share: jobs, their events, checkpoints and workers, in one database.

Which verb is where:

    database.py      open, migrate, `write()` and `read()` transactions
    queue.py         enqueue, claim, request_cancel, request_pause, unpause, wake_due
    lease.py         what a job's holder says: beat, acknowledge_stop, finish, release, retry; and the LeaseScanner
    transitions.py   transition, the only way from state to state
    feed.py          record events, read them after a number
    catalog.py       find and list jobs and checkpoints
    workers.py       who is at work
    tables.py        the rows, and the state machine as a picture

Each verb takes a session and leaves the transaction to its caller, so that several verbs can be one transaction.
"""
