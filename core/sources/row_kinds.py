"""What a row of training data can be, and how one is made of a record: a JSON object, or the cells of a table.

    text         {"text"}
    completion   {"prompt", "completion"}
    chat         {"messages": [{"role", "content", "weight"?}, …]}
    preference   {"prompt", "chosen", "rejected"}, or
                 {"input": {"messages"}, "preferred_output", "non_preferred_output"}

Further fields are ignored, and null is the same as nothing. A record that cannot be used is an `Unfit`, whose reason
goes on from the record's number: "line 7" + "has no 'prompt'". Light: no more than the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

from core.sources.row_json import Unfit, parse_json

MAX_MESSAGES = 1000
"""A template writes a conversation anew for each of its turns."""

ROLES = ("system", "developer", "user", "assistant", "tool")

NO_COLUMNS: Mapping[str, str] = MappingProxyType({})

_HALF_PAIR = re.compile("[\ud800-\udfff]")


class RowKind(StrEnum):
    """What a row teaches: all of a text, an answer, the assistant's turns, or which of two answers is better."""

    TEXT = "text"
    COMPLETION = "completion"
    CHAT = "chat"
    PREFERENCE = "preference"


@dataclass(frozen=True, slots=True)
class TextRow:
    """A text, all of which is learned."""

    kind: ClassVar[RowKind] = RowKind.TEXT
    text: str


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """A prompt and what is to follow it, which alone is learned."""

    kind: ClassVar[RowKind] = RowKind.COMPLETION
    prompt: str
    completion: str


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


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A conversation in which at least one message trains."""

    kind: ClassVar[RowKind] = RowKind.CHAT
    messages: Messages


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """Two answers to one prompt, the first of them the better. All three are strings, or all three are messages."""

    kind: ClassVar[RowKind] = RowKind.PREFERENCE
    prompt: str | Messages
    chosen: str | Messages
    rejected: str | Messages


Row: TypeAlias = TextRow | CompletionRow | ChatRow | PreferenceRow


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used.

    Args:
        number: Of its first line in the file for JSONL and CSV, of the row for Parquet; from 1 on.
        reason: Why, to be read after the number.
    """

    number: int
    reason: str


def num_characters(row: Row) -> int:
    """Of all that is read of a row, whether it trains or not."""
    match row:
        case TextRow(text):
            return len(text)
        case CompletionRow(prompt, completion):
            return len(prompt) + len(completion)
        case ChatRow(messages):
            return _length(messages)
        case PreferenceRow(prompt, chosen, rejected):
            return _length(prompt) + _length(chosen) + _length(rejected)


class RowMaker:
    """Makes rows of the records of one source.

    Args:
        columns: Field → the name that it has in the records.
        in_table: Lists of messages may be there as JSON text.
    """

    def __init__(self, columns: Mapping[str, str] = NO_COLUMNS, *, in_table: bool = False) -> None:
        self._columns = columns
        self._in_table = in_table
        self._forms = [
            (columns.get(field, field), make) for signature, _, make in _possible(columns) for field in signature
        ]

    def row(self, record: Any) -> Row:
        """The row that a record makes.

        Raises:
            Unfit: it makes none.
        """
        if not isinstance(record, dict):
            raise Unfit("is no JSON object")
        for name, make in self._forms:
            if record.get(name) is not None:
                return make(_Fields(record, self._columns, self._in_table))
        names = dict.fromkeys(name for name, _ in self._forms)
        raise Unfit(f"has none of the fields {', '.join(map(repr, names))}")


def makes_rows(names: Iterable[str], columns: Mapping[str, str] = NO_COLUMNS) -> bool:
    """Whether records with fields of these names can make rows of any kind."""
    there = set(names)
    return any(all(columns.get(field, field) in there for field in needed) for _, needed, _ in _possible(columns))


def fields_of_rows() -> list[str]:
    """Every field that any kind of row has."""
    return sorted({field for _, needed, _ in _FORMS for field in needed})


def fits_a_kind(columns: Mapping[str, str]) -> bool:
    """Whether the fields of a column map are all of one kind of row."""
    return bool(_possible(columns))


class _Fields:
    """A record's values by the names that this module knows them by."""

    def __init__(self, record: Mapping[Any, Any], columns: Mapping[str, str], in_table: bool) -> None:
        self._record = record
        self._columns = columns
        self._in_table = in_table

    def its(self, field: str) -> str:
        """How people are told of a field."""
        return f"its '{self._columns.get(field, field)}'"

    def need(self, field: str) -> Any:
        value = self._record.get(self._columns.get(field, field))
        if value is None:
            raise Unfit(f"has no {self.its(field).removeprefix('its ')}")
        return value

    def text(self, field: str, *, may_be_blank: bool = False) -> str:
        value = self.need(field)
        if not isinstance(value, str) or not value.isascii():
            _check_text(value, self.its(field))
        if not may_be_blank and (not value or value.isspace()):
            raise Unfit(f"has nothing in {self.its(field)}")
        return str(value)

    def messages(self, field: str) -> Messages:
        return _messages(self.structure(field), self.its(field))

    def structure(self, field: str) -> Any:
        """A list or an object, which may be there as JSON text."""
        value = self.need(field)
        return parse_json(value, f"{self.its(field)} ") if isinstance(value, str) else value

    def answer(self, field: str, *, may_be_blank: bool = False) -> str | Messages:
        """A string, or messages."""
        value = self.need(field)
        if self._in_table and isinstance(value, str):
            value = _perhaps_messages(value)
        if isinstance(value, str):
            return self.text(field, may_be_blank=may_be_blank)
        return _messages(value, self.its(field))


def _text_row(fields: _Fields) -> Row:
    return TextRow(fields.text("text"))


def _completion_row(fields: _Fields) -> Row:
    return CompletionRow(fields.text("prompt", may_be_blank=True), fields.text("completion"))


def _chat_row(fields: _Fields) -> Row:
    messages = fields.messages("messages")
    if not any(message.trains and message.content.strip() for message in messages):
        raise Unfit("has no assistant message to learn from")
    return ChatRow(messages)


def _preference_row(fields: _Fields) -> Row:
    prompt = fields.answer("prompt", may_be_blank=True)
    return _preference(prompt, fields.answer("chosen"), fields.answer("rejected"))


def _openai_preference_row(fields: _Fields) -> Row:
    given = fields.structure("input")
    if not isinstance(given, Mapping) or given.get("messages") is None:
        raise Unfit(f"has no 'messages' in {fields.its('input')}")
    prompt = _messages(given["messages"], "its 'messages'")
    return _preference(prompt, fields.messages("preferred_output"), fields.messages("non_preferred_output"))


def _preference(prompt: str | Messages, chosen: str | Messages, rejected: str | Messages) -> PreferenceRow:
    if not isinstance(prompt, str) or not isinstance(chosen, str) or not isinstance(rejected, str):
        prompt = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        chosen, rejected = _answer_to(prompt, chosen), _answer_to(prompt, rejected)
    if chosen == rejected:
        raise Unfit("has the same answer twice, so neither is the better one")
    return PreferenceRow(prompt, chosen, rejected)


def _answer_to(prompt: Messages, answer: str | Messages) -> Messages:
    """As messages alone; many data sets have the prompt once more in front of each answer."""
    if isinstance(answer, str):
        return (Message("assistant", answer),)
    answer = answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer
    if not any(message.role == "assistant" and message.content.strip() for message in answer):
        raise Unfit("has an answer without an assistant's message")
    return answer


_Form: TypeAlias = tuple[tuple[str, ...], tuple[str, ...], Callable[[_Fields], Row]]

_FORMS: tuple[_Form, ...] = (
    (("messages",), ("messages",), _chat_row),
    (
        ("preferred_output", "non_preferred_output"),
        ("input", "preferred_output", "non_preferred_output"),
        _openai_preference_row,
    ),
    (("chosen", "rejected"), ("prompt", "chosen", "rejected"), _preference_row),
    (("completion",), ("prompt", "completion"), _completion_row),
    (("text",), ("text",), _text_row),
    (("prompt",), ("prompt", "completion"), _completion_row),
)
"""Fields any of which show the form, all that it needs, and what makes the row; the first form that shows is taken."""


def _possible(columns: Mapping[str, str]) -> list[_Form]:
    """Who says which column is which has said which kind of row is meant."""
    return [form for form in _FORMS if set(columns) <= set(form[1])]


def _messages(value: Any, what: str) -> Messages:
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
    weight = item.get("weight")
    if weight is not None and (not isinstance(weight, int | float) or weight not in (0, 1)):
        raise Unfit(f"{what} has the weight {_shown(weight)}, which is neither 0 nor 1")
    return Message(role, _content(item.get("content"), what), 1.0 if weight is None else float(weight))


def _content(content: Any, what: str) -> str:
    if content is None:
        raise Unfit(f"{what} has no content")
    if not isinstance(content, list | tuple):
        return _check_text(content, f"the content of {what}")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or kind != "text":
            raise Unfit(f"{what} has a part of type {_shown(kind)}, and only text can be learned")
        parts.append(_check_text(part.get("text"), f"a part of {what}"))
    return "".join(parts)


def _check_text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise Unfit(f"{what} is no text")
    found = None if value.isascii() else _HALF_PAIR.search(value)
    if found:
        raise Unfit(f"{what} has half of a surrogate pair at character {found.start() + 1}, which is no text")
    return value


def _perhaps_messages(cell: str) -> Any:
    """Most answers that begin with a bracket are answers."""
    if cell.lstrip()[:1] != "[":
        return cell
    try:
        value = parse_json(cell)
    except Unfit:
        return cell
    is_list = isinstance(value, list) and all(isinstance(item, Mapping) and "role" in item for item in value)
    return value if value and is_list else cell


def _length(text: str | Messages) -> int:
    return len(text) if isinstance(text, str) else sum(len(message.content) for message in text)


def _shown(value: Any) -> str:
    """Enough of a value from anywhere to find it by."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:40]}…")
    return (
        repr(value) if isinstance(value, int | float | None) and len(repr(value)) < 40 else f"a {type(value).__name__}"
    )
