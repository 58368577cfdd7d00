"""`FedMS.fit`: the run that `fedms run` performs, on data sets and a model in memory."""

from __future__ import annotations

import copy
import gc
import os
import random

import numpy as np
import pytest
import torch
from datasets import DatasetDict, concatenate_datasets
from flwr_datasets.partitioner import IidPartitioner, NaturalIdPartitioner

from fedms import FedMS, UserError
from fedms.config import ConfigError, load_config
from fedms.run import run


@pytest.fixture
def words(settings):
    """Settings as on a command line."""

    def of(**more):
        pairs = [
            f"{key}.{name}={inner}"
            for key, value in {**settings, **more}.items()
            if isinstance(value, dict)
            for name, inner in value.items()
        ]
        return [*pairs, "evaluate_every=0", "data.source=csv"]

    return of


def test_clients_are_to_the_bit_what_the_command_line_makes(
    fitted, table, bert, words, assert_alike, tmp_path
):
    settings = words(partition={"by": "column", "column": "client"})
    named = [f"model.name={bert.folder}", f"data.path={table}"]
    run(load_config(None, [*settings, *named]), tmp_path / "run")
    assert_alike(fitted.run_folder, tmp_path / "run")


@pytest.mark.slow
def test_one_data_set_is_dealt_as_by_the_command_line(
    make, datasets, table, bert, words, assert_alike, tmp_path
):
    deal = {"by": "dirichlet", "clients": 2, "alpha": 5.0}
    whole = concatenate_datasets(list(datasets.values()))
    got = make().fit(whole, partition=deal)
    named = [f"model.name={bert.folder}", f"data.path={table}"]
    run(load_config(None, [*words(partition=deal), *named]), tmp_path / "run")
    assert_alike(got.run_folder, tmp_path / "run")


def state_of(model):
    return {
        "training": {name: module.training for name, module in model.named_modules()},
        "types": {name: type(module) for name, module in model.named_modules()},
        "grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "devices": {name: (p.device, p.dtype) for name, p in model.named_parameters()},
        "config": model.config.to_dict(),
    }


def test_the_model_and_the_process_are_left_as_they_were(make, bert, datasets):
    model = bert.model
    model.embeddings.requires_grad_(False)
    model.encoder.layer[0].eval()
    before = copy.deepcopy(state_of(model)), copy.deepcopy(model.state_dict())
    os.environ["SOMEBODYS"] = "own"
    outside = dict(os.environ), torch.get_num_threads(), torch.is_grad_enabled()
    drawn = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    make(runtime={"threads": 1}).fit(datasets)
    assert state_of(model) == before[0]
    assert all(torch.equal(t, before[1][name]) for name, t in model.state_dict().items())
    assert (dict(os.environ), torch.get_num_threads(), torch.is_grad_enabled()) == outside
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (np.random.get_state()[1] == drawn[1]).all()  # noqa: NPY002
    assert random.getstate() == drawn[2]


def test_splits_of_clients_are_kept(make, datasets):
    alice = datasets["alice"]
    splits = {"train": alice.select(range(9)), "validation": alice.select(range(9, 12))}
    given = DatasetDict({**splits, "test": alice.select(range(12, 20))})
    result = make(stage2={"rounds": 0}).fit({"alice": given, "bob": datasets["bob"]})
    sizes = {c["id"]: (c["train_rows"], c["val_rows"], c["test_rows"]) for c in result.clients}
    assert sizes["alice"] == (9, 3, 8)
    assert sizes["bob"] == (15, 2, 4)  # of 21: a fifth and a tenth are split off


def partitioners():
    natural = NaturalIdPartitioner("writer")
    return {"iid": (IidPartitioner(2), {"0", "1"}), "natural": (natural, {"x", "y"})}


@pytest.mark.parametrize("name", ["iid", "natural"])
def test_partitioners_of_flwr_datasets(make, datasets, name):
    whole = concatenate_datasets(list(datasets.values()))
    whole = whole.add_column("writer", ["x", "y", "y"] * (len(whole) // 3))
    partitioner, expected = partitioners()[name]
    result = make(stage1={"rounds": 0}, stage2={"rounds": 1}).fit(whole, partition=partitioner)
    assert {c["id"] for c in result.clients} == expected
    assert not partitioner.is_dataset_assigned()  # it is the caller's


def test_a_list_of_clients_and_other_columns(make, datasets):
    parts = [d.rename_columns({"text": "words", "label": "animal"}) for d in datasets.values()]
    few = make(stage1={"rounds": 1}, stage2={"rounds": 0})
    result = few.fit(parts, input="words", label="animal")
    assert [c["id"] for c in result.clients] == ["0", "1", "2"]
    assert set(result.classes) == {"red cat", "green dog", "blue bird"}


def test_images_and_a_name(inputs):
    labels = [i % 3 for i in range(24)]
    images = inputs("image", labels, 0)
    from datasets import Dataset, Features, Image, Value

    features = Features({"image": Image(), "label": Value("string")})
    named = {"image": images, "label": ["abc"[i] for i in labels]}
    whole = Dataset.from_dict(named, features=features)
    fed = FedMS("glyphclip", progress=False, stage1={"rounds": 1}, stage2={"rounds": 1})
    result = fed.fit(whole, input="image", partition={"by": "iid", "clients": 2})
    assert {*fed.predict("0", images[:2])} <= {*"abc"}
    assert result.predict_proba("new", [np.asarray(images[0])]).shape == (1, 3)


@pytest.mark.slow
def test_without_a_folder_nothing_stays(make, datasets, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fed = make(stage1={"rounds": 1}, stage2={"rounds": 1})
    result = fed.fit(datasets)
    saved = result.save(tmp_path / "kept")
    expected = result.predict("bob", ["the green dog"])
    assert result.run_folder.is_dir()
    del result, fed
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert saved.predict("bob", ["the green dog"]) == expected


def test_a_failure_leaves_nothing(make, datasets, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UserError, match="expected CLIP"):
        make(model_options={"head": "prompt"}).fit(datasets)
    assert list(tmp_path.iterdir()) == []


WRONG = {
    "no clients": ({}, {}, "expected at least one"),
    "one data set": ("whole", {}, "partition=dict"),
    "no data set": ({"a": [1, 2]}, {}, "expected a datasets.Dataset"),
    "no column": ("clients", {"input": "txt"}, "did you mean text"),
    "both": ("clients", {"partition": IidPartitioner(2)}, "expected one of both"),
    "dealt twice": ("clients", {"partition": {"by": "iid"}}, "expected one of both"),
    "no partitioner": ("whole", {"partition": 3}, "expected settings, or a partitioner"),
    "empty": ("empty", {}, "got no rows of client 'a'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_are_told_in_a_line(make, datasets, as_dataset, case):
    given, options, message = WRONG[case]
    empty = {"a": as_dataset([], [])}
    known = {"clients": datasets, "whole": datasets["bob"], "empty": empty}
    given = known[given] if isinstance(given, str) else given
    with pytest.raises(UserError, match=message) as error:
        make().fit(given, **options)
    assert "\n" not in str(error.value)


def test_wrong_settings_are_told_before_data(bert):
    with pytest.raises(ConfigError, match="did you mean stage1"):
        FedMS(bert.model, bert.tokenizer, stage_1={"rounds": 2})
    with pytest.raises(ConfigError, match=r"stage1\.rounds"):
        FedMS(bert.model, bert.tokenizer, stage1={"rounds": "many"})


def test_wrong_models_are_told(bert, datasets):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(copy.deepcopy(bert.model), LoraConfig(target_modules=["query"]))
    cases = [
        ((bert.model,), "tokenizer or image processor too"),
        ((object(), bert.tokenizer), "got a object for the model"),
        ((bert.model, object()), "for the tokenizer"),
        ((adapted, bert.tokenizer), "merge_and_unload"),
    ]
    for given, message in cases:
        with pytest.raises(UserError, match=message):
            FedMS(*given, progress=False, stage2={"rounds": 1}).fit(datasets)
    with pytest.raises(UserError, match="which has its own"):
        FedMS("glyphclip", bert.tokenizer)


def test_predict_comes_after_fit(make):
    with pytest.raises(UserError, match="before fit"):
        make().predict("alice", ["red"])


def test_a_configuration_names_its_model(tmp_path, model_folder):
    file = tmp_path / "own.toml"
    file.write_text(f'[model]\nname = "{model_folder("bert")}"\n')
    for given in (file, load_config(file)):
        assert FedMS(config=given)._settings["model"]["name"] == str(model_folder("bert"))
    assert FedMS("glyphclip", config=file)._settings["model"]["name"] == "glyphclip"
    assert FedMS(model_folder("bert"))._settings["model"]["name"] == str(model_folder("bert"))


@pytest.mark.slow
def test_its_own_configuration_performs_a_run_again(fitted, datasets, assert_alike, tmp_path):
    """As its report says."""
    again = FedMS(config=fitted.run_folder / "config.toml", progress=False)
    assert_alike(again.fit(datasets, out=tmp_path / "run").run_folder, fitted.run_folder)


WRONG_WORDS = {
    "one callback": ({"callbacks": object()}, "expected a list"),
    "a tracker as callbacks": ({"callbacks": "wandb"}, "expected a list"),
    "a tracker as callback": ({"callbacks": ["wandb"]}, "try tracking"),
    "settings as config": ({"config": {"seed": 1}}, "try keywords"),
    "a prompt alone": ({"model_options": "a {label}"}, "expected a dict"),
}


@pytest.mark.parametrize("case", WRONG_WORDS)
def test_what_is_given_in_a_wrong_way_is_told(make, case):
    given, message = WRONG_WORDS[case]
    with pytest.raises(UserError, match=message):
        make(**given)


def test_rows_in_memory_are_not_for_ray(make, datasets, tmp_path):
    with pytest.raises(UserError, match=r"try runtime\.workers"):
        make(runtime={"name": "ray"}).fit(datasets, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_partitioners_that_do_not_fit_are_told(make, datasets):
    taken = IidPartitioner(2)
    taken.dataset = datasets["alice"]
    cases = [
        (taken, "of another data set"),
        (IidPartitioner(500), "IidPartitioner that cannot deal"),
        (NaturalIdPartitioner("nobody"), "NaturalIdPartitioner that cannot deal"),
    ]
    for partitioner, message in cases:
        with pytest.raises(UserError, match=message):
            make().fit(datasets["bob"], partition=partitioner)
