"""The bundled training text keeps the rules it was made by."""

import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tools.build_source.__main__ import SOURCE, main
from tools.build_source.compose import compose, entries_summing_to
from tools.build_source.model import Composition, Entry
from tools.build_source.similarity import NearDuplicateIndex

ENTRY = re.compile(r"QUESTION: (?P<question>[A-Z0-9][^\n]*\?)\nANSWER: (?P<answer>[A-Z0-9][^\n]*\.)")
SIMILAR = 0.6


@pytest.fixture(scope="module")
def text() -> str:
    return SOURCE.read_bytes().decode("ascii")


@pytest.fixture(scope="module")
def composition() -> Composition:
    return compose()


def pairs(text: str) -> list[tuple[str, str]]:
    found = [ENTRY.fullmatch(block) for block in text.removesuffix("\n").split("\n\n")]
    return [(match["question"], match["answer"]) for match in found if match]


def cut(text: str) -> int:
    return int(len(text) * 0.9)


def word_runs(entry: str) -> set[tuple[str, ...]]:
    words = re.sub(r"[^\w\s]", "", entry.lower()).split()
    return {tuple(words[start : start + 3]) for start in range(len(words) - 2)}


def entry(number: int, text_length: int) -> Entry:
    padding = "x" * (text_length - len("QUESTION: \nANSWER: ") - 2)
    return Entry("arithmetic", "sum", f"sum/{number}", 1, padding, "")


def test_text_is_between_300_and_550_kilobytes(text: str) -> None:
    assert 300_000 <= len(text) <= 550_000


def test_every_entry_has_the_exact_form(text: str) -> None:
    assert len(pairs(text)) == len(text.removesuffix("\n").split("\n\n"))
    assert text.endswith(".\n")


def test_first_entry_asks_for_the_capital_of_france(text: str) -> None:
    first = ("What is the capital of France?", "The capital of France is Paris.")
    assert pairs(text)[0] == first


def test_no_question_is_asked_twice(text: str) -> None:
    counts = Counter(question.lower() for question, _ in pairs(text))
    assert [question for question, count in counts.items() if count > 1] == []


def test_alphabet_is_small_and_plain(text: str) -> None:
    alphabet = set(text)
    assert len(alphabet) < 80
    assert all(sign == "\n" or " " <= sign <= "~" for sign in alphabet)


def test_answers_are_short_and_no_word_is_doubled(text: str) -> None:
    assert max(len(answer) for _, answer in pairs(text)) < 90
    # Case counts: the letter A may stand before the article, the symbol As after the word.
    doubled = re.compile(r"\b([A-Za-z]+) \1\b")
    assert [pair for pair in pairs(text) if any(doubled.search(part) for part in pair)] == []


def test_articles_agree_with_the_sound_that_follows(text: str) -> None:
    wrong = re.compile(r"\b(?:a (?:[aeio][a-z]|hour)|an [b-df-gj-np-tv-z][a-z])")
    found = [question + answer for question, answer in pairs(text)]
    assert [entry for entry in found if wrong.search(entry)] == []


def test_last_tenth_starts_with_a_whole_entry(text: str) -> None:
    assert text[: cut(text)].endswith(".\n\n")
    assert text[cut(text) :].startswith("QUESTION: ")


def test_no_validation_entry_is_nearly_a_training_entry(text: str) -> None:
    training = text[: cut(text)].strip().split("\n\n")
    runs = [word_runs(block) for block in training]
    holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for position, found in enumerate(runs):
        for run in found:
            holders[run].append(position)
    close = []
    for block in text[cut(text) :].strip().split("\n\n"):
        own = word_runs(block)
        shared = Counter(position for run in own for position in holders[run])
        close += [
            (block, training[position])
            for position, common in shared.items()
            if common / len(own | runs[position]) >= SIMILAR
        ]
    assert close == []


def test_near_duplicates_are_found_at_the_threshold() -> None:
    index = NearDuplicateIndex(["one two three four five six", "nothing like the other text"])
    # Three of five runs are shared: exactly 0.6.
    assert index.near_duplicates("One, two: three four five seven!") == [0]
    assert index.near_duplicates("one two three four seven eight") == []


def test_the_cut_falls_between_the_two_parts(text: str, composition: Composition) -> None:
    validation = "\n\n".join(entry.text for entry in composition.validation) + "\n"
    assert text[cut(text) :] == validation


def test_every_validation_fact_is_stated_in_training(composition: Composition) -> None:
    ways: defaultdict[str, set[int]] = defaultdict(set)
    for item in composition.training:
        ways[item.fact].add(item.phrasing)
    asked = Counter(item.fact for item in composition.validation)
    assert max(asked.values()) == 1
    for item in composition.validation:
        assert len(ways[item.fact]) >= 3
        assert item.phrasing not in ways[item.fact]


def test_every_validation_phrasing_asks_about_other_facts_in_training(
    composition: Composition,
) -> None:
    used = {(item.relation, item.phrasing) for item in composition.training}
    assert all((item.relation, item.phrasing) in used for item in composition.validation)


def test_both_parts_cover_every_relation(composition: Composition) -> None:
    trained = {item.relation for item in composition.training}
    assert trained == {item.relation for item in composition.validation}


def test_arithmetic_takes_up_a_fifth_at_most(text: str, composition: Composition) -> None:
    entries = (*composition.training, *composition.validation)
    arithmetic = sum(len(item.text) + 2 for item in entries if item.subject == "arithmetic")
    assert arithmetic <= len(text) / 5


def test_sums_in_the_text_are_right(text: str) -> None:
    found = re.findall(r"ANSWER: (\d+) (plus|minus|times) (\d+) is (\d+)\.", text)
    signs = {
        "plus": lambda a, b: a + b,
        "minus": lambda a, b: a - b,
        "times": lambda a, b: a * b,
    }
    assert len(found) > 500
    wrong = [row for row in found if signs[row[1]](int(row[0]), int(row[2])) != int(row[3])]
    assert wrong == []


@pytest.mark.parametrize(
    "answer",
    [
        "The capital of the Netherlands is Amsterdam.",
        "The chemical symbol of iron is Fe.",
        "The atomic number of gold is 79.",
        "The third planet from the Sun is Earth.",
        "Io is a moon of Jupiter.",
        "There are 60 minutes in an hour.",
        "The currency of Japan is the Japanese yen.",
        "The plural of child is children.",
        "14 in Roman numerals is XIV.",
    ],
)
def test_known_facts_are_stated(text: str, answer: str) -> None:
    assert f"\nANSWER: {answer}\n" in text


def test_rebuilding_gives_the_committed_file(text: str, composition: Composition) -> None:
    assert composition.text == text


def test_check_accepts_the_committed_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0
    assert capsys.readouterr().out == ""


def test_check_rejects_another_file_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = tmp_path / "source.md"
    changed.write_bytes(SOURCE.read_bytes() + b"\n")
    assert main(["--check"], changed) == 1
    assert capsys.readouterr().out == ("source.md differs from what python -m tools.build_source makes.\n")


def test_building_writes_the_same_bytes_elsewhere(tmp_path: Path) -> None:
    target = tmp_path / "new" / "source.md"
    assert main([], target) == 0
    assert target.read_bytes() == SOURCE.read_bytes()


def test_spare_entries_add_up_exactly() -> None:
    spare = [entry(1, 50), entry(2, 60), entry(3, 75)]
    assert entries_summing_to(125, spare) == [spare[0], spare[2]]


def test_spare_entries_that_cannot_add_up_are_reported() -> None:
    with pytest.raises(ValueError, match="no spare entries add up to 51 characters"):
        entries_summing_to(51, [entry(1, 50)])
