"""Where values come from, how overrides are read, and that a dumped configuration is the same."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedms.config import Config, ConfigError, dump_config, known_keys, load_config

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def value(config: Config, key: str):
    found = config
    for word in key.split("."):
        found = getattr(found, word)
    return found


def test_command_line_over_file_over_default(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("seed = 3\n[stage1]\nrounds = 4\nepochs = 5\n")
    config = load_config(path, ["stage1.rounds=6", "stage1.rounds=7"])
    assert (config.stage1.rounds, config.stage1.epochs, config.seed) == (7, 5, 3)
    assert config.stage2 == Config().stage2


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["data.source=csv"], "there"),
        (["data.source=csv", "data.path=here.csv"], "here.csv"),
        (["data.source=digits"], None),
        ([], None),
    ],
)
def test_rows_may_be_elsewhere(words, path):
    assert load_config(None, words, elsewhere="there").data.path == path


def test_an_empty_override_takes_the_default_again(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('[data]\nsource = "csv"\npath = "a.csv"\nsplit = "fold"\n')
    assert load_config(path).data.split == "fold"
    assert load_config(path, ["data.split="]).data.split is None
    assert load_config(path, ["data.split= ", "data.split=part"]).data.split == "part"
    assert load_config(None, ["stage1.rounds="]) == Config()
    caps = ["sal.caps.a=2", "sal.caps.b=1", "sal.caps.a="]
    assert load_config(None, caps).sal.caps == {"b": 1}


@pytest.mark.parametrize(
    ("override", "said"), [("data.splt=", "did you mean data.split?"), ("nosuch=", "nosuch")]
)
def test_an_empty_override_of_no_option_is_refused(override, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config(None, [override])


OVERRIDES = [
    ("seed=7", "seed", 7),
    ("seed = 7", "seed", 7),
    ("training.learning_rate=3e-3", "training.learning_rate", 0.003),
    ("lora.alpha=16", "lora.alpha", 16.0),
    ("data.drop_empty=true", "data.drop_empty", True),
    ("sal.carry_depth=false", "sal.carry_depth", False),
    ('data.drop_labels=["oos", "x"]', "data.drop_labels", ["oos", "x"]),
    ("data.input=../some where/a=b.csv", "data.input", "../some where/a=b.csv"),
    ('data.input="2024"', "data.input", "2024"),
    ("data.input=text ", "data.input", "text "),
    ("data.input = text", "data.input", "text"),
    ("method= fedavg", "method", "fedavg"),
    ("data.input=words\n", "data.input", "words"),
    ("model.prompt=a photo of {label}", "model.prompt", "a photo of {label}"),
    ('model.prompt=["{label}", "a {label}"]', "model.prompt", ["{label}", "a {label}"]),
    ("sal.caps.a=2", "sal.caps", {"a": 2}),
    ("sal.caps.comp.sys.mac=60kB", "sal.caps", {"comp.sys.mac": "60kB"}),
    ("sal.caps.*=1", "sal.caps", {"*": 1}),
    ('sal.caps={"a b" = 3}', "sal.caps", {"a b": 3}),
    ("model.label_names.0=zero", "model.label_names", {"0": "zero"}),
    ("runtime.cache_bytes=1.5 GB", "runtime.cache_bytes", "1.5 GB"),
    ("runtime.device=cuda:1", "runtime.device", "cuda:1"),
]


@pytest.mark.parametrize(("override", "key", "expected"), OVERRIDES)
def test_override(override, key, expected):
    found = value(load_config(None, [override]), key)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("text", "kind"), [("1", int), ("1.0", float), ("0.5", float)])
def test_cohort_keeps_number_and_fraction_apart(text, kind):
    config = load_config(None, [f"stage1.cohort={text}"])
    again = Config.model_validate(tomllib.loads(dump_config(config)))
    assert type(config.stage1.cohort) is kind
    assert type(again.stage1.cohort) is kind


def test_caps_of_several_clients_add_up():
    config = load_config(None, ["sal.caps.a=2", "sal.caps.b=1MB"])
    assert config.sal.caps == {"a": 2, "b": "1MB"}


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
configs = st.builds(
    lambda **v: {
        "seed": v["seed"],
        "model": {"prompt": v["prompt"], "label_names": v["label_names"]},
        "data": {"drop_labels": v["drop"], "max_rows": v["rows"]},
        "sal": {"caps": v["caps"]},
        "stage1": {"cohort": v["cohort"]},
        "training": {"learning_rate": v["rate"]},
    },
    seed=st.integers(0, 2**63 - 1),
    prompt=names.map("{label}".__add__) | st.lists(names.map("{label}".__add__), min_size=1),
    label_names=st.dictionaries(names, names, max_size=3),
    drop=st.lists(names, max_size=3),
    rows=st.integers(2, 10**6),
    caps=st.dictionaries(names, st.integers(1, 12) | st.sampled_from(["60kB", "1.5 MB"])),
    cohort=st.integers(1, 50) | st.floats(0, 1, exclude_min=True),
    rate=st.floats(0, 1, exclude_min=True),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(configs)
def test_dumped_configuration_loads_as_the_same(tmp_path_factory, values):
    config = Config.model_validate(values)
    path = tmp_path_factory.getbasetemp() / "dumped.toml"
    path.write_text(dump_config(config), encoding="utf-8", newline="")
    assert load_config(path) == config
    assert dump_config(load_config(path)) == dump_config(config)


def test_configuration_is_frozen():
    config = Config()
    with pytest.raises(ValidationError):
        config.stage1.rounds = 3
    assert config.stage1.rounds == Config.model_fields["stage1"].default_factory().rounds


def test_known_keys_are_those_of_a_dump():
    keys = known_keys()
    assert keys["seed"] == 0
    assert keys["data.source"] == "digits"
    assert keys["model.temperature"] is None
    dumped = tomllib.loads(dump_config(Config()))
    flat = {
        f"{section}.{key}" if isinstance(inner, dict) else section
        for section, inner in dumped.items()
        for key in (inner if isinstance(inner, dict) else [""])
    }
    assert flat == {key for key, default in keys.items() if default is not None}


@pytest.mark.parametrize("key", sorted(k for k, d in known_keys().items() if d is not None))
def test_every_known_key_can_be_given(key):
    default = known_keys()[key]
    found = value(load_config(None, [f"{key}={json.dumps(default)}"]), key)
    assert (found, type(found)) == (default, type(default))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_recipe_loads_under_its_own_name(path):
    assert load_config(path).name == path.stem


def test_digits_recipe_is_the_embedded_default():
    assert dump_config(load_config(RECIPES / "digits.toml")) == dump_config(load_config())
