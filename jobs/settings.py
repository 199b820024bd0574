"""What service and worker are both told: where the ledger, the texts, the checkpoints and the models are.

Read once, at a process's edge, from `RATCHET_*` variables and a `.env` file; frozen from there on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_CODE = Path(__file__).resolve().parent.parent
PROJECT = _CODE if (_CODE / "pyproject.toml").is_file() else Path.cwd()
"""The checkout this code runs from; for an installed package, the folder it was started in."""


class LedgerSettings(BaseSettings):
    """Places. A relative path is taken from the current folder."""

    model_config = SettingsConfigDict(env_prefix="RATCHET_", env_file=".env", extra="ignore", frozen=True)

    data: Path = Field(PROJECT / "ratchet-data", description="Folder of the ledger and of what belongs to it.")
    database_url: str = Field("", description="The ledger; by default `ratchet.db` in the data folder.")
    sources: Path = Field(PROJECT / "sources", description="Root of the training texts.")
    checkpoints: Path = Field(
        PROJECT / "checkpoints",
        description="Root of the checkpoints; `checkpoints` in the data folder if that one is given.",
    )
    models: Path = Field(PROJECT / "models", description="Root of the base models at hand.")

    @model_validator(mode="before")
    @classmethod
    def _follow_the_data_folder(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        told = {name: value for name, value in given.items() if value not in (None, "")}
        if "data" in told:
            told.setdefault("checkpoints", Path(told["data"]) / "checkpoints")
        data = Path(told.get("data", PROJECT / "ratchet-data"))
        told.setdefault("database_url", f"sqlite:///{data.absolute() / 'ratchet.db'}")
        return told

    @model_validator(mode="after")
    def _absolute(self) -> LedgerSettings:
        """Children are started in other folders, so no path may depend on this one's."""
        for name in ("data", "sources", "checkpoints", "models"):
            # Frozen for everyone else; this runs before anyone has the object.
            object.__setattr__(self, name, getattr(self, name).absolute())
        return self
