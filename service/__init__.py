"""The HTTP face: jobs in, progress and checkpoints and text out.

    __main__.py      `python -m service`
    server.py        the socket, the ready line, the end
    app.py           create_app(settings): puts everything below together
    settings.py      what the operator decides
    edge.py          request ids, and what happens when something of ours breaks
    auth.py          who may come in: Host, Origin, key, body size
    problems.py      errors as RFC 9457 problem documents; which error has which status
    errors.py        what the service itself refuses
    deps.py          what routes ask for
    schemas.py       bodies in and out
    intake.py        a new run: checked, then put in line
    resumption.py    a run that goes on from a checkpoint or a job
    shelf.py         checkpoints, as the ledger and the disk know them
    tails.py         the one poller that reads for every stream and wakes it
    written.py       an event as bytes, once for all who read it
    sse.py           a job's events as a response that goes on
    inference.py     a worker's generation, as seen from here
    docs.py          the API described without anything from another machine
    routes/          one module for each kind of thing

It imports the ledger and light core, never the worker, never torch.
"""
