"""A run of three sites over Flower's own programs, with TLS and keys, is the simulator's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedms.config import load_config
from fedms.run import run

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fedms[flower]'")


@pytest.mark.e2e
def test_a_deployment_gives_what_the_simulator_gives(loopback, same, tmp_path):
    """With all that is told and tracked; test_page.py compares a run of two sites, in CI."""
    check(loopback(), same, tmp_path)


@pytest.mark.e2e
def test_so_with_texts_and_a_sentence_encoder(loopback, same, tmp_path):
    recipe = Path(__file__).parents[2] / "recipes" / "banking77.toml"
    if not Path(load_config(recipe).data.path).exists():
        pytest.skip("banking77 is not beside the project")
    words = ("data.max_rows=1500", "model.max_length=32", "runtime.precision=float32")
    check(loopback(job=(recipe, words)), same, tmp_path)


def check(here, same, tmp_path):
    here.everyone()
    here.submit("tracking.to=tensorboard", "--out", tmp_path / "served", "--json")
    run(load_config(here.config), tmp_path / "simulated")  # meanwhile
    assert here.ended() == 0, here.said("submit")
    told = here.fedms("submit", here.there, "--resume", tmp_path / "served")
    assert told.returncode == 0, told.stderr
    everyone = ", ".join(here.sites)
    assert f"sites that keep their models of this run: {everyone}" in told.stdout + told.stderr
    for site in here.sites:
        here.end(site)
    tracked = EventAccumulator(str(tmp_path / "served" / "tracking" / "tensorboard")).Reload()
    rounds = (tmp_path / "served" / "rounds.jsonl").read_text().splitlines()
    stages = [event.tensor_proto.float_val[0] for event in tracked.Tensors("stage")]
    assert stages == [json.loads(line)["stage"] for line in rounds]
    shown = json.loads(here.said("submit")[here.said("submit").index('{\n  "folder"') :])
    expected = json.loads((tmp_path / "served" / "summary.json").read_text())
    assert {**expected, "folder": str(tmp_path / "served")} == shown
    kept = {}
    for site in here.sites:
        (kept[site],) = (here.there / "sites" / site / "state").glob("served-*")
    same(tmp_path / "served", tmp_path / "simulated", kept)
    per_client = expected["test"]["personal"]["per_client"]
    for site, own in kept.items():
        assert "its models are kept" in here.said(site)
        there = here.fedms("evaluate", own, "--json")  # where its rows are
        (scores,) = json.loads(there.stdout).values()
        assert scores["personal"]["accuracy"] == per_client[site]
        assert here.said(site).endswith("site ended\n")
