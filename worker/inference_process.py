"""The generation process from the outside: started beside the worker, revived when it dies, ended with it."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import subprocess
import sys

from core.machine.processes import POLITE
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "RATCHET_INFERENCE_TOKEN"
CLOSE_SECONDS = 5


class InferenceProcess:
    """Generation for this worker's service, at an address of its own choosing and behind a secret of ours.

    Args:
        settings: The worker's.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.token = secrets.token_urlsafe(32)
        self.url: str | None = None
        self._start()

    def revive(self) -> bool:
        """Start it again if it died, or try to; True if the address changed, or is none now."""
        if self._process.poll() is None:
            return False
        log.warning("generation ended with exit code %s; starting it again", self._process.returncode)
        self._release()
        self.url = None
        try:
            self._start()
        except OSError as error:
            log.warning("generation cannot be started now: %s", error)
        return True

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_SECONDS)
        self._process.kill()
        self._process.wait()
        self._release()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "worker.inference"],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**POLITE, **_without_secrets(), **self._told()},
        )
        assert self._process.stdout
        # It answers with the port as soon as it listens, which is before it imports torch.
        port = self._process.stdout.readline().strip()
        self.url = f"http://{self.settings.inference_host}:{port}" if port else None

    def _told(self) -> dict[str, str]:
        """Settings, which may have come from arguments and not from the environment."""
        settings = self.settings
        return {
            TOKEN_VARIABLE: self.token,
            "RATCHET_DATA": str(settings.data),
            "RATCHET_CHECKPOINTS": str(settings.checkpoints),
            "RATCHET_MODELS": str(settings.models),
            "RATCHET_SOURCES": str(settings.sources),
            "RATCHET_INFERENCE_HOST": settings.inference_host,
            "RATCHET_INFERENCE_THREADS": str(settings.inference_threads),
            "RATCHET_INFERENCE_MODELS": str(settings.inference_models),
            "RATCHET_SUPERVISOR": str(os.getpid()),
        }

    def _release(self) -> None:
        if self._process.stdout:
            self._process.stdout.close()


def _without_secrets() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if name not in ("RATCHET_API_KEY", "RATCHET_DATABASE_URL")
    }
