"""Models of a run, read from its folder: they say what the run's own models said."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save
from sklearn.datasets import load_digits

from fedms import data
from fedms.build import make_learner
from fedms.config import load_config
from fedms.core.errors import UserError
from fedms.export import export
from fedms.inputs import read_inputs
from fedms.models import Common, SavedModel
from fedms.scoring import evaluate
from fedms.use import NEW, Models

COMMON = ("runtime.threads=1", "partition.unseen_clients=1")
WAYS = {
    "all that is ours": ("gate.statistics=personal",),
    "shared means": ("gate.statistics=shared",),
    "a gate alone": ("gate.calibration=false",),
    "logits, with priors": ("gate.calibration=false", "gate.mix=logits", "gate.mix_prior=both"),
    "features": ("gate.calibration=false", "gate.mix=features"),
    "a linear head": ("model.head=linear",),
    "one expert": ("method=finetune",),
    "two experts in every layer": ("method=dual",),
    "an MLP that weighs both": ("method=dual", "baselines.gate_hidden=4"),
    "likeness": ("method=feddpa",),
    "products beneath": ("method=flora",),
    "the best checkpoint": ("stage2.checkpoint=best",),
    "some never train": ("stage2.cohort=1",),
}


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def finished(request, done):
    return done(*COMMON, *request.param)


@pytest.mark.quick(
    "all that is ours",
    "logits, with priors",
    "a linear head",
    "two experts in every layer",
    "products beneath",
    "the best checkpoint",
)
def test_saved_models_score_as_the_run_did(finished):
    found = evaluate(finished.path)
    personal = finished.summary["test"]["personal"]
    assert {who: s["personal"]["accuracy"] for who, s in found.items()} == personal["per_client"]
    losses = [s["personal"]["loss"] for s in found.values()]
    assert np.mean(losses) == pytest.approx(personal["loss"], abs=2e-5)
    last = {line["id"]: line for line in finished.lines("clients")}
    for who, scores in found.items():
        weight, then = scores["personal"]["gate_weight"], last[who]["gate_weight"]
        assert weight == (None if then is None else pytest.approx(then, abs=1e-5))


@pytest.mark.parametrize(("method", "names"), [("dual", 4), ("fedalt", 2)])
def test_only_the_dual_lora_has_gates_with_hidden_units(small, method, names):
    """FedALT's are linear, one a projection (q and v), as its authors have them."""
    config = small(f"method={method}", "baselines.gate_hidden=4")
    learner, _ = make_learner(config, "image", ("0", "1"))
    assert {len(block) for block in learner.layout.mixers} == {names}


@pytest.fixture(scope="module")
def ours(done):
    return done(*COMMON, *WAYS["all that is ours"])


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    return data.Table("image", [np.uint8(x * 15) for x in found.images[:9]], [""] * 9)


def test_an_example_gets_a_class_and_what_each_expert_thinks(ours, digits):
    models = Models(ours.path)
    said = list(models.predict(digits, models.clients[0]))
    assert len(said) == 9
    for each in said:
        assert sum(each.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert each.probabilities[each.label] == max(each.probabilities.values())
        assert each.experts.keys() == {"global", "local"}
        assert 0 < each.gate_weight < 1
    newcomer = list(models.predict(digits, NEW))
    assert all(each.gate_weight is None and not each.experts for each in newcomer)
    assert np.mean([a.label == b.label for a, b in zip(newcomer, said, strict=True)]) > 0.5
    together = list(models.predict(digits, models.clients[0]))
    assert [a.label for a in together] == [a.label for a in said]


def test_a_newcomers_model_is_scored_on_rows_of_those_who_took_no_part(ours):
    found = evaluate(ours.path, client=NEW)
    assert found.keys() == {NEW}
    assert found[NEW]["personal"]["accuracy"] > 0.6


def test_other_rows_need_labels_that_the_federation_has(ours, tmp_path):
    for i, label in enumerate(["3", "4"]):
        (tmp_path / "rows" / label).mkdir(parents=True)
        picture = Image.fromarray(np.uint8(load_digits().images[i + 3] * 15))
        picture.save(tmp_path / "rows" / label / "a.png")
    words = ("data.source=folder", f"data.path={tmp_path / 'rows'}")
    who = Models(ours.path).clients[0]
    assert evaluate(ours.path, words, who)[who]["personal"] == {
        **{"accuracy": 1.0, "rows": 2},
        **{"loss": pytest.approx(0.0, abs=1.0), "gate_weight": pytest.approx(0.5, abs=0.5)},
    }
    (tmp_path / "rows" / "4").rename(tmp_path / "rows" / "four")
    with pytest.raises(UserError, match="class 'four'"):
        evaluate(ours.path, words, who)
    with pytest.raises(UserError, match=r"settings of data, as data\.path=FILE"):
        evaluate(ours.path, ["seed=1"], who)


def test_an_exported_model_is_that_of_the_run_without_fedms(ours, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import CLIPModel

    from fedms.models.names import resolve

    who = Models(ours.path).clients[0]
    export(ours.path, tmp_path / "out", who, merged="local", licence="mit")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\nlicense: mit\n" in card
    assert re.search(r"test accuracy, personal: [01]\.", card)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = CLIPModel.from_pretrained(resolve("glyphclip"))
    size = plain.config.vision_config.image_size
    pixels = torch.nn.functional.interpolate(pixels, size)
    adapted = PeftModel.from_pretrained(plain, tmp_path / "out" / "local")
    with torch.no_grad():
        expected = adapted.get_image_features(pixel_values=pixels)
        merged = CLIPModel.from_pretrained(tmp_path / "out" / "merged")
        found = merged.get_image_features(pixel_values=pixels)
    expected, found = (getattr(x, "pooler_output", x) for x in (expected, found))
    assert torch.allclose(found, expected, atol=1e-5)
    with pytest.raises(UserError, match="which exists"):
        export(ours.path, tmp_path / "out", who)
    export(ours.path, tmp_path / "out", who, force=True)
    assert not (tmp_path / "out" / "merged").exists()


def test_inputs_are_words_files_and_lines(tmp_path):
    (tmp_path / "a.csv").write_text("words,more\none,x\ntwo,y\n")
    words = ["hello", "-", str(tmp_path / "a.csv")]
    table = read_inputs(words, ["first\n", "\n", "second\n"], "text", "words")
    assert table.inputs == ["hello", "first", "second", "one", "two"]
    assert table.where(4) == "row 2 of a.csv"
    assert table.where(2) == "line 3 of standard input"
    assert table.where(0) == "'hello'"
    assert table.dropped == 0
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"words,more\none,x\n,y\nthree,z\n ,\n"))
    table = read_inputs([str(tmp_path / "b.csv.gz")], [], "text", "words")
    assert (table.inputs, table.dropped) == (["one", "three"], 2)
    assert table.where(1) == "row 3 of b.csv.gz"
    (tmp_path / "c.csv").write_text("words,more\n,x\n")
    with pytest.raises(UserError, match="no input"):
        read_inputs([str(tmp_path / "c.csv")], [], "text", "words")
    with pytest.raises(UserError, match="no text at ' '"):
        read_inputs([" "], [], "text", "words")
    with pytest.raises(UserError, match="no input"):
        read_inputs([], [], "text", "words")
    with pytest.raises(UserError, match="column 'other'"):
        read_inputs([str(tmp_path / "a.csv")], [], "text", "other")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("notes.cvs", "'notes.cvs', which does not exist.* try 'notes.csv'; if it is a text"),
        ("NOTE.CSV", "try 'notes.csv'"),
        ("old/report.txt", "which does not exist"),
        ("scan.jpg", "which does not exist"),
        ("notes.txt", r"a file of another kind; expected a text, or a \.csv, \.csv\.gz or \.par"),
        ("more", "'more', which is a folder"),
    ],
)
def test_what_looks_like_a_file_is_no_text(tmp_path, monkeypatch, word, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.csv").write_text("text\none\n")
    (tmp_path / "notes.txt").write_text("one\n")
    (tmp_path / "more").mkdir()
    with pytest.raises(UserError, match=said):
        read_inputs([word], [], "text", "text")
    assert read_inputs(["-"], [word], "text", "text").inputs == [word]


def test_texts_with_dots_are_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["e.g.", "U.S.A", "12.50", "example.com", "node.js", "...", "see notes.cvs", "a" * 300]
    assert read_inputs(words, [], "text", "text").inputs == words
    with pytest.raises(UserError, match=r"got --column with 'e\.g\.'; expected a \.csv"):
        read_inputs(["e.g."], [], "text", "text", tables=True)


def test_images_that_are_not_there_are_said_to_be_so(tmp_path):
    (tmp_path / "note.png").touch()
    for words, lines in (([str(tmp_path / "nope.png")], []), (["-"], [f"{tmp_path}/nope.png\n"])):
        with pytest.raises(UserError, match=r"nope\.png', which does not exist; .* 'note\.png'"):
            read_inputs(words, lines, "image", "text")


def test_what_is_no_model_is_said(ours, tmp_path):
    with pytest.raises(UserError, match="no models of a run"):
        Models(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(ours.path, copy)
    models = Models(copy)
    with pytest.raises(UserError, match="client 'nobody'; expected one of"):
        models.model("nobody")
    with pytest.raises(UserError, match=r"no client \(--client\)"):
        models.only()
    who = models.clients[0]
    own = copy / "adapters" / "clients" / who
    weights = own / "local" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        Models(copy).model(who)
    shutil.copyfile(ours.path / weights.relative_to(copy), weights)
    (own / "prior.json").write_text(json.dumps({"log_prior": [0.0], "unseen": [0.0]}))
    with pytest.raises(UserError, match="not of a model with 10 classes"):
        Models(copy).model(who)
    assert load_config(copy / "config.toml").runtime.cache_bytes != "0B"


@pytest.fixture(scope="module")
def client(ours, tmp_path_factory):
    """What all have of a copy of a run, and the folder of one of its clients."""
    copy = tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(ours.path, copy)
    return Models(copy).common, copy / "adapters" / "clients" / "1"


@contextmanager
def changed(path):
    """A file that may be changed, and is as it was afterwards."""
    content = path.read_bytes()
    yield content
    path.write_bytes(content)


@pytest.mark.parametrize("whose", ["client", "all"])
def test_a_lost_file_is_missed(client, whose):
    """None is passed over as if the model had never had it; but by earlier versions."""
    common, own = client
    folder = own if whose == "client" else common.folder
    files = [folder / name for name in json.loads((folder / "files.json").read_text())]
    assert {"prior.json", "gate.safetensors", "adapter_model.safetensors"} <= {
        path.name for path in files
    }

    def load():
        SavedModel.load(Common.load(common.learner, common.folder), own)

    for path in files:
        with changed(path):
            path.unlink()
            with pytest.raises(UserError, match=re.escape(f"got no {path}, which is part of")):
                load()
    with changed(folder / "files.json"):
        (folder / "files.json").unlink()
        load()


def test_tensors_that_fit_no_such_model_are_said(client):
    """Wherever they are: nothing is left to be found out when a batch of several clients' fails."""
    common, own = client
    for path in own.rglob("*.safetensors"):
        with changed(path) as content:
            tensors = load(content)
            first = min(tensors)
            rest = {name: t for name, t in tensors.items() if name != first}
            for wrong in (
                {name: torch.zeros(2, 2) for name in tensors},
                {name: t.to(torch.int64) for name, t in tensors.items()},
                {**tensors, first: tensors[first][..., :-1].contiguous()},
                {"other": torch.zeros(1)},
                *([rest] if "means" not in tensors and "vectors" not in tensors else []),
            ):
                path.write_bytes(save(wrong))
                with pytest.raises(UserError, match=r"^got "):
                    SavedModel.load(common, own)
    with changed(own / "prior.json") as content:
        for name in ("log_prior", "unseen", "added_to", "calibration"):
            facts = json.loads(content) | {name: "x" * 10}
            (own / "prior.json").write_text(json.dumps(facts))
            with pytest.raises(UserError, match="not of a model with 10 classes"):
                SavedModel.load(common, own)
    SavedModel.load(common, own)
