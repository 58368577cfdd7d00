"""What `fit` returns: tables, predictions, plain PEFT models, figures."""

from __future__ import annotations

import gc

import pandas as pd
import peft
import pytest
import torch
import transformers
from datasets import Value
from safetensors.torch import load_file

from fedms import FedMS, Result, UserError, load_config
from fedms.api import Newcomer
from fedms.api.plots import overview
from fedms.run import run as perform


def test_tables(fitted):
    rounds, clients = pd.DataFrame(fitted.rounds), pd.DataFrame(fitted.clients)
    assert list(rounds["round"]) == [1, 2, 3, 4, 5]
    assert list(rounds["stage"]) == [0, 1, 1, 2, 2]
    assert rounds["upload_bytes"].sum() == fitted.summary["cost"]["upload_bytes"]
    assert list(clients["id"]) == ["alice", "bob", "carol"]
    mean = fitted.summary["test"]["personal"]["mean"]
    assert clients["test_accuracy_personal"].mean() == pytest.approx(mean)


def test_predictions(fitted):
    texts = ["red my card", "green not i", "blue where is"]
    labels, chances = fitted.predict("bob", texts), fitted.predict_proba("bob", texts)
    assert chances.shape == (3, 3)
    assert chances.sum(1) == pytest.approx(1, abs=1e-5)
    assert labels == [fitted.classes[i] for i in chances.argmax(1)]
    assert set(fitted.classes) == {"red cat", "green dog", "blue bird"}
    said = fitted.opinions("bob", texts)[0]
    assert {*said.experts} == {"global", "local"}
    assert 0 <= said.gate_weight <= 1
    assert fitted.predict_proba("bob", []).shape == (0, 3)


def test_wrong_inputs(fitted):
    for inputs, message in (("red", r"try \['red'\]"), (3, "a list"), ([3], "expected texts")):
        with pytest.raises(UserError, match=message):
            fitted.predict("bob", inputs)
    with pytest.raises(UserError, match="expected one of alice, bob, carol"):
        fitted.predict("bop", ["red"])


def test_experts_are_plain_peft_models(fitted, bert):
    """The same features as with PEFT alone, on the model that was given."""
    expert = fitted.local_expert("alice")
    assert isinstance(expert, peft.PeftModel)
    folder = fitted.run_folder / "adapters" / "clients" / "alice" / "local"
    own = transformers.AutoModel.from_pretrained(bert.folder)
    plain = peft.PeftModel.from_pretrained(own, folder).eval()
    batch = bert.tokenizer(["red cat my card"], return_tensors="pt")
    with torch.no_grad():
        got, expected = (m(**batch).last_hidden_state for m in (expert, plain))
    assert torch.equal(got, expected)
    assert any(t.any() for n, t in load_file(folder / "adapter_model.safetensors").items())
    assert isinstance(fitted.global_expert(), peft.PeftModel)


def test_export_and_a_result_of_a_folder(fitted, tmp_path):
    assert {p.name for p in fitted.export(tmp_path / "out", "carol")} >= {"local", "global"}
    again = Result(fitted.run_folder)
    assert again.complete
    assert again.summary == fitted.summary
    with pytest.raises(UserError, match="no run folder"):
        Result(tmp_path)


def test_what_notebooks_show(fitted):
    assert "personal" in fitted._repr_html_()
    figure = fitted.plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
    first, second = figure.axes
    assert first.lines[0].get_label() == "validation"
    assert [t.get_text() for t in second.get_xticklabels()] == ["alice", "bob", "carol"]


def test_nothing_is_drawn_for_an_expert(fitted):
    before = torch.get_rng_state()
    fitted.local_expert("alice")
    assert torch.equal(torch.get_rng_state(), before)


def test_names_of_clients_are_no_formulas():
    clients = [{"id": "$a_$", "test_accuracy_global": 0.5}]
    assert overview([{"round": 1, "stage": 1}], clients)._repr_png_()


def test_somebody_who_took_no_part_adapts(fitted, datasets, as_dataset, tmp_path):
    rows = datasets["bob"]
    own = fitted.adapt("dave", rows, rounds=2)
    assert own.client == "dave"
    assert own.adapted["rounds"] == 2
    assert own.predict("dave", ["red my card"])[0] in fitted.classes
    assert isinstance(own.local_expert("dave"), peft.PeftModel)
    kept = fitted.adapt("dave", rows, rounds=2, to=tmp_path / "dave")
    texts = ["red my card", "green not i"]
    assert (kept.predict_proba("dave", texts) == own.predict_proba("dave", texts)).all()
    assert Newcomer(tmp_path / "dave").adapted == kept.adapted
    with pytest.raises(UserError, match="which exists"):
        fitted.adapt("dave", rows, to=tmp_path / "dave")
    for name in ("new", ""):
        with pytest.raises(UserError, match="expected a name"):
            fitted.adapt(name, rows)
    assert {p.name for p in own.export(tmp_path / "out")} >= {"local", "global"}
    assert "client dave" in (tmp_path / "out" / "README.md").read_text()
    numbered = rows.rename_columns({"text": "2024", "label": "a = b"})
    again = fitted.adapt("dave", numbered, input="2024", label="a = b", rounds=2)
    assert (again.predict_proba("dave", texts) == own.predict_proba("dave", texts)).all()
    other = rows.cast_column("label", Value("int64"))
    with pytest.raises(UserError, match="class"):
        fitted.adapt("dave", other)


@pytest.mark.slow
def test_a_run_folder_may_be_moved_with_the_foundation_model_in_it(
    make, datasets, fitted, assert_alike, tmp_path
):
    """Another process goes on with the run there, and uses, exports and adapts its models."""

    class Stop(transformers.TrainerCallback):
        def on_epoch_end(self, args, state, control, **beside):
            control.should_training_stop = state.global_step == 3

    make(callbacks=[Stop()]).fit(datasets, out=tmp_path / "run")
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    result = FedMS.resume(moved, datasets, progress=False)
    assert result.complete
    assert_alike(moved, fitted.run_folder)
    texts = ["red my card", "green not i"]
    expected = fitted.predict_proba("bob", texts)
    assert (Result(moved).predict_proba("bob", texts) == expected).all()
    moved = moved.rename(tmp_path / "again")
    result = Result(moved)
    assert (result.predict_proba("bob", texts) == expected).all()
    assert isinstance(result.local_expert("bob"), peft.PeftModel)
    assert {p.name for p in result.export(tmp_path / "out", "bob")} >= {"local", "global"}
    dave = result.adapt("dave", datasets["bob"], rounds=1, to=tmp_path / "dave")
    expected = dave.predict_proba("dave", texts)
    kept = (tmp_path / "dave").rename(tmp_path / "erin")
    assert (Newcomer(kept).predict_proba("dave", texts) == expected).all()
    model = next((moved / "foundation").glob("*.safetensors"))
    model.write_bytes(model.read_bytes()[:-4] + b"\0\0\0\1")
    (moved / "summary.json").unlink()
    with pytest.raises(UserError, match=r"whose weights .* are other ones now"):
        FedMS.resume(moved, datasets, progress=False)


@pytest.mark.parametrize("own", ["model.name", "data.path"])
def test_a_run_is_not_replaced_by_one_that_is_made_of_it(make, datasets, tmp_path, own):
    place = tmp_path / "run"
    run = make(stage1={"rounds": 1}, stage2={"rounds": 0}).fit(datasets, out=place)
    (place / "rows.csv").write_text("text,label\na,b\n")
    words = {
        "model.name": ["data.source=csv", f"data.path={tmp_path / 'rows.csv'}"],
        "data.path": ["model.name=glyphclip", "data.source=csv", f"data.path={place / 'rows.csv'}"],
    }[own]
    (tmp_path / "rows.csv").write_text("text,label\na,b\n")
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=rf"got {own} = .*, the run folder to replace"):
        perform(load_config(place / "config.toml", words), place, force=True)
    assert {p: p.read_bytes() for p in place.rglob("*") if p.is_file()} == before
    if own == "model.name":  # one that is given again is not there
        again = make(stage1={"rounds": 1}, stage2={"rounds": 0})
        assert again.fit(datasets, out=place, force=True).summary["test"] == run.summary["test"]


@pytest.mark.slow
def test_an_adapted_model_has_the_foundation_model_with_it(make, datasets, tmp_path):
    """The run's folder, in which that was, may be gone."""
    result = make().fit(datasets)
    kept = result.adapt("dave", datasets["bob"], rounds=1, to=tmp_path / "dave")
    place = result.adapt("erin", datasets["bob"], rounds=1).folder.parent
    texts = ["red my card", "green not i"]
    expected = kept.predict_proba("dave", texts)
    folder = result.run_folder
    del result, kept
    gc.collect()
    assert not folder.exists()
    assert not place.exists()
    assert (Newcomer(tmp_path / "dave").predict_proba("dave", texts) == expected).all()
    assert str(folder) not in (tmp_path / "dave" / "config.toml").read_text()
