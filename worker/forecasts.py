"""What a run would do, said by the process that has torch and tokenizers at hand anyway."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from core.config import TrainingConfig, parse
from worker.inference_requests import ForecastAsk
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from core.forecasts.preflight import Prospect

UNTIMED = "how long a step takes could not be tried: three of them did not come to their end within two minutes"


class Forecasts:
    """One at a time: each reads megabytes and keeps a core busy for seconds.

    Args:
        settings: Places.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self._turn = threading.Lock()

    def preflight(self, wanted: ForecastAsk) -> dict[str, Any]:
        """What a run would do; with `time`, how long it would take."""
        from core.forecasts.preflight import preflight

        with self._turn:
            told = preflight(self._prospect(wanted))
            return {**told, **(self._timed(wanted, told) if wanted.time else {})}

    def preview(self, wanted: ForecastAsk) -> dict[str, Any]:
        """Its first batch."""
        from core.forecasts.previews import preview

        with self._turn:
            return preview(self._prospect(wanted))

    def _prospect(self, wanted: ForecastAsk) -> Prospect:
        from core.forecasts.preflight import Prospect
        from core.sources.beginnings import beginnings
        from core.sources.files import SourceFolder

        config = parse(TrainingConfig, wanted.config)
        parts = beginnings(config.shares, SourceFolder(self.settings.sources), wanted.num_characters)
        return Prospect(config, parts, self.settings.models)

    def _timed(self, wanted: ForecastAsk, told: dict[str, Any]) -> dict[str, Any]:
        from core.forecasts.timing import seconds_per_step

        total = told["memory_bytes"]["total"]
        if total is not None and total > told["memory_at_hand_bytes"]:
            # What does not fit would be tried at the cost of whatever else runs here; a warning says it already.
            return {}
        config = parse(TrainingConfig, wanted.config)
        seconds = seconds_per_step(config, self.settings.sources, self.settings.models, wanted.num_characters)
        if seconds is None:
            return {"said": [*told["said"], UNTIMED]}
        return {"seconds_per_step": seconds, "seconds": seconds * told["training_steps"]}
