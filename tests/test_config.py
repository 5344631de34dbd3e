import json
import math
from dataclasses import replace

import pytest

from dopsd_app.config import (
    PLACES,
    SETTINGS,
    ConfigError,
    TrainConfig,
    list_presets,
    list_settings,
    load_config,
    load_preset,
    make_config,
    memory_levers,
    parse_setting,
    save_config,
)


def test_a_saved_configuration_comes_back(tmp_path):
    config = make_config({"steps": 7, "learning_rate": 1, "preview_prompts": ["a cat", "ein Bär"]})
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config
    assert config.learning_rate == 1.0
    assert config.preview_prompts == ("a cat", "ein Bär")


def test_a_setting_that_is_gone_is_left_out_of_an_earlier_run_and_no_other_is(tmp_path):
    file = tmp_path / "config.json"
    save_config(make_config({"steps": 7}), file)
    saved = json.loads(file.read_text())
    file.write_text(json.dumps(saved | {"stop_early": True}))
    assert load_config(file) == make_config({"steps": 7})
    file.write_text(json.dumps(saved | {"stop_late": True}))
    with pytest.raises(ConfigError, match="no setting `stop_late`"):
        load_config(file)
    with pytest.raises(ConfigError, match="no setting `stop_early`"):
        make_config({"stop_early": True})  # nobody may ask for it any more


def test_strength_follows_the_rank_unless_set():
    assert TrainConfig(rank=8).strength == 2
    assert TrainConfig(rank=8, lora_alpha=4.0).strength == 0.5
    assert replace(TrainConfig(rank=64), rank=8).strength == 2  # not the alpha of rank 64


def test_all_problems_are_told_at_once():
    wrong = {
        "steps": 0,
        "loss": "l1",
        "learning_rate": -1.0,
        "ema_decay": 1.5,
        "batch_size": 3,
        "micro_batch": 2,
    }
    with pytest.raises(ConfigError) as raised:
        make_config(wrong)
    message = str(raised.value)
    assert all(f"`{name}`" in message for name in wrong)
    assert len(message.splitlines()) == 5  # batch_size and micro_batch are one problem


@pytest.mark.parametrize(
    "name", ["steps", "rollout_steps", "num_inference_steps", "batch_size", "micro_batch"]
)
def test_counts_of_zero_are_told_as_problems(name):
    with pytest.raises(ConfigError, match=f"`{name}` must be at least 1, got 0"):
        make_config({name: 0})


@pytest.mark.parametrize("name", ["learning_rate", "max_grad_norm", "ema_decay", "lora_alpha"])
def test_not_a_number_is_refused(name):
    with pytest.raises(ConfigError, match=f"`{name}`.*nan"):
        make_config({name: math.nan})


def test_a_seed_that_no_generator_takes_is_refused():
    TrainConfig(seed=2**32 - 1)
    with pytest.raises(ConfigError, match="`seed` must be between 0 and 4294967295, got 4294967296"):
        TrainConfig(seed=2**32)


def test_every_bound_is_the_last_value_that_is_allowed():
    for name, setting in SETTINGS.items():
        for bound in {setting.minimum, setting.maximum} - {None}:
            value = type(getattr(TrainConfig(), name))(bound)
            assert setting.problem(name, value) is None
            outside = value - 1 if bound == setting.minimum else value + 1
            with pytest.raises(ConfigError, match=f"`{name}` must be {setting.allowed}, got {outside}"):
                make_config({name: outside})


def test_every_choice_is_allowed_and_no_other():
    for name, setting in SETTINGS.items():
        assert all(getattr(make_config({name: choice}), name) == choice for choice in setting.choices)
        if setting.choices:
            with pytest.raises(ConfigError, match=f"`{name}` must be one of .*, got 'another'"):
                make_config({name: "another"})


def test_levers_are_advised_by_what_they_cost_and_only_where_they_save():
    wasteful = TrainConfig(
        batch_size=4,
        micro_batch=4,
        optimizer="adamw",
        quantization="none",
        resolution=1024,
        rank=64,
    )
    assert memory_levers(wasteful) == [
        ("micro_batch", 1),
        ("optimizer", "adamw8bit"),
        ("quantization", "auto"),
        ("resolution", 512),
        ("rank", 16),
    ]
    assert memory_levers(replace(wasteful, **{**dict(memory_levers(wasteful)), "rank": 8})) == []


def test_the_page_shows_what_a_person_can_use_in_words_of_its_own():
    shown = {name: setting for name, setting in SETTINGS.items() if setting.page in PLACES}
    assert {"name", "steps", "resolution", "rank", "teacher", "seed", "device"} <= shown.keys()
    for name in ("loss", "ema_decay", "lora_alpha", "max_grad_norm", "precision"):
        assert name not in shown
    assert not {"rollout_steps", "num_inference_steps"} & shown.keys()
    labels = [setting.label for setting in SETTINGS.values()]
    assert all(labels) and len(labels) == len(set(labels))


def test_the_list_of_settings_names_each_with_its_default_and_choices():
    lines = list_settings().splitlines()
    assert [line.split("=")[0].strip() for line in lines] == list(SETTINGS)
    assert any("steps=1000 " in line and "at least 1" in line for line in lines)
    for line, setting in zip(lines, SETTINGS.values(), strict=True):
        assert setting.info in line and all(choice in line for choice in setting.choices)


def test_a_roll_out_visits_only_sigmas_of_the_inference():
    TrainConfig(num_inference_steps=8, rollout_steps=4)
    with pytest.raises(ConfigError, match=r"`rollout_steps` must divide `num_inference_steps` \(8\)"):
        TrainConfig(num_inference_steps=8, rollout_steps=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": 5}, "no setting `stepz`"),
        ({"steps": "5"}, "`steps` must be a whole number, got '5'"),
        ({"steps": True}, "`steps` must be a whole number, got True"),
        ({"steps": 5.0}, "`steps` must be a whole number, got 5.0"),
        ({"preview_prompts": "a cat"}, "`preview_prompts` must be a list of texts, got 'a cat'"),
        ({"preview_prompts": [1]}, "`preview_prompts` must be a list of texts"),
    ],
)
def test_unknown_settings_and_wrong_types_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_config(settings)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("steps=12", 12),
        ("learning_rate=1e-3", 0.001),
        ("name=a=b", "a=b"),
        ("preview_prompts=a cat", ("a cat",)),
        ('preview_prompts=["a", "b"]', ("a", "b")),
    ],
)
def test_a_setting_of_the_command_line_is_read_as_its_type(text, value):
    assert parse_setting(text) == (text.partition("=")[0], value)


@pytest.mark.parametrize("text", ["steps", "stepz=1", "steps=many", 'preview_prompts=["a"'])
def test_a_setting_that_cannot_be_read_is_refused_with_its_text(text):
    with pytest.raises(ConfigError) as raised:
        parse_setting(text)
    assert text.partition("=")[0] in str(raised.value)


def test_every_preset_is_a_configuration_that_works():
    presets = list_presets()
    assert "pocket" in [preset.name for preset in presets]
    for preset in presets:
        assert preset.label
        assert preset.description
        make_config(preset.settings)


def test_an_unknown_preset_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"no preset `pockets`. There are: .*pocket"):
        load_preset("pockets")
