"""What the operator of the service decides, from `RATCHET_*` variables and a `.env` file."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Any, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from jobs.settings import LedgerSettings


class ServiceSettings(LedgerSettings):
    """Where the service listens, whom it lets in, and how much it takes on. Times are in seconds."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65_535, description="Port to listen on; 0 for any free one.")
    api_key: SecretStr | None = Field(None, description="Asked of every request; needed beyond loopback.")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Further names by which clients may call this service, separated by commas."
    )
    base_model: str = Field(
        "gpt2",
        validation_alias=AliasChoices("ratchet_base_model", "base_model"),
        description="Base model of jobs that name none; the one that may also be a folder anywhere.",
    )

    max_body_bytes: int = Field(1 << 20, ge=1, description="Largest body of a request.")
    max_config_bytes: int = Field(64 << 10, ge=1, description="Largest body that asks for a job.")
    max_source_bytes: int = Field(5 << 30, ge=1, description="Largest file that may be sent as a source.")
    sources_quota_bytes: int = Field(
        50 << 30, ge=1, description="All that may be below the sources root for one more to be sent."
    )
    max_queued_jobs: int = Field(10_000, ge=1, description="Jobs that may wait in line.")
    max_streams: int = Field(2_000, ge=1, description="Streams that may be open at a time.")
    max_prompts: int = Field(64, ge=1, description="Prompts in one request for text.")
    max_prompt_chars: int = Field(100_000, ge=1, description="Characters in one prompt.")
    max_new_tokens: int = Field(4_096, ge=1, description="Tokens that one choice may get.")

    ping_seconds: float = Field(15, gt=0, description="Between two signs of life on a quiet stream.")
    poll_seconds: float = Field(0.05, gt=0, description="Between two looks for new events.")
    stalled_reader_seconds: float = Field(30, gt=0, description="A reader that takes nothing for this long is let go.")
    body_seconds: float = Field(30, gt=0, description="A request's body has to arrive within this time.")

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split_at_commas(cls, given: Any) -> Any:
        return tuple(name.strip() for name in given.split(",") if name.strip()) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _strangers_need_a_key(self) -> Self:
        if self.api_key is None and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines: set RATCHET_API_KEY as well, "
                "or listen on 127.0.0.1"
            )
        return self

    @property
    def listens_everywhere(self) -> bool:
        """Whether the address stands for all of this machine's."""
        return self.host in {"0.0.0.0", "::"}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a socket that listens on `host`."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
