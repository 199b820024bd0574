from __future__ import annotations

from typing import Any

import pytest

from core.checkpoints.resume_rules import ResumeMode
from core.config import (
    DEFAULTS,
    ENVIRONMENT,
    MOST_STEPS,
    TrainingConfig,
    config_to_dict,
    load_config_fresh_from_env,
    load_config_from_checkpoint,
    parse,
    resume_config,
)
from core.errors import CheckpointMismatch, ConfigError

SEED_NAMES = [
    *("TRAINING_DATA_SOURCE", "MODEL_TYPE", "USE_LORA", "LORA_RANK", "LORA_ALPHA", "LORA_DROPOUT", "TRAINING_STEPS"),
    *("LEARNING_RATE", "BLOCK_SIZE", "BATCH_SIZE", "ENABLE_CHECKPOINTS", "CHECKPOINT_INTERVAL", "CHECKPOINT_DIR"),
    *("LOG_DIR", "OUTPUT_DIR", "USE_LR_WARMUP", "ENABLE_OUTPUT_TO_FILE", "TEST_MODE", "EVAL_INTERVAL", "EVAL_ITERS"),
    *("N_EMBD", "N_HEAD", "N_LAYER", "DEVICE"),
]


def test_every_variable_of_the_scripts_is_read() -> None:
    assert set(SEED_NAMES) <= set(ENVIRONMENT)


@pytest.mark.parametrize("model_type", ["from_scratch", "gpt2"])
@pytest.mark.parametrize("test_mode", ["True", "False"])
def test_model_type_and_test_mode_choose_the_defaults(model_type: str, test_mode: str) -> None:
    config = load_config_fresh_from_env({"MODEL_TYPE": model_type, "TEST_MODE": test_mode})
    expected = DEFAULTS[(model_type, test_mode == "True")]
    assert {name: getattr(config, name) for name in expected} == expected


def test_a_given_value_beats_a_chosen_default() -> None:
    config = load_config_fresh_from_env({"TEST_MODE": "1", "BATCH_SIZE": "7"})
    assert (config.batch_size, config.block_size) == (7, DEFAULTS[("from_scratch", True)]["block_size"])


def test_an_empty_variable_counts_as_absent() -> None:
    assert load_config_fresh_from_env({"BATCH_SIZE": ""}) == load_config_fresh_from_env({})


@pytest.mark.parametrize(
    ("text", "value"), [("True", True), ("False", False), ("0", False), ("yes", True), ("off", False)]
)
def test_switches_are_read_as_people_write_them(text: str, value: bool) -> None:
    assert load_config_fresh_from_env({"USE_LORA": text}).use_lora is value


def test_a_short_run_reaches_its_peak_rate() -> None:
    assert load_config_fresh_from_env({"TRAINING_STEPS": "50"}).warmup_steps == 5


def test_lora_on_gpt2_gets_a_rate_of_its_own() -> None:
    full, lora = (
        parse(TrainingConfig, {"model_type": "gpt2"}),
        parse(TrainingConfig, {"model_type": "gpt2", "use_lora": True}),
    )
    assert full.learning_rate < lora.learning_rate


def test_all_problems_are_said_at_once_each_in_a_sentence() -> None:
    with pytest.raises(ConfigError) as refused:
        parse(TrainingConfig, {"batch_size": "many", "block_size": 0, "colour": "red"})
    assert dict(refused.value.problems) == {
        "batch_size": "input should be a valid integer, unable to parse string as an integer, not 'many'",
        "block_size": "input should be greater than or equal to 1, not 0",
        "colour": "no such setting; GET /docs lists them all",
    }


def test_width_that_heads_cannot_share_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"n_embd \(130\) must be divisible by n_head \(4\)"):
        parse(TrainingConfig, {"n_embd": 130, "n_head": 4})


def test_gpt2_does_not_care_about_the_width_of_models_from_scratch() -> None:
    assert parse(TrainingConfig, {"model_type": "gpt2", "n_embd": 130, "n_head": 4}).n_head == 4


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cuda:0; rm", "/dev/null"])
def test_only_devices_that_exist_somewhere_are_named(device: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        parse(TrainingConfig, {"device": device})


def test_configuration_survives_the_way_through_a_dict() -> None:
    config = parse(TrainingConfig, {"use_lora": True, "n_embd": 64})
    assert parse(TrainingConfig, config_to_dict(config)) == config


def checkpoint(step: int = 100, end_step: int = 200, **config: object) -> dict[str, object]:
    saved = parse(TrainingConfig, {"training_steps": 200, **config})
    return {"config": config_to_dict(saved), "step": step, "end_step": end_step}


def test_resume_without_a_number_makes_the_steps_that_were_left() -> None:
    config, _ = load_config_from_checkpoint(checkpoint(), {})
    assert (config.start_step, config.training_steps) == (100, 100)


def test_resume_of_a_finished_run_makes_as_many_steps_again() -> None:
    config, _ = load_config_from_checkpoint(checkpoint(step=200), {})
    assert (config.start_step, config.training_steps) == (200, 200)


def test_environment_overrides_the_checkpoint_and_each_difference_is_told() -> None:
    env = {"RESUME_STEPS": "30", "LEARNING_RATE": "0.5", "CHECKPOINT_DIR": "elsewhere"}
    config, differences = load_config_from_checkpoint(checkpoint(learning_rate=1e-3), env)
    assert (config.training_steps, config.learning_rate, str(config.checkpoint_dir)) == (30, 0.5, "elsewhere")
    assert [str(item) for item in differences] == ["training_steps: 200 → 30", "learning_rate: 0.001 → 0.5"]


def test_a_changed_shape_is_refused_with_both_values() -> None:
    with pytest.raises(CheckpointMismatch, match="n_layer: 4 → 3"):
        load_config_from_checkpoint(checkpoint(), {"N_LAYER": "3"})


def test_warm_start_begins_at_zero_and_may_take_another_source() -> None:
    env = {"RESUME_MODE": "warm_start", "TRAINING_DATA_SOURCE": "other.md"}
    config, _ = load_config_from_checkpoint(checkpoint(), env)
    assert (config.start_step, config.source, config.training_steps) == (0, "other.md", 200)


def test_exact_mode_lets_nothing_change_but_how_long() -> None:
    env = {"RESUME_MODE": "exact", "RESUME_STEPS": "5", "LEARNING_RATE": "0.5"}
    with pytest.raises(CheckpointMismatch, match="learning_rate"):
        load_config_from_checkpoint(checkpoint(), env)
    config, _ = load_config_from_checkpoint(checkpoint(), {"RESUME_MODE": "exact", "RESUME_STEPS": "5"})
    assert config.training_steps == 5


def test_an_unknown_mode_is_refused_with_the_three_there_are() -> None:
    with pytest.raises(ConfigError, match="exact, extend, warm_start"):
        load_config_from_checkpoint(checkpoint(), {"RESUME_MODE": "sideways"})


def test_another_name_for_the_same_text_is_no_other_source() -> None:
    saved = {**checkpoint(source="tale.md"), "source_sha256": "0" * 64}
    config, differences = load_config_from_checkpoint(saved, {"TRAINING_DATA_SOURCE": "sources/tale.md"})
    assert config.source == "sources/tale.md"
    assert "source: tale.md → sources/tale.md" in map(str, differences)


@pytest.mark.parametrize(
    ("env", "variable"), [({"RESUME_STEPS": "0"}, "RESUME_STEPS"), ({"LEARNING_RATE": "nan"}, "LEARNING_RATE")]
)
def test_a_mistake_is_told_under_the_name_that_was_typed(env: dict[str, str], variable: str) -> None:
    with pytest.raises(ConfigError, match=f"^{variable}: "):
        load_config_from_checkpoint(checkpoint(), env)


def test_lists_and_tables_come_as_json_from_a_shell_and_the_width_of_a_terminal_is_none_of_them() -> None:
    env = {
        "SOURCES": '[{"source": "a.md", "weight": 2}, {"source": "b.jsonl"}]',
        "SAMPLE_PROMPTS": '["One, two", "Three"]',
        "TRACKERS": "tensorboard, mlflow",
        "COLUMNS": "80",
    }
    config = load_config_fresh_from_env(env)
    assert [(share.source, share.weight) for share in config.shares] == [("a.md", 2.0), ("b.jsonl", 1.0)]
    assert load_config_fresh_from_env({"SOURCE_COLUMNS": '{"text": "body"}'}).columns == {"text": "body"}
    assert config.sample_prompts == ("One, two", "Three")
    assert config.trackers == ("tensorboard", "mlflow")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"SOURCES": "[{"}, "SOURCES"),
        ({"SOURCES": '[{"source": "a", "weight": 0}]'}, "SOURCES.0.weight"),
        ({"SOURCES": '[{"source": "a"}, {"source": "a"}]'}, "SOURCES"),
        ({"SOURCE_COLUMNS": '{"title": "x"}'}, "SOURCE_COLUMNS.title.[key]"),
        ({"TRACKERS": "abacus"}, "TRACKERS.0"),
        ({"NUM_EPOCHS": "0"}, "NUM_EPOCHS"),
    ],
    ids=str,
)
def test_what_is_wrong_in_a_list_is_said_where_it_is(given: dict[str, str], field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config_fresh_from_env(given)
    assert [name for name, _ in refused.value.problems] == [field]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "dpo"}, "needs a pretrained model"),
        ({"freeze_layers": 1, "use_lora": True}, "freeze_layers is for whole models"),
        ({"optimizer": "muon", "use_lora": True}, "LoRA trains none"),
        ({"quantization": "nf4", "use_lora": True}, "a model from scratch has none"),
        ({"quantization": "nf4", "model_type": "gpt2"}, "quantization needs use_lora: quantized weights cannot train"),
        ({"freeze_layers": 9}, "more than n_layer"),
        ({"freeze_layers": 4, "optimizer": "muon"}, "leaves no block to train"),
        ({"freeze_layers": 4, "architecture": "modern"}, "leaves nothing to train"),
        ({"source": "b", "sources": [{"source": "a"}]}, "is none of sources, or not the first"),
        ({"sources": [{"source": "a"}], "columns": {"text": "t"}}, "columns belong to one source"),
        ({"architecture": "modern", "n_embd": 12, "n_head": 4}, "even width"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_one_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(TrainingConfig, given)


def test_an_exact_resume_under_a_falling_rate_ends_where_it_was_to_end() -> None:
    config = config_to_dict(parse(TrainingConfig, {"lr_schedule": "cosine", "training_steps": 20}))
    saved = {"config": config, "step": 10, "end_step": 20}
    assert resume_config(saved, {}, ResumeMode.EXACT)[0].training_steps == 10
    with pytest.raises(CheckpointMismatch, match="mode 'exact' ends at step 20"):
        resume_config(saved, {"training_steps": 15}, ResumeMode.EXACT)
    assert resume_config(saved, {"training_steps": 15}, ResumeMode.EXTEND)[0].training_steps == 15


@pytest.mark.parametrize(
    ("before", "overrides", "steps", "epochs"),
    [
        ({"training_steps": 300}, {"num_epochs": 3}, MOST_STEPS, 3),
        ({"num_epochs": 1}, {"training_steps": 500}, 500, None),
        ({"num_epochs": 1}, {}, MOST_STEPS, 1),
        ({"num_epochs": 1}, {"num_epochs": 2, "training_steps": 7}, 7, 2),
    ],
)
def test_how_long_a_resume_trains_is_what_was_said_last(
    before: dict[str, Any], overrides: dict[str, Any], steps: int, epochs: float | None
) -> None:
    saved = {"config": config_to_dict(parse(TrainingConfig, before)), "step": 40, "end_step": 40}
    config, _ = resume_config(saved, overrides, ResumeMode.EXTEND)
    assert (config.training_steps, config.num_epochs) == (steps, epochs)


def test_a_warm_start_reads_the_sources_that_it_names_and_no_others() -> None:
    several = config_to_dict(parse(TrainingConfig, {"sources": [{"source": "a"}, {"source": "c"}]}))
    saved = {"config": several, "step": 40}
    one, _ = resume_config(saved, {"source": "b"}, ResumeMode.WARM_START)
    assert [share.source for share in one.shares] == ["b"]
    others, _ = resume_config(saved, {"sources": [{"source": "d"}]}, ResumeMode.WARM_START)
    assert (others.source, [share.source for share in others.shares]) == ("d", ["d"])


def test_other_epochs_are_no_exact_resume_under_a_falling_rate() -> None:
    config = config_to_dict(parse(TrainingConfig, {"lr_schedule": "cosine", "training_steps": 20}))
    with pytest.raises(CheckpointMismatch, match="mode 'exact' ends at step 20"):
        resume_config({"config": config, "step": 10, "end_step": 20}, {"num_epochs": 2}, ResumeMode.EXACT)
