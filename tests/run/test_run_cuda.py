"""Whole runs on a GPU: the models of the CPU but for rounding, for every method.

`make cuda` runs them; CI has no GPU. One step is the same within 1e-5
(`tests/models/test_cuda.py`); over rounds, rounding adds up.
"""

from __future__ import annotations

import json

import pytest
import torch

from fedms.build import load_table
from fedms.run import RoundDone, resume, run
from fedms.use import Models

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

COMMON = ("runtime.threads=1", "training.learning_rate=1e-3", "runtime.precision=float32")
METHODS = (
    *("fedms", "finetune", "fedavg", "fedprox", "fedadam", "ffa", "flora", "promptfl", "fedclip"),
    *("fedex", 'flexlora lora.ranks={"0"=1,"*"=3}', "fedra", "centralised", "ditto", "fedper"),
    *("fedrep", "fedsa", "dual", "fedalt", "feddpa", "fedcgs", "local", "probe model.head=linear"),
)
DECOMPOSED = ("flora", "fedex", "flexlora")
EXACT = ("cohort", "depth", "client_depths", "rejected", "upload_bytes", "download_bytes")


def close(got, expected):
    """Rounding may turn single steps of the optimiser, each of them at most the learning rate."""
    assert got.keys() == expected.keys()
    apart = torch.cat([(got[name] - tensor).abs().flatten() for name, tensor in expected.items()])
    assert float(apart.mean()) < 2e-4
    assert float((apart < 1e-3).double().mean()) > 0.98


def multiplied(tensors):
    """Pairs of adapters by their product: a decomposition may turn its factors."""
    ups = {name: name.replace(".lora_A.", ".lora_B.") for name in tensors if ".lora_A." in name}
    products = {name: tensors[up] @ tensors[name] for name, up in ups.items()}
    return {**{n: t for n, t in tensors.items() if n not in ups.values()}, **products}


def on(done, device, *words):
    return done(*COMMON, f"runtime.device={device}", *words)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_what_it_learns_on_the_cpu(done, method):
    words = f"method={method}".split()
    here, there = on(done, "cpu", *words), on(done, "cuda", *words)
    turned = multiplied if method.split()[0] in DECOMPOSED else lambda tensors: tensors
    close(turned(there.tensors()), turned(here.tensors()))
    for one, other in zip(here.lines("rounds"), there.lines("rounds"), strict=True):
        assert {key: other[key] for key in EXACT} == {key: one[key] for key in EXACT}
    for role, scores in here.summary["test"].items():
        if scores is not None and role != "unseen":
            found = there.summary["test"][role]["mean"]
            assert found == pytest.approx(scores["mean"], abs=0.03), role


def test_what_it_costs_is_counted_as_on_the_cpu(done):
    here, there = (on(done, device).summary["cost"] for device in ("cpu", "cuda"))
    assert there["train_flops"] == here["train_flops"]
    assert there["cache_bytes"] == here["cache_bytes"]
    assert there["peak_activation_bytes"] == pytest.approx(here["peak_activation_bytes"], rel=0.1)
    assert here["peak_device_bytes"] is None
    assert there["peak_device_bytes"] > there["cache_bytes"] > 0


def test_the_same_run_gives_the_same_bits(small, tmp_path, ending):
    for name in ("one", "two"):
        run(small(*COMMON, "runtime.device=cuda"), tmp_path / name)
    assert ending(tmp_path / "one")[0] == ending(tmp_path / "two")[0]


@pytest.mark.parametrize("more", [["runtime.workers=2"], ["runtime.stack=9"]])
def test_workers_and_stacks(done, more):
    close(on(done, "cuda", *more).tensors(), on(done, "cuda").tensors())


def test_the_machine_is_recorded(done):
    facts = json.loads((on(done, "cuda").path / "environment.json").read_text())
    assert facts["device"] == "cuda:0"
    assert facts["device_name"] == torch.cuda.get_device_name(0)


def test_a_run_that_was_ended_goes_on_where_it_was(small, tmp_path, ending):
    config = small(*COMMON, "runtime.device=cuda")
    run(config, tmp_path / "whole")

    rounds = iter(range(3))

    def stop(event):
        if isinstance(event, RoundDone) and next(rounds) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "ended", watch=stop)
    resume(tmp_path / "ended")
    assert ending(tmp_path / "whole")[0] == ending(tmp_path / "ended")[0]


def test_models_are_used_on_any_device(done, small):
    finished, table = on(done, "cuda"), load_table(small(*COMMON))
    said = {}
    for device in ("cpu", "cuda"):
        models = Models(finished.path, device=device)
        said[device] = list(models.predict(table, models.clients[0]))
    assert len(said["cpu"]) == len(said["cuda"]) == 120
    for one, other in zip(said["cpu"], said["cuda"], strict=True):
        assert one.label == other.label
        assert one.probability == pytest.approx(other.probability, abs=1e-4)
        assert one.gate_weight == pytest.approx(other.gate_weight, abs=1e-4)
