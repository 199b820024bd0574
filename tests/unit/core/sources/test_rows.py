from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import SourceColumns, SourceError, SourceNotReadable, SourceNotText
from core.sources import lines
from core.sources.rows import (
    NO_COLUMNS,
    BadRow,
    ChatRow,
    CompletionRow,
    Message,
    PreferenceRow,
    Row,
    RowKind,
    SourceFormat,
    TextRow,
    check_columns,
    format_of,
    num_characters,
    read_rows,
)
from tests.conftest import PROJECT

JSONL, CSV, PARQUET, TEXT = SourceFormat.JSONL, SourceFormat.CSV, SourceFormat.PARQUET, SourceFormat.TEXT


def rows(content: str | bytes, format: SourceFormat, columns: Mapping[str, str] = NO_COLUMNS) -> list[Row | BadRow]:
    raw = content if isinstance(content, bytes) else content.encode()
    return list(read_rows(io.BytesIO(raw), format, columns, name="x"))


def one(record: Any) -> Row | BadRow:
    (row,) = rows(json.dumps(record), JSONL)
    return row


def reason(record: Any) -> str:
    row = one(record)
    assert isinstance(row, BadRow)
    return row.reason


def in_parquet(records: list[Any], **given: Any) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records, **given), content)
    return content.getvalue()


USER, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
WRONG = {"role": "assistant", "content": "5"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.txt", TEXT),
        ("a.md", TEXT),
        ("README", TEXT),
        ("a.jsonl.gz", TEXT),
        ("deep/a.JSONL", JSONL),
        ("a.ndjson", JSONL),
        ("a.json", JSONL),
        ("a.csv", CSV),
        ("a.tsv", CSV),
        ("a.parquet", PARQUET),
    ],
)
def test_the_format_is_what_the_name_says(name: str, format: SourceFormat) -> None:
    assert format_of(name) is format


# The kinds of rows.


def test_each_kind_of_row_is_known_by_its_fields() -> None:
    assert one({"text": "a"}) == TextRow("a")
    assert one({"prompt": "a", "completion": "b", "id": 7}) == CompletionRow("a", "b")
    assert one({"messages": [USER, ANSWER]}) == ChatRow((Message("user", "2+2?"), Message("assistant", "4")))
    assert one({"prompt": "a", "chosen": "b", "rejected": "c"}) == PreferenceRow("a", "b", "c")


def test_of_several_forms_in_one_record_the_one_that_says_most_is_taken() -> None:
    assert one({"text": "a", "prompt": "b", "completion": "c"}) == CompletionRow("b", "c")
    assert one({"text": "a", "messages": None}) == TextRow("a")
    assert one({"prompt": "b", "text": "a"}) == TextRow("a")


def test_both_forms_of_preferences_are_the_same_row() -> None:
    row = PreferenceRow((Message("user", "2+2?"),), (Message("assistant", "4"),), (Message("assistant", "5"),))
    assert one({"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [WRONG]}) == row
    assert one({"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG]}) == row
    assert one({"prompt": "2+2?", "chosen": [ANSWER], "rejected": "5"}) == row


def test_a_prompt_that_each_answer_begins_with_again_is_there_once() -> None:
    row = one({"prompt": "2+2?", "chosen": [USER, ANSWER], "rejected": [USER, WRONG]})
    assert row == PreferenceRow((Message("user", "2+2?"),), (Message("assistant", "4"),), (Message("assistant", "5"),))


def test_a_message_of_weight_0_does_not_train() -> None:
    row = one({"messages": [USER, {**WRONG, "weight": 0}, USER, {**ANSWER, "weight": 1}]})
    assert isinstance(row, ChatRow)
    assert [message.trains for message in row.messages] == [False, False, False, True]


def test_parts_of_a_content_are_put_together() -> None:
    parts = [{"type": "text", "text": "2"}, {"type": "text", "text": "+2?"}]
    assert one({"messages": [{"role": "user", "content": parts}, ANSWER]}) == one({"messages": [USER, ANSWER]})


def test_characters_are_those_of_all_that_is_read() -> None:
    found = [
        TextRow("ab"),
        CompletionRow("a", "bc"),
        ChatRow((Message("user", "ab"), Message("assistant", "c"))),
        PreferenceRow("a", "b", "cd"),
    ]
    assert [num_characters(row) for row in found] == [2, 3, 3, 4]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (5, "is no JSON object"),
        ("text", "is no JSON object"),
        ({}, "has none of the fields 'messages', 'preferred_output', 'non_preferred_output', 'chosen', 'rejected',"),
        ({"completion": "a"}, "has no 'prompt'"),
        ({"prompt": "a"}, "has no 'completion'"),
        ({"prompt": "a", "completion": " \n"}, "has nothing in its 'completion'"),
        ({"text": ""}, "has nothing in its 'text'"),
        ({"text": 5}, "its 'text' is no text"),
        ({"text": "a\ud800"}, "its 'text' has half of a surrogate pair at character 2"),
        ({"messages": {}}, "its 'messages' is no list of messages"),
        ({"messages": []}, "its 'messages' is no list of messages"),
        ({"messages": "["}, "its 'messages' is no JSON"),
        ({"messages": [5]}, "its message 1 is no object"),
        ({"messages": [{}]}, "its message 1 has no role"),
        ({"messages": [USER, {"role": "boss"}]}, "its message 2 has the role 'boss', which is none of system,"),
        ({"messages": [{"role": ["user"]}]}, "its message 1 has the role a list"),
        ({"messages": [{"role": "user"}]}, "its message 1 has no content"),
        ({"messages": [{"role": "user", "content": 5}]}, "the content of its message 1 is no text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part of type 'image_url'"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "a part of type None"),
        ({"messages": [{**ANSWER, "weight": 0.5}]}, "its message 1 has the weight 0.5, which is neither 0 nor 1"),
        ({"messages": [{**ANSWER, "weight": float("nan")}]}, "the weight nan"),
        ({"messages": [{**ANSWER, "weight": "1"}]}, "the weight '1'"),
        ({"messages": [USER]}, "has no assistant message to learn from"),
        ({"messages": [{**ANSWER, "weight": 0}]}, "has no assistant message to learn from"),
        ({"messages": [USER, CALL]}, "its message 2 has 'tool_calls', and calls of tools cannot be learned"),
        ({"messages": [USER, {**CALL, "weight": 0}, ANSWER]}, "its message 2 has 'tool_calls'"),
        ({"messages": [USER, {"role": "assistant", "function_call": {"name": "f"}}]}, "its message 2 has 'function_"),
        ({"messages": [USER, ANSWER], "tools": [{"type": "function"}]}, "has 'tools', and calls of tools cannot"),
        ({"messages": [USER, ANSWER], "tools": ' [{"type": "function"}]'}, "has 'tools'"),
        ({"messages": [USER, ANSWER], "functions": [{"name": "f"}]}, "has 'functions'"),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [CALL]}, "its message 1 has 'tool_calls'"),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG], "tools": [{}]}, "has 'tools'"),
        (
            {
                "input": {"messages": [USER], "tools": [{}]},
                "preferred_output": [ANSWER],
                "non_preferred_output": [WRONG],
            },
            "its 'input' has 'tools'",
        ),
        ({"prompt": "a", "chosen": "b"}, "has no 'rejected'"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "has the same answer twice"),
        ({"prompt": "a", "chosen": [USER], "rejected": "b"}, "has an answer without an assistant's message"),
        ({"preferred_output": [ANSWER]}, "has no 'input'"),
        ({"input": {}, "preferred_output": [ANSWER]}, "has no 'messages' in its 'input'"),
    ],
)
def test_a_record_that_makes_no_row_says_why(record: Any, said: str) -> None:
    assert said in reason(record)


def test_no_tools_and_no_calls_are_as_good_as_none_named() -> None:
    answer = {**ANSWER, "tool_calls": [], "function_call": None}
    chat = one({"messages": [USER, ANSWER]})
    for tools in (None, [], "", "[]", "null", "a hammer"):
        assert one({"messages": [USER, answer], "tools": tools, "functions": []}) == chat
    assert one({"text": "a nail", "tools": ["a hammer"]}) == TextRow("a nail")
    assert one({"prompt": "a", "chosen": "b", "rejected": "c", "tools": [{}]}) == PreferenceRow("a", "b", "c")


def test_tools_of_a_table_are_seen_too() -> None:
    record = {"messages": json.dumps([USER, ANSWER]), "tools": '[{"type": "function"}]'}
    said = BadRow(1, "has 'tools', and calls of tools cannot be learned")
    assert rows(in_parquet([record]), PARQUET) == [said]
    assert rows(in_parquet([{**record, "tools": None}]), PARQUET) == [one({"messages": [USER, ANSWER]})]
    table = "\t".join(record) + "\n" + "\t".join('"' + cell.replace('"', '""') + '"' for cell in record.values())
    assert rows(table, CSV) == [BadRow(2, said.reason)]
    # Who says that the messages are in a column of that name means it.
    assert rows(json.dumps({"tools": [USER, ANSWER]}), JSONL, {"messages": "tools"}) == [
        one({"messages": [USER, ANSWER]})
    ]


def test_whatever_a_record_holds_its_reason_is_short_and_can_be_shown() -> None:
    for value in ("x" * 10**6, ["x" * 10**6], {"x": "y" * 10**6}, 10**400, "\x1b[2J" * 100):
        said = reason({"messages": [{"role": value}]})
        assert len(said) < 200
        assert said.isprintable()


# Lines of JSON.


def test_bad_lines_have_their_numbers_and_stop_nothing() -> None:
    content = b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": \n\n{"text": "b\xff"}\n'
    content += b'{"prompt": "p", "completion": "c"}\n{"text": "z"}'
    assert rows(content, JSONL) == [
        TextRow("a"),
        BadRow(3, "is no JSON: Expecting value at character 10"),
        BadRow(5, "is not UTF-8: its byte 12 cannot be decoded"),
        BadRow(6, "is a completion row, and the rows before it are text rows"),
        TextRow("z"),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[" * 100_000, "is nested too deeply"),
        ('{"a":' * 100_000, "is nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "has a number of more digits than can be read"),
        ('{"a": [' + "0," * (2 << 20) + "0]}", "has more than 1,000,000 values"),
        ('{"text": "\x00"}', "is no JSON"),
        ('{"text": "a"} {"text": "b"}', "is no JSON"),
        ("\ufeff" + '{"text": "a"}', "is no JSON"),
    ],
)
def test_hostile_json_is_a_bad_row(line: str, said: str) -> None:
    found = rows('{"text": "a"}\n' + line + '\n{"text": "b"}\n', JSONL)
    assert found[0] == TextRow("a")
    assert found[2] == TextRow("b")
    assert isinstance(found[1], BadRow)
    assert found[1].number == 2
    assert said in found[1].reason


def test_a_long_text_may_have_as_many_commas_as_it_likes() -> None:
    text = ',"[{:' * 1_000_000
    assert rows(json.dumps({"text": text}), JSONL) == [TextRow(text)]


def test_a_line_without_end_is_a_bad_row_and_the_next_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 5 << 20)
    long = '{"text": "' + "x" * (6 << 20) + '"}'
    fits = '{"text": "' + "x" * ((5 << 20) - 12) + '"}'
    found = rows(f'{long}\n{fits}\n{{"text": "z"}}\n{long}', JSONL)
    assert [row.number if isinstance(row, BadRow) else num_characters(row) for row in found] == [
        1,
        (5 << 20) - 12,
        1,
        4,
    ]


RSS = """
import json, re, sys
from pathlib import Path
from core.sources.rows import BadRow, SourceFormat, num_characters, read_rows

def peak_mib():
    # Not ru_maxrss, which begins at what the process that started this one had.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

before = peak_mib()
with open(sys.argv[1], "rb") as file:
    found = [
        row.reason if isinstance(row, BadRow) else num_characters(row)
        for row in read_rows(file, SourceFormat(sys.argv[2]))
    ]
print(json.dumps([found, peak_mib() - before]))
"""


def read_elsewhere(path: Path, format: SourceFormat) -> tuple[list[Any], int]:
    """Of each row what is wrong with it or its length, and the MiB that reading them took."""
    command = [sys.executable, "-c", RSS, str(path), format.value]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    found, taken = json.loads(done.stdout)
    return found, taken


@pytest.mark.parametrize("format", [JSONL, CSV])
def test_a_line_of_300_mib_takes_no_memory(tmp_path: Path, format: SourceFormat) -> None:
    path = tmp_path / "huge"
    first, last = (b'{"text": "a"}\n', b'\n{"text": "z"}\n') if format is JSONL else (b"text\na\n", b"\nz\n")
    with path.open("wb") as file:
        file.write(first + b'{"text": "')
        file.seek(300 << 20, 1)  # A hole: zeros that are on no disk.
        file.write(last)
    found, taken = read_elsewhere(path, format)
    assert found == [1, "is longer than 64 MiB", 1]
    assert taken < 100


def test_the_costliest_line_that_may_be_takes_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "costly.jsonl"
    with path.open("wb") as file:
        for _ in range(3):
            file.write(b'{"a": [' + b"{}," * (21 << 20) + b"0]}\n")  # Were it parsed, 1.5 GiB.
            file.write(b'{"a": [' + b"{}," * 333_000 + b"0]}\n")
    found, taken = read_elsewhere(path, JSONL)
    assert found[0] == "has more than 1,000,000 values"
    assert found[1].startswith("has none of the fields")
    assert taken < 450


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content", "weight", "type"]), inner),
    max_leaves=8,
)
fields = st.sampled_from(["text", "prompt", "completion", "messages", "chosen", "rejected", "input", "x"])


@given(st.lists(st.dictionaries(fields, json_values)))
def test_any_json_is_a_row_or_a_bad_row(records: list[Any]) -> None:
    found = rows("".join(json.dumps(record) + "\n" for record in records), JSONL)
    assert len(found) == len(records)


@given(st.binary(), st.sampled_from(list(SourceFormat)), st.sampled_from(["", "text\n", '{"text": "a"}\n', "PAR1"]))
def test_any_bytes_make_rows_bad_rows_or_one_of_our_errors(raw: bytes, format: SourceFormat, before: str) -> None:
    try:
        found = rows(before.encode() + raw, format)
    except SourceError:
        return
    assert all(isinstance(row, TextRow | CompletionRow | ChatRow | PreferenceRow | BadRow) for row in found)


texts = st.text(min_size=1).filter(lambda text: text.strip() != "" and text.isprintable())


@given(st.lists(st.tuples(st.text(), texts)))
def test_what_is_written_as_jsonl_is_read_again(pairs: list[tuple[str, str]]) -> None:
    content = "".join(json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in pairs)
    assert rows(content, JSONL) == [CompletionRow(prompt, answer) for prompt, answer in pairs]


# Text.


@given(st.text(alphabet=st.characters(exclude_characters="\ufeff", codec="utf-8")), st.integers(4, 9), st.booleans())
def test_the_pieces_of_a_text_make_the_text(text: str, size: int, has_mark: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.sources.rows.PIECE_BYTES", size)
        found = rows(text.encode("utf-8-sig" if has_mark else "utf-8"), TEXT)
    assert "".join(row.text for row in found if isinstance(row, TextRow)) == text
    assert all(0 < num_characters(row) <= size + 3 for row in found if not isinstance(row, BadRow))


def test_no_piece_of_a_text_is_larger_than_it_may_be() -> None:
    found = rows("é€𝄞" * 500_000, TEXT)
    assert len(found) > 3
    assert all(len(row.text.encode()) <= 1 << 20 for row in found if isinstance(row, TextRow))


def test_line_ends_and_nul_of_a_text_stay_as_they_are() -> None:
    assert rows("a\r\nb\rc\x00d", TEXT) == [TextRow("a\r\nb\rc\x00d")]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_that_is_no_text_is_named_by_its_place_in_the_file(mark: bytes) -> None:
    with pytest.raises(SourceNotText, match=f"offset {len(mark) + 2} "):
        rows(mark + b"ab\xff", TEXT)


# Tables.


def test_csv_has_the_same_fields_with_quotes_line_ends_and_a_mark() -> None:
    content = '\ufeffprompt,completion,id\r\n"a, ""b""",c,1\r\n\r\n"two\nlines",d,2\r\n'
    assert rows(content, CSV) == [CompletionRow('a, "b"', "c"), CompletionRow("two\nlines", "d")]


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_the_delimiter_is_seen_in_the_header(delimiter: str) -> None:
    content = "\n".join(delimiter.join(cells) for cells in (["id", "text", "n"], ["1", "a", "2"]))
    assert rows(content, CSV) == [TextRow("a")]


def test_a_bad_record_of_csv_has_the_number_of_its_first_line() -> None:
    content = b'prompt,completion\na,b\nonly one\n"x\ny",z,too many\n"q"q,b\nc,\n\xff,e\nf,g\n"no end,\n'
    found = rows(content, CSV)
    assert [row for row in found if isinstance(row, CompletionRow)] == [
        CompletionRow("a", "b"),
        CompletionRow("f", "g"),
    ]
    assert [row for row in found if isinstance(row, BadRow)] == [
        BadRow(3, "has 1 fields, and the header has 2"),
        BadRow(4, "has 3 fields, and the header has 2"),
        BadRow(6, "is no CSV: ',' expected after '\"'"),
        BadRow(7, "has nothing in its 'completion'"),
        BadRow(8, "is not UTF-8: its byte 1 cannot be decoded"),
        BadRow(10, "has a quote that is never closed"),
    ]


def test_a_quote_without_end_is_told_with_all_the_lines_that_go_with_it() -> None:
    found = rows("text\n" + "a\n" * 10 + '"oops\n' + "b\n" * 1000, CSV)
    assert found[:10] == [TextRow("a")] * 10
    assert found[10] == BadRow(12, "has a quote that is never closed: 1,000 lines went with it")
    assert found[11:] == [BadRow(13 + n, "went with the quote that opens on line 12") for n in range(1000)]


@pytest.mark.parametrize(
    ("lines_of_record", "line", "num_more"),
    [
        (['"a', 'b","oops', "x"], 3, 2),
        (['"a', 'b",c;"oops, ""', "x"], 0, 0),
        (['"a""', '""', '",', "x"], 0, 0),
        (['a,"x""', '"",', '""'], 2, 2),
        (['"a', '","', "x"], 3, 2),
        (['"a', 'b","c",d,,"e', "x"], 3, 2),
        (["a;,x", 'b,"oops'], 3, 0),
    ],
)
def test_the_line_is_told_on_which_a_quote_opens(lines_of_record: list[str], line: int, num_more: int) -> None:
    found = [row for row in rows("\n".join(["prompt,completion", *lines_of_record]), CSV) if isinstance(row, BadRow)]
    told = [row for row in found if "is never closed" in row.reason]
    if not line:
        assert told == []
        return
    (first,) = told
    opens = "that" if line == first.number else f"that opens on line {line} and"
    went = f": {num_more} line{'s' if num_more > 1 else ''} went with it" if num_more else ""
    assert first.reason == f"has a quote {opens} is never closed{went}"


def test_a_quote_that_another_one_breaks_off_is_told_with_its_lines() -> None:
    content = 'prompt,completion\n"oops,b\na,b\n"x, y",z\nc,d\n'
    assert rows(content, CSV) == [
        BadRow(2, "is no CSV: ',' expected after '\"' on line 4: 2 lines went with it"),
        BadRow(3, "went with the quote that opens on line 2"),
        BadRow(4, "went with the quote that opens on line 2"),
        CompletionRow("c", "d"),
    ]


def test_names_of_columns_may_have_line_breaks_in_quotes() -> None:
    columns = {"prompt": "what is\nasked", "completion": "the\nanswer"}
    content = '\n"what is\nasked";"the\nanswer";"one; two, three"\na;b;c\n\nonly\n'
    assert rows(content, CSV, columns) == [
        CompletionRow("a", "b"),
        BadRow(7, "has 1 fields, and the header has 3"),
    ]
    with pytest.raises(SourceColumns, match="it has 'a b', 'c' and needs"):
        rows('"a\nb",c\n1,2\n', CSV)
    for header in ('"text\na\nb\n', '"text"x\na\n', '"text\n' + "a\n" * 200 + '"\nb\n'):
        with pytest.raises(SourceColumns, match="the header of source 'x' is no CSV: its quotes"):
            rows(header, CSV)
    # What looks like the beginning of a quote to another delimiter is none.
    assert rows('text,x;"y\na,b\n\xff,c\n', CSV) == [TextRow("a"), TextRow("\xff")]


def test_two_columns_of_one_name_are_refused_if_rows_are_made_of_them() -> None:
    table = pa.Table.from_arrays([pa.array(["1"]), pa.array(["2"]), pa.array(["3"])], names=["text", "text", "id"])
    content = io.BytesIO()
    pq.write_table(table, content)
    for raw, format in ((b"text,text,id\n1,2,3\n", CSV), (content.getvalue(), PARQUET)):
        with pytest.raises(SourceColumns, match="source 'x' has 2 columns 'text': rename all but one"):
            rows(raw, format)
        assert rows(raw, format, {"text": "id"}) == [TextRow("3")]
    assert rows("text,id,id,,\na,1,2,,\n", CSV) == [TextRow("a")]


def test_a_cell_may_hold_more_than_csv_usually_lets_it() -> None:
    assert rows("text\n" + "x" * 200_000, CSV) == [TextRow("x" * 200_000)]


def test_messages_in_a_cell_are_json_and_strings_stay_strings() -> None:
    def table(*cells: str) -> str:
        return ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)

    chat = rows("messages\n" + table(json.dumps([USER, ANSWER])), CSV)
    assert chat == [one({"messages": [USER, ANSWER]})]
    header = "prompt,chosen,rejected\n"
    both = rows(header + table("[2+2]", "[4]", "[5]"), CSV)
    assert both == [PreferenceRow("[2+2]", "[4]", "[5]")]
    lists = rows(header + table(*(json.dumps([message]) for message in (USER, ANSWER, WRONG))), CSV)
    assert lists == [one({"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG]})]


@pytest.mark.parametrize("line", ["," * 3_000_000, '"' + "\n,\n" * 1_500_000])
def test_a_record_of_csv_with_fields_without_end_is_bad(line: str) -> None:
    found = rows(f"text\na\n{line}", CSV)
    assert found[0] == TextRow("a")
    assert isinstance(found[1], BadRow)
    assert "more than 1,000,000 delimiters" in found[1].reason


def test_quotes_without_end_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    found = rows('text\n"' + "x\n" * 600 + "z\n", CSV)
    assert found[0] == BadRow(2, "has a quote that is still open after 0 MiB: 499 lines went with it")
    assert found[-1] == TextRow("z")


Write = Callable[[list[Any]], bytes]


def test_parquet_has_the_same_rows_as_jsonl() -> None:
    for records in (
        [{"text": "a"}, {"text": None}, {"text": "b"}],
        [{"prompt": "a", "completion": "b", "n": 5}],
        [{"messages": [USER, {**ANSWER, "weight": 1.0}]}, {"messages": [USER, {**ANSWER, "weight": None}]}],
        [{"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG]}],
        [{"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [WRONG]}],
        [{"messages": json.dumps([USER, ANSWER])}],
    ):
        assert rows(in_parquet(records), PARQUET) == rows("\n".join(map(json.dumps, records)), JSONL)


def test_rows_of_parquet_are_counted_over_all_its_batches() -> None:
    records = [{"text": f"row {number}" if number % 100 else ""} for number in range(1, 301)]
    found = rows(in_parquet(records), PARQUET)
    assert [row for row in found if isinstance(row, BadRow)] == [
        BadRow(number, "has nothing in its 'text'") for number in (100, 200, 300)
    ]
    assert found[298] == TextRow("row 299")


def test_a_value_of_parquet_that_is_no_text_is_a_bad_row() -> None:
    raw = pa.array([b"a", b"\xff", b"c"], pa.binary())
    content = io.BytesIO()
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 3, raw.buffers())}), content)
    assert rows(content.getvalue(), PARQUET) == [TextRow("a"), BadRow(2, "is not UTF-8"), TextRow("c")]
    assert "is no text" in str(rows(in_parquet([{"text": 5}]), PARQUET))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"hello", in_parquet([{"text": "a" * 5000}])[:-20]])
def test_what_is_no_whole_parquet_file_is_said(content: bytes) -> None:
    with pytest.raises(SourceNotReadable, match="source 'x' cannot be read as Parquet: "):
        rows(content, PARQUET)


def test_a_row_of_parquet_is_no_longer_than_a_line_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 10)
    found = rows(in_parquet([{"text": "x" * 11}, {"text": "x" * 10}]), PARQUET)
    assert found == [BadRow(1, "is longer than 64 MiB"), TextRow("x" * 10)]


def test_damage_that_python_notices_first_is_told_like_any_other() -> None:
    content = in_parquet([{"id": 5, "text": "a"}])
    for place in re.finditer(b"text", content):
        with contextlib.suppress(SourceError):
            rows(content[: place.start()] + b"\xd8\xd8\xd8\xd8" + content[place.end() :], PARQUET)


def test_a_parquet_file_that_becomes_far_more_than_it_is_is_given_up() -> None:
    bomb = io.BytesIO()
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 200_000, pa.int32()), pa.array(["x" * 100_000]))
    pq.write_table(pa.table({"text": words}), bomb)  # 20 GB of text.
    assert len(bomb.getvalue()) < 1 << 20
    with pytest.raises(SourceNotReadable, match="becomes more than 200 times its size"):
        rows(bomb.getvalue(), PARQUET)
    nothing = io.BytesIO()
    pq.write_table(pa.table({"text": pa.nulls(3_000_000, pa.string())}), nothing)
    with pytest.raises(SourceNotReadable, match="becomes more than 200 times its size"):
        for _ in read_rows(nothing, PARQUET, name="x"):
            pass


def test_without_pyarrow_a_parquet_file_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    content = in_parquet([{"text": "a"}])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SourceNotReadable, match=r"pip install 'ratchet\[parquet\]'"):
        rows(content, PARQUET)


# Columns of other names.


def test_columns_say_what_the_fields_are_called() -> None:
    columns = {"prompt": "q", "completion": "a"}
    for content, format in (
        ('{"q": "2+2?", "a": "4", "text": "no"}', JSONL),
        ("q,a,messages\n2+2?,4,no", CSV),
        (in_parquet([{"q": "2+2?", "a": "4", "messages": 5}]), PARQUET),
    ):
        assert rows(content, format, columns) == [CompletionRow("2+2?", "4")]
    assert rows('{"q": "2+2?"}', JSONL, columns) == [BadRow(1, "has no 'a'")]


@pytest.mark.parametrize("columns", [{"txet": "a"}, {"text": "a", "prompt": "b"}, {"messages": "a", "chosen": "b"}])
def test_a_map_of_columns_that_fits_no_row_is_refused(columns: dict[str, str]) -> None:
    for attempt in (lambda: check_columns(columns), lambda: rows("", JSONL, columns)):
        with pytest.raises(SourceColumns, match="columns names "):
            attempt()


def test_a_table_without_the_columns_of_any_row_says_which_it_has() -> None:
    for content, format in (("q,a\n1,2", CSV), (in_parquet([{"q": "1", "a": "2"}]), PARQUET)):
        with pytest.raises(SourceColumns, match="it has 'q', 'a' and needs 'text', 'prompt' and 'completion'"):
            rows(content, format)
        with pytest.raises(SourceColumns, match="source 'x' has no column 'body': it has 'q', 'a'"):
            rows(content, format, {"text": "body"})
    for header in (b"", b"\n\n", b"\xff\n"):
        with pytest.raises(SourceColumns):
            rows(header, CSV)
    with pytest.raises(SourceColumns, match="the header of source 'x' has more than 10,000 columns"):
        rows("text" + "," * 10_000, CSV)


# What is not what its name says.


@pytest.mark.parametrize("format", list(SourceFormat))
@pytest.mark.parametrize("tool", ["gunzip", "unzip", "unxz", "unzstd", "bunzip2"])
def test_what_is_compressed_says_how_to_unpack_it(format: SourceFormat, tool: str) -> None:
    import bz2
    import gzip
    import lzma
    import zipfile

    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a", "a")
    packed = {
        "gunzip": gzip.compress(b"a"),
        "unzip": zipped.getvalue(),
        "unxz": lzma.compress(b"a"),
        "unzstd": b"\x28\xb5\x2f\xfd\x00",
        "bunzip2": bz2.compress(b"a"),
    }
    with pytest.raises(SourceNotReadable, match=rf"source 'x' is compressed \(\w+\): unpack it first, .* {tool}$"):
        rows(packed[tool], format)


def test_a_text_that_only_begins_like_something_else_is_a_text() -> None:
    for text in ("BZh9 is how bzip2 begins", "PAR1 is how Parquet begins", "[1] a list", "PK"):
        assert rows(text, TEXT) == [TextRow(text)]


@pytest.mark.parametrize("format", [TEXT, JSONL, CSV])
def test_parquet_and_utf16_under_another_name_are_known(format: SourceFormat) -> None:
    with pytest.raises(SourceNotReadable, match=r"is a Parquet file: give it a name that ends in \.parquet"):
        rows(in_parquet([{"text": "a"}]), format)
    with pytest.raises(SourceNotText, match=r"offset 0 .* UTF-16, so save it as UTF-8"):
        rows("text".encode("utf-16"), format)


@pytest.mark.parametrize("content", ['[{"text": "a"}]', ' \n[\n{"text": "a"}\n]', '\ufeff[{"text": "a"}'])
def test_a_json_array_says_to_write_lines(content: str) -> None:
    with pytest.raises(SourceNotReadable, match="one JSON array: write one object per line"):
        rows(content, JSONL)


def test_rows_are_streamed() -> None:
    class Endless(io.RawIOBase):
        def seek(self, *_: int) -> int:
            return 0

        def read(self, size: int = -1) -> bytes:
            return b'{"text": "a"}\n' * 1000

    found = read_rows(Endless(), JSONL)  # type: ignore[arg-type]
    assert [next(found) for _ in range(3)] == [TextRow("a")] * 3
    assert RowKind.TEXT == "text"
