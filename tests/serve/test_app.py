"""The HTTP application, asked in this process as a client asks over the network."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import shutil
import time

import httpx
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from fedms import data
from fedms.config import load_config
from fedms.core.errors import UserError
from fedms.export import export
from fedms.models.prefix import SplitForward
from fedms.run import run
from fedms.serve.app import make_app
from fedms.serve.guard import LOCAL
from fedms.serve.limits import Limits
from fedms.serve.page import POLICY
from fedms.serve.service import Service
from fedms.use import NEW, Models


def picture(number: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.uint8(load_digits().images[number] * 15)).save(file, kind)
    return file.getvalue()


def in_words(content: bytes) -> str:
    return base64.b64encode(content).decode()


TOKEN = "a-token-of-some-length"
SMALL = Limits(body=20_000, inputs=4, pixels=10_000, waiting=30, patience=0.2)


@pytest.fixture(scope="module")
def models(served):
    return Models(served)


def talk(models, conversation, **options):
    """What an async function of a client, the application's, returns; and the lines of its log."""
    log = []
    limits = options.pop("limits", SMALL)

    async def perform():
        service = Service(models, limits)
        app = make_app(service, say=log.append, **options)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:80") as client:
            found = await conversation(client)
        await service.close()
        return found

    return asyncio.run(perform()), log


def asked(models, *requests, **options):
    """Answers to requests, one after the other."""

    async def conversation(client):
        return [await client.request(method, path, **rest) for method, path, rest in requests]

    return talk(models, conversation, **options)[0]


def predict(client, inputs, **more):
    return "POST", "/predict", {"json": {"client": client, "inputs": inputs, **more}}


def test_it_says_what_the_model_says(models):
    pictures = [picture(i) for i in range(3)]
    expected = [
        list(models.predict(data.Table("image", pictures, [""] * 3), who)) for who in ("1", NEW)
    ]
    inputs = [in_words(content) for content in pictures]
    for answer, said in zip(
        asked(models, predict("1", inputs, top=2), predict(NEW, inputs)), expected, strict=True
    ):
        assert answer.status_code == 200
        for found, each in zip(answer.json()["predictions"], said, strict=True):
            assert found["label"] == each.label
            assert found["probability"] == pytest.approx(each.probability, abs=1e-5)
            assert found["gate_weight"] == (
                each.gate_weight and pytest.approx(each.gate_weight, abs=1e-5)
            )
            assert found["experts"].keys() == each.experts.keys()
            for name, opinion in found["experts"].items():
                assert opinion["label"] == each.experts[name][0]
            assert next(iter(found["probabilities"])) == each.label
        assert len(answer.json()["predictions"]) == 3
    (answer,) = asked(models, predict("1", inputs[:1], top=3))
    (found,) = answer.json()["predictions"]
    assert len(found["probabilities"]) == 3


def test_texts_are_read_as_they_are(of_texts):
    models, texts = Models(of_texts), ["lost card", "the blue bird is not a dog", "my cat"]
    expected = list(models.predict(data.Table("text", texts, [""] * 3), "2"))
    right, empty, long = asked(
        models,
        predict("2", texts),
        predict("2", ["card", " \n"]),
        predict("2", ["x" * 101]),
        limits=Limits(characters=100),
    )
    found = right.json()["predictions"]
    assert [one["label"] for one in found] == [one.label for one in expected]
    assert found[1]["probability"] == pytest.approx(expected[1].probability, abs=1e-5)
    assert (empty.status_code, empty.json()) == (
        422,
        {"error": "got no text at inputs[1]; expected some"},
    )
    assert long.json() == {"error": "got 101 characters at inputs[0]; expected at most 100"}


def test_a_client_has_its_name_however_long(of_texts, hospital, tmp_path):
    models = Models(of_texts)
    assert models.clients == ["1", "2", hospital]
    listed, answer = asked(models, ("GET", "/clients", {}), predict(hospital, ["lost card"]))
    assert listed.json() == {"clients": models.clients}
    (said,) = models.predict(data.Table("text", ["lost card"], [""]), hospital)
    assert answer.json()["predictions"][0]["label"] == said.label
    export(of_texts, tmp_path / "mine", hospital)
    assert json.loads((tmp_path / "mine" / "fedms.json").read_text())["client"] == hospital
    assert hospital in (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")


def test_requests_of_several_clients_are_one_pass(models, monkeypatch):
    seen = []
    prefix = SplitForward.prefix

    def count(self, batch, boundary):
        seen.append(len(batch["pixel_values"]))
        return prefix(self, batch, boundary)

    monkeypatch.setattr(SplitForward, "prefix", count)

    async def conversation(client):
        asks = [
            client.post("/predict", json={"client": who, "inputs": [in_words(picture(i))] * 2})
            for i, who in enumerate([*models.clients, NEW, "1"])
        ]
        return await asyncio.gather(*asks)

    answers, _ = talk(models, conversation, limits=Limits(wait=0.2))
    assert [a.status_code for a in answers] == [200] * 5
    assert [a.json()["client"] for a in answers] == ["0", "1", "2", "new", "1"]
    assert [a.json()["predictions"][0]["label"] for a in answers[:3]] == ["0", "1", "2"]
    assert seen == [10]


LARGE = io.BytesIO()
Image.fromarray(np.zeros((101, 100), np.uint8)).save(LARGE, "PNG")
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"
JSON = "application/json"
TYPED = {"content-type": JSON}
GOOD = in_words(picture(0))
BAD = {
    "no client": (predict("nobody", [GOOD]), 404, "GET /clients"),
    "a path": (predict("../../global", [GOOD]), 404, "GET /clients"),
    "no base64": (predict("1", [GOOD, "?"]), 422, "inputs[1]"),
    "no picture": (predict("1", [GOOD, in_words(b"x" * 99)]), 422, "inputs[1] (of no known format"),
    "a cut picture": (predict("1", [in_words(picture(0)[:60])]), 422, "inputs[0]"),
    "a program": (predict("1", [in_words(POSTSCRIPT)]), 422, "inputs[0]"),
    "many pixels": (predict("1", [in_words(LARGE.getvalue())]), 422, "at most 10,000 pixels"),
    "many inputs": (predict("1", [GOOD] * 5), 422, "got 5 inputs; expected at most 4"),
    "no inputs": (predict("1", []), 422, "inputs"),
    "another type": (predict(1, [GOOD]), 422, "client: Input should be a valid string"),
    "another key": (predict("1", [GOOD], model="x"), 422, "model: Extra inputs"),
    "no class at the top": (predict("1", [GOOD], top=0), 422, "top"),
    "a large body": (predict("1", ["x" * 30_000]), 413, "at most 20,000 bytes"),
    "no JSON": (("POST", "/predict", {"content": b"{"}), 422, "got no JSON object"),
    "deep JSON": (
        ("POST", "/predict", {"content": b"[" * 19_000, "headers": TYPED}),
        *(400, "parsing the body"),
    ),
    "half a character": (
        ("POST", "/predict", {"content": b'{"client":"1","inputs":["\\ud800"]}', "headers": TYPED}),
        *(422, "inputs[0]: Value error, half a character"),
    ),
    "a long key": (predict("1", [GOOD], **{"k" * 999: 1}), 422, "k: Extra inputs"),
    "another path": (("GET", "/predictions", {}), 404, "GET /docs"),
    "another method": (("DELETE", "/predict", {}), 405, "GET /docs"),
}


@pytest.mark.parametrize(("request_", "status", "said"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_answered_is_told_why(models, request_, status, said):
    (answer,) = asked(models, request_)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]
    assert len(answer.text) < 400


def test_of_many_faults_the_first_is_told(models):
    """All of them would take a minute and gigabytes: a body has room for millions."""
    ones = b'{"client":"1","inputs":[' + b"1," * 500_000 + b"1]}"
    keys = b'{"client":"1",' + b",".join(b'"%d":1' % i for i in range(100_000)) + b"}"
    began = time.perf_counter()
    values, names = asked(
        models,
        *(("POST", "/predict", {"content": c, "headers": TYPED}) for c in (ones, keys)),
        limits=Limits(),
    )
    assert time.perf_counter() - began < 5
    assert values.json() == {"error": "inputs[0]: Input should be a valid string"}
    assert names.json() == {"error": "got 100001 keys; expected client, inputs, top"}


@pytest.mark.slow
def test_where_nothing_is_shared_there_is_no_model_of_anyone(tmp_path):
    words = ("method=local", "stage1.rounds=1", "partition.clients=2", "data.max_rows=100")
    run(load_config(None, [*words, "runtime.threads=1"]), tmp_path / "run")
    alone = Models(tmp_path / "run")
    (answer,) = asked(alone, predict(NEW, [GOOD]))
    assert (answer.status_code, "GET /clients" in answer.text) == (404, True)
    with pytest.raises(UserError, match="expected one of 0, 1; with local clients share no"):
        alone.model(NEW)


def test_a_body_is_counted_as_it_comes(models):
    async def endless():
        for _ in range(10):
            yield b"x" * 5000

    async def stuck():
        yield b"{"
        await asyncio.sleep(5)

    long, slow = asked(
        models,
        ("POST", "/predict", {"content": endless()}),
        ("POST", "/predict", {"content": stuck()}),
    )
    assert long.status_code == 413
    assert slow.status_code == 408


def test_bodies_that_are_held_are_bounded_together(models):
    (answer,) = asked(models, predict("1", ["x" * 2000]), limits=Limits(bodies=1000))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_more_than_may_wait_comes_again(models):
    async def conversation(client):
        body = {"client": "1", "inputs": [GOOD] * 4}
        return await asyncio.gather(*(client.post("/predict", json=body) for _ in range(12)))

    answers, _ = talk(models, conversation)
    codes = [answer.status_code for answer in answers]
    assert codes.count(200) == 7  # 28 of 30 rows
    assert codes.count(503) == 5
    assert all(a.headers["retry-after"] == "1" for a in answers if a.status_code == 503)
    assert asked(models, predict("1", [GOOD]))[0].status_code == 200


def test_a_token_opens_all_but_health_and_description(models):
    def with_token(path, given):
        return ("GET", path, {"headers": {"authorization": given}})

    paths = ("/clients", "/model", "/predict", "/nothing")
    without = asked(models, *(("GET", path, {}) for path in paths), token=TOKEN)
    assert [a.status_code for a in without] == [401] * 4
    assert all(a.headers["www-authenticate"] == "Bearer" for a in without)
    wrong = (f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer ", "")
    refused = asked(models, *(with_token("/clients", each) for each in wrong), token=TOKEN)
    assert [a.status_code for a in refused] == [401] * 6
    assert not any(TOKEN in a.text for a in refused)
    right = asked(models, with_token("/clients", f"bearer {TOKEN}"), token=TOKEN)
    assert right[0].json() == {"clients": ["0", "1", "2"]}
    free = asked(
        models, *(("GET", p, {}) for p in ("/health", "/docs", "/openapi.json")), token="x"
    )
    assert [a.status_code for a in free] == [200] * 3
    (there,) = asked(models, ("HEAD", "/health", {}), token="x")  # as balancers ask
    assert (there.status_code, there.content) == (200, b"")


def test_only_names_of_this_machine_are_its_own(models):
    hosts = ("evil.example", "127.0.0.1.evil.example", "localhost:80", "127.0.0.1:9", "[::1]:1")
    requests = [("GET", "/health", {"headers": {"host": host}}) for host in hosts]
    codes = [a.status_code for a in asked(models, *requests, hosts=LOCAL)]
    assert codes == [421, 421, 200, 200, 200]


def test_the_description_is_typed_and_needs_no_network(models):
    described, page, model = asked(
        models, ("GET", "/openapi.json", {}), ("GET", "/docs", {}), ("GET", "/model", {})
    )
    schemas = described.json()["components"]["schemas"]
    assert schemas["Prediction"]["required"] == [
        *("label", "probability", "gate_weight", "experts", "probabilities")
    ]
    assert {"401", "404", "413", "422", "503"} < {
        *described.json()["paths"]["/predict"]["post"]["responses"]
    }
    assert page.headers["content-security-policy"] == POLICY
    assert "POST /predict" in page.text
    assert not re.search(r"<script|<link|src=|https?:", page.text)
    assert model.json()["takes"] == "image"
    assert model.json()["limits"]["pixels"] == SMALL.pixels


def test_the_log_has_nothing_that_was_asked(models):
    async def conversation(client):
        await client.post("/predict?secret", json={"client": "1", "inputs": [GOOD]})
        await client.post("/predict", json={"client": "secret", "inputs": ["secret"]})
        await client.get("/secret")

    _, log = talk(models, conversation)
    lines = [re.sub(r"\d+ ms", "T", line) for line in log]
    assert lines == ["POST /predict 200 T", "POST /predict 404 T", "GET (no route) 404 T"]


def test_a_damaged_model_is_the_error_of_who_asked_for_it(served, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(served, copy)
    weights = copy / "adapters" / "clients" / "1" / "local" / "adapter_model.safetensors"
    weights.write_bytes(b"x")

    async def conversation(client):
        asks = [
            client.post("/predict", json={"client": who, "inputs": [GOOD]}) for who in ("0", "1")
        ]
        return await asyncio.gather(*asks)

    answers, _ = talk(Models(copy), conversation, limits=Limits(wait=0.1))
    assert [a.status_code for a in answers] == [200, 500]
    assert str(copy) not in answers[1].text
