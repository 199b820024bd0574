"""What the generation process is asked, once the service has checked it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Ask(BaseModel):
    """The body of a request; the service has checked the bounds."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: str | None = None
    model: str | None = None
    prompts: list[str] = Field(min_length=1)
    n: int = Field(1, ge=1)
    max_new_tokens: int = Field(100, ge=0)
    temperature: float = Field(0.7, ge=0)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    seed: int | None = None
    stop: list[str] = []


class Adopt(BaseModel):
    """The body of a request to adopt: the name of a `.pt` file."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^checkpoint_[\w.-]{1,200}\.pt$")


class ExportAsk(BaseModel):
    """The body of a request to export: a checkpoint's name, and what the folder is to be."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: str
    name: str | None = None
    merge: bool = False


class ForecastAsk(BaseModel):
    """The body of a request about a run that is not begun: its settings, and how long each of its sources is."""

    model_config = ConfigDict(extra="forbid")

    config: dict[str, Any]
    num_characters: dict[str, int]
    time: bool = False


class CountedSource(BaseModel):
    """A source whose tokens are counted: what is known of it without any."""

    model_config = ConfigDict(extra="forbid")

    name: str
    columns: dict[str, str] = {}
    num_characters: int
    sha256: str


class TokensAsk(BaseModel):
    """The body of a request to count tokens, under a checkpoint's tokenizer, a base's, or none but characters."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: str | None = None
    model: str | None = None
    sources: list[CountedSource] = Field(max_length=200)
    seconds: float = Field(gt=0, le=120)
    most_characters: int = Field(ge=1, le=8 << 20)
