"""GGUF files as bases: the same model as the folder they were made of, and one sentence for any that cannot be used."""

from __future__ import annotations

import json
import shutil
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.bases import gguf_file
from core.bases.gguf_file import read_gguf_header
from core.checkpointing import CheckpointStore
from core.errors import CheckpointError, CheckpointUnsafe, ModelUnavailable
from core.models.base import find_base
from core.models.causal_lm import CausalLM
from core.models.gguf_conversion import convert_gguf, exact_type, main
from core.models.gpt2 import GPT2Wrapper
from tests.gguf_files import make_gguf
from tests.tiny_models import make_model_folder
from tests.unit.core.conftest import TEXT

IDS_BT = torch.arange(12)[None]

FAMILIES = ("llama", "qwen2", "qwen3", "gpt2")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    biased = {"llama": {"attention_bias": True}}
    return {family: make_model_folder(root / family, TEXT, family, **biased.get(family, {})) for family in FAMILIES}


@pytest.fixture(scope="session")
def gguf_folder(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("gguf") / "tiny", folders["llama"]).parent


def logits(model: CausalLM) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IDS_BT)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_says_what_the_folder_says_that_it_was_made_of(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    theirs = CausalLM(folders[family])
    # transformers cuts the words of a Qwen 2 in its own way, whatever the folder says.
    pre = "qwen2" if family == "qwen2" else "gpt-2"
    ours = CausalLM(make_gguf(tmp_path / "gguf", folders[family], pre=pre).parent)
    assert torch.equal(logits(ours), logits(theirs))
    assert (ours.vocab_size, ours.max_context) == (theirs.vocab_size, theirs.max_context)
    assert ours.tokenizer.eos_id == theirs.tokenizer.eos_id == 0
    assert {weight.dtype for weight in ours.parameters()} == {torch.float32}
    for text in (TEXT[:500], "naïve 漢字 1024\n\n  x <|endoftext|> y"):
        assert ours.encode(text).tolist() == theirs.encode(text).tolist()
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize(("pack", "most"), [("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 1e-2), ("Q4_0", 0.2)])
def test_packed_weights_are_unpacked_to_what_they_were_near_to(tmp_path: Path, pack: str, most: float) -> None:
    # Blocks of packed numbers are 32 wide.
    folder = make_model_folder(tmp_path / "theirs", TEXT, "llama", intermediate_size=64)
    theirs = logits(CausalLM(folder))
    ours = logits(CausalLM(make_gguf(tmp_path / "gguf", folder, pack=pack).parent))
    assert 0 < (ours - theirs).abs().max() < most * theirs.abs().max()


def test_a_template_for_conversations_comes_along(gguf_folder: Path) -> None:
    tokenizer = CausalLM(gguf_folder).tokenizer.tokenizer
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False) == "Hello\n"


def test_a_tokenizer_beside_the_file_is_the_one_that_is_used(
    gguf_folder: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(gguf_folder, tmp_path / "both")
    make_gguf(folder, folders["llama"], pre="unheard-of")
    with pytest.raises(ModelUnavailable, match=r"called 'unheard-of'.*tokenizer\.json beside it"):
        CausalLM(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["llama"] / name, folder)
    assert CausalLM(folder).decode(CausalLM(folder).encode("a sum")) == "a sum"


def test_gpt2_may_be_such_a_file(folders: dict[str, Path], gguf_folder: Path, tmp_path: Path) -> None:
    assert GPT2Wrapper(make_gguf(tmp_path / "gguf", folders["gpt2"]).parent).name == "gpt2"
    with pytest.raises(ModelUnavailable, match="model_type 'llama'"):
        GPT2Wrapper(gguf_folder)


def test_words_are_cut_as_the_family_cuts_them(folders: dict[str, Path], tmp_path: Path) -> None:
    def cut(pre: str, text: str) -> list[str]:
        tokenizer = CausalLM(make_gguf(tmp_path / pre, folders["llama"], pre=pre).parent).tokenizer.tokenizer
        return [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]

    assert cut("gpt-2", "It is 1024.") == ["It", "Ġis", "Ġ1024", "."]
    assert cut("smollm", "It is 1024.") == ["It", "Ġis", "Ġ", "1", "0", "2", "4", "."]
    assert cut("qwen2", "It is 1024.") == ["It", "Ġis", "Ġ", "1", "0", "2", "4", "."]
    assert cut("llama-bpe", "It is 1024.") == ["It", "Ġis", "Ġ", "102", "4", "."]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_are_trained_on_it(run: Any, config: Any, store: CheckpointStore, gguf_folder: Path) -> None:
    given = config("llama_lora", base_model=str(gguf_folder), training_steps=2)
    told = run(given, store=store)
    told.trainer.train()
    assert next(iter(store)).manifest.name.startswith("checkpoint_tiny_lora_sums_step000002_")


def test_a_full_checkpoint_of_it_is_a_hugging_face_folder(
    run: Any, config: Any, store: CheckpointStore, gguf_folder: Path
) -> None:
    told = run(config("llama", base_model=str(gguf_folder), training_steps=2), store=store)
    told.trainer.train()
    assert torch.equal(logits(CausalLM(next(iter(store)).path)), logits(told.trainer.parts.model))


@pytest.mark.parametrize(("pack", "dtype"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16")])
def test_a_converted_folder_is_the_same_model_to_the_last_bit(
    folders: dict[str, Path], tmp_path: Path, pack: str, dtype: str
) -> None:
    folder, target = make_gguf(tmp_path / "gguf", folders["qwen2"], pack=pack, pre="smollm").parent, tmp_path / "tiny"
    target.mkdir()
    convert_gguf(folder, target, "dequantized from a file of this test")
    assert torch.equal(logits(CausalLM(target)), logits(CausalLM(folder)))
    assert json.loads((target / "config.json").read_text())["dtype"] == dtype
    text = "It is 1024, naïve."
    assert CausalLM(target).encode(text).tolist() == CausalLM(folder).encode(text).tolist()
    assert CausalLM(target).tokenizer.tokenizer.chat_template
    assert "dequantized from a file of this test" in (target / "README.md").read_text()
    assert find_base("tiny", tmp_path) == target


def test_nothing_is_rounded_to_save_space() -> None:
    half, quarter = torch.tensor([0.5, 1024.0]), torch.tensor([1 + 2**-9])
    assert exact_type([half]) == torch.bfloat16
    assert exact_type([half, quarter]) == torch.float16
    assert exact_type([half, quarter, torch.tensor([1e30])]) == torch.float32
    assert exact_type([torch.tensor([1e30]).bfloat16().float()]) == torch.bfloat16


def test_a_process_of_its_own_says_what_is_wrong_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert main([str(tmp_path), str(tmp_path), "nothing"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_with_two_files_does_not_say_which_is_meant(gguf_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(gguf_folder, tmp_path / "two")
    shutil.copy(folder / "model.gguf", folder / "other.gguf")
    with pytest.raises(ModelUnavailable, match="has 2 GGUF files"):
        CausalLM(find_base(str(folder)))


def test_safetensors_are_taken_before_a_gguf_file(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["llama"], tmp_path / "both")
    (folder / "model.gguf").write_bytes(b"nonsense")
    assert torch.equal(logits(CausalLM(find_base(str(folder)))), logits(CausalLM(folders["llama"])))


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"general__architecture": "bert"}, "says architecture 'bert'"),
    "experts": ({"llama__expert_count": 4}, "has experts"),
    "stretched positions": ({"llama__rope__scaling__type": "yarn"}, "stretches positions"),
    "half-turned heads": ({"llama__rope__dimension_count": 4}, "only a part of each head"),
    "no layers": ({"llama__block_count": None}, "block_count None"),
    "many layers": ({"llama__block_count": 2_000_000_000}, "says num_hidden_layers 2000000000"),
    "fewer layers": ({"llama__block_count": 1}, "leaves out its weights model.layers.1"),
    "a width of words": ({"llama__embedding_length": "wide"}, "embedding_length 'wide'"),
    "another width": ({"llama__embedding_length": 64, "llama__attention__key_length": 32}, "does not fit its weights"),
    "heads that do not divide": ({"llama__attention__head_count": 3}, "of 3 heads"),
    "no number": ({"llama__rope__freq_base": float("nan")}, "freq_base nan"),
    "another tokenizer": ({"tokenizer__ggml__model": "llama"}, "of the kind 'llama'"),
    "no tokens": ({"tokenizer__ggml__tokens": None}, "without tokens or merges"),
    "a token twice": ({"tokenizer__ggml__tokens": ["a", "a"]}, "a token twice"),
    "merges of nothing": ({"tokenizer__ggml__merges": ["zq qz"]}, "tokenizer cannot be read"),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_file_that_cannot_be_used_is_one_sentence(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    change, said = CHANGES[name]
    folder = make_gguf(tmp_path / "theirs", folders["llama"], **change).parent
    with pytest.raises(ModelUnavailable) as refused:
        CausalLM(folder)
    assert said in refused.value.message
    assert "\n" not in refused.value.message
    assert str(tmp_path) not in refused.value.message


def test_a_file_cut_anywhere_is_one_sentence(gguf_folder: Path, tmp_path: Path) -> None:
    content = (gguf_folder / "model.gguf").read_bytes()
    for size in (0, 3, 4, 20, 100, 1000, 20_000, len(content) - 4000, len(content) - 100):
        (tmp_path / "model.gguf").write_bytes(content[:size])
        with pytest.raises(ModelUnavailable) as refused:
            CausalLM(tmp_path)
        assert "ends before" in refused.value.message or "does not begin" in refused.value.message
        assert "\n" not in refused.value.message


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 4000), st.binary(min_size=1, max_size=12))
def test_a_header_that_was_tampered_with_never_raises_anything_else(
    gguf_folder: Path, tmp_path: Path, at: int, noise: bytes
) -> None:
    content = bytearray((gguf_folder / "model.gguf").read_bytes()[:40_000])
    content[at : at + len(noise)] = noise
    (tmp_path / "model.gguf").write_bytes(content)
    with suppress(CheckpointError):
        read_gguf_header(tmp_path / "model.gguf")


def header(*, tensors: int = 0, settings: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, settings) + rest


def text(said: str) -> bytes:
    return struct.pack("<Q", len(said)) + said.encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header(tensors=2**60), "claims 1152921504606846976 tensors"),
        (header(settings=2**60), "claims 1152921504606846976 settings"),
        (header(settings=1, rest=text("a") + struct.pack("<IIQ", 9, 4, 2**60)), "items in lists"),
        (header(settings=1, rest=struct.pack("<Q", 2**63)), "ends before its header"),
        (header(settings=1, rest=text("a") + struct.pack("<I", 99)), "unknown type 99"),
        (header(settings=1, rest=text("a") + struct.pack("<IIQ", 9, 9, 1)), "unknown type 9"),
        (header(settings=2, rest=(text("a") + struct.pack("<IB", 0, 1)) * 2), "have one name"),
        (header(tensors=1, rest=text("a") + struct.pack("<I", 5)), "has 5 dimensions"),
        (header(tensors=1, rest=text("a") + struct.pack("<IQQQIQ", 3, 2**40, 2**40, 2, 0, 0)), "a place that is none"),
        (header(tensors=1, rest=text("a") + struct.pack("<IQIQ", 1, 8, 0, 0)), "ends before its tensor 'a'"),
        (header(settings=1, rest=struct.pack("<Q", 1) + b"\xff" + struct.pack("<IB", 0, 1)), "not UTF-8"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "of version 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_header_claims_is_counted_before_it_is_read(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        read_gguf_header(path)
    assert said in refused.value.message


def test_a_header_without_end_is_not_read(gguf_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gguf_file, "MAX_HEADER_BYTES", 1000)
    with pytest.raises(CheckpointUnsafe, match="more than 1000 bytes"):
        read_gguf_header(gguf_folder / "model.gguf")


def test_tensors_that_share_bytes_are_refused(gguf_folder: Path, tmp_path: Path) -> None:
    """A thousand large ones in the same place would be a thousand times the file."""
    path = Path(shutil.copy(gguf_folder / "model.gguf", tmp_path))
    content = bytearray(path.read_bytes())
    name = b"blk.1.ffn_norm.weight"
    # Behind the name: dimensions, one length, the type, the place.
    place = content.index(name) + len(name) + 4 + 8 + 4
    content[place : place + 8] = bytes(8)
    path.write_bytes(content)
    with pytest.raises(ModelUnavailable, match="where another one is"):
        CausalLM(tmp_path)


def test_a_link_is_not_followed(gguf_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(gguf_folder / "model.gguf")
    with pytest.raises(ModelUnavailable, match="is a link"):
        CausalLM(tmp_path)


def test_without_the_package_that_unpacks_it_is_one_sentence(
    gguf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelUnavailable, match=r"pip install 'ratchet\[gguf\]'"):
        CausalLM(gguf_folder)


def test_a_header_is_known_by_its_hash(gguf_folder: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    same = make_gguf(tmp_path / "same", folders["llama"])
    other = make_gguf(tmp_path / "other", folders["llama"], llama__context_length=32)
    known = read_gguf_header(gguf_folder / "model.gguf").sha256
    assert (read_gguf_header(same).sha256 == known, read_gguf_header(other).sha256 == known) == (True, False)


@pytest.mark.parametrize("token", ["<a b>", "$A", "$0:1", "a:1"])
def test_a_token_to_begin_with_may_be_called_anything(folders: dict[str, Path], tmp_path: Path, token: str) -> None:
    """The library has a language for what stands before a text, in which each of these means something."""
    tokens = read_gguf_header(make_gguf(tmp_path / "plain", folders["llama"])).settings["tokenizer.ggml.tokens"]
    said = {"tokenizer__ggml__tokens": [token, *tokens[1:]], "tokenizer__ggml__add_bos_token": True}
    model = CausalLM(make_gguf(tmp_path / "gguf", folders["llama"], **said).parent)
    assert model.tokenizer.beginning("a") == [0]


@pytest.mark.parametrize(("said", "is_begun"), [({}, True), ({"tokenizer__ggml__add_bos_token": False}, False)])
def test_a_llama_3_begins_each_text_with_a_token_unless_the_file_says_otherwise(
    folders: dict[str, Path], tmp_path: Path, said: dict[str, Any], is_begun: bool
) -> None:
    model = CausalLM(make_gguf(tmp_path / "gguf", folders["llama"], pre="llama3", **said).parent)
    assert model.tokenizer.beginning("a") == ([0] if is_begun else [])
    assert model.tokenizer.beginning("<|endoftext|>a") == []
