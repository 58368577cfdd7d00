"""Federated averaging of LoRA, then fine-tuning of every client, in plain transformers and PEFT.

    python benchmarks/peers/plain_peft.py JOB_FOLDER --out RESULT.json

One model in memory; a client's adapters are put into it and taken out again. All blocks train.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from job import Job, arguments, load_job, save_result
from memory import measured
from peft import set_peft_model_state_dict
from task import (
    PromptClassifier,
    Row,
    State,
    accuracy,
    average,
    make_tokenizer,
    mean_over_clients,
    tokenise,
    train,
    training_batches,
)
from torch.utils.data import DataLoader


@dataclass
class Trainer:
    """The model and all clients' tokens, with what was spent so far."""

    job: Job
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    sent_bytes: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.set_num_threads(self.job.threads)
        torch.manual_seed(self.job.seed)
        self.model = PromptClassifier(self.job).to(self.job.device)
        self.tokenizer = make_tokenizer(self.job)
        clients = self.job.clients
        self.train_rows = [self._tokens(client.train) for client in clients]
        self.val_rows = [self._tokens(client.val) for client in clients]
        self.test_rows = [self._tokens(client.test) for client in clients]

    def _tokens(self, examples: Any) -> list[Row]:
        return tokenise(self.tokenizer, examples, self.job.max_length)

    def fit(self, state: State, client: int, epochs: int) -> State:
        """One client's training from these adapters."""
        rows = self.train_rows[client]
        start = time.perf_counter()
        set_peft_model_state_dict(self.model.encoder, state)
        how = training_batches(self.job, rows, self.tokenizer)
        train(self.model, DataLoader(rows, self.job.batch_size, **how), self.job, epochs)  # type: ignore[arg-type]
        state = self.model.adapters()
        if self.job.device != "cpu":
            torch.accelerator.synchronize()
        self.train_seconds += time.perf_counter() - start
        return state

    def evaluate(self, stage: str, number: int, states: Sequence[State]) -> None:
        """Add a point to the curve: every client under its own adapters."""
        start = time.perf_counter()
        clients = {
            client.id: self._score(state, index)
            for index, (client, state) in enumerate(zip(self.job.clients, states, strict=True))
        }
        self.evaluate_seconds += time.perf_counter() - start
        self.curve.append(
            {
                "stage": stage,
                "round": number,
                "train_seconds": self.train_seconds,
                "evaluate_seconds": self.evaluate_seconds,
                "bytes": self.sent_bytes,
                "validation": mean_over_clients(c["validation"] for c in clients.values()),
                "test": mean_over_clients(c["test"] for c in clients.values()),
                "clients": clients,
            }
        )

    def _score(self, state: State, client: int) -> dict[str, float | None]:
        set_peft_model_state_dict(self.model.encoder, state)
        return {
            "validation": accuracy(self.model, self.val_rows[client], self.tokenizer),
            "test": accuracy(self.model, self.test_rows[client], self.tokenizer),
        }

    def send(self, state: State) -> None:
        """Count one client's upload or download."""
        self.sent_bytes += len(safetensors.torch.save(state))

    def federated_averaging(self) -> State:
        """All clients, every round; the average is weighted by training rows."""
        clients = self.job.clients
        common = self.model.adapters()
        self.evaluate("global", 0, [common] * len(clients))
        weights = [len(client.train) for client in clients]
        for number in range(1, self.job.rounds + 1):
            states = []
            for index in range(len(clients)):
                self.send(common)
                states.append(self.fit(common, index, self.job.epochs))
                self.send(states[-1])
            common = average(states, weights)
            self.evaluate("global", number, [common] * len(clients))
        return common

    def fine_tuning(self, common: State) -> None:
        """Every client goes on alone from the common adapters, which it gets once."""
        states = [common] * len(self.job.clients)
        for number in range(1, self.job.local_rounds + 1):
            for index, state in enumerate(states):
                if number == 1:
                    self.send(common)
                states[index] = self.fit(state, index, self.job.local_epochs)
            self.evaluate("local", number, states)


def main() -> None:
    """Run the job."""
    words = arguments(__doc__).parse_args()
    job = load_job(words.job)
    with measured() as spent:
        trainer = Trainer(job)
        trainer.fine_tuning(trainer.federated_averaging())
    result = {
        "peer": "plain_peft",
        **spent,
        "train_seconds": trainer.train_seconds,
        "evaluate_seconds": trainer.evaluate_seconds,
        "curve": trainer.curve,
    }
    save_result(words.out, job, ["safetensors"], result)


if __name__ == "__main__":
    main()
