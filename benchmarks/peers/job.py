"""A training job as files that any program can read: `job.json` and one JSON file a client.

Nothing here imports fedms. `write_job.py` writes such a folder from a configuration of fedms.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Examples:
    """Raw texts and their class indices, of one length."""

    texts: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Client:
    """What one client holds. Validation and test rows may be missing, training rows never."""

    id: str
    train: Examples
    val: Examples
    test: Examples


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and how.

    Args:
        model: folder of the sentence encoder, as `save_pretrained` writes it; features are means
            over tokens.
        max_length: tokens after which texts are cut.
        prompts: for every template, the prompt of every class; templates are averaged.
        temperature: what cosines with the prompts' embeddings are multiplied by.
        rank, alpha: of the LoRA adapters, which have no dropout.
        targets: regular expression of the adapted layers' paths, in all blocks.
        rounds, epochs: of federated averaging.
        local_rounds, local_epochs: of the fine-tuning of every client that follows.
        batch_size, learning_rate, weight_decay: of AdamW, which starts anew every round.
        group_by_length: batch texts of like length, with the sampler of transformers; else
            batches are shuffled rows. Either way a batch is padded to its longest text.
        threads: of torch, in every process.
        device: torch's, of the model and its batches; Flower's and pfl's peers know the CPU alone.
        clients: who trains; all of them every round.
    """

    model: str
    max_length: int
    prompts: list[list[str]]
    temperature: float
    rank: int
    alpha: float
    targets: str
    rounds: int
    epochs: int
    local_rounds: int
    local_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    group_by_length: bool
    seed: int
    threads: int
    device: str
    clients: list[Client]


def save_job(folder: Path, job: Job) -> None:
    """Write a job; clients keep their order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"client-{number:04d}.json" for number in range(len(job.clients))]
    for name, client in zip(names, job.clients, strict=True):
        _write(folder / name, asdict(client))
    settings = {f.name: getattr(job, f.name) for f in fields(job)}
    _write(folder / "job.json", {**settings, "clients": names})


def load_job(folder: Path) -> Job:
    """Read what `save_job` wrote."""
    settings = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    return Job(**{**settings, "clients": [load_client(folder, n) for n in settings["clients"]]})


def load_client(folder: Path, name: str) -> Client:
    """Read the file of one client."""
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    parts = {split: Examples(**content[split]) for split in ("train", "val", "test")}
    return Client(content["id"], **parts)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The command line that all peers have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", type=Path, help="folder that write_job.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the result")
    return parser


def save_result(path: Path, job: Job, packages: Sequence[str], result: Mapping[str, Any]) -> None:
    """Write a peer's result with threads and package versions."""
    known = ("torch", "transformers", "peft", *packages)
    how = {"threads": job.threads, "group_by_length": job.group_by_length}
    about = {**how, "versions": {name: version(name) for name in known}}
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, {**result, **about})


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
