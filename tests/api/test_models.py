"""Kinds of models that `FedMS` takes, and how they are run."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import transformers
from datasets import Dataset, Features, Image, Value

from fedms import FedMS
from fedms.api.callbacks import Callbacks
from fedms.config import load_config

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
ONE = {"progress": False, "stage1": {"rounds": 1}, "stage2": {"rounds": 1}}


@pytest.fixture(scope="module")
def pictures(inputs):
    labels = [i % 3 for i in range(24)]
    rows = {"image": inputs("image", labels, 0), "label": ["abc"[i] for i in labels]}
    whole = Dataset.from_dict(rows, features=Features({"image": Image(), "label": Value("string")}))
    return {"a": whole.select(range(12)), "b": whole.select(range(12, 24))}


def test_clip_with_its_processor_and_a_prompt(model_folder, pictures):
    folder = model_folder("clip")
    parts = [transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")]
    parts.append(transformers.AutoTokenizer.from_pretrained(folder))
    clip = transformers.CLIPModel.from_pretrained(folder)
    processor = transformers.CLIPProcessor(*parts)
    prompt = {"prompt": "a photo of the {label}"}
    result = FedMS(clip, processor, model_options=prompt, **ONE).fit(pictures, input="image")
    assert 'prompt = "a photo of the {label}"' in (result.run_folder / "config.toml").read_text()
    assert "zero_shot" in {k for k, v in result.summary["test"].items() if v}
    assert {*result.predict("a", pictures["a"]["image"][:2])} <= {*"abc"}


def test_a_vision_encoder_has_a_linear_head(model_folder, pictures):
    folder = model_folder("vit")
    model = transformers.AutoModel.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    result = FedMS(model, processor, **ONE).fit(pictures, input="image")
    assert result.summary["test"]["zero_shot"] is None


def test_a_sentence_encoder_scores_prompts(model_folder, datasets):
    from sentence_transformers import SentenceTransformer  # slow to import

    encoder = SentenceTransformer(str(model_folder("sentence")))
    result = FedMS(encoder, **ONE).fit(datasets)
    assert result.summary["test"]["zero_shot"] is not None


@pytest.mark.slow
def test_processes_have_the_model_too(make, datasets, assert_alike):
    threads = {"threads": 1}
    alone = make(runtime=threads).fit(datasets)
    spread = make(runtime={"workers": 2, **threads}).fit(datasets)
    assert_alike(spread.run_folder, alone.run_folder)


def test_the_page_tells_of_callbacks_and_trackers():
    told = set(re.findall(r"`(on_[a-z]+_?[a-z]+)`", PAGE))
    source = inspect.getsource(inspect.getmodule(Callbacks))
    assert told == set(re.findall(r'"(on_[a-z_]+)"', source))
    for command in re.findall(r"^ {4}fedms run \S+ (.*) --out", PAGE, re.MULTILINE):
        assert load_config(None, command.split()).tracking.trackers == ("tensorboard",)
