from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from client.sse import Message, Parser

LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])

# Everything that some line splitter somewhere takes for a line's end, but this format does not.
NOT_LINE_ENDS = "\u2028\u2029\x0b\x0c\x1c\x1d\x1e\x85"

WORDS = st.text(
    st.one_of(
        st.sampled_from(NOT_LINE_ENDS + "é😀:"), st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"])
    )
)
NAMES = WORDS.filter(lambda word: word.strip(" ") == word and word != "")


def parse(stream: bytes, cuts: list[int] | None = None) -> list[Message]:
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts or []), len(stream)]
    chunks = [stream[start:end] for start, end in pairwise(places)]
    return list(Parser().parse(chunks))


@given(
    st.lists(st.tuples(NAMES, st.lists(WORDS, min_size=1, max_size=3), st.integers(1, 999))),
    st.lists(st.integers(0, 10_000), max_size=20),
    LINE_ENDS,
)
def test_messages_arrive_whole_wherever_the_network_cuts_the_stream(
    said: list[tuple[str, list[str], int]], cuts: list[int], end: str
) -> None:
    blocks = [[f"id: {number}", f"event: {name}", *(f"data: {line}" for line in data)] for name, data, number in said]
    stream = "".join(end.join([*block, "", ""]) for block in blocks)
    expected = [Message(name, "\n".join(data), str(number)) for name, data, number in said]
    assert parse(stream.encode(), cuts) == expected


def test_a_line_separator_inside_data_does_not_end_the_line() -> None:
    assert parse("data: one\u2028two\x85three\n\n".encode()) == [Message("message", "one\u2028two\x85three", "")]


def test_a_line_end_that_two_chunks_share_ends_one_line() -> None:
    parser = Parser()
    assert list(parser.feed(b"data: a\r")) == []
    assert list(parser.feed(b"\ndata: b\r\n\r")) == [Message("message", "a\nb", "")]
    assert list(parser.feed(b"\ndata: c\n\n")) == [Message("message", "c", "")]


def test_a_message_is_handed_over_as_soon_as_its_blank_line_begins() -> None:
    assert list(Parser().feed(b"data: now\r\r")) == [Message("message", "now", "")]


def test_comments_and_unknown_fields_say_nothing() -> None:
    assert parse(b": ping\n\n:\nwhatever: x\nnonsense\ndata: y\n\n: ping\n\n") == [Message("message", "y", "")]


def test_the_server_decides_how_long_to_wait_before_coming_back() -> None:
    parser = Parser()
    list(parser.feed(b"retry: 250\n\n"))
    assert parser.retry_seconds == 0.25
    list(parser.feed("retry: soon\nretry: ٣\n\n".encode()))
    assert parser.retry_seconds == 0.25


def test_an_id_counts_once_its_message_is_whole_and_holds_for_those_that_follow() -> None:
    parser = Parser("6")
    assert [message.id for message in parser.feed(b"data: a\n\nid: 7\ndata: b\n\ndata: c\n\nid: 8\ndata: cut off")] == [
        "6",
        "7",
        "7",
    ]
    assert parser.last_id == "7"


def test_an_id_with_a_null_in_it_is_no_id() -> None:
    assert parse(b"id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n")[-1].id == "1"


def test_a_byte_order_mark_at_the_start_is_not_part_of_the_first_field() -> None:
    assert parse(b"\xef\xbb\xbfdata: a\n\ndata: \xef\xbb\xbfb\n\n") == [
        Message("message", "a", ""),
        Message("message", "\ufeffb", ""),
    ]


def test_bytes_that_are_no_text_do_not_end_the_stream() -> None:
    assert parse(b"data: \xff\n\n") == [Message("message", "\ufffd", "")]
