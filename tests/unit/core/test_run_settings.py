"""Every way to learn, through a whole run: it does what its name says, and stopped and resumed equals undisturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.checkpointing import CheckpointStore, load_checkpoint
from core.checkpoints.opening import open_for_generation
from core.config import TrainingConfig
from core.optimization.averaging import AVERAGES_FILE
from core.trainer import Outcome

SETTINGS: dict[str, dict[str, Any]] = {
    "muon": {"kind": "modern", "optimizer": "muon", "lr_schedule": "wsd"},
    "averages": {"kind": "from_scratch", "ema_decay": 0.9},
    "averages of adapters": {"kind": "gpt2_lora", "ema_decay": 0.9},
    "averages of a base": {"kind": "gpt2", "ema_decay": 0.9},
    "frozen layers": {"kind": "llama", "freeze_layers": 1},
    "frozen layers from scratch": {"kind": "modern", "freeze_layers": 1, "n_layer": 3},
    "dora": {"kind": "gpt2_lora", "use_dora": True},
    "in four bits": {"kind": "gpt2_lora", "quantization": "nf4"},
    "dora in four bits": {"kind": "llama_nf4_lora", "use_dora": True},
    "moments in eight bits": {"kind": "modern", "optimizer": "adamw_8bit", "n_embd": 64},
    "everything in few bits": {"kind": "llama_nf4_lora", "optimizer": "adamw_8bit", "lora_rank": 64},
    "rslora on some": {"kind": "llama_lora", "use_rslora": True, "lora_targets": "q_proj,v_proj"},
    "adapters on a modern model": {"kind": "modern", "use_lora": True, "use_dora": True, "lora_targets": "qkv"},
    "squared relu, untied": {"kind": "modern", "activation": "relu2", "tie_embeddings": False, "qk_norm": False},
    "other betas, no clipping": {"kind": "from_scratch", "beta1": 0.8, "weight_decay": 0.2, "max_grad_norm": 0},
    "samples in between": {"kind": "from_scratch", "sample_interval": 2, "max_new_tokens": 3},
    "a cosine that does not reach zero": {"kind": "gpt2", "lr_schedule": "cosine", "min_lr_ratio": 0.1},
}


def settings(config: Any, name: str, **more: Any) -> TrainingConfig:
    given = {"dropout": 0.1, "learning_rate": 1e-3, **SETTINGS[name], **more}
    kind = given.pop("kind")
    made: TrainingConfig = config(kind, **given)
    return made


@pytest.mark.parametrize("name", list(SETTINGS))
def test_stopped_and_resumed_equals_undisturbed(run: Any, config: Any, tmp_path: Path, name: str) -> None:
    given = settings(config, name)
    undisturbed, broken = CheckpointStore(tmp_path / "undisturbed"), CheckpointStore(tmp_path / "broken")
    run(given, store=undisturbed).trainer.train()
    halfway = run(given, store=broken)
    halfway.stop_at = 5
    halfway.trainer.train()
    middle = load_checkpoint(max(broken, key=lambda item: item.step).path)
    run(given, store=broken, resume=middle, start_step=0, end_step=8).trainer.train()
    files = [max(store, key=lambda item: item.step).manifest.files for store in (undisturbed, broken)]
    assert files[0] == files[1]
    # What a run of another setting would have left is something else, or the setting did nothing.
    plain = CheckpointStore(tmp_path / "plain")
    mine = SETTINGS[name]
    shape = {"kind", "use_lora", "activation", "tie_embeddings", "qk_norm", "n_layer"}
    bare = config(
        mine["kind"], dropout=0.1, learning_rate=1e-3, **{k: v for k, v in mine.items() if k in shape - {"kind"}}
    )
    run(bare, store=plain).trainer.train()
    others = max(plain, key=lambda item: item.step).manifest.files
    is_silent = name in {"samples in between", "squared relu, untied"}
    same_weights = {n for n, e in others.items() if n.endswith("model.safetensors") and files[0].get(n) == e}
    assert bool(same_weights) is (is_silent or name.startswith("averages"))


@pytest.mark.parametrize("name", ["averages", "averages of adapters", "averages of a base"])
def test_a_checkpoint_with_averages_answers_with_them(run: Any, config: Any, store: CheckpointStore, name: str) -> None:
    told = run(settings(config, name, learning_rate=1e-2), store=store)
    told.trainer.train()
    parts = told.trainer.parts
    assert parts.averages is not None
    checkpoint = next(iter(store))
    assert AVERAGES_FILE in checkpoint.manifest.files
    model, _ = open_for_generation(checkpoint.path)
    ids_BT = torch.arange(6)[None]
    with torch.inference_mode():
        answered = model(ids_BT)[0]
        parts.model.eval()
        assert not torch.allclose(answered, parts.model(ids_BT)[0], atol=1e-4)
        with parts.averages.swapped(parts.model):
            torch.testing.assert_close(answered, parts.model(ids_BT)[0], rtol=1e-5, atol=1e-6)


def test_what_is_frozen_stays_as_it_was(run: Any, config: Any) -> None:
    told = run(settings(config, "frozen layers"))
    before = {name: weight.clone() for name, weight in told.trainer.parts.model.named_parameters()}
    told.trainer.train()
    changed = {name for name, weight in told.trainer.parts.model.named_parameters() if not weight.equal(before[name])}
    assert any(".layers.1." in name for name in changed)
    assert not any(".layers.0." in name or "embed" in name for name in changed)


def test_adapters_are_where_they_are_asked_for(run: Any, config: Any) -> None:
    model = run(settings(config, "rslora on some")).trainer.parts.model
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in model.tensors()}
    assert adapted == {"q_proj", "v_proj"}


def test_a_run_that_gets_no_better_ends_early_and_says_so(run: Any, config: Any, store: CheckpointStore) -> None:
    given = config(
        training_steps=60, eval_interval=2, learning_rate=1e-9, early_stopping_patience=3, early_stopping_min_delta=0.01
    )
    told = run(given, store=store)
    assert told.trainer.train() is Outcome.FINISHED
    assert told.trainer.run.step == 6
    assert "🏁 No better validation loss in 3 evaluations: the run ends at step 6" in told.lines
    final = max(store, key=lambda item: item.step)
    assert final.step == 6
    # Begun again after a crash before it could say so, it ends at once.
    again = run(given, store=store, resume=load_checkpoint(final.path), start_step=0, end_step=60)
    assert again.trainer.train() is Outcome.FINISHED
    assert again.trainer.run.step == 6
    # A new run from there has a patience of its own.
    further = run(given, resume=load_checkpoint(final.path))
    further.trainer.train()
    assert further.trainer.run.step == 12


def test_a_run_that_gets_better_goes_on_to_its_end(run: Any, config: Any) -> None:
    told = run(config(training_steps=40, eval_interval=4, learning_rate=1e-2, early_stopping_patience=2))
    told.trainer.train()
    assert told.trainer.run.step == 40


def test_samples_come_at_their_interval_from_each_prompt_and_at_the_end(run: Any, config: Any) -> None:
    told = run(config(sample_interval=3, sample_prompts=["QUES", "AN"], max_new_tokens=4))
    told.trainer.train()
    samples = [(event.step, event.prompt) for event in told.of("sample")]
    assert samples == [(step, prompt) for step in (3, 6, 8) for prompt in ("QUES", "AN")]
    assert all(len(event.text) == 4 for event in told.of("sample"))


def test_a_prompt_that_the_model_cannot_read_is_a_warning(run: Any, config: Any) -> None:
    told = run(config(sample_prompts=["ÿ"], max_new_tokens=4))
    assert told.trainer.train() is Outcome.FINISHED
    assert "never seen" in told.of("warning")[-1].message


def test_evaluations_say_how_often_the_likeliest_token_was_right(run: Any, config: Any) -> None:
    told = run(config(training_steps=80, eval_interval=80, learning_rate=1e-2))
    told.trainer.train()
    first, last = told.of("eval")
    assert 0 <= first.val_accuracy < 0.2 < last.val_accuracy <= 1
    assert first.val_perplexity == pytest.approx(torch.tensor(first.val_loss, dtype=torch.float64).exp().item())
