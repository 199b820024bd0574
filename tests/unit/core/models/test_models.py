from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from core.devices import select_device
from core.errors import CheckpointMismatch, DeviceUnavailable, GenerationError, ModelUnavailable
from core.losses import next_token_loss
from core.models.base import find_base
from core.models.bigram import BigramLanguageModel
from core.models.gpt2 import GPT2Wrapper
from tests.unit.core.conftest import KINDS
from tests.unit.core.fresh_models import check_cache_changes_nothing


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_cache_changes_no_prediction(run: Any, config: Any, kind: str) -> None:
    model = run(config(kind)).trainer.parts.model.eval()
    ids_BT = torch.randint(0, model.vocab_size, (1, 12), generator=torch.Generator().manual_seed(1))
    check_cache_changes_nothing(model, ids_BT)


@pytest.mark.parametrize("kind", list(KINDS))
def test_no_token_sees_the_one_after_it(run: Any, config: Any, kind: str) -> None:
    model = run(config(kind)).trainer.parts.model.eval()
    ids_BT = torch.zeros(1, 8, dtype=torch.long)
    changed_BT = ids_BT.clone()
    changed_BT[0, 5:] = 3
    with torch.inference_mode():
        torch.testing.assert_close(model(ids_BT)[0][:, :5], model(changed_BT)[0][:, :5])


def test_loss_is_transformers_own_on_the_same_tokens(gpt2_folder: Path) -> None:
    model = GPT2Wrapper(gpt2_folder).eval()
    ids_BT = torch.randint(0, model.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        _, ours = model(ids_BT[:, :-1], ids_BT[:, 1:])
        theirs = model.network(input_ids=ids_BT, labels=ids_BT).loss
    torch.testing.assert_close(ours, theirs)


def test_loss_of_knowing_nothing_is_the_log_of_the_vocabulary() -> None:
    loss = next_token_loss(torch.zeros(2, 3, 50), torch.zeros(2, 3, dtype=torch.long))
    assert loss.item() == pytest.approx(3.912, abs=1e-3)


def test_gpt2_speaks_its_own_tokens(gpt2_folder: Path) -> None:
    model = GPT2Wrapper(gpt2_folder)
    ids = model.encode("QUESTION: What is 3 plus 4?")
    assert len(ids) < len("QUESTION: What is 3 plus 4?")
    assert model.decode(ids) == "QUESTION: What is 3 plus 4?"
    assert (model.vocab_size, model.max_context) == (model.network.config.vocab_size, 64)


def test_half_a_character_is_refused_before_the_tokenizer_stumbles_over_it(gpt2_folder: Path) -> None:
    with pytest.raises(GenerationError, match="half a character at place 2"):
        GPT2Wrapper(gpt2_folder).encode("ab\ud83d")


def test_dropout_reaches_gpt2(gpt2_folder: Path) -> None:
    model = GPT2Wrapper(gpt2_folder, dropout=0.5).train()
    ids_BT = torch.zeros(1, 8, dtype=torch.long)
    assert not torch.equal(model(ids_BT)[0], model(ids_BT)[0])


def test_a_full_checkpoint_of_gpt2_is_a_folder_that_transformers_loads(
    run: Any, config: Any, store: Any, gpt2_folder: Path
) -> None:
    from transformers import AutoModelForCausalLM

    told = run(config("gpt2"), store=store)
    told.trainer.train()
    loaded = AutoModelForCausalLM.from_pretrained(next(iter(store)).path)
    ids_BT = torch.arange(8)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids_BT).logits, told.trainer.parts.model.eval()(ids_BT)[0])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_are_a_folder_that_peft_loads(run: Any, config: Any, store: Any, gpt2_folder: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    told = run(config("gpt2_lora"), store=store)
    told.trainer.train()
    base = AutoModelForCausalLM.from_pretrained(gpt2_folder)
    loaded = PeftModel.from_pretrained(base, next(iter(store)).path)
    ids_BT = torch.arange(8)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids_BT).logits, told.trainer.parts.model.eval()(ids_BT)[0])


def test_tensors_of_another_shape_are_refused_by_name(gpt2_folder: Path) -> None:
    model = GPT2Wrapper(gpt2_folder)
    tensors = model.tensors()
    tensors["transformer.wpe.weight"] = torch.zeros(3, 3)
    with pytest.raises(CheckpointMismatch, match=r"transformer\.wpe\.weight"):
        model.load_tensors(tensors)


def test_a_model_from_scratch_begins_by_knowing_nothing() -> None:
    torch.manual_seed(0)
    model = BigramLanguageModel(65, 16, 32, 4, 2)
    ids_BT = torch.randint(0, 65, (8, 16))
    assert model(ids_BT, ids_BT.roll(1))[1].item() == pytest.approx(4.17, abs=0.1)


def no_network(*_: Any, **__: Any) -> Any:
    raise OSError(101, "Network is unreachable")


def test_weights_that_cannot_be_had_are_told_within_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", no_network)
    began = time.monotonic()
    with pytest.raises(ModelUnavailable) as refused:
        find_base("some/model")
    assert time.monotonic() - began < 5
    said = refused.value.message
    for part in (
        "'some/model'",
        "no folder",
        "nothing in the cache",
        "Network is unreachable",
        "BASE_MODEL=",
        "hf download",
    ):
        assert part in said


def test_a_network_that_never_answers_does_not_hold_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def never(*_: Any, **__: Any) -> Any:
        answered.wait(20)
        raise OSError("the test is over")

    monkeypatch.setattr(socket, "create_connection", never)
    began = time.monotonic()
    with pytest.raises(ModelUnavailable, match="no answer"):
        find_base("some/model")
    assert time.monotonic() - began < 5
    answered.set()


def test_a_request_reaches_the_models_root_and_nothing_beside_it(
    gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.chdir(gpt2_folder.parent)
    assert find_base(gpt2_folder.name) == Path(gpt2_folder.name), "a script may name any folder"
    assert find_base(gpt2_folder.name, gpt2_folder.parent) == gpt2_folder
    with pytest.raises(ModelUnavailable):
        find_base(gpt2_folder.name, tmp_path / "models")
    assert find_base(str(gpt2_folder), tmp_path / "models") == gpt2_folder, "the operator's own, which is absolute"


def test_a_model_from_the_hub_comes_with_its_template(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = {"config.json": "{}", "model.safetensors": "", "chat_template.jinja": "{{ 1 }}", "pytorch_model.bin": ""}

    def fetch(name: str, *, local_files_only: bool, allow_patterns: list[str], **_: Any) -> str:
        if local_files_only:
            raise OSError("nothing in the cache")
        for file in filter_repo_objects(there, allow_patterns=allow_patterns):
            (tmp_path / file).write_text(there[file])
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.setattr("core.models.base._hub_unreachable", lambda: None)
    found = {path.name for path in find_base("some/model").iterdir()}
    assert found == {"config.json", "model.safetensors", "chat_template.jinja"}


@pytest.mark.parametrize("reason", [None, "no network"])
def test_a_snapshot_without_its_template_is_looked_at_once_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reason: str | None
) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_text("{}")
    asked: list[tuple[str, str, str]] = []

    def download(name: str, file: str, *, revision: str, **_: Any) -> None:
        asked.append((name, file, revision))
        raise OSError("it has none")

    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("core.models.base._hub_unreachable", lambda: reason)
    assert find_base("some/model") == find_base("some/model") == tmp_path
    assert asked == ([] if reason else [("some/model", "chat_template.jinja", tmp_path.name)])


def test_a_folder_without_weights_is_refused_by_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelUnavailable, match=r"has no \*\.safetensors"):
        find_base(str(tmp_path))


def test_auto_is_a_device_that_is_here_and_others_are_refused() -> None:
    assert select_device("auto") in {"cuda", "mps", "cpu"}
    with pytest.raises(DeviceUnavailable, match="here are: "):
        select_device("cuda:123")
