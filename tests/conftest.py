"""Tiny foundation models, written once a session to temporary folders, and clients for them."""

from __future__ import annotations

import copy
import io
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports the hub's client

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from fedms.cli import main
from fedms.core.rows import ClientData, Rows
from fedms.models import (
    AdapterSlots,
    Backbone,
    LinearHead,
    Mixing,
    ModelLearner,
    PromptHead,
    Room,
    Training,
    load_backbone,
)
from fedms.runtimes import workers

WORDS = ["a", "photo", "of", "the", "red", "green", "blue", "cat", "dog", "bird"]
WORDS += ["pay", "card", "lost", "my", "is", "where", "not", "i"]
CLASSES = ("red cat", "green dog", "blue bird")
SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
SIZE["num_attention_heads"] = 2
TEXT = {"vocab_size": 24, "max_position_embeddings": 20}
VISION = {"image_size": 16, "patch_size": 8}
IMAGES = ("vit", "dinov2", "ijepa")


def pytest_configure(config: pytest.Config) -> None:
    """Tests are about the CPU, whatever there is, unless CUDA_VISIBLE_DEVICES says otherwise."""
    if config.option.markexpr != "cuda":
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # as below, for processes of their own


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is marked `quick` with some of its parameters' ids, the others are slow."""
    for item in items:
        mark = item.get_closest_marker("quick")
        if mark is not None:
            found = item.callspec.id  # type: ignore[attr-defined]
            if not any(found == name or found.startswith(f"{name}-") for name in mark.args):
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def without_tf32() -> Iterator[None]:
    """torch lets cuDNN compute convolutions of float32, which embed patches, in TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def _configuration(kind: str) -> Any:
    tf = transformers
    if kind == "clip":
        text = {**SIZE, **TEXT, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
        return tf.CLIPConfig(text_config=text, vision_config={**SIZE, **VISION}, projection_dim=12)
    if kind in ("bert", "sentence", "sentence-cls"):
        return tf.BertConfig(**SIZE, **TEXT)
    if kind == "roberta":
        return tf.RobertaConfig(**SIZE, **TEXT, pad_token_id=0, type_vocab_size=1)
    if kind == "distilbert":
        return tf.DistilBertConfig(**TEXT, dim=16, hidden_dim=24, n_layers=3, n_heads=2)
    if kind == "vit":
        return tf.ViTConfig(**SIZE, **VISION)
    if kind == "ijepa":
        return tf.IJepaConfig(**SIZE, **VISION)
    if kind == "dinov2":
        return tf.Dinov2Config(
            **VISION, hidden_size=16, mlp_ratio=2, num_hidden_layers=3, num_attention_heads=2
        )
    raise ValueError(kind)


def _save_model(kind: str, folder: Path) -> None:
    """Weights are larger than those of a new model, so that every block shows in the features."""
    config = _configuration(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.CLIPModel(config) if kind == "clip" else None
        model = model or transformers.AutoModel.from_config(config)
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower() and name != "logit_scale":
                torch.nn.init.normal_(parameter, std=0.25)
    model.save_pretrained(folder)


def save_tokenizer(folder: Path, **special: Any) -> None:
    """Whole words; `[CLS] … [SEP]` around every text."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", **special}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=16, **{k: v for k, v in names.items() if v}
    ).save_pretrained(folder)


def _save_processor(folder: Path, kind: str) -> None:
    size = {"height": 16, "width": 16}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_processor_type": "CLIPImageProcessor", "size": size, "do_center_crop": False}
            if kind == "clip"
            else {"image_processor_type": "ViTImageProcessor", "size": size}
        )
    )


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model: clip, vit, dinov2, ijepa, bert, sentence, sentence-cls, …"""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            path = made[kind] = tmp_path_factory.mktemp(kind)
            _save_model(kind, path)
            if kind in ("clip", *IMAGES):
                _save_processor(path, kind)
            if kind not in IMAGES:
                save_tokenizer(path)
            if kind.startswith("sentence"):
                pooling = {"pooling_mode_cls_token": kind == "sentence-cls"}
                pooling["pooling_mode_mean_tokens"] = kind == "sentence"
                (path / "1_Pooling").mkdir()
                (path / "1_Pooling/config.json").write_text(json.dumps(pooling))
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def call_fedms() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`call_fedms(folder, "run", …)` as a shell does it there, but in this process with torch."""

    def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        out, err, code = io.StringIO(), io.StringIO(), None
        argv = mock.patch.object(sys, "argv", ["fedms", *words])
        with chdir(folder), redirect_stdout(out), redirect_stderr(err), argv:
            try:
                main()
            except SystemExit as ended:
                code = ended.code
        ended_with = code if isinstance(code, int) else int(code is not None)
        return subprocess.CompletedProcess(words, ended_with, out.getvalue(), err.getvalue())

    return call


HEAVY = ("fedms.progress", "fedms.run", "flwr_datasets.partitioner", "sklearn.datasets")
"""What a program of ours imports, for seconds."""
AS_A_PROGRAM = """
import atexit, os, runpy, sys, tempfile
for number, path in ((1, out), (2, err)):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, number)
    os.close(file)
os.setsid()
os.chdir(folder)
os.environ.clear()
os.environ.update(env)
tempfile.tempdir = None
kind, *words = words
sys.argv = words if kind == "-m" else [kind, *words[1:]] if kind == "-c" else [kind, *words]
try:
    if kind == "-m":
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(words[0], {"__name__": "__main__"})
    else:
        runpy.run_path(kind, run_name="__main__")
finally:
    atexit._run_exitfuncs()
"""


class Program:
    """`python *words` in a session of its own, which has imported what is heavy before it began.

    Its environment is what modules find that are imported later; others have read theirs. What
    it writes is appended to files. As of `subprocess.Popen` are `pid`, `poll`, `wait`, `kill`.
    """

    def __init__(
        self,
        *words: object,
        folder: Path,
        out: Path,
        err: Path | None = None,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        given = {"words": [*map(str, words)], "folder": str(folder), "env": dict(env)}
        given |= {"out": str(out), "err": str(err or out)}
        out.touch()
        self._process = _forks().Process(target=exec, args=(AS_A_PROGRAM, given))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _forks() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(HEAVY))
    return context


@pytest.fixture(scope="session")
def program() -> type[Program]:
    return Program


@pytest.fixture(scope="session")
def perform_program(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`perform_program(*words, folder=, env=, timeout=)`: a `Program` to its end."""

    def performed(
        *words: object, timeout: float = 300, **where: Any
    ) -> subprocess.CompletedProcess[str]:
        said = tmp_path_factory.mktemp("program")
        process = Program(*words, out=said / "out", err=said / "err", **where)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        read = [path.read_text() if path.exists() else "" for path in (said / "out", said / "err")]
        return subprocess.CompletedProcess(words, code, *read)

    return performed


@pytest.fixture(scope="session", autouse=True)
def workers_are_forks() -> Iterator[None]:
    """Workers that tests start in this process begin as a `Program` does, not in ten seconds."""
    forks = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows
    with mock.patch.object(workers, "PROCESSES", _forks() if forks else workers.PROCESSES):
        yield


@pytest.fixture(scope="session")
def tokenizer_saver() -> Callable[..., None]:
    return save_tokenizer


@pytest.fixture(scope="session", autouse=True)
def unflushed() -> Iterator[None]:
    """Files are not flushed to disk, a tenth of all tests' time: nobody pulls the plug on them."""
    with mock.patch.object(os, "fsync", return_value=None):
        yield


@pytest.fixture(scope="session")
def make_learner(model_folder: Callable[[str], Path]) -> Callable[..., ModelLearner]:
    """A learner over a fresh copy of a tiny model, or of a real one by its name, with 3 classes."""
    loaded: dict[str, Backbone] = {}

    def fresh(kind: str) -> Backbone:
        if kind in ("glyphclip", "minilm"):
            return load_backbone(kind)
        if kind not in loaded:
            loaded[kind] = load_backbone(str(model_folder(kind)))
        return copy.deepcopy(loaded[kind])

    def make(
        kind: str,
        *,
        training: Training | None = None,
        mixing: Mixing | None = None,
        cache_bytes: int = 0,
        linear: bool = False,
        rank: int = 2,
        dtype: torch.dtype = torch.float32,
        targets: str = "qv",
        gate_hidden: int = 0,
    ) -> ModelLearner:
        with torch.random.fork_rng(devices=[]):
            backbone = fresh(kind)
            if backbone.scores_prompts and not linear:
                head: Any = PromptHead.encode(backbone, [CLASSES], temperature=5.0)
            else:
                head = LinearHead(backbone.width, len(CLASSES))
            backbone.compute_in(dtype)
            found = backbone.blocks(targets)
            slots = AdapterSlots(backbone.model, found, rank, 2 * rank, gate_hidden)
        training = training or Training(batch_size=4, learning_rate=0.05, gate_learning_rate=0.05)
        return ModelLearner(backbone, slots, head, training, mixing or Mixing(), Room(cache_bytes))

    return make


def raw_inputs(takes: str, labels: Sequence[int], seed: int) -> list[Any]:
    """Images of a class colour with noise, or texts of 1 to 9 words that begin with the class."""
    rng = np.random.default_rng(seed)
    if takes == "text":
        return [
            " ".join([CLASSES[c].split()[0], *rng.choice(WORDS, rng.integers(0, 9))])
            for c in labels
        ]
    pixels = rng.integers(0, 150, (len(labels), 16, 16, 3))
    pixels[np.arange(len(labels)), :, :, list(labels)] += 100
    return [Image.fromarray(p.astype(np.uint8)) for p in pixels]


@pytest.fixture(scope="session")
def inputs() -> Callable[..., list[Any]]:
    return raw_inputs


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., Rows]:
    """`count` rows for a backbone, whose classes repeat 0, 1, 2 or are given."""

    def make(backbone: Any, count: int, seed: int = 0, labels: Sequence[int] | None = None) -> Rows:
        classes = np.arange(count) % 3 if labels is None else np.asarray(labels)
        columns = backbone.encode(raw_inputs(backbone.takes, classes.tolist(), seed))
        return Rows(columns, classes.astype(np.int64))

    return make


@pytest.fixture(scope="session")
def make_client(make_rows: Callable[..., Rows]) -> Callable[..., ClientData]:
    """A client with `rows` training rows and 4 of validation and of test."""

    def make(
        backbone: Any, name: str = "a", rows: int = 9, seed: int = 0, cap: int | None = None
    ) -> ClientData:
        parts = [make_rows(backbone, n, 10 * seed + i) for i, n in enumerate((rows, 4, 4))]
        return ClientData(name, *parts, cap)

    return make


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests say of what they saw (`record_property("survived", text)`)."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            for name, text in report.user_properties:
                if name == "survived" and report.when == "call":
                    terminalreporter.write_line(f"{text}")
