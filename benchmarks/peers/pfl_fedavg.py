"""Federated averaging of LoRA in pfl-research, one process, as its documentation teaches.

    python benchmarks/peers/pfl_fedavg.py JOB_FOLDER --out RESULT.json

Clients are `PyTorchDataDataset`s, what pfl has for few clients with much data each: rows are
batched anew every epoch, and every batch is padded by itself.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from job import Job, arguments, load_job, save_result
from memory import measured
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchDataDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from task import (
    EVALUATION_BATCH,
    PromptClassifier,
    global_accuracy,
    make_tokenizer,
    tokenise,
    training_batches,
)
from torch import Tensor
from torch.nn import functional as F


class PflClassifier(PromptClassifier):
    """The model with the two methods that pfl asks for."""

    def loss(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of a batch, in training mode."""
        self.train()
        return F.cross_entropy(self(input_ids, attention_mask), labels)

    @torch.no_grad()
    def metrics(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
    ) -> dict[str, Weighted]:
        """Accuracy on a batch, in evaluation mode."""
        self.eval()
        hits = self(input_ids, attention_mask).argmax(-1) == labels
        return {"accuracy": Weighted(int(hits.sum()), len(labels))}


class TimedModel(PyTorchModel):
    """Keeps the seconds of evaluation apart.

    pfl scores every client's training rows before and after it trains, in the first round at
    least; that is no part of the job.
    """

    evaluate_seconds = 0.0

    def evaluate(self, *args: Any, **options: Any) -> Any:
        """As `PyTorchModel`."""
        start = time.perf_counter()
        metrics = super().evaluate(*args, **options)
        self.evaluate_seconds += time.perf_counter() - start
        return metrics


class RoundClock(TrainingProcessCallback):
    """Seconds of every round, without evaluation."""

    def __init__(self) -> None:
        self.rounds: list[float] = []
        self._last = (0.0, 0.0)

    def on_train_begin(self, *, model: TimedModel) -> Metrics:
        """Start the clock."""
        self._last = (time.perf_counter(), model.evaluate_seconds)
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: TimedModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Note a round."""
        now = (time.perf_counter(), model.evaluate_seconds)
        self.rounds.append(now[0] - self._last[0] - (now[1] - self._last[1]))
        self._last = now
        return False, Metrics()


def make_data(job: Job) -> FederatedDataset:
    """All clients, tokenised once; a cohort of as many as there are has everyone once."""
    tokenizer = make_tokenizer(job)
    tokens = {c.id: tokenise(tokenizer, c.train, job.max_length) for c in job.clients}
    users = {
        name: PyTorchDataDataset(rows, user_id=name, **training_batches(job, rows, tokenizer))
        for name, rows in tokens.items()
    }
    return FederatedDataset(users.__getitem__, MinimizeReuseUserSampler(list(users)))


def make_model(job: Job) -> TimedModel:
    """AdamW on clients; plain averaging, which is SGD with rate 1, on the server."""
    classifier = PflClassifier(job)
    trainable = [p for p in classifier.parameters() if p.requires_grad]

    def local_optimiser(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=job.weight_decay)

    return TimedModel(
        model=classifier,
        local_optimizer_create=local_optimiser,
        central_optimizer=torch.optim.SGD(trainable, lr=1.0),
    )


def run(job: Job, model: TimedModel, clock: RoundClock) -> None:
    """All rounds; the average is weighted by training rows."""
    data = make_data(job)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=job.rounds,
            evaluation_frequency=job.rounds + 1,
            train_cohort_size=len(job.clients),
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(data, val_data=data, postprocessors=[WeightByDatapoints()]),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=job.epochs,
            local_learning_rate=job.learning_rate,
            local_batch_size=job.batch_size,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=EVALUATION_BATCH),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )


def main() -> None:
    """Run the job."""
    words = arguments(__doc__).parse_args()
    job = load_job(words.job)
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    np.random.seed(job.seed)  # noqa: NPY002 - where pfl takes its seeds from
    clock = RoundClock()
    with measured() as spent:
        model = make_model(job)
        run(job, model, clock)
    result = {
        "peer": "pfl_fedavg",
        **spent,
        "round_seconds": clock.rounds,
        "evaluate_seconds": model.evaluate_seconds,
        **global_accuracy(model.pytorch_model, job, job.clients),
    }
    save_result(words.out, job, ["pfl"], result)


if __name__ == "__main__":
    main()
