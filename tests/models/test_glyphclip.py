"""The embedded foundation model keeps what its card says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import CLIPModel

from fedms.build import build
from fedms.config import load_config
from fedms.core.algorithm import Score, View
from fedms.models.names import EMBEDDED
from fedms.models.resident import FROZEN

ROOT = Path(__file__).parents[2]
CARD = (EMBEDDED / "README.md").read_text(encoding="utf-8")
PROMPT = "model.prompt=a photo of the character {label}"
ONE = ["partition.by=iid", "partition.clients=1"]


def zero_shot(*settings: str) -> Score:
    """Over all rows, whatever their split."""
    experiment = build(load_config(None, [PROMPT, *ONE, *settings]))
    (client,) = experiment.clients
    splits = ("train", "val", "test")
    scores = [experiment.learner.score(View(FROZEN), client, split) for split in splits]
    return sum(scores, Score())


def told(column: int) -> float:
    (line,) = re.findall(r"^\| `a photo of the character \{label\}` \|.*$", CARD, re.MULTILINE)
    return float(line.split("|")[column].strip())


def test_digits():
    score = zero_shot()
    assert score.rows == 1797
    assert score.accuracy == pytest.approx(told(2), abs=0.002)
    assert score.accuracy >= 0.80


@pytest.mark.slow
def test_femnist():
    data = ROOT.parent / "shared/data/femnist/data.parquet"
    if not data.exists():
        pytest.skip("../shared/data/femnist is not beside the project")
    source = ["data.source=parquet", f"data.path={data}", "data.input=image"]
    score = zero_shot(*source, "data.max_rows=3000")
    assert score.accuracy == pytest.approx(told(4), abs=0.03)  # a sample of 16,317
    assert score.accuracy >= 0.50


def test_size_and_parameters():
    assert sum(file.stat().st_size for file in EMBEDDED.iterdir()) <= 8_000_000
    model = CLIPModel.from_pretrained(EMBEDDED)
    total = sum(p.numel() for p in model.parameters())
    assert 1_000_000 <= total <= 3_000_000
    assert f"{total:,}" in CARD


def test_the_card_names_what_it_owes():
    for word in ("license:", "Debian font packages", "seed 0", "No recorded handwriting"):
        assert word in CARD
    licences = (ROOT / "training/glyphclip/packages.txt").read_text(encoding="utf-8")
    assert len([line for line in licences.splitlines() if "\t" in line]) >= 200
