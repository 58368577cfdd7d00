"""The ClientApp of `flower_sim.py`: a module of its own, so that Ray's workers can import it."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

import flower_runtime
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from job import Job, load_job
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from task import PromptClassifier, Row, make_tokenizer, tokenise, training_batches
from task import train as train_locally
from torch.utils.data import DataLoader


def load_model(job: Job) -> PromptClassifier:
    """The model, with new adapters."""
    torch.set_num_threads(job.threads)
    return PromptClassifier(job)


def load_data(job: Job, partition: int) -> DataLoader[Row]:
    """A client's training batches."""
    tokenizer = make_tokenizer(job)
    rows = tokenise(tokenizer, job.clients[partition].train, job.max_length)
    how = training_batches(job, rows, tokenizer)
    return DataLoader(rows, job.batch_size, **how)  # type: ignore[arg-type]


@cache
def kept_model(folder: Path) -> PromptClassifier:
    """The worker's one model."""
    return load_model(load_job(folder))


@cache
def kept_data(folder: Path, partition: int) -> DataLoader[Row]:
    """A client's batches, made once a worker."""
    return load_data(load_job(folder), partition)


def make_client(folder: Path, keep: bool) -> ClientApp:
    """The ClientApp for a job.

    Args:
        folder: of the job.
        keep: model and batches in the worker's memory; else they are made in every call.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        started = time.time()
        partition = int(context.node_config["partition-id"])
        job = load_job(folder)
        model = kept_model(folder) if keep else load_model(job)
        batches = kept_data(folder, partition) if keep else load_data(job, partition)
        set_peft_model_state_dict(model.encoder, message.content["arrays"].to_torch_state_dict())
        server_round = int(message.content["config"]["server-round"])
        torch.manual_seed(hash((job.seed, server_round, partition)))
        train_locally(model, batches, job, job.epochs)
        arrays = ArrayRecord(get_peft_model_state_dict(model.encoder))
        rows = len(job.clients[partition].train)
        metrics = MetricRecord({"num-examples": rows, flower_runtime.STARTED: started})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content=content, reply_to=message)

    return app
