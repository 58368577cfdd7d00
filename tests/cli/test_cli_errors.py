"""What the user gave is wrong: one line on standard error, exit code 2, no traceback, no files."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest

SMALL = ("data.max_rows=60", "partition.clients=2", "stage1.rounds=1", "stage2.rounds=1")


def write(path: Path, columns: str, *rows: str) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns.split(","), *(row.split(",") for row in rows)])
    return path


def texts(folder: Path, **extra: str) -> Path:
    """20 rows, two classes, and more rows by name."""
    rows = [f"text {i},{'ab'[i % 2]},train,w{i % 3}" for i in range(20)]
    return write(folder / "texts.csv", "text,label,split,writer", *rows, *extra.values())


def assert_one_line(ended, *words: str) -> None:
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("fedms: ")
    assert ended.err.endswith("\n")
    assert ended.err.count("\n") == 1
    assert "Traceback" not in ended.err
    assert [word for word in words if word not in ended.err] == []


CONFIGURATION = [
    (["stage1.round=5"], ["unknown key stage1.round", "did you mean stage1.rounds?"]),
    (["stage1.rounds=many"], ["stage1.rounds", '"many"', "expected integer"]),
    (["partition.alpha=-1"], ["partition.alpha", "-1", "greater than 0"]),
    (["nowhere.toml"], ["nowhere.toml", "does not exist"]),
    (["seed=1", "a.toml"], ["a.toml", "section.key=value"]),
    (["runtime.device=tpu"], ["runtime.device", '"tpu"', "cuda"]),
    (["method=sgd"], ["method", '"sgd"', "'fedavg'"]),
    (["partition.min_rows=0"], ["partition.min_rows", "0"]),
]


@pytest.mark.parametrize(("words", "expected"), CONFIGURATION)
def test_configuration(fedms, words, expected, tmp_path):
    assert_one_line(fedms("run", *words), *expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("missing", "words", "extra"),
    [
        ("flwr", ["deploy", "--sites", "a"], "fedms[flower]"),
        ("cryptography", ["server", "there"], "fedms[flower]"),
        ("flwr", ["site", "there"], "fedms[flower]"),
        ("flwr", ["submit", "there"], "fedms[flower]"),
        ("fastapi", ["serve", "there"], "fedms[serve]"),
    ],
)
def test_an_extra_that_is_not_installed(fedms, monkeypatch, missing, words, extra):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else found(name)
    )
    assert_one_line(fedms(*words), f"pip install '{extra}'")


def test_config_file_that_is_no_toml(fedms, tmp_path):
    (tmp_path / "a.toml").write_text("name = = 1")
    assert_one_line(fedms("run", "a.toml"), "a.toml", "not TOML")


DATA = [
    (["data.path=text.csv"], ["'text.csv'", "does not exist", "'texts.csv'"]),
    (["data.label=lable"], ["'lable'", "'label'"]),
    (["data.input=body"], ["'body'"]),
    (["data.split=fold"], ["'fold'"]),
    (["partition.by=column", "partition.column=writter"], ["'writter'", "'writer'"]),
    (["data.drop_labels=['c']"], ["'c'"]),
    (["data.drop_labels=['a']"], ["1 class", "2 classes"]),
    (["partition.clients=21"], ["21", "20 rows"]),
    (["partition.by=shards", "partition.clients=15"], ["15 clients", "20 rows"]),
    (["partition.by=column", "partition.column=writer", "partition.min_rows=9"], ["min_rows=9"]),
    (["partition.clients=2", "partition.unseen_clients=2"], ["unseen_clients=2", "2 clients"]),
    (["partition.test_fraction=0.6", "partition.val_fraction=0.5"], ["0.6", "0.5", "below 1"]),
    (["partition.clients=2"], ["text", "'glyphclip'", "image"]),
    (["model.name=no-such-model", "partition.clients=2"], ["'no-such-model'"]),
    (["model.name=./nowhere", "partition.clients=2"], ["'./nowhere'", "no folder", "'minilm'"]),
    (["model.name=a/b/c", "partition.clients=2"], ["'a/b/c'", "no folder"]),
]


@pytest.mark.parametrize(("words", "expected"), DATA)
def test_data_and_model(fedms, words, expected, tmp_path):
    texts(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    given = ["data.source=csv", "data.path=texts.csv", *words]
    assert_one_line(fedms("run", *given), *expected)
    assert sorted(tmp_path.rglob("*")) == before


def test_class_without_training_rows(fedms, tmp_path):
    path = texts(tmp_path, odd="late,c,test,w0")
    ended = fedms("run", "data.source=csv", f"data.path={path}", "data.split=split")
    assert_one_line(ended, "class 'c'", "training rows", "drop_labels")


def test_no_training_rows_at_all(fedms, tmp_path):
    path = write(tmp_path / "a.csv", "text,label,split", "x,a,test", "y,b,test")
    ended = fedms("run", "data.source=csv", f"data.path={path}", "data.split=split")
    assert_one_line(ended, "'test'", "train")


def test_client_without_training_rows(fedms, tmp_path):
    """Rows enough for all, but so skewed that some client always stays empty."""
    texts(tmp_path)
    given = ("data.source=csv", "data.path=texts.csv", "partition.alpha=0.01")
    assert_one_line(fedms("run", *given, "partition.clients=15"), "alpha=0.01", "clients=15")


def test_model_of_an_unsupported_kind(fedms, tmp_path):
    from transformers import GPT2Config, GPT2Model

    size = {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 16, "n_positions": 16}
    GPT2Model(GPT2Config(**size)).save_pretrained(tmp_path / "gpt2")
    ended = fedms("run", *SMALL, "model.name=gpt2/")
    assert_one_line(ended, "'gpt2/'", "type 'gpt2'", "CLIP")


@pytest.mark.parametrize("content", [None, "{", '{"model_type": "bert"}'])
def test_folder_that_is_no_model(fedms, tmp_path, content):
    (tmp_path / "m").mkdir()
    if content:
        (tmp_path / "m" / "config.json").write_text(content)
    assert_one_line(fedms("run", *SMALL, "model.name=./m"), "'./m'", "save_pretrained")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sal.caps.7=2"], ["sal.caps", "client '7'", "0, 1", '"*"']),
        (["sal.caps.0=100B"], ["sal.caps", "100B", "at least 16384B"]),
        (["model.head=linear", "sal.caps.*=100B"], ["sal.caps", "100B"]),
        (["training.learning_rate=1e20"], ["training.learning_rate"]),
    ],
)
def test_caps_and_training(fedms, words, expected):
    assert_one_line(fedms("run", "--json", *SMALL, "stage1.rounds=2", *words), *expected)


def test_device_that_is_not_there(fedms, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert_one_line(fedms("run", *SMALL, "runtime.device=cuda:3"), "'cuda:3'", "not there", "auto")


def test_run_folder_in_the_way(fedms, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("precious")
    assert_one_line(fedms("run", *SMALL, "--out", "out"), "out", "(--out;", "(--force;")
    assert_one_line(fedms("run", *SMALL, "--out", "out", "--force"), "by force", "left alone")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "notes.txt"]


def test_run_folder_below_a_file(fedms, tmp_path):
    (tmp_path / "file").write_text("precious")
    assert_one_line(fedms("run", *SMALL, "--out", "file/run"), "file/run", "cannot be written")


def test_force_does_not_delete_the_configuration_it_was_given(fedms, tmp_path):
    """A recipe called config.toml does not make its folder a run folder."""
    (tmp_path / "job").mkdir()
    recipe = tmp_path / "job" / "config.toml"
    recipe.write_text("seed = 1\n")
    assert_one_line(
        fedms("run", "job/config.toml", *SMALL, "--out", "job", "--force"), "left alone"
    )
    assert recipe.read_text() == "seed = 1\n"


def test_earlier_run_survives_an_error_found_before_training(fedms, tmp_path):
    assert fedms("run", "--json", *SMALL, "--out", "a").code == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert_one_line(fedms("run", *SMALL, "--out", "a", "--force", "sal.caps.7=2"), "'7'")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("where", ["fedms.config.load_config", "fedms.run.run"])
def test_interrupt_at_any_time(fedms, monkeypatch, where):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    assert_one_line(fedms("run", *SMALL), "interrupted", "nothing was written")


@pytest.mark.parametrize("words", [["run", "--nope"], ["fly"], ["run", "--out"]])
def test_misspelt_command_or_option(fedms, words):
    ended = fedms(*words)
    assert (ended.code, ended.out) == (2, "")
    assert words[-1] in ended.err
    assert "Traceback" not in ended.err
