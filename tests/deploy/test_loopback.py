"""A run of three sites over Flower's own programs, with TLS and keys, is the simulator's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedms.config import load_config
from fedms.run import run

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fedms[flower]'")

TIMES = ("train_seconds", "phase_seconds", "wall_seconds")
OWN = ("train_flops", "peak_activation_bytes", "cache_bytes")
"""Each site has shapes and a cache of its own."""


@pytest.mark.loopback
def test_a_deployment_gives_what_the_simulator_gives(loopback, states, tmp_path):
    """Server state, adapters, sites' private states and scores, to the bit."""
    check(loopback(), states, tmp_path)


@pytest.mark.e2e
def test_so_with_texts_and_a_sentence_encoder(loopback, states, tmp_path):
    recipe = Path(__file__).parents[2] / "recipes" / "banking77.toml"
    if not Path(load_config(recipe).data.path).exists():
        pytest.skip("banking77 is not beside the project")
    words = ("data.max_rows=1500", "model.max_length=32", "runtime.precision=float32")
    check(loopback(job=(recipe, words)), states, tmp_path)


def check(here, states, tmp_path):
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
    expected = json.loads((tmp_path / "simulated" / "summary.json").read_text())
    for summary in (shown, expected):
        for name in (*TIMES, *OWN):
            del summary["cost"][name]
    assert {**expected, "folder": str(tmp_path / "served")} == shown
    per_client = expected["test"]["personal"]["per_client"]
    served, simulated = (states(tmp_path / name) for name in ("served", "simulated"))
    assert served == {k: v for k, v in simulated.items() if "/clients/" not in k}
    for site in here.sites:
        (own,) = (here.there / "sites" / site / "state").glob("served-*")
        kept = states(own)
        del kept["constants.safetensors"]
        for path, data in kept.items():
            there = path.replace("clients/", "checkpoints/clients/", 1)
            assert simulated[path if path.startswith("adapters/") else there] == data
        assert f"adapters/clients/{site}/local/adapter_model.safetensors" in kept
        assert "its models are kept" in here.said(site)
        there = here.fedms("evaluate", own, "--json")  # where its rows are
        (scores,) = json.loads(there.stdout).values()
        assert scores["personal"]["accuracy"] == per_client[site]
        assert here.said(site).endswith("site ended\n")
