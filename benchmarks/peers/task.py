"""The task all peers share: a sentence encoder with LoRA that scores classes by their prompts.

Plain torch, transformers and PEFT, used as their documentation teaches. Nothing imports fedms.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

import torch
import transformers
from job import Client, Examples, Job
from peft import LoraConfig, TaskType, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding
from transformers.trainer_pt_utils import LengthGroupedSampler

Batch = Mapping[str, Tensor]
Row = dict[str, Any]
State = dict[str, Tensor]
EVALUATION_BATCH = 128


class PromptClassifier(nn.Module):
    """Cosine between a text's mean token feature and each class's prompt embedding, times a factor.

    Args:
        job: names the encoder, the prompts and the adapters.

    The encoder's own dropout is off, as the job has none; class embeddings come from the encoder
    without adapters and are frozen.
    """

    prompts: Tensor

    def __init__(self, job: Job) -> None:
        super().__init__()
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        base = AutoModel.from_pretrained(
            job.model,
            add_pooling_layer=False,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.temperature = job.temperature
        self.register_buffer("prompts", _embed_prompts(base, job))
        adapters = LoraConfig(
            task_type=TaskType.FEATURE_EXTRACTION,
            r=job.rank,
            lora_alpha=job.alpha,
            lora_dropout=0.0,
            target_modules=job.targets,
        )
        self.encoder = get_peft_model(base, adapters)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`(batch, classes)` logits of `(batch, tokens)` ids."""
        device = self.prompts.device
        features = _features(self.encoder, input_ids.to(device), attention_mask.to(device))
        return self.temperature * features @ self.prompts.T

    def adapters(self) -> State:
        """Copies of the adapters, by the names PEFT saves them under."""
        return {k: v.detach().clone() for k, v in get_peft_model_state_dict(self.encoder).items()}


def _features(encoder: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean over tokens, of unit length, as sentence-transformers computes it."""
    hidden = encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@torch.no_grad()
def _embed_prompts(base: nn.Module, job: Job) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    base.eval()
    each = []
    for texts in job.prompts:
        tokens = tokenizer(
            texts, truncation=True, max_length=job.max_length, padding=True, return_tensors="pt"
        )
        each.append(_features(base, tokens["input_ids"], tokens["attention_mask"]))
    return F.normalize(torch.stack(each).mean(0), dim=-1)


def make_tokenizer(job: Job) -> Any:
    """The encoder's tokenizer."""
    return AutoTokenizer.from_pretrained(job.model)


def tokenise(tokenizer: Any, examples: Examples, max_length: int) -> list[Row]:
    """Token ids and label of every text, without padding."""
    if not len(examples):
        return []
    tokens = tokenizer(
        examples.texts, truncation=True, max_length=max_length, return_token_type_ids=False
    )
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(
            tokens["input_ids"], tokens["attention_mask"], examples.labels, strict=True
        )
    ]


def make_collator(tokenizer: Any) -> Callable[[list[Row]], dict[str, Tensor]]:
    """Pads a batch to its longest text."""
    pad = DataCollatorWithPadding(tokenizer)
    return lambda rows: dict(pad(rows))


def training_batches(job: Job, rows: Sequence[Row], tokenizer: Any) -> dict[str, Any]:
    """Arguments of a client's DataLoader, but for rows and batch size."""
    collate = {"collate_fn": make_collator(tokenizer)}
    if not job.group_by_length:
        return {"shuffle": True, **collate}
    lengths = [len(row["input_ids"]) for row in rows]
    return {"sampler": LengthGroupedSampler(job.batch_size, lengths=lengths), **collate}


def loss_of(model: PromptClassifier, batch: Batch) -> Tensor:
    """Cross-entropy of a batch."""
    logits = model(batch["input_ids"], batch["attention_mask"])
    return F.cross_entropy(logits, batch["labels"].to(logits.device))


def train(model: PromptClassifier, batches: Iterable[Batch], job: Job, epochs: int) -> None:
    """Train the adapters with a fresh AdamW."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=job.learning_rate, weight_decay=job.weight_decay)
    model.train()
    for _ in range(epochs):
        for batch in batches:
            optimiser.zero_grad()
            loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
            optimiser.step()


@torch.inference_mode()
def accuracy(model: PromptClassifier, rows: Sequence[Row], tokenizer: Any) -> float | None:
    """Share of rows that are classified rightly; None where there are no rows."""
    if not rows:
        return None
    model.eval()
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))  # little padding
    how = {"batch_size": EVALUATION_BATCH, "collate_fn": make_collator(tokenizer)}
    hits = 0
    for batch in DataLoader(ordered, **how):  # type: ignore[arg-type]
        guess = model(batch["input_ids"], batch["attention_mask"]).argmax(-1).cpu()
        hits += int((guess == batch["labels"]).sum())
    return hits / len(rows)


def mean_over_clients(values: Iterable[float | None]) -> float | None:
    """Mean over the clients that have rows."""
    counted = [value for value in values if value is not None]
    return mean(counted) if counted else None


def global_accuracy(model: PromptClassifier, job: Job, clients: Sequence[Client]) -> dict[str, Any]:
    """Mean over clients of one model's accuracy, on validation and on test rows."""
    tokenizer = make_tokenizer(job)

    def score(examples: Examples) -> float | None:
        return accuracy(model, tokenise(tokenizer, examples, job.max_length), tokenizer)

    return {
        "validation": mean_over_clients(score(c.val) for c in clients),
        "test": mean_over_clients(score(c.test) for c in clients),
    }


def average(states: Sequence[State], weights: Sequence[int]) -> State:
    """Weighted mean of adapters, tensor by tensor."""
    total = sum(weights)
    return {
        name: torch.stack(
            [s[name] * (w / total) for s, w in zip(states, weights, strict=True)]
        ).sum(0)
        for name in states[0]
    }
