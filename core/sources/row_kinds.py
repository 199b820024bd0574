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

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

from core.sources.row_json import Unfit, parse_json
from core.sources.row_messages import TOOLS, Message, Messages, check_text, messages_of, perhaps_messages, refuse_tools

NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


class RowKind(StrEnum):
    """What a row teaches: all of a text, an answer, the assistant's turns, or which of two answers is better."""

    TEXT = "text"
    COMPLETION = "completion"
    CHAT = "chat"
    PREFERENCE = "preference"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Numbered:
    """Anything that comes from a file.

    Args:
        number: Of its first line in the file for JSONL and CSV, of the row for Parquet; from 1 on. 0 is nowhere.
    """

    number: int = field(default=0, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TextRow(_Numbered):
    """A text, all of which is learned."""

    kind: ClassVar[RowKind] = RowKind.TEXT
    text: str


@dataclass(frozen=True, slots=True)
class CompletionRow(_Numbered):
    """A prompt and what is to follow it, which alone is learned."""

    kind: ClassVar[RowKind] = RowKind.COMPLETION
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class ChatRow(_Numbered):
    """A conversation in which at least one message trains."""

    kind: ClassVar[RowKind] = RowKind.CHAT
    messages: Messages


@dataclass(frozen=True, slots=True)
class PreferenceRow(_Numbered):
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


def numbered(row: Row, number: int) -> Row:
    """A row that was just made, with its place. A copy would take as long as making it did."""
    object.__setattr__(row, "number", number)
    return row


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


def fields_read() -> list[str]:
    """Every field that is looked at, whatever it is called in a source, and what no row may have beside them."""
    return [*fields_of_rows(), *TOOLS]


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
            check_text(value, self.its(field))
        if not may_be_blank and (not value or value.isspace()):
            raise Unfit(f"has nothing in {self.its(field)}")
        return str(value)

    def refuse_tools(self) -> None:
        """For rows with messages; in others a field of such a name is one to ignore."""
        taken = self._columns.values()
        refuse_tools(self._record, tuple(name for name in TOOLS if name not in taken), "has")

    def messages(self, field: str) -> Messages:
        return messages_of(self.structure(field), self.its(field))

    def structure(self, field: str) -> Any:
        """A list or an object, which may be there as JSON text."""
        value = self.need(field)
        return parse_json(value, f"{self.its(field)} ") if isinstance(value, str) else value

    def answer(self, field: str, *, may_be_blank: bool = False) -> str | Messages:
        """A string, or messages."""
        value = self.need(field)
        if self._in_table and isinstance(value, str):
            value = perhaps_messages(value)
        if isinstance(value, str):
            return self.text(field, may_be_blank=may_be_blank)
        return messages_of(value, self.its(field))


def _text_row(fields: _Fields) -> Row:
    return TextRow(fields.text("text"))


def _completion_row(fields: _Fields) -> Row:
    return CompletionRow(fields.text("prompt", may_be_blank=True), fields.text("completion"))


def _chat_row(fields: _Fields) -> Row:
    fields.refuse_tools()
    messages = fields.messages("messages")
    if not any(message.trains and message.content.strip() for message in messages):
        raise Unfit("has no assistant message to learn from")
    return ChatRow(messages)


def _preference_row(fields: _Fields) -> Row:
    prompt = fields.answer("prompt", may_be_blank=True)
    chosen, rejected = fields.answer("chosen"), fields.answer("rejected")
    if not all(isinstance(part, str) for part in (prompt, chosen, rejected)):
        fields.refuse_tools()
    return _preference(prompt, chosen, rejected)


def _openai_preference_row(fields: _Fields) -> Row:
    given = fields.structure("input")
    if not isinstance(given, Mapping) or given.get("messages") is None:
        raise Unfit(f"has no 'messages' in {fields.its('input')}")
    fields.refuse_tools()
    refuse_tools(given, TOOLS, f"{fields.its('input')} has")
    prompt = messages_of(given["messages"], "its 'messages'")
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


def _length(text: str | Messages) -> int:
    return len(text) if isinstance(text, str) else sum(len(message.content) for message in text)
