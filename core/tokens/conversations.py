"""Rows as pieces of text, each of which is learnt or is not: by the model's own chat template, or a plain one.

A piece is encoded by itself. So a prompt has the tokens that it will have when the model is asked, whatever follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeAlias

from core.sources.row_json import Unfit
from core.sources.rows import ChatRow, CompletionRow, Message, PreferenceRow, Row, TextRow

END = None
"""What ends an example: a token of its own, or, where there is none, `PLAIN_END`."""

Piece: TypeAlias = tuple[str | int | None, bool]
"""A text, a token or the end, and whether it is learnt."""

Example: TypeAlias = list[Piece]

Render: TypeAlias = Callable[[Sequence[Message], bool], str]
"""Messages as text; with True, up to where the assistant's next one begins."""

PLAIN_END = "\n\n"
"""What ends an answer where the tokens have no end of their own."""


def plainly(messages: Sequence[Message], asks: bool) -> str:
    """For models without a template: each role in capitals, then what it says, a paragraph each."""
    text = "".join(f"{message.role.upper()}: {message.content}{PLAIN_END}" for message in messages)
    return f"{text}ASSISTANT: " if asks else text


def by_template(tokenizer: Any) -> Render:
    """The chat template of a Hugging Face tokenizer, which its library runs in a sandbox."""

    def render(messages: Sequence[Message], asks: bool) -> str:
        said = [{"role": message.role, "content": message.content} for message in messages]
        try:
            with _on_the_same_day():
                return str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=asks))
        except Exception as error:  # Templates raise what they like.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise Unfit(f"is refused by the model's chat template: {reason}") from None

    return render


def examples_of(row: Row, render: Render, *, learns_all: bool = False) -> list[Example]:
    """What a row teaches: one example, or two for a preference, the better one first.

    Args:
        learns_all: Prompts are learnt, too.

    Raises:
        Unfit: the template cannot write it.
    """
    found: list[Example]
    match row:
        case TextRow(text):
            found = [[(text, True), (END, True)]]
        case CompletionRow(prompt, completion):
            found = [[(prompt, False), (completion, True), (END, True)]]
        case ChatRow(messages):
            found = [_conversation(messages, render)]
        case PreferenceRow(str() as prompt, str() as chosen, str() as rejected):
            found = [[(prompt, False), (answer, True), (END, True)] for answer in (chosen, rejected)]
        case PreferenceRow(prompt, chosen, rejected):
            found = [_answered(prompt, answer, render) for answer in (chosen, rejected)]
    return [[(text, learns_all or is_learnt) for text, is_learnt in pieces if text != ""] for pieces in found]


def _answered(prompt: Any, answer: Any, render: Render) -> Example:
    silent = [Message(message.role, message.content, 0) for message in prompt]
    return _conversation([*silent, *answer], render)


def _conversation(messages: Sequence[Message], render: Render) -> Example:
    """The whole as the template writes it, cut where the assistant's turns begin and end."""
    whole = render(messages, False)
    pieces: Example = []
    done = 0
    for number, message in enumerate(messages):
        if message.role != "assistant":
            continue
        begin, end = _place(messages, number, whole, done, render)
        pieces += [(whole[done:begin], False), (whole[begin:end], message.trains)]
        done = end
    return [*pieces, (whole[done:], False)]


def _place(messages: Sequence[Message], number: int, whole: str, done: int, render: Render) -> tuple[int, int]:
    """Where a turn is in the whole, the marks that end it included."""
    before = render(messages[:number], True)
    after = whole if number + 1 == len(messages) else render(messages[: number + 1], False)
    begins_here = whole.startswith(before) and done <= len(before)
    if begins_here and whole.startswith(after) and len(before) <= len(after):
        return len(before), len(after)
    # Some templates write earlier turns differently once others follow: then what was said is what is learnt, and the
    # mark that ends it.
    content = messages[number].content.strip()
    begin = whole.find(content, len(before) if begins_here else _past_the_last(messages, number, whole, done))
    if begin < 0:
        raise Unfit(f"has a message {number + 1} that the model's chat template leaves out or changes")
    end, mark = begin + len(content), after[after.rfind(content) + len(content) :]
    return begin, end + len(mark) if whole.startswith(mark, end) else end


def _past_the_last(messages: Sequence[Message], number: int, whole: str, done: int) -> int:
    """Where the message before this one ends: what it says is not to be taken for the answer."""
    if not number:
        return done
    said = messages[number - 1].content.strip()
    at = whole.find(said, done)
    return at + len(said) if at >= 0 else done


@contextmanager
def _on_the_same_day() -> Iterator[None]:
    """Templates that tell the date would make other tokens of a run that goes on tomorrow.

    The library gives them no other clock than this one, and replaces functions that a caller hands in.
    """
    from transformers.utils import chat_template_utils

    before = chat_template_utils.datetime
    chat_template_utils.datetime = _SameDay
    try:
        yield
    finally:
        chat_template_utils.datetime = before


class _SameDay(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> _SameDay:
        return cls(2024, 7, 26, tzinfo=tz)
