"""Models of many families: trained, checkpointed, resumed, exported and read again by the same code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.checkpointing import CheckpointStore, load_checkpoint
from core.checkpoints.export import export
from core.checkpoints.opening import load_base, open_for_generation
from core.config import TrainingConfig, parse
from core.errors import ConfigError, ModelUnavailable
from core.models.causal_lm import CausalLM, short_name
from core.models.gpt2 import GPT2Wrapper
from tests.tiny_models import FAMILIES, make_model_folder
from tests.unit.core.conftest import TEXT

IDS_BT = torch.arange(12)[None]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: make_model_folder(root / family, TEXT, family) for family in FAMILIES}


def logits(network: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = network.eval()(input_ids=IDS_BT).logits
        return found


def plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_base_says_what_transformers_makes_it_say(folders: dict[str, Path], family: str) -> None:
    model = CausalLM(folders[family])
    theirs = plain(folders[family])
    # GPT-2's GELU is rounded otherwise here, see `core.models.kernels`.
    bound = {"rtol": 1e-5, "atol": 1e-6} if family == "gpt2" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(logits(model.network), logits(theirs), **bound)
    with torch.inference_mode():
        first_BV, cache = model.predict(IDS_BT[:, :6])
        torch.testing.assert_close(first_BV, logits(model.network)[:, 5], rtol=1e-4, atol=1e-5)
        later_BV, _ = model.predict(IDS_BT[:, 6:7], cache)
        torch.testing.assert_close(later_BV, logits(model.network)[:, 6], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_trained_model_leaves_as_a_folder_and_comes_back_as_a_base(
    run: Any, config: Any, store: CheckpointStore, folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    told = run(config("llama", base_model=str(folders[family]), training_steps=2, learning_rate=1e-2), store=store)
    told.trainer.train()
    checkpoint = next(iter(store))
    assert checkpoint.manifest.name.startswith(f"checkpoint_{family.replace('_', '-')}_sums_step000002_")
    trained = logits(told.trainer.parts.model.network)
    assert torch.equal(logits(plain(checkpoint.path)), trained)
    assert torch.equal(logits(open_for_generation(checkpoint.path)[0].network), trained)
    done = export(checkpoint.path, tmp_path / "models", "mine")
    assert torch.equal(logits(plain(tmp_path / "models" / done.path)), trained)
    assert torch.equal(logits(load_base("mine", tmp_path / "models")[0].network), trained)
    assert not torch.equal(trained, logits(plain(folders[family])))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("family", list(FAMILIES))
def test_adapters_leave_alone_or_merged(
    run: Any, config: Any, store: CheckpointStore, folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    from peft import PeftModel

    given = {"base_model": str(folders[family]), "training_steps": 2, "learning_rate": 1e-2}
    told = run(config("llama_lora", **given), store=store)
    told.trainer.train()
    checkpoint = next(iter(store)).path
    trained = logits(told.trainer.parts.model.network)
    models = tmp_path / "models"
    assert export(checkpoint, models, "adapters").kind == "adapter"
    loaded = PeftModel.from_pretrained(plain(folders[family]), models / "adapters")
    torch.testing.assert_close(logits(loaded), trained, rtol=0, atol=1e-6)
    assert export(checkpoint, models, "merged", merge=True).kind == "model"
    torch.testing.assert_close(logits(plain(models / "merged")), trained, rtol=0, atol=1e-5)
    assert not torch.allclose(trained, logits(plain(folders[family])), atol=1e-4)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_resumed_run_of_any_family_equals_an_undisturbed_one(
    run: Any, config: Any, folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    given = config("llama", base_model=str(folders[family]), dropout=0.1)
    undisturbed, broken = CheckpointStore(tmp_path / "a"), CheckpointStore(tmp_path / "b")
    run(given, store=undisturbed).trainer.train()
    halfway = run(given, store=broken)
    halfway.stop_at = 4
    halfway.trainer.train()
    middle = load_checkpoint(next(iter(broken)).path)
    run(given, store=broken, resume=middle, end_step=8).trainer.train()
    last = [max(store, key=lambda item: item.step) for store in (undisturbed, broken)]
    files = [{name: entry.sha256 for name, entry in item.manifest.files.items()} for item in last]
    assert files[0] == files[1]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_are_put_where_they_are_asked_for(llama_folder: Path) -> None:
    model = CausalLM(llama_folder, use_lora=True, lora_targets="q_proj, layers.1.mlp.up_proj", use_rslora=True)
    adapted = {name.partition(".lora_")[0].partition("layers.")[2] for name in model.tensors()}
    assert adapted == {"0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.up_proj"}
    assert model.network.peft_config["default"].use_rslora
    assert any("magnitude" in name for name in CausalLM(llama_folder, use_lora=True, use_dora=True).tensors())
    for wrong in ("c_attn", "lm_head"):
        with pytest.raises(ConfigError, match=f"'{wrong}' names no linear layer of this model, which has down_proj"):
            CausalLM(llama_folder, use_lora=True, lora_targets=wrong)


def test_dropout_reaches_attention(llama_folder: Path) -> None:
    model = CausalLM(llama_folder, dropout=0.5).train()
    assert not torch.equal(model(IDS_BT)[0], model(IDS_BT)[0])


def test_a_model_that_sees_the_future_is_refused(tmp_path: Path) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    assert CausalLM(make_model_folder(tmp_path / "looks-back", TEXT, "bert", is_decoder=True, **small))
    folder = make_model_folder(tmp_path / "all-seeing", TEXT, "bert", **small)
    with pytest.raises(ModelUnavailable, match="depends on later ones"):
        CausalLM(folder)


def test_gpt2_is_no_name_for_another_family(llama_folder: Path) -> None:
    with pytest.raises(ModelUnavailable, match="says model_type 'llama': train it with model_type 'causal_lm'"):
        GPT2Wrapper(llama_folder)


def test_a_gpt2_can_be_trained_under_its_own_name_by_the_general_type(gpt2_folder: Path) -> None:
    assert CausalLM(gpt2_folder, use_lora=True).name == "tiny-gpt2_lora"
    assert GPT2Wrapper(gpt2_folder, use_lora=True).name == "gpt2_lora"


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("gpt2", "gpt2"),
        ("HuggingFaceTB/SmolLM2-135M", "SmolLM2-135M"),
        ("meta/Llama-3.2-1B", "Llama-3-2-1B"),
        ("/models/my model/", "my-model"),
        ("…", "causal-lm"),
        ("x" * 300, "x" * 60),
    ],
)
def test_checkpoints_are_called_after_their_base(base: str, name: str) -> None:
    assert short_name(base) == name


def test_a_model_has_to_be_named() -> None:
    with pytest.raises(ConfigError) as refused:
        parse(TrainingConfig, {"model_type": "causal_lm"})
    assert refused.value.problems == [
        ("base_model", "model_type 'causal_lm' needs one: the name of a model on the hub, or of a local folder")
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "t5"}, "no causal language model is known"),
        ({"model_type": "nonsense"}, "no causal language model is known"),
        ({"model_type": "gemma3"}, "'gemma3'"),
        ({"num_hidden_layers": 1}, "leaves out its weights model.layers.1"),
        ({"num_hidden_layers": 3}, "its weights lack model.layers.2"),
        ({"num_hidden_layers": 10**9}, "says num_hidden_layers 1000000000"),
        ({"hidden_size": 10**7}, ", 10000000) and is ("),
        ({"vocab_size": 10**9}, "should be (1000000000, 32)"),
        ({"num_key_value_heads": 2}, "does not fit its weights"),
        ({"hidden_size": "wide"}, "does not fit its weights"),
        ({"rope_parameters": {"rope_type": "evil"}}, "does not fit its weights"),
        ({"hidden_act": "evil"}, "does not fit its weights"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_one_sentence(
    llama_folder: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "theirs")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelUnavailable) as refused:
        CausalLM(folder)
    assert said in refused.value.message
    assert "\n" not in refused.value.message


def test_experts_without_number_are_not_made(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["mixtral"], tmp_path / "theirs")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_local_experts": 10**9}))
    with pytest.raises(ModelUnavailable, match="says num_local_experts 1000000000"):
        CausalLM(folder)


def test_halves_of_another_width_become_whole(llama_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "halves")
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, folder / "model.safetensors")
    model = CausalLM(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(logits(model.network), logits(plain(folder)))
