"""Every wrong key, type or value is one line that names the key, what it got and what to try."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedms.config import Config, ConfigError, known_keys, load_config, validate


def message(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    text = str(error.value)
    assert "\n" not in text
    return text


UNKNOWN = [
    ("seeed=1", "seeed", "seed"),
    ("evaluate_evry=1", "evaluate_evry", "evaluate_every"),
    ("stage3.rounds=5", "stage3", "stage2"),
    ("model.nme=a", "model.nme", "model.name"),
    ("data.pth=a", "data.pth", "data.path"),
    ("partition.aplha=1", "partition.aplha", "partition.alpha"),
    ("lora.rnk=1", "lora.rnk", "lora.rank"),
    ("sal.trigr=all", "sal.trigr", "sal.trigger"),
    ("stage1.round=5", "stage1.round", "stage1.rounds"),
    ("stage2.local_int=zero", "stage2.local_int", "stage2.local_init"),
    ("gate.mix_priro=client", "gate.mix_priro", "gate.mix_prior"),
    ("training.learning_rat=1", "training.learning_rat", "training.learning_rate"),
    ("runtime.devce=cpu", "runtime.devce", "runtime.device"),
]


@pytest.mark.parametrize(("override", "key", "near"), UNKNOWN)
def test_unknown_key_names_the_nearest(override, key, near):
    assert message(override) == f"got unknown key {key}; did you mean {near}?"


def test_unknown_key_far_from_all_has_no_suggestion():
    assert message("xyzzyxyzzyxyzzy=1") == "got unknown key xyzzyxyzzyxyzzy"


WRONG = [
    # wrong type
    ("seed=one", "seed", '"one"', "integer"),
    ("evaluate_every=1.5", "evaluate_every", "1.5", "integer"),
    ("name=3", "name", "3", "string"),
    ("model.name=3", "model.name", "3", "string"),
    ("model.prompt=3", "model.prompt", "3", "string or list"),
    ("model.label_names=3", "model.label_names", "3", "dictionary"),
    ("data.drop_labels=oos", "data.drop_labels", '"oos"', "list"),
    ("data.drop_empty=1", "data.drop_empty", "1", "boolean"),
    ("partition.alpha=small", "partition.alpha", '"small"', "number"),
    ("partition.clients=2.0", "partition.clients", "2.0", "integer"),
    ("lora.rank=8.5", "lora.rank", "8.5", "integer"),
    ("sal.carry_depth=yes", "sal.carry_depth", '"yes"', "boolean"),
    ("sal.caps=3", "sal.caps", "3", "dictionary"),
    ("stage1.rounds=ten", "stage1.rounds", '"ten"', "integer"),
    ("stage1=3", "stage1", "3", "dictionary"),
    ("stage2.epochs=[1]", "stage2.epochs", "[1]", "integer"),
    ("gate.smoothing=none", "gate.smoothing", '"none"', "number"),
    ("training.batch_size=32.0", "training.batch_size", "32.0", "integer"),
    ("runtime.cache_bytes=2", "runtime.cache_bytes", "2", "string"),
    ("seed.x=1", "seed", '{"x": 1}', "integer"),
    # a boolean is no number
    ("seed=true", "seed", "true", "integer"),
    ("stage1.rounds=true", "stage1.rounds", "true", "integer"),
    ("stage2.cohort=true", "stage2.cohort", "true", "integer or number"),
    ("training.learning_rate=true", "training.learning_rate", "true", "number"),
    ("sal.caps.a=true", "sal.caps", "true", "integer or string"),
    # out of range
    ("seed=-1", "seed", "-1", "greater than or equal to 0"),
    ("seed=9223372036854775808", "seed", "9223372036854775808", "less than"),
    ("evaluate_every=-1", "evaluate_every", "-1", "greater than or equal to 0"),
    ("model.temperature=0", "model.temperature", "0", "greater than 0"),
    ("model.max_length=3", "model.max_length", "3", "greater than or equal to 4"),
    ("data.max_rows=1", "data.max_rows", "1", "greater than or equal to 2"),
    ("partition.alpha=0", "partition.alpha", "0", "greater than 0"),
    ("partition.clients=0", "partition.clients", "0", "greater than or equal to 1"),
    ("partition.min_rows=0", "partition.min_rows", "0", "greater than or equal to 1"),
    ("partition.test_fraction=1.0", "partition.test_fraction", "1.0", "less than 1"),
    ("partition.unseen_clients=-1", "partition.unseen_clients", "-1", "equal to 0"),
    ("lora.rank=0", "lora.rank", "0", "greater than or equal to 1"),
    ("lora.alpha=0", "lora.alpha", "0", "greater than 0"),
    ("sal.start=0", "sal.start", "0", "greater than or equal to 1"),
    ("sal.queue=1", "sal.queue", "1", "greater than or equal to 2"),
    ("sal.epsilon=-0.1", "sal.epsilon", "-0.1", "greater than or equal to 0"),
    ("sal.caps.a=0", "sal.caps", "0", "greater than or equal to 1"),
    ("stage1.rounds=-1", "stage1.rounds", "-1", "greater than or equal to 0"),
    ("stage1.cohort=0", "stage1.cohort", "0", "greater than or equal to 1"),
    ("stage1.cohort=1.5", "stage1.cohort", "1.5", "less than or equal to 1"),
    ("stage1.server_momentum=1", "stage1.server_momentum", "1", "less than 1"),
    ("stage1.server_momentum=-0.1", "stage1.server_momentum", "-0.1", "equal to 0"),
    ("stage2.cohort=0.0", "stage2.cohort", "0.0", "greater than 0"),
    ("gate.smoothing=0", "gate.smoothing", "0", "greater than 0"),
    ("gate.local_loss=-1", "gate.local_loss", "-1", "greater than or equal to 0"),
    ("training.learning_rate=0", "training.learning_rate", "0", "greater than 0"),
    ("training.learning_rate=nan", "training.learning_rate", "NaN", "expected"),
    ("training.weight_decay=-1", "training.weight_decay", "-1", "greater than or equal to 0"),
    # bad value
    ("name=a/b", "name", '"a/b"', "expected"),
    ("name=..", "name", '".."', "expected"),
    ("method=sgd", "method", '"sgd"', "'fedms'"),
    ('model.name=""', "model.name", '""', "at least 1 character"),
    ("data.source=xml", "data.source", '"xml"', "'csv'"),
    ("partition.by=rows", "partition.by", '"rows"', "'dirichlet'"),
    ("lora.targets=xy", "lora.targets", '"xy"', "qkvo"),
    ("sal.trigger=never", "sal.trigger", '"never"', "'queue'"),
    ("sal.caps.a=lots", "sal.caps", '"lots"', "integer"),
    ("stage2.local_init=random", "stage2.local_init", '"random"', "'global' or 'zero'"),
    ("stage2.checkpoint=first", "stage2.checkpoint", '"first"', "'best' or 'last'"),
    ("gate.mix=sum", "gate.mix", '"sum"', "'probabilities'"),
    ("runtime.device=tpu", "runtime.device", '"tpu"', "cuda"),
    ("runtime.cache_bytes=2TB", "runtime.cache_bytes", '"2TB"', "expected"),
]


@pytest.mark.parametrize(("override", "key", "got", "expected"), WRONG)
def test_wrong_value_says_what_was_got_and_expected(override, key, got, expected):
    text = message(override)
    assert text.startswith(f"got {key}")
    assert got in text
    assert "expected" in text
    assert expected in text


@pytest.mark.parametrize(
    "key",
    [
        "training.learning_rate",
        "training.weight_decay",
        "lora.alpha",
        "sal.epsilon",
        "model.temperature",
        "gate.smoothing",
    ],
)
def test_infinity_is_out_of_range(key):
    assert key in message(f"{key}=inf")


def test_wrong_cap_names_the_client():
    assert "writer7" in message("sal.caps.writer7=0")


TOGETHER = [
    (["model.prompt=a photo"], ["model.prompt", "{label}"]),
    (["model.prompt=[]"], ["model.prompt", "{label}"]),
    (['model.prompt=["a {label}", "photo"]'], ["model.prompt", "{label}"]),
    (["partition.by=column"], ["partition.by", "column", "partition.column"]),
    (["stage1.rounds=0", "stage2.rounds=0"], ["stage1.rounds", "stage2.rounds", "0"]),
    (["data.source=csv"], ["data.source", "csv", "data.path"]),
    (["gate.mix_prior=learned", "gate.calibration=false"], ["gate.mix_prior", "gate.calibration"]),
    (["gate.mix=features", "gate.mix_prior=client"], ["gate.mix_prior", "client", "logits"]),
]


@pytest.mark.parametrize(("overrides", "words"), TOGETHER)
def test_values_that_do_not_fit_together(overrides, words):
    text = message(*overrides)
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize("override", ["seed", "=3", "recipes/digits.toml"])
def test_override_without_a_key_or_value(override):
    assert message(override).startswith(f"got {override!r}; expected section.key=value")


def test_override_below_a_value_of_the_file(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("seed = 1\n")
    assert "seed is not a section" in message("seed.x=2", path=path)


def test_same_error_in_a_file(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("[stage1]\nround = 5\n")
    assert message(path=path) == "got unknown key stage1.round; did you mean stage1.rounds?"


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "digits.toml").write_text("")
    (tmp_path / "femnist.toml").write_text("")
    text = message(path=tmp_path / "digit.toml")
    assert text.startswith(f"got config {tmp_path / 'digit.toml'}, which does not exist")
    assert text.endswith(f"did you mean {tmp_path / 'digits.toml'}?")


def test_missing_file_in_a_missing_folder(tmp_path):
    text = message(path=tmp_path / "nowhere" / "digits.toml")
    assert text.endswith("which does not exist")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name = = 3\n", "is not TOML"),
        (b"[data]\nseed = 1\n[data]\n", "is not TOML"),
        (b'name = "caf\xe9"\n', "cannot be read"),
        (b"seed = " + b"9" * 5000, "cannot be read"),
        (b"a = " + b"[" * 20_000, "cannot be read"),
    ],
    ids=["syntax", "table twice", "not UTF-8", "a long number", "deep"],
)
def test_file_that_is_no_toml(tmp_path, content, words):
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    text = message(path=path)
    assert str(path) in text
    assert words in text


def test_folder_instead_of_a_file(tmp_path):
    assert "cannot be read" in message(path=tmp_path)


@pytest.mark.parametrize("value", ["9" * 5000, "0x" + "f" * 5000, "[" * 5000])
def test_a_value_of_any_length_is_told_of_briefly(value):
    text = message(f"seed={value}")
    assert text.startswith("got seed = ")
    assert len(text) < 300


keys = st.sampled_from(sorted(known_keys())) | st.text(max_size=20)
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
values = st.recursive(
    plain, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6), v, max_size=3)
)
tables = st.dictionaries(keys | st.sampled_from(sorted(Config.model_fields)), values, max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(keys, st.text(max_size=30) | values.map(repr)), max_size=4), tables)
def test_any_words_are_a_configuration_or_one_error(settings, tables):
    with suppress(ConfigError):
        assert isinstance(load_config(None, [f"{k}={v}" for k, v in settings]), Config)
    with suppress(ConfigError):
        assert isinstance(validate(tables), Config)


@pytest.mark.parametrize("who", ["me:s3cret@", "s3cret@", ":s3cret@"])
def test_a_password_is_not_kept_with_a_run(who):
    said = message(f"tracking.mlflow_uri=https://{who}host:80/at@all")
    assert "tracking.mlflow_uri" in said
    assert "MLFLOW_TRACKING_PASSWORD" in said
    assert "//host:80;" in said
    assert "s3cret" not in said
    for uri in ("https://host:80/at@all", "sqlite:////me@home/x.db", "databricks"):
        assert load_config(None, [f"tracking.mlflow_uri={uri}"]).tracking.mlflow_uri == uri


def test_settings_that_would_be_passed_over_are_refused():
    """Whoever names a table or a column means it."""
    said = message("data.path=tickets.csv", "data.label=topic")
    assert said == (
        'got data.path = "tickets.csv" without data.source; expected both; try data.source=csv'
    )
    assert message("data.path=a/b.parquet").endswith("try data.source=parquet")
    assert message("data.path=pictures").endswith("try data.source=folder")
    words = ("data.source=csv", "data.path=a.csv", "partition.column=branch")
    assert message(*words) == (
        'got partition.column = "branch" without partition.by; expected both; '
        'try partition.by="column"'
    )
    assert load_config(None, [*words, "partition.by=dirichlet"]).partition.column == "branch"
    assert load_config(None, ["data.path=a.csv", "data.source=digits"]).data.path == "a.csv"
    again = validate(load_config(None, [*words, "partition.by=column"]).model_dump())
    assert again.partition.by == "column"
