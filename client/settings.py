"""What the client is told from outside: `RATCHET_URL` and `RATCHET_API_KEY`, or a `.env` file in the current folder."""

from __future__ import annotations

import re
from typing import Self

import httpx2
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from client.errors import UnusableSetting

DEFAULT_URL = "http://127.0.0.1:8000"

_UNSENDABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and what the environment has for bytes that are not UTF-8."""


class ClientSettings(BaseSettings):
    """Where the service is, and what lets the client in."""

    model_config = SettingsConfigDict(env_prefix="RATCHET_", env_file=".env", extra="ignore", frozen=True)

    url: str = Field(DEFAULT_URL, description="Where the service listens; without a scheme, it is http.")
    api_key: SecretStr = Field(SecretStr(""), description="A service on loopback needs none.")

    @classmethod
    def read(cls, *, url: str | None, api_key: str | None) -> Self:
        """The settings, where those given outvote the environment and the environment its `.env` file.

        Raises:
            UnusableSetting: the address is none, or the key cannot be sent.
        """
        given = {name: value for name, value in (("url", url), ("api_key", api_key)) if value is not None}
        try:
            # Texts become what the fields are by pydantic's hand, which its types do not say.
            return cls(**given)  # type: ignore[arg-type]
        except ValidationError as error:
            # Without what was given: it may be a key.
            complaints = error.errors(include_url=False, include_input=False)
            said = (f"RATCHET_{item['loc'][0]!s}".upper() + ": " + item["msg"] for item in complaints)
            raise UnusableSetting("; ".join(said).replace("Value error, ", "") + ".") from None

    @field_validator("url")
    @classmethod
    def _address(cls, given: str) -> str:
        url = given.strip() or DEFAULT_URL
        url = url if "://" in url else f"http://{url}"
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise ValueError(f"{url!r} is no address ({error})") from None
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise ValueError(f"{url!r} is no address of a service; one looks like {DEFAULT_URL}")
        return url.rstrip("/")

    @field_validator("api_key")
    @classmethod
    def _sendable(cls, given: SecretStr) -> SecretStr:
        key = given.get_secret_value().strip(" ")
        if _UNSENDABLE.search(key):
            raise ValueError(
                "the key has a control character in it, or bytes that are not UTF-8; no request can carry it"
            )
        return SecretStr(key)

    @property
    def headers(self) -> dict[bytes, bytes]:
        """What shows the key; in UTF-8, as the service reads it."""
        key = self.api_key.get_secret_value()
        return {b"Authorization": f"Bearer {key}".encode()} if key else {}
