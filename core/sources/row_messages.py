"""Messages of a conversation, made of what a row has. Light: no more than the standard library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from core.sources.row_json import Unfit, parse_json

MAX_MESSAGES = 1000
"""A template writes a conversation anew for each of its turns."""

ROLES = ("system", "developer", "user", "assistant", "tool")

CALLS = ("tool_calls", "function_call")
"""What a message can hold beside its content; it was said by the assistant, too, so it cannot be passed over."""

TOOLS = ("tools", "functions")
"""What a row can hold beside its messages; a template writes it into the first of them."""

_BRACKETS, _EMPTY = ("[", "{"), ("[]", "{}")
"""How a list or an object begins that is there as JSON text, and those that say as much as nothing."""

_HALF_PAIR = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `weight` is 0 or 1."""

    role: str
    content: str
    weight: float = 1.0

    @property
    def trains(self) -> bool:
        """Whether it is learned: the assistant's are, unless their weight is 0."""
        return self.role == "assistant" and self.weight > 0


Messages: TypeAlias = tuple[Message, ...]


def messages_of(value: Any, what: str) -> Messages:
    """A list of messages.

    Args:
        what: How people are told of it.

    Raises:
        Unfit: it is none, or has what cannot be learned.
    """
    if not isinstance(value, list | tuple) or not value:
        raise Unfit(f"{what} is no list of messages")
    if len(value) > MAX_MESSAGES:
        raise Unfit(f"{what} has {len(value):,} messages, and no more than {MAX_MESSAGES:,} can be learned at once")
    return tuple(_message(item, f"its message {number}") for number, item in enumerate(value, start=1))


def _message(item: Any, what: str) -> Message:
    if not isinstance(item, Mapping):
        raise Unfit(f"{what} is no object")
    role = item.get("role")
    if role is None:
        raise Unfit(f"{what} has no role")
    if role not in ROLES:
        raise Unfit(f"{what} has the role {_shown(role)}, which is none of {', '.join(ROLES)}")
    refuse_tools(item, CALLS, f"{what} has")
    weight = item.get("weight")
    if weight is not None and (not isinstance(weight, int | float) or weight not in (0, 1)):
        raise Unfit(f"{what} has the weight {_shown(weight)}, which is neither 0 nor 1")
    return Message(role, _content(item.get("content"), what), 1.0 if weight is None else float(weight))


def _content(content: Any, what: str) -> str:
    if content is None:
        raise Unfit(f"{what} has no content")
    if not isinstance(content, list | tuple):
        return check_text(content, f"the content of {what}")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or kind != "text":
            raise Unfit(f"{what} has a part of type {_shown(kind)}, and only text can be learned")
        parts.append(check_text(part.get("text"), f"a part of {what}"))
    return "".join(parts)


def refuse_tools(record: Mapping[Any, Any], names: tuple[str, ...], has: str) -> None:
    """Refuse what has calls of tools, or tools to call, under one of these names.

    Without them a call would be learned as silence, and a conversation as one in which there was nothing to call.

    Args:
        has: What the reason begins with, such as "its message 2 has".

    Raises:
        Unfit: it has some.
    """
    for name in names:
        value = record.get(name)
        if isinstance(value, str):
            is_some = value.lstrip()[:1] in _BRACKETS and value.strip() not in _EMPTY
        else:
            is_some = isinstance(value, list | tuple | Mapping) and len(value) > 0
        if is_some:
            raise Unfit(f"{has} '{name}', and calls of tools cannot be learned")


def check_text(value: Any, what: str) -> str:
    """The value, if it is text.

    Raises:
        Unfit: it is none, or none that a file could hold.
    """
    if not isinstance(value, str):
        raise Unfit(f"{what} is no text")
    found = None if value.isascii() else _HALF_PAIR.search(value)
    if found:
        raise Unfit(f"{what} has half of a surrogate pair at character {found.start() + 1}, which is no text")
    return value


def perhaps_messages(cell: str) -> Any:
    """A cell of a table, or the messages in it; most answers that begin with a bracket are answers."""
    if cell.lstrip()[:1] != "[":
        return cell
    try:
        value = parse_json(cell)
    except Unfit:
        return cell
    is_list = isinstance(value, list) and all(isinstance(item, Mapping) and "role" in item for item in value)
    return value if value and is_list else cell


def _shown(value: Any) -> str:
    """Enough of a value from anywhere to find it by."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:40]}…")
    return (
        repr(value) if isinstance(value, int | float | None) and len(repr(value)) < 40 else f"a {type(value).__name__}"
    )
