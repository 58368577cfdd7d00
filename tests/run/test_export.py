"""What `fedms export` writes says without fedms what the run's models say with it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import httpx
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F

from fedms import data, hub
from fedms.config import load_config
from fedms.core.errors import UserError
from fedms.export import export
from fedms.models import standalone
from fedms.models.names import EMBEDDED, hub_id, spoken
from fedms.run import run
from fedms.use import NEW, Models

COMMON = ("runtime.threads=1", "partition.unseen_clients=1")
SHORT = ("stage1.rounds=1", "stage2.rounds=1", "runtime.threads=1")
WAYS = {
    "all that is ours": ("gate.statistics=personal",),
    "logits, with priors": ("gate.calibration=false", "gate.mix=logits", "gate.mix_prior=both"),
    "features": ("gate.calibration=false", "gate.mix=features"),
    "a linear head": ("model.head=linear",),
    "learned prompts": ("method=promptfl",),
    "weighed features": ("method=fedclip",),
    "no local expert": ("method=fedavg", "gate.calibration=false", "gate.mix_prior=client"),
}


def pictures() -> list[Image.Image]:
    return [Image.fromarray(np.uint8(x * 15)).convert("RGB") for x in load_digits().images[:6]]


def module(folder: Path):
    """`model.py` of an export, as Python finds it there."""
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def strange() -> dict[str, Image.Image]:
    """Pictures that are not RGB, or not upright."""
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8)
    clear = Image.fromarray(np.uint8(grey)).convert("RGBA")
    clear.putalpha(Image.fromarray(np.uint8(grey * 4)))
    turned = Image.fromarray(np.uint8(grey)).convert("RGB")
    turned.getexif()[0x0112] = 6
    palette = turned.convert("P", palette=Image.Palette.ADAPTIVE)
    palette.info["transparency"] = 3
    return {
        "transparent": clear,
        "of 16 bits": Image.fromarray(grey * 1000),
        "of 32 bits": Image.fromarray(np.int32(grey) * 1000),
        "turned": turned,
        "a palette": palette,
        "grey with alpha": clear.convert("LA"),
        "of two levels": Image.fromarray(np.uint8(grey * 4)).convert("1"),
        "CMYK": turned.convert("CMYK"),
    }


def test_pictures_are_read_as_fedms_reads_them():
    for name, picture in strange().items():
        found, expected = standalone.rgb(picture), data.decode_image(picture, name)
        assert np.array_equal(np.asarray(found), np.asarray(expected)), name


def said(path: Path, client: str):
    """What fedms says of the pictures."""
    models = Models(path)
    table = data.Table("image", pictures(), [""] * 6)
    return models, models.model(client).predict(models.encoded(table))


def close(found, expected):
    """Rounding alone: with transformers 5.0 a DINOv2 differs by 1e-4."""
    found, expected = found.cpu(), expected.cpu()
    assert torch.allclose(found, expected, atol=2e-4), (found - expected).abs().max()


@pytest.mark.quick("all that is ours")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_an_export_says_what_fedms_says(done, tmp_path, way):
    path = done(*COMMON, *way).path
    one = (Models(path).clients or ["0"])[0]  # or all have the shared one
    for client in (one, NEW) if way == WAYS["all that is ours"] else (one,):
        export(path, tmp_path / client, client)
        model = module(tmp_path / client).Model(tmp_path / client, base=str(EMBEDDED))
        _, expected = said(path, client)
        found = model.opinions(pictures())
        close(found["personal"], expected.personal)
        assert ("gate_weight" in found) == (expected.gate_weight is not None)
        if expected.gate_weight is not None:
            close(found["gate_weight"], expected.gate_weight)
            close(found["global"], expected.shared)
            close(found["local"], expected.own)
    text = "".join(p.read_text() for p in (tmp_path / client).rglob("*.json"))
    assert str(EMBEDDED) not in text


@pytest.mark.quick("all that is ours-local")
@pytest.mark.parametrize(
    ("way", "role"),
    [
        ("all that is ours", "local"),
        ("a linear head", "global"),
        ("logits, with priors", "local"),
        ("no local expert", "global"),
    ],
)
def test_a_merged_model_has_the_logits_of_its_expert(done, tmp_path, way, role):
    path = done(*COMMON, *WAYS[way]).path
    models = Models(path)
    client = models.clients[0]
    export(path, tmp_path / "out", client, merged=role)
    expert = module(tmp_path / "out").Merged(tmp_path / "out" / "merged")
    own = models.model(client)
    tensors = own.partner if role == "global" and own.partner else own.expert
    of = "local" if tensors is own.expert else "global"  # the only one counts as its own
    rows = models.encoded(data.Table("image", pictures(), [""] * 6))
    features = models.learner.features(tensors, rows)[None]
    close(expert(pictures()), models.learner.logits(features, own._own(tensors, of))[0])


@pytest.mark.parametrize("kind", ["sentence", "bert", "sentence-cls"])
def test_texts_are_exported_too(tmp_path, model_folder, kind):
    base = model_folder(kind)
    words = ["lost card", "pay my card", "a red cat", "the blue bird is not a dog"] * 12
    (tmp_path / "data.csv").write_text(
        "text,label\n" + "".join(f"{t} {i},{len(t) % 3}\n" for i, t in enumerate(words))
    )
    settings = [
        *SHORT,
        *("partition.clients=2", "partition.by=iid", f"model.name={base}"),
        *("data.source=csv", f"data.path={tmp_path / 'data.csv'}"),
    ]
    run(load_config(None, settings), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", "0", merged="local")
    models, texts = Models(tmp_path / "run"), ["lost card", "is the red dog my cat", "pay"]
    expected = models.model("0").predict(models.encoded(data.Table("text", texts, [""] * 3)))
    without = module(tmp_path / "out")
    found = without.Model(tmp_path / "out", base=str(base)).opinions(texts)
    close(found["personal"], expected.personal)
    close(found["gate_weight"], expected.gate_weight)
    close(F.log_softmax(without.Merged(tmp_path / "out" / "merged")(texts), -1), expected.own)
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        str(tmp_path) not in card
    )  # in which folder the foundation model was is nobody's business
    assert f"`{Path(base).name}`, a folder that was not exported" in card


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_other_encoders_of_images_are_exported_too(tmp_path, model_folder, kind):
    base = model_folder(kind)
    settings = [*SHORT, "partition.clients=2", "data.max_rows=100", f"model.name={base}"]
    run(load_config(None, settings), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", "0")
    _, expected = said(tmp_path / "run", "0")
    without = module(tmp_path / "out").Model(tmp_path / "out", base=str(base))
    close(without.opinions(pictures())["personal"], expected.personal)


def test_merging_draws_nothing_of_the_callers(done, tmp_path):
    path = done(*COMMON, *WAYS["all that is ours"]).path
    before = torch.get_rng_state()
    export(path, tmp_path / "out", Models(path).clients[0], merged="local")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def exported(done, tmp_path_factory):
    finished = done(*COMMON, *WAYS["all that is ours"])
    to = tmp_path_factory.mktemp("exported") / "out"
    who = Models(finished.path).clients[0]
    export(finished.path, to, who, merged="local", licence="mit")
    return finished, to, who


def test_the_card_has_the_hubs_metadata_sizes_and_scores(exported):
    finished, to, who = exported
    card = huggingface_hub.ModelCard.load(to / "README.md")
    assert (card.data.license, card.data.library_name) == ("mit", "peft")
    assert card.data.base_model is None  # the hub has no glyphclip
    assert card.data.pipeline_tag == "image-classification"
    assert {"federated-learning", "fedms"} < {*card.data.tags}
    expected = finished.summary["test"]["personal"]["per_client"][who]
    results = {each.metric_name: each.metric_value for each in card.data.eval_results}
    assert results["test accuracy, personal"] == expected
    dealt = json.loads((finished.path / "partition.json").read_text())
    (sizes,) = (each for each in dealt if each["id"] == who)
    assert f"{sizes['train']:,} training, {sizes['val']:,} validation" in card.text
    assert "made from private data" in card.text


def test_the_cards_code_runs_without_fedms(exported, monkeypatch, capsys):
    _, to, _ = exported
    blocks = re.findall(r"```python\n(.*?)```", (to / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(to)
    os.symlink(EMBEDDED, to / "glyphclip")  # where the card says that it is
    monkeypatch.syspath_prepend(str(to))
    for block in blocks:
        assert "fedms" not in block
        exec(block, {})
    assert capsys.readouterr().out.startswith("['")
    (to / "glyphclip").unlink()


@pytest.mark.slow
def test_what_only_fedms_can_use_is_said(done, tmp_path):
    path = done(*COMMON, "method=dual").path
    export(path, tmp_path / "out", Models(path).clients[0])
    with pytest.raises(ValueError, match=r"mixers\.safetensors, which only fedms can use"):
        module(tmp_path / "out").Model(tmp_path / "out", base=str(EMBEDDED))
    assert "only fedms can use" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dual", "feddpa"])
def test_an_expert_that_only_fedms_can_use_is_not_merged(done, tmp_path, method):
    path = done(*COMMON, f"method={method}").path
    who = Models(path).clients[0]
    with pytest.raises(UserError, match="which no plain model does"):
        export(path, tmp_path / "out", who, merged="local")
    assert not [*tmp_path.iterdir()]
    export(path, tmp_path / "out", who, merged="global")  # is plain LoRA
    assert (tmp_path / "out" / "merged").is_dir()


class Hub:
    """Repositories in memory."""

    def __init__(self, **private):
        self.private, self.files = private, {}

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        self.private.setdefault(repo_id, private)

    def model_info(self, repo_id):
        return SimpleNamespace(private=self.private[repo_id])

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.files[repo_id] = sorted(p.name for p in folder_path.iterdir())


def test_a_push_makes_a_private_repository(exported):
    there = Hub()
    assert hub.push(exported[1], "me/mine", hub=there) == "https://huggingface.co/me/mine"
    assert there.private == {"me/mine": True}
    assert {"README.md", "local", "global", "gate", "model.py"} < {*there.files["me/mine"]}


def test_nothing_is_pushed_where_anyone_sees_it_unless_told(exported):
    there = Hub(**{"me/open": False})
    with pytest.raises(UserError, match="which is public"):
        hub.push(exported[1], "me/open", hub=there)
    assert there.files == {}
    hub.push(exported[1], "me/open", public=True, hub=there)
    hub.push(exported[1], "me/new", public=True, hub=there)
    assert there.private == {"me/open": False, "me/new": False}


def test_what_the_hub_refuses_is_one_line(exported):
    class Closed(Hub):
        def upload_folder(self, **_):
            answer = httpx.Response(403, request=httpx.Request("POST", "http://hub"))
            raise HfHubHTTPError("403 Forbidden\nmore", response=answer)

    with pytest.raises(UserError, match=r"failed \(403 Forbidden\)"):
        hub.push(exported[1], "me/mine", hub=Closed())
    for wrong in ("mine", "a/b/c", "../x", "me/"):
        with pytest.raises(UserError, match="expected OWNER/NAME"):
            hub.push(exported[1], wrong, hub=Hub())


def test_models_are_named_as_others_know_them(tmp_path):
    assert hub_id("minilm") == "sentence-transformers/all-MiniLM-L6-v2"
    assert hub_id("openai/clip-vit-base-patch32") == "openai/clip-vit-base-patch32"
    assert (hub_id("glyphclip"), hub_id(str(tmp_path))) == (None, None)
    assert spoken(str(tmp_path)) == tmp_path.name
