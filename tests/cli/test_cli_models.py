"""`fedms predict`, `evaluate` and `export`, as a person calls them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from fedms import scoring
from fedms.config import load_config
from fedms.core.errors import UserError
from fedms.inputs import read_inputs
from fedms.run import run

WORDS = ("stage1.rounds=1", "stage2.rounds=1", "partition.clients=2", "data.max_rows=150")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "run"
    run(load_config(None, WORDS), path)
    return path


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        picture = Image.fromarray(np.uint8(load_digits().images[i] * 15))
        picture.save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


def test_predict_says_a_line_an_example(fedms, folder, pictures):
    ended = fedms("predict", folder, pictures / "0.png", pictures, "--client", "0")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("0\t")
    assert "weight on the global one" in lines[0]
    assert [Path(line.split("\t")[2]).name for line in lines[1:]] == ["0.png", "1.png", "2.png"]


def test_predict_in_json_has_all_probabilities(fedms, folder, pictures):
    ended = fedms("predict", folder, pictures, "--client", "new", "--json")
    said = [json.loads(line) for line in ended.out.splitlines()]
    assert [one["label"] for one in said] == ["0", "1", "2"]
    assert all(sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5) for one in said)


def test_predict_says_the_likeliest_so_many(fedms, folder, pictures):
    ended = fedms("predict", folder, pictures / "1.png", "--client", "1", "--top", "3")
    lines = ended.out.splitlines()
    assert [line.startswith("\t") for line in lines] == [False, True, True]
    told = fedms("predict", folder, pictures / "1.png", "--client", "1", "--top", "2", "--json")
    found = json.loads(told.out)["probabilities"]
    assert len(found) == 2
    assert next(iter(found)) == lines[0].split("\t")[0]
    assert [*found][1] == lines[1].split("\t")[2]


def test_evaluate_says_what_the_run_said(fedms, folder):
    ended = fedms("evaluate", folder, "--json")
    expected = json.loads((folder / "summary.json").read_text())["test"]["personal"]["per_client"]
    found = json.loads(ended.out)
    assert {who: roles["personal"]["accuracy"] for who, roles in found.items()} == expected
    assert fedms("evaluate", folder, "--client", "1").out.startswith("1\tpersonal\taccuracy ")
    mean = sum(expected.values()) / len(expected)
    lines = fedms("evaluate", folder).out.splitlines()
    assert lines[-1] == f"mean of {len(expected)} clients\tpersonal\taccuracy {mean:.3f}"
    roles = [line.split("\t")[1] for line in lines[:-1]]
    assert set(roles) == {"personal", "global, bare", "local, bare"}


def test_evaluate_tells_who_has_no_test_rows(fedms, folder, monkeypatch):
    dealt = scoring._dealt

    def without(*args, **kwargs):
        table, parts = dealt(*args, **kwargs)
        return table, [(who, test[:0] if who == "1" else test) for who, test in parts]

    monkeypatch.setattr(scoring, "_dealt", without)
    ended = fedms("evaluate", folder)
    assert ended.code == 0
    assert ended.err == "without test rows here: 1\n"


TABLE = ("data.source=csv", "data.path=rows.csv", "partition.clients=2", "stage2.rounds=1")


@pytest.fixture
def texts(fedms, model_folder):
    """A run of texts in the working directory's `rows.csv`."""
    lines = [f"{word} card number {i},{word}" for i in range(30) for word in ("red", "blue")]
    Path("rows.csv").write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    words = (*TABLE, "stage1.rounds=1", f"model.name={model_folder('sentence')}")
    ended = fedms("run", *words, "--out", "run", "--json")
    assert ended.code == 0, ended.err
    return Path("run")


def test_other_rows_than_the_runs_are_not_its_test_rows(fedms, texts):
    assert fedms("evaluate", texts).code == 0
    first, *others = Path("rows.csv").read_text(encoding="utf-8").splitlines()
    Path("rows.csv").write_text("\n".join([first, *reversed(others)]) + "\n", encoding="utf-8")
    ended = fedms("evaluate", texts)
    assert ended.code == 2
    assert "got run, whose data (rows.csv) are other ones now; expected those" in ended.err
    Path("rows.csv").rename("elsewhere.csv")
    for command in ("evaluate", "resume"):
        ended = fedms(command, texts)
        assert ended.code == 2
        assert "data were read from rows.csv, which is not there from here" in ended.err


def test_the_runs_own_data_are_scored_on_its_test_rows(fedms, texts):
    """Under whatever name, and never on what it trained on without a word."""
    Path("copy.csv").write_bytes(Path("rows.csv").read_bytes())
    plain = {words: fedms("evaluate", texts, *words) for words in ((), ("--client", "0"))}
    Path("rows.csv").unlink()
    for words in plain:
        given = fedms("evaluate", texts, *words, "data.path=copy.csv")
        assert given.out == plain[words].out, given.err
        assert "what is scored is clients' test rows" in given.err
    ended = fedms("evaluate", texts, "--client", "0", "data.path=copy.csv", "data.input=label")
    assert "60 rows" in ended.out
    assert "rows that it trained on are among them" in ended.err
    assert len(ended.err.splitlines()) == 1


def test_what_a_file_is_for_a_run_of_digits(fedms, folder):
    """Its end says it, where it has one."""
    Path("some.csv").write_text("text,label\na,0\nb,1\n", encoding="utf-8")
    ended = fedms("evaluate", folder, "--client", "0", "data.path=some.csv")
    assert "got texts for glyphclip; expected images" in ended.err
    Path("some").mkdir()
    ended = fedms("evaluate", folder, "--client", "0", "data.path=some")
    assert ended.code == 2
    assert 'got data.path=some for a run with data.source = "digits"' in ended.err


def test_rows_of_one_class_can_be_scored(fedms, texts):
    Path("some.csv").write_text("text,label\nred card,red\nred one,red\n", encoding="utf-8")
    ended = fedms("evaluate", texts, "--client", "0", "data.path=some.csv", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["0"]["personal"]["rows"] == 2
    Path("some.csv").write_text("text,label\nred card,green\n", encoding="utf-8")
    ended = fedms("evaluate", texts, "--client", "0", "data.path=some.csv")
    assert "got class 'green' at row 1 of some.csv" in ended.err


def test_export_says_what_it_wrote(fedms, folder, tmp_path):
    ended = fedms("export", folder, "--client", "1", "--to", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert {Path(line).name for line in ended.out.splitlines()} == {"gate", "global", "local"}
    assert (tmp_path / "out" / "README.md").is_file()
    again = fedms("export", folder, "--client", "1", "--to", tmp_path / "other", "--json")
    names = [Path(path).name for path in json.loads(again.out)["written"]]
    assert names == [Path(line).name for line in ended.out.splitlines()]


def test_export_is_silent_where_nobody_looks(fedms, folder, tmp_path):
    words = ("export", folder, "--client", "1", "--to", tmp_path / "m", "--merged", "local")
    assert fedms(*words, "--json").err == ""


@pytest.mark.parametrize(
    "lines", [io.StringIO("\udcff\n"), io.TextIOWrapper(io.BytesIO(b"\xff\n"), "utf-8")]
)
def test_texts_that_are_no_utf_8_are_named(lines):
    with pytest.raises(UserError, match="no UTF-8"):
        read_inputs(["-"], lines, "text", "text")


def test_export_pushes_only_when_told(fedms, folder, tmp_path, monkeypatch):
    pushed = []

    def push(path, repository, *, public):
        pushed.append((path, repository, public))
        return f"https://hub/{repository}"

    monkeypatch.setattr("fedms.hub.push", push)
    words = ("export", folder, "--client", "1", "--json")
    ended = fedms(*words, "--to", tmp_path / "a")
    assert json.loads(ended.out)["pushed"] is None
    assert pushed == []
    ended = fedms(*words, "--to", tmp_path / "b", "--push-to-hub", "me/mine")
    assert json.loads(ended.out)["pushed"] == "https://hub/me/mine"
    assert pushed == [(tmp_path / "b", "me/mine", False)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("predict", "nowhere", "x"), "no models of a run"),
        (("predict", "RUN", "nothing.png", "--client", "0"), "nothing.png"),
        (("predict", "RUN", "--client", "0"), "got no input"),
        (("predict", "RUN", "x.png"), "got no client (--client); expected one of 0, 1, or new"),
        (("predict", "RUN", "", "--client", "0"), "got '' in place of an image"),
        (("predict", "RUN", "x.png", "--client", "0", "--device", "gpu"), "got device 'gpu'"),
        (("predict", "a" * 300, "x"), "name too long"),
        (("evaluate", "RUN", "seed=1"), "settings of data"),
        (("evaluate", "RUN", "--client", "00"), "expected one of 0, 1, or new; did you mean 0?"),
        (("export", "RUN", "--client", "0", "--to", "/dev/null/x"), "cannot be written"),
        (("export", "RUN", "--client", "0", "--to", "out", "--merged", "both"), "local or global"),
        (("export", "RUN", "--client", "0", "--to", "x", "--push-to-hub", "me"), "OWNER/NAME"),
        (("export", "RUN", "--client", "0", "--to", "x", "--public"), "--push-to-hub OWNER/NAME"),
    ],
)
def test_what_a_person_can_mend_is_one_line(fedms, folder, words, said):
    ended = fedms(*(folder if word == "RUN" else word for word in words))
    assert ended.code == 2
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1


def test_adapt_says_how_good_it_was_and_is(fedms, texts):
    lines = [f"{word} card is card {i},{word}" for i in range(10) for word in ("red", "blue")]
    Path("mine.csv").write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    words = ("adapt", texts, "data.path=mine.csv", "--to", "north")
    ended = fedms(*words)
    assert ended.code == 0, ended.err
    said = ended.out.splitlines()
    assert said[0].startswith("north: ")
    assert said[0].endswith("rows of 2 of 2 classes")
    assert said[1:6] == [f"round {n} of 5" for n in range(1, 6)]
    titles = [line.split("\t")[1] for line in said if line.startswith("test rows\t")]
    assert titles == [
        "global expert, as anyone has it",
        "what is shared, with its own classes",
        "its local expert alone, after 5 rounds",
        "its model, after 5 rounds",
    ]
    assert said[-1] == "models in north; try fedms predict north INPUT"
    assert fedms("predict", "north", "a red card").code == 0
    ended = fedms(*words, "--force", "--rounds", "1", "--client", "north west", "--json")
    found = json.loads(ended.out)
    assert (found["client"], found["rounds"]) == ("north west", 1)
    assert {*found["after"]["test"]} == {"personal", "global", "local"}
    assert fedms("evaluate", "north").out.startswith("north west\tpersonal\t")
