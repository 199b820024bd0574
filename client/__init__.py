"""Ratchet from the outside: the SDK and the `ratchet` command, both speaking HTTP."""

from client.api import Ratchet, Token
from client.errors import ApiError, ClientError, ServiceUnreachable, UnusableSetting
from client.events import Event

__all__ = ["ApiError", "ClientError", "Event", "Ratchet", "ServiceUnreachable", "Token", "UnusableSetting"]
