"""The first batch in pieces: they make the text of each row, and say what of it is learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from core.config import TrainingConfig
from core.errors import ConfigError
from core.forecasts.preflight import Prospect, is_padding
from core.forecasts.previews import MOST_ROWS, MOST_TOKENS, Token, _examples_in, _pieces, preview
from core.losses import UNLEARNT
from core.sources.beginnings import beginnings
from core.sources.files import SourceFolder
from core.tokens.batches import Batch
from core.tokens.bpe import BytePairTokenizer
from tests.tiny_models import make_gpt2_folder
from tests.unit.core.conftest import TEXT

SMALL: dict[str, Any] = {"n_embd": 16, "n_head": 2, "n_layer": 1, "block_size": 64, "batch_size": 4}


def shown(root: Path, rows: list[dict[str, Any]] | str, **given: Any) -> dict[str, Any]:
    root.mkdir(exist_ok=True)
    name = "text.md" if isinstance(rows, str) else "rows.jsonl"
    (root / name).write_text(rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows)))
    config = TrainingConfig(**{**SMALL, "source": name, **given})
    folder = SourceFolder(root)
    parts = beginnings(config.shares, folder, {name: folder.inspect(name).num_characters})
    found = preview(Prospect(config, parts, root))
    json.dumps(found)
    return found


def test_running_text_is_learnt_but_for_what_follows_nothing(tmp_path: Path) -> None:
    found = shown(tmp_path, TEXT)
    assert (found["method"], found["num_learnt"], found["num_padding"]) == ("lm", 4 * 64, 0)
    for row in found["rows"]:
        first, rest = row["pieces"]
        assert (len(first["text"]), first["learnt"]) == (1, False)
        assert (len(rest["text"]), rest["learnt"]) == (64, True)
        assert first["text"] + rest["text"] in TEXT


@pytest.mark.parametrize("packing", [True, False])
def test_questions_are_read_and_answers_learnt(tmp_path: Path, packing: bool) -> None:
    rows = [{"prompt": f"{a} + {a} = ", "completion": "2" * a} for a in range(1, 30)]
    found = shown(tmp_path, rows, packing=packing)
    assert found["num_tokens"] + found["num_padding"] == 4 * found["row_length"]
    num_learnt = 0
    for row in found["rows"]:
        for asked, answered in zip(row["pieces"][::2], row["pieces"][1::2], strict=True):
            assert asked["example"] == answered["example"]
            assert (asked["learnt"], answered["learnt"]) == (False, True)
            number = int(asked["text"].split(" ")[0])
            assert asked["text"] == f"{number} + {number} = "
            assert answered["text"] == "2" * number + "\n\n"
            num_learnt += len(answered["text"])
        assert packing or len(row["pieces"]) == 2
        assert row["padding"] == found["row_length"] - sum(
            len(a["text"]) + len(b["text"]) - 1 for a, b in zip(row["pieces"][::2], row["pieces"][1::2], strict=True)
        )
    assert num_learnt == found["num_learnt"]


def test_both_answers_of_a_preference_stand_together(tmp_path: Path) -> None:
    make_gpt2_folder(tmp_path / "tiny", TEXT)
    rows = [{"prompt": f"What is {a}? ", "chosen": f"It is {a}.", "rejected": "Who knows?"} for a in range(30)]
    found = shown(tmp_path, rows, model_type="gpt2", base_model="tiny", batch_size=3)
    assert (found["method"], found["num_rows"], len(found["rows"])) == ("dpo", 6, 6)
    assert [row["answer"] for row in found["rows"]] == ["better", "worse"] * 3
    for better, worse in zip(found["rows"][::2], found["rows"][1::2], strict=True):
        assert better["pieces"][0] == worse["pieces"][0]
        assert better["pieces"][1]["text"].startswith("It is")
        assert worse["pieces"][1]["text"] == "Who knows?<|endoftext|>"


def test_no_more_than_eight_rows_of_two_thousand_tokens_are_shown(tmp_path: Path) -> None:
    found = shown(tmp_path, TEXT * 10, block_size=3000, batch_size=12)
    assert (found["num_rows"], len(found["rows"])) == (12, MOST_ROWS)
    assert found["num_tokens"] == 12 * 3000
    for row in found["rows"]:
        assert row["is_cut"]
        assert sum(len(piece["text"]) for piece in row["pieces"]) == MOST_TOKENS


def test_a_batch_too_large_to_be_looked_at_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size: a batch of more than 4,194,304 tokens cannot be shown"):
        shown(tmp_path, TEXT, batch_size=65_536, block_size=100)


def test_what_follows_the_last_answer_is_no_padding() -> None:
    ids_BT = torch.tensor([[5, 6, 7, 8, 0, 0]])
    targets_BT = torch.tensor([[UNLEARNT, 7, UNLEARNT, UNLEARNT, UNLEARNT, UNLEARNT]])
    batch = Batch(ids_BT, targets_BT)
    assert is_padding(batch).tolist() == [[False] * 4 + [True] * 2]
    [tokens] = _examples_in(batch, 0, 4)
    assert [(token.id, token.is_learnt) for token in tokens] == [(5, False), (6, False), (7, True), (8, False)]


def test_the_last_target_is_shown_though_no_model_reads_it() -> None:
    ids_BT, targets_BT = torch.tensor([[5, 6, 9, 9, 0]]), torch.tensor([[UNLEARNT, 3, UNLEARNT, 4, UNLEARNT]])
    batch = Batch(ids_BT, targets_BT, torch.tensor([[0, 0, 1, 1, 2]]))
    assert is_padding(batch).tolist() == [[False] * 4 + [True]]
    one, other = _examples_in(batch, 0, 4)
    assert [token.id for token in one] == [5, 6, 3]
    assert [(token.id, token.is_learnt) for token in other] == [(9, False), (9, False), (4, True)]


def test_a_row_that_is_full_has_no_padding() -> None:
    ids_BT, targets_BT = torch.tensor([[5, 6, 0, 0]]), torch.tensor([[UNLEARNT, 3, UNLEARNT, 4]])
    for segments_BT in (None, torch.tensor([[0, 0, 1, 1]])):
        assert not is_padding(Batch(ids_BT, targets_BT, segments_BT)).any()


BYTES = BytePairTokenizer.train(["Grüße 👋🏽 aus dem Süden"], 270)


@settings(deadline=None)
@examples(st.text(min_size=1, max_size=40), st.lists(st.booleans(), min_size=200, max_size=200))
def test_pieces_make_the_text_even_where_tokens_are_parts_of_characters(text: str, learnt: list[bool]) -> None:
    try:
        ids = BYTES.encode(text).tolist()
    except Exception:  # Half a character; not what is tested here.
        return
    tokens = [Token(id_, is_learnt) for id_, is_learnt in zip(ids, learnt, strict=False)]
    pieces = list(_pieces(tokens, 0, BYTES))
    assert "".join(piece.text for piece in pieces) == BYTES.decode([token.id for token in tokens])
    assert all(piece.text for piece in pieces)
