"""The guided tour: a run, a resume and an answer, on a service of its own.

`make demo` runs it. Everything it makes stays in `ratchet-data/demo`, or in the folder
`RATCHET_DEMO_DATA`; `DEMO_EXIT=1` ends it after the answer.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from client import wording
from client.api import Ratchet
from client.cli import spoken
from client.commands.connection import EXIT_INTERRUPTED
from client.errors import ApiError, ClientError, ServiceUnreachable
from client.follow import follow, view_for
from core.config import BUNDLED_SOURCE
from core.machine.processes import EXIT_WITH_PARENT

PROJECT = Path(__file__).resolve().parent.parent
DATA = PROJECT / "ratchet-data" / "demo"

UP = (sys.executable, "-m", "client", "up")

DEMO_CONFIG: dict[str, Any] = {
    "source": BUNDLED_SOURCE,
    "training_steps": 800,
    "batch_size": 16,
    "block_size": 96,
    "n_layer": 2,
    "learning_rate": 3e-3,
    "checkpoint_interval": 200,
    "eval_interval": 100,
    "max_new_tokens": 0,
}
"""Small enough for two CPU cores and a minute."""

RESUME_STEPS = 60
QUESTION = "QUESTION: What is the capital of France?\nANSWER:"

HONEST_WORD = "(Less than a minute gives a model the form of an answer. The facts take longer: let it go on, as below.)"

USUAL_PORT = 8000
START_SECONDS = 60.0
STOP_SECONDS = 30.0
PATIENCE_SECONDS = 10.0
"""Nobody restarts a service that the tour itself has started."""


class DemoFailed(ClientError):
    """The tour cannot go on."""


def main() -> int:
    """Take the tour; the exit code."""
    out = Console(highlight=False)
    data = Path(os.environ.get("RATCHET_DEMO_DATA") or DATA).absolute()
    try:
        with _own_service(out, data) as api:
            tour(api, out)
            if os.environ.get("DEMO_EXIT") != "1":
                out.print("The service stays up until Ctrl-C.", style="bold")
                _wait_for_ctrl_c()
    except KeyboardInterrupt:
        out.print("\nStopped.")
        return EXIT_INTERRUPTED
    except ClientError as error:
        Console(stderr=True, highlight=False).print(Text(f"The demo failed: {spoken(error)} The log is {_log(data)}."))
        return 1
    return 0


def tour(api: Ratchet, out: Console) -> None:
    """Train, resume, ask."""
    _headline(out, f"1. A fresh run on {DEMO_CONFIG['source']}")
    first = _run(api, out, api.train(name="demo", **DEMO_CONFIG))
    checkpoint = api.checkpoints(job=first["id"], limit=1)[0]
    _headline(out, f"2. {RESUME_STEPS} more steps from the checkpoint at step {checkpoint['step']}")
    second = _run(api, out, api.resume(checkpoint["id"], name="demo-resumed", training_steps=RESUME_STEPS))
    _headline(out, "3. A question from the text")
    answer = _ask(api, second["checkpoint"])
    out.print(Text(QUESTION), Text(answer, style="bold green"))
    out.print(Text(HONEST_WORD, style="dim"))
    _headline(out, "What to try next")
    _print_next(api.url, out, second)


def _run(api: Ratchet, out: Console, job: dict[str, Any]) -> dict[str, Any]:
    begun = time.monotonic()
    job = follow(api, job, view_for(out, job))
    took = wording.duration(time.monotonic() - begun)
    losses = f"train loss {wording.loss(job['train_loss'])}, val loss {wording.loss(job['val_loss'])}"
    out.print(Text(f"✅ {job['name']} is at step {job['step']} after {took}: {losses}"))
    return job


def _ask(api: Ratchet, checkpoint: str) -> str:
    answer = api.generate(checkpoint, QUESTION, max_new_tokens=80, temperature=0, stop=["\n"])
    return str(answer["choices"][0]["text"]).strip()


def _print_next(url: str, out: Console, job: dict[str, Any]) -> None:
    ask = {"checkpoint": job["checkpoint"], "prompt": QUESTION, "temperature": 0, "stop": ["\n"]}
    lines = (
        ("The web page", f"{url}/"),
        ("A job's events, live", f"curl -N {url}/jobs/{job['id']}/events"),
        ("Go on with a run", _post(f"{url}/jobs/{job['checkpoint']}/resume", {"training_steps": 5000})),
        ("Ask a checkpoint", _post(f"{url}/generate", ask)),
    )
    for title, line in lines:
        out.print(Text(title, style="dim"))
        # Not wrapped: a command that breaks in the middle cannot be copied.
        out.print(Text(f"  {line}"), soft_wrap=True)


def _post(url: str, body: dict[str, Any]) -> str:
    return f"curl -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))} {url}"


def _headline(out: Console, text: str) -> None:
    out.print(Text(f"\n{text}", style="bold cyan"))


@contextmanager
def _own_service(out: Console, data: Path) -> Iterator[Ratchet]:
    """A service and a worker of our own; stopped on the way out, whatever happened."""
    port = _free_port()
    data.mkdir(parents=True, exist_ok=True)
    with _log(data).open("ab") as log:
        up = subprocess.Popen(
            [*UP, "--port", str(port), "--data", str(data)],
            # Not where a `.env` file may be: its settings are another service's.
            cwd=data,
            env=_environment(data),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
        )
    try:
        with Ratchet(f"http://127.0.0.1:{port}", api_key="", patience_seconds=PATIENCE_SECONDS) as api:
            _wait_until_ready(api, up)
            out.print(Text(f"Ratchet is ready at {api.url}"))
            yield api
    finally:
        _stop(up)


def _log(data: Path) -> Path:
    return data / "up.log"


def _environment(data: Path) -> dict[str, str]:
    """This process's, less the settings of another service: the tour's own needs no key, since it is on loopback."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RATCHET_")}
    places = {"RATCHET_SOURCES": str(PROJECT / "sources"), "RATCHET_CHECKPOINTS": str(data / "checkpoints")}
    # A checkout that is not installed is found by this path alone.
    code = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    return {**kept, **places, "PYTHONPATH": code, EXIT_WITH_PARENT: "1"}


def _wait_until_ready(api: Ratchet, up: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        if up.poll() is not None:
            raise DemoFailed(f"The service ended with exit code {up.returncode} before it was ready.")
        try:
            api.health()
        except (ServiceUnreachable, ApiError) as error:
            if time.monotonic() > deadline:
                raise DemoFailed(f"The service is not ready after {START_SECONDS:.0f} s: {error.message}") from None
            time.sleep(0.2)
        else:
            return


def _stop(up: subprocess.Popen[bytes]) -> None:
    up.terminate()
    try:
        up.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        up.kill()
        up.wait()


def _free_port() -> int:
    """The usual one if nobody has it, else one that the system chooses."""
    for port in (USUAL_PORT, 0):
        with socket.socket() as probe:
            # As a server binds: a port whose last connections are still closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise DemoFailed("There is no free port on this machine.")


def _wait_for_ctrl_c() -> None:
    with suppress(KeyboardInterrupt):
        signal.pause()


if __name__ == "__main__":
    # A tour that is told to end still stops what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
