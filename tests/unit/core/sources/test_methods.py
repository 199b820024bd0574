"""Rows of every kind, from the file to the step: what is learnt, packed, kept back, and exact resume."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.assembly import assemble
from core.checkpointing import CheckpointStore, load_checkpoint
from core.checkpoints.resume_rules import ResumeMode
from core.config import TrainingConfig
from core.errors import ConfigError, DiskFull, SourceNoRows, SourceTooShort, StopAsked
from core.losses import UNLEARNT, next_token_loss, preference_loss
from core.models.causal_lm import CausalLM
from core.objectives import NextToken
from core.sources.corpus import Corpus, Part
from core.sources.files import source_file
from core.sources.methods import method_of
from core.sources.rows import ChatRow, CompletionRow, Message, PreferenceRow, TextRow
from core.tokens.batches import Examples, chosen, laid_out, order_of
from core.tokens.conversations import END, by_template, examples_of, plainly
from core.tokens.encoding import Encoder, all_texts, first_kind, piece_end
from core.tokens.packing import one_each, packed
from core.tokens.preparation import prepare
from core.tokens.token_files import TokenWriter, ids_of, open_tokens
from core.tokens.tokenizer import CharacterTokenizer
from tests.unit.core.conftest import Run

PAIRS = [{"prompt": f"QUESTION: {a} plus {b}?\nANSWER:", "completion": f" {a + b}"} for a in range(6) for b in range(6)]
CHATS = [
    {"messages": [{"role": "user", "content": f"{a} plus {b}?"}, {"role": "assistant", "content": f"{a + b}."}]}
    for a in range(6)
    for b in range(6)
]
PREFERENCES = [
    {"prompt": f"{a} plus {b}?", "chosen": f" It is {a + b}", "rejected": f" QUESTION {a}"}
    for a in range(4)
    for b in range(4)
]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

Write = Callable[..., Corpus]


@pytest.fixture
def write(corpus: Write) -> Write:
    return corpus


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Run]:
    def trained(config: TrainingConfig, corpus: Corpus, **given: Any) -> Run:
        told = Run(config, corpus, **given)
        told.trainer.train()
        return told

    return trained


def texts_of(run: Run, index: int = 0) -> list[tuple[str, str]]:
    """Of each row of a batch: all that is read, and what of it is learnt."""
    batch = run.trainer.parts.data.training(index)
    decode = run.trainer.parts.tokenizer.decode
    return [
        (decode(ids.tolist()), decode(targets[targets != UNLEARNT].tolist()))
        for ids, targets in zip(batch.ids_BT, batch.targets_BT, strict=True)
    ]


def test_an_answer_is_learnt_and_its_prompt_is_not(run: Any, config: Any, write: Write) -> None:
    told = Run(config(block_size=40, batch_size=4, packing=False), write(PAIRS))
    for read, learnt in texts_of(told):
        prompt, answer = read.split("ANSWER:")
        assert prompt.startswith("QUESTION: ")
        # What follows the last token is a target alone, so what is read lacks it.
        assert learnt.startswith(answer[:2])
        assert learnt.endswith("\n\n"), "the end of an answer is learnt, or no answer would end"
        assert "QUESTION" not in learnt


def test_with_lm_all_of_a_row_is_learnt(config: Any, write: Write) -> None:
    told = Run(config(block_size=16, method="lm"), write(PAIRS))
    assert told.trainer.parts.method == "lm"
    assert all(len(learnt) == 16 for _, learnt in texts_of(told))


def test_of_a_conversation_the_assistants_turns_are_learnt_by_the_models_own_template(
    config: Any, write: Write, gpt2_folder: Path, tmp_path: Path
) -> None:
    import shutil

    folder = shutil.copytree(gpt2_folder, tmp_path / "talks")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    told = Run(config("gpt2", base_model=str(folder), block_size=48, packing=False), write(CHATS))
    for read, learnt in texts_of(told):
        assert read.startswith("<user>")
        assert learnt in {f"{n}.</assistant>" for n in range(11)}


def test_a_silenced_turn_and_a_template_that_rewrites_the_past_are_learnt_as_said() -> None:
    row = ChatRow((Message("user", "a"), Message("assistant", "b", 0), Message("user", "c"), Message("assistant", "d")))
    [pieces] = examples_of(row, plainly)
    assert [text for text, is_learnt in pieces if is_learnt] == ["d\n\n"]

    def forgetful(messages: Any, asks: bool) -> str:
        return "".join(f"[{m.content if m is messages[-1] else m.content.upper()}]" for m in messages)

    row = ChatRow((Message("user", "q"), Message("assistant", "yes"), Message("user", "r"), Message("assistant", "no")))
    from core.sources.row_json import Unfit

    with pytest.raises(Unfit, match="message 2 that the model's chat template leaves out or changes"):
        examples_of(row, forgetful)


def test_a_template_that_refuses_a_row_is_its_reason() -> None:
    class Strict:
        def apply_chat_template(self, *_: Any, **__: Any) -> str:
            raise ValueError("roles must alternate")

    from core.sources.row_json import Unfit

    with pytest.raises(Unfit, match="is refused by the model's chat template: roles must alternate"):
        examples_of(ChatRow((Message("assistant", "a"),)), by_template(Strict()))


def test_preferences_are_two_examples_the_better_one_first() -> None:
    [better, worse] = examples_of(PreferenceRow("q", "good", "bad"), plainly)
    assert better == [("q", False), ("good", True), (END, True)]
    assert worse == [("q", False), ("bad", True), (END, True)]


@pytest.mark.parametrize(
    ("kinds", "wanted", "method"),
    [
        ([[{"text": "abc"}]], "auto", "lm"),
        ([PAIRS], "auto", "sft"),
        ([CHATS], "auto", "sft"),
        ([PAIRS, CHATS], "auto", "sft"),
        ([PREFERENCES], "auto", "dpo"),
        ([CHATS], "lm", "lm"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_the_rows_say_what_is_done_with_them(
    config: Any, write: Write, kinds: list[Any], wanted: str, method: str
) -> None:
    found = {part.source.name: first_kind(part) for part in write(*kinds).parts}
    assert method_of(found, config("gpt2", method=wanted)) == method


@pytest.mark.parametrize(
    ("kinds", "wanted", "said"),
    [
        ([PAIRS, PREFERENCES], "auto", "for different methods"),
        ([[{"text": "abc"}]], "sft", "method 'sft' cannot learn from source"),
        ([PREFERENCES], "lm", "method 'lm' cannot learn from source"),
        ([PAIRS], "dpo", "which has completion rows"),
        ([[{"nothing": 1}]], "auto", "has no row that can be used: line 1 has none of the fields"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_rows_that_do_not_fit_a_method_are_one_sentence(
    config: Any, write: Write, kinds: list[Any], wanted: str, said: str
) -> None:
    with pytest.raises(SourceNoRows, match=said):
        Run(config("gpt2", method=wanted), write(*kinds))


def test_preferences_need_a_model_that_can_write(config: Any, write: Write) -> None:
    with pytest.raises(ConfigError, match="choose model_type gpt2 or causal_lm"):
        Run(config(), write(PREFERENCES))


def test_bad_rows_are_left_out_and_told(config: Any, write: Write) -> None:
    rows = [*PAIRS, {"prompt": "only"}, {"text": "another kind"}]
    told = Run(config(block_size=40), write(rows))
    [said] = [warning for warning in told.trainer.parts.warnings() if "left out" in warning]
    assert said.startswith("2 of 38 rows of source")
    assert "line 37 has no 'completion'" in said


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["without", "with"])
@pytest.mark.parametrize("rows", [CHATS, PAIRS], ids=["conversations", "completions"])
def test_conversations_for_a_base_without_a_template_are_told_once(
    config: Any, write: Write, gpt2_folder: Path, rows: list[Any], template: str | None
) -> None:
    known = CausalLM(gpt2_folder).tokenizer
    known.tokenizer.chat_template = template
    data = prepare(write(rows), "sft", config(packing=False), Encoder(known), 60, may_pack=False)
    said = [warning for warning in data.warnings if "no chat template" in warning]
    assert len(said) == (rows is CHATS and template is None)


def test_what_is_too_long_is_cut_and_what_has_no_answer_then_is_left_out(config: Any, write: Write) -> None:
    rows = [*PAIRS, {"prompt": "x" * 50, "completion": "y"}, {"prompt": "x", "completion": "y" * 60}]
    told = Run(config(block_size=40), write(rows))
    said = " ".join(told.trainer.parts.warnings())
    assert "1 of 38 examples" in said
    assert "have no answer within 40 tokens" in said
    assert "1 of 38 examples of" in said
    with pytest.raises(SourceTooShort, match="has its answer within block_size 8"):
        Run(config(block_size=8), write([{"prompt": "x" * 50, "completion": "y"}] * 3))


@pytest.mark.parametrize("kind", ["from_scratch", "gpt2", "llama", "llama_lora"])
def test_examples_that_share_a_row_are_learnt_as_if_alone(config: Any, write: Write, kind: str) -> None:
    corpus = write(PAIRS)
    together = Run(config(kind, block_size=64, batch_size=2), corpus).trainer.parts
    batch = together.data.training(0)
    assert batch.segments_BT is not None
    assert int(batch.segments_BT.max()) > 1, "or nothing was packed"
    model = together.model.eval()
    with torch.no_grad():
        loss = NextToken().loss(model, batch)
        sums, count = 0.0, 0
        for ids, targets, segments in zip(batch.ids_BT, batch.targets_BT, batch.segments_BT, strict=True):
            for segment in segments.unique():
                is_here = segments == segment
                if (targets[is_here] != UNLEARNT).any():
                    learnt = int((targets[is_here] != UNLEARNT).sum())
                    alone = next_token_loss(model(ids[is_here][None])[0], targets[is_here][None])
                    sums, count = sums + alone.item() * learnt, count + learnt
    assert count == batch.num_targets
    assert loss.item() == pytest.approx(sums / count, rel=1e-4)


def test_packing_is_as_tight_as_it_can_be_and_loses_nothing() -> None:
    lengths = np.random.default_rng(0).integers(1, 65, size=2000)
    packing = packed(lengths, 64)
    rows = [packing.examples(row) for row in range(packing.num_rows)]
    assert sorted(np.concatenate(rows).tolist()) == list(range(2000))
    assert all(lengths[row].sum() <= 64 for row in rows)
    assert packing.num_rows <= 1.03 * lengths.sum() / 64
    assert one_each(lengths).num_rows == 2000


def test_each_epoch_has_every_row_once_in_an_order_of_its_own(config: Any, write: Write) -> None:
    data = Run(config(block_size=40, batch_size=3, packing=False), write(PAIRS)).trainer.parts.data
    assert isinstance(data, Examples)
    num_rows = data.packings[0]["train"].num_rows
    assert data.per_epoch() == num_rows / 3
    assert num_rows % 3 == 0, "or epochs share a batch here"

    def epoch(number: int) -> list[tuple[int, ...]]:
        batches = [data.training(number * num_rows // 3 + index) for index in range(num_rows // 3)]
        return [
            tuple(row[row != UNLEARNT].tolist() + ids.tolist())
            for b in batches
            for ids, row in zip(b.ids_BT, b.targets_BT, strict=True)
        ]

    orders = [order_of(1337, number, num_rows).tolist() for number in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(num_rows))
    assert orders[0] != orders[1]
    assert len(epoch(0)) == num_rows


def test_what_is_kept_back_is_never_learnt(config: Any, write: Write) -> None:
    data = Run(config(block_size=40, packing=False), write(PAIRS)).trainer.parts.data
    assert isinstance(data, Examples)
    parts = data.packings[0]
    assert set(parts["train"].order.tolist()) & set(parts["val"].order.tolist()) == set()
    assert len(parts["val"].order) == 3


def test_sources_come_in_proportion_to_their_weights(config: Any, write: Write) -> None:
    many = write([{"text": "a" * 400}], [{"text": "b" * 400}], weights=[3, 1])
    told = Run(config(block_size=8, batch_size=50), many)
    ids_BT = torch.cat([told.trainer.parts.data.training(index).ids_BT for index in range(20)])
    share = (ids_BT == told.trainer.parts.tokenizer.encode("a")[0]).float().mean().item()
    assert share == pytest.approx(0.75, abs=0.04)
    assert chosen([1, 0.5], np.array([0.0, 0.66, 0.67, 0.999])) == [0, 0, 1, 1]
    rows = write(PAIRS, CHATS, weights=[1, 9])
    told = Run(config(block_size=40, batch_size=50, packing=False), rows)
    assert 0.8 < np.mean(["USER" in read for read, _ in texts_of(told)]) <= 1


def test_a_batch_is_a_function_of_its_index_alone(config: Any, write: Write) -> None:
    for corpus in (write(PAIRS), write(PAIRS, CHATS), write([{"text": "abc" * 50}], [{"text": "abd" * 50}])):
        one, other = (Run(config(block_size=32), corpus).trainer.parts.data for _ in range(2))
        late = one.training(17)
        assert torch.equal(late.ids_BT, other.training(17).ids_BT)
        assert torch.equal(late.targets_BT, other.training(17).targets_BT)
        assert one.num_targets(17) == late.num_targets == int((late.targets_BT != UNLEARNT).sum())


def test_a_run_of_epochs_ends_where_they_end(config: Any, write: Write, trained: Any) -> None:
    told = trained(config(block_size=40, packing=False, num_epochs=2, training_steps=None, batch_size=3), write(PAIRS))
    assert told.trainer.run.step == 22
    told = trained(config(block_size=40, packing=False, num_epochs=2, training_steps=5), write(PAIRS))
    assert told.trainer.run.step == 5


def test_all_tokens_that_are_learnt_count_the_same_over_an_accumulation(config: Any, write: Write) -> None:
    """Two batches with answers of different lengths make the gradient of both as one."""
    corpus = write([{"prompt": "q", "completion": "y" * (1 + 5 * (n % 4))} for n in range(40)])
    halves = Run(config(block_size=32, packing=False, batch_size=2, gradient_accumulation_steps=2), corpus).trainer
    whole = Run(config(block_size=32, packing=False, batch_size=4), corpus).trainer
    assert halves.update() == pytest.approx(whole.update(), rel=1e-5)
    for one, other in zip(halves.parts.model.parameters(), whole.parts.model.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_the_loss_of_preferences_is_that_of_the_paper() -> None:
    ours, theirs = torch.tensor([-1.0, -4.0, -3.0, -2.0]), torch.tensor([-2.0, -3.0, -2.0, -3.0])
    loss, margins = preference_loss(ours, theirs, 0.5)
    # Row 0 against row 2, row 1 against row 3.
    expected = torch.tensor([0.5 * ((-1 + 2) - (-3 + 2)), 0.5 * ((-4 + 3) - (-2 + 3))])
    torch.testing.assert_close(margins, expected)
    torch.testing.assert_close(loss, -torch.log(torch.sigmoid(expected)).mean())


@pytest.mark.parametrize("kind", ["gpt2", "gpt2_lora", "llama_lora"])
def test_preferences_are_learnt_against_what_the_run_began_with(
    config: Any, write: Write, trained: Any, kind: str
) -> None:
    told = trained(
        config(
            kind, block_size=32, batch_size=8, training_steps=24, eval_interval=12, learning_rate=3e-3, lora_dropout=0
        ),
        write(PREFERENCES),
    )
    evaluations = told.of("eval")
    assert evaluations[0].train_loss == pytest.approx(np.log(2), rel=1e-4), "nothing is preferred at the beginning"
    assert evaluations[-1].val_loss < 0.6
    assert evaluations[-1].val_accuracy == 1
    assert evaluations[-1].val_perplexity is None


@pytest.mark.parametrize("rows", [PAIRS, CHATS, PREFERENCES], ids=["completions", "chats", "preferences"])
@pytest.mark.parametrize("kind", ["from_scratch", "gpt2", "llama_lora"])
def test_a_resumed_run_equals_an_undisturbed_one(
    config: Any, write: Write, tmp_path: Path, kind: str, rows: list[Any]
) -> None:
    if rows is PREFERENCES and kind == "from_scratch":
        return
    corpus = write(rows)
    given = config(kind, block_size=48, dropout=0.1, gradient_accumulation_steps=2, eval_interval=3)
    stores = [CheckpointStore(tmp_path / name) for name in ("undisturbed", "broken")]
    Run(given, corpus, store=stores[0]).trainer.train()
    halfway = Run(given, corpus, store=stores[1])
    halfway.stop_at = 5
    halfway.trainer.train()
    middle = load_checkpoint(max(stores[1], key=lambda item: item.step).path)
    Run(given, corpus, store=stores[1], resume=middle, start_step=0, end_step=8).trainer.train()
    last = [max(store, key=lambda item: item.step) for store in stores]
    files = [{name: entry.sha256 for name, entry in item.manifest.files.items()} for item in last]
    assert files[0] == files[1]
    assert last[1].step == 8


def test_batches_that_broke_a_run_can_be_left_out(config: Any, write: Write) -> None:
    corpus = write(PAIRS)
    plain, later = (Run(config(block_size=40, skip_batches=skip), corpus).trainer.parts for skip in (0, 3))
    assert torch.equal(plain.training_batch(5, 0).ids_BT, later.training_batch(2, 0).ids_BT)
    assert not torch.equal(plain.training_batch(2, 0).ids_BT, later.training_batch(2, 0).ids_BT)


def encoder(corpus: Corpus, **given: Any) -> Encoder:
    return Encoder(CharacterTokenizer(sorted({c for text in all_texts(corpus, plainly) for c in text})), **given)


def test_tokens_of_a_large_source_are_kept_and_found_again(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.tokens.encoding.KEPT_FROM_BYTES", 1)
    corpus = write(PAIRS)
    cache = tmp_path / "cache"
    plain = encoder(corpus).tokens(corpus.parts[0])
    kept = encoder(corpus, cache=cache).tokens(corpus.parts[0])
    [path] = cache.glob("*.tokens")
    monkeypatch.setattr(Encoder, "_write", lambda *_: pytest.fail("it was there already"))
    again = encoder(corpus, cache=cache).tokens(corpus.parts[0])
    for file in (kept, again):
        assert np.array_equal(file.stored, plain.stored)
        assert np.array_equal(file.starts, plain.starts)
    assert open_tokens(path).told == again.told
    assert {item.suffix for item in cache.iterdir()} == {".tokens", ".lock"}


def test_who_is_killed_while_encoding_goes_on_where_it_was(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.tokens.encoding.KEPT_FROM_BYTES", 1)
    monkeypatch.setattr("core.tokens.encoding.ROWS_AT_ONCE", 5)
    monkeypatch.setattr("core.tokens.token_files.NOTE_SECONDS", 0)
    corpus = write([*PAIRS, {"prompt": "bad"}])
    whole = encoder(corpus, cache=tmp_path / "whole").tokens(corpus.parts[0])
    encoded: list[int] = []
    honest = Encoder._add

    class Killed(BaseException):
        pass

    def add(self: Encoder, part: Part, rows: list[Any], writer: TokenWriter) -> None:
        if sum(encoded) >= 20 and len(encoded) < 6:
            encoded.append(0)
            # Written, and never noted.
            writer.add(np.zeros(3, np.int32), [3])
            raise Killed
        encoded.append(len(rows))
        honest(self, part, rows, writer)

    monkeypatch.setattr(Encoder, "_add", add)
    with pytest.raises(Killed):
        encoder(corpus, cache=tmp_path / "broken").tokens(corpus.parts[0])
    resumed = encoder(corpus, cache=tmp_path / "broken")
    while True:
        try:
            found = resumed.tokens(corpus.parts[0])
            break
        except Killed:
            continue
    assert sum(encoded) == 37, "no row was encoded twice"
    assert np.array_equal(found.stored, whole.stored)
    assert np.array_equal(found.starts, whole.starts)
    assert found.told == whole.told


def test_a_long_text_is_cut_after_lines_and_is_whole_again(tmp_path: Path) -> None:
    text = "".join(f"line {n} of many\n" for n in range(200_000))
    path = tmp_path / "long.txt"
    path.write_text(text)
    corpus = Corpus.of_one(source_file(path))
    found = encoder(corpus).tokens(corpus.parts[0])
    assert found.num_examples > 2
    tokenizer = encoder(corpus).tokenizer
    assert np.array_equal(ids_of(found.stored), tokenizer.encode(text))


def test_rows_are_trimmed_to_the_longest_of_their_batch() -> None:
    batch = laid_out([[np.arange(5, dtype=np.int32)], [~np.arange(11, dtype=np.int32)]], is_packed=False, block_size=20)
    assert batch.ids_BT.shape == (2, 16)
    assert batch.num_targets == 4
    assert batch.ids_BT[1, :10].tolist() == list(range(10))


def test_rows_of_text_end_with_the_tokens_own_end(config: Any, write: Write, gpt2_folder: Path) -> None:
    told = Run(config("gpt2", block_size=8), write([{"text": "QUESTION: what?"}] * 10))
    parts = told.trainer.parts
    tokens = parts.data.texts[0].train  # type: ignore[attr-defined]
    assert (tokens == parts.tokenizer.eos_id).sum() >= 7


def test_several_sources_are_one_run_with_one_identity(write: Write) -> None:
    both, one = write(PAIRS, CHATS), write(PAIRS)
    assert one.sha256 == one.parts[0].source.sha256
    assert both.sha256 not in {part.source.sha256 for part in both.parts}
    assert Corpus(both.parts[::-1]).sha256 != both.sha256
    assert both.name == both.parts[0].source.name


def test_text_rows_and_completions_cannot_be_mixed_up() -> None:
    assert examples_of(TextRow("a"), plainly) == [[("a", True), (END, True)]]
    assert examples_of(CompletionRow("a", "b"), plainly, learns_all=True) == [[("a", True), ("b", True), (END, True)]]


def test_tokens_that_were_made_by_another_tokenizer_are_not_taken(
    write: Write, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("core.tokens.encoding.KEPT_FROM_BYTES", 1)
    corpus = write(PAIRS)
    for tokenizer in (
        CharacterTokenizer(sorted(map(chr, range(128)))),
        CharacterTokenizer(sorted(map(chr, range(129)))),
    ):
        Encoder(tokenizer, cache=tmp_path / "cache").tokens(corpus.parts[0])
    Encoder(tokenizer, learns_all=True, cache=tmp_path / "cache").tokens(corpus.parts[0])
    assert len(list((tmp_path / "cache").glob("*.tokens"))) == 3


def test_assemble_takes_a_text_in_memory_as_well(config: Any, source: Any) -> None:
    assert assemble(config(), source, lambda _: None, lambda: False).parts.method == "lm"


def test_no_row_is_longer_than_the_model_has_places(config: Any, write: Write) -> None:
    rows = [{"prompt": "x" * 9, "completion": "y" * 30}] * 20
    told = Run(config(block_size=20, packing=False, batch_size=8), write(rows))
    assert told.trainer.parts.data.training(0).ids_BT.shape == (8, 20)
    told.trainer.train()


def test_an_evaluation_looks_at_rows_of_all_lengths_and_sources(config: Any, write: Write) -> None:
    short, long = [{"prompt": "a", "completion": "b"}] * 100, [{"prompt": "c" * 30, "completion": "d"}] * 100
    data = Run(config(block_size=32, batch_size=10, packing=False), write([*long, *short])).trainer.parts.data
    batches = [data.evaluation("train", index) for index in range(3)]
    lengths = {int((row > 0).sum()) for batch in batches for row in batch.ids_BT}
    assert len(lengths) == 2, "a tenth of the rows are some of both"
    two = write(short, long, weights=[1, 9])
    told = Run(config(block_size=32, batch_size=50, packing=False), two)
    which = told.trainer.parts.data.evaluation("val", 0)
    assert torch.equal(which.ids_BT, told.trainer.parts.data.evaluation("val", 0).ids_BT)
    is_long = (which.targets_BT != UNLEARNT).float().argmax(1) > 5
    assert 0.75 < is_long.float().mean() < 1


def test_a_word_of_the_question_is_not_taken_for_the_answer() -> None:
    """A template that shows the thinking of the last turn alone, as some models' do."""

    def render(messages: Any, asks: bool) -> str:
        last = max((n for n, m in enumerate(messages) if m.role == "assistant"), default=-1)
        text = "".join(
            f"<{m.role}>{'(thinks)' if n == last == len(messages) - 1 else ''}{m.content}</>"
            for n, m in enumerate(messages)
        )
        return f"{text}<assistant>(thinks)" if asks else text

    turns = [("user", "Is 2 even? Say yes or no."), ("assistant", "yes"), ("user", "And 3?"), ("assistant", "no")]
    [pieces] = examples_of(ChatRow(tuple(Message(*turn) for turn in turns)), render)
    assert [text for text, is_learnt in pieces if is_learnt] == ["yes</>", "no</>"]
    assert "".join(str(text) for text, _ in pieces) == render([Message(*turn) for turn in turns], False)


def test_a_template_that_tells_the_date_writes_the_same_every_day(gpt2_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}"
    assert by_template(tokenizer)([Message("user", "hello")], False) == "26 Jul 2024: hello"


def test_preferences_are_not_learnt_against_what_the_run_did_not_begin_as(
    config: Any, write: Write, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    Run(config("gpt2", block_size=32), write(PAIRS), store=store).trainer.train()
    tuned = load_checkpoint(next(iter(store)).path)
    with pytest.raises(ConfigError, match="export the checkpoint, merged, and name that as base_model"):
        Run(config("gpt2", block_size=32), write(PREFERENCES), resume=tuned, mode=ResumeMode.WARM_START)


def test_a_stop_is_heard_while_a_source_is_encoded(config: Any, write: Write) -> None:
    with pytest.raises(StopAsked):
        assemble(config(), write(PAIRS), lambda _: None, lambda: True)


def test_a_kept_file_that_is_damaged_is_made_anew_and_the_oldest_give_way(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.tokens.encoding.KEPT_FROM_BYTES", 1)
    corpus, cache = write(PAIRS), tmp_path / "cache"
    first = encoder(corpus, cache=cache).tokens(corpus.parts[0])
    [path] = cache.glob("*.tokens")
    path.write_bytes(path.read_bytes()[:-5])
    again = encoder(corpus, cache=cache).tokens(corpus.parts[0])
    assert np.array_equal(again.stored, first.stored)
    monkeypatch.setattr("core.tokens.encoding.CACHE_BYTES", 1)
    other = write(CHATS)
    encoder(other, cache=cache).tokens(other.parts[0])
    [left] = cache.glob("*.tokens")
    assert left != path


def test_a_full_disk_while_encoding_is_said_and_keeps_nothing(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.tokens.encoding.KEPT_FROM_BYTES", 1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TokenWriter, "add", full)
    corpus = write(PAIRS)
    with pytest.raises(DiskFull, match="could not be written: No space left on device; make room"):
        encoder(corpus, cache=tmp_path / "cache").tokens(corpus.parts[0])
    assert {item.suffix for item in (tmp_path / "cache").iterdir()} <= {".lock"}


def test_a_warm_up_of_epochs_is_a_tenth_of_them(config: Any, write: Write) -> None:
    given = {"block_size": 40, "packing": False, "num_epochs": 4, "training_steps": None, "batch_size": 3}
    told = Run(config(**given, learning_rate=0.01), write(PAIRS))
    told.trainer.train()
    rates = [event.lr for event in told.of("step")]
    assert len(rates) == 44
    assert rates[:5] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])


@pytest.mark.parametrize("break_", ["b\n\nc", "b\n c"])
def test_a_text_is_cut_before_a_word_alone(break_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.tokens.encoding.CHARACTERS_AT_ONCE", 8)
    assert piece_end(f"a{break_}", 0) == (4 if break_.endswith("\nc") else 0)
    assert piece_end("a\nword\nwo", 0) == 2
    assert piece_end("a\nword\nwo", 2) == 7
    assert piece_end("a\nword\n", 2) == 0, "what follows may be white space"
    assert piece_end("no lines", 0) == 0
    assert piece_end("x" * 9, 0) == 8


def test_tokens_are_counted_as_they_are_and_not_as_a_full_batch_would_be(config: Any, write: Write) -> None:
    told = Run(config(block_size=64, packing=False, gradient_accumulation_steps=2), write(PAIRS))
    told.trainer.train()
    parts = told.trainer.parts
    read = sum(parts.training_batch(step, number).ids_BT.numel() for step in range(8) for number in range(2))
    assert told.trainer.run.tokens_seen == read < 8 * parts.tokens_per_step
