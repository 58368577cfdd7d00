"""Write a job for the peers: the rows, prompts and settings that fedms has for a configuration.

python benchmarks/peers/write_job.py FOLDER --config recipes/banking77.toml [section.key=value …]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from job import Client, Examples, Job, save_job

from fedms import build
from fedms.config import Config, load_config
from fedms.core.rows import Index
from fedms.data import Table


def write_job(
    folder: Path,
    config: Config,
    *,
    threads: int = 1,
    group_by_length: bool = True,
    device: str = "cpu",
) -> Job:
    """Write a job folder and give what is in it.

    Rounds of federated averaging are those of stage 1, local rounds those of stage 2. fedms batches
    texts of like length, so the peers do, unless `group_by_length` is False. Priors, momentum,
    caps and cohorts of the configuration have no meaning for the peers.

    Raises:
        ValueError: if the data are no texts, or classes are not scored by prompts.
    """
    table = build.load_table(config)
    federation = build.deal(config, table)
    learner, head = build.make_learner(config, table.kind, federation.classes)
    backbone, slots = learner.backbone, learner.slots
    if backbone.kind != "sentence" or head["kind"] != "prompt":
        raise ValueError(
            f"got model {config.model.name!r} with a {head['kind']} head; "
            "expected a sentence encoder that scores class prompts; try model.name=minilm"
        )
    classes = {label: number for number, label in enumerate(federation.classes)}
    training, stage1, stage2 = config.training, config.stage1, config.stage2
    job = Job(
        model=os.fspath(backbone.name),
        max_length=backbone.max_length,
        prompts=head["prompts"],
        temperature=head["temperature"],
        rank=config.lora.rank,
        alpha=config.lora.alpha,
        targets=slots.config(range(len(slots.groups))).target_modules,
        rounds=stage1.rounds,
        epochs=stage1.epochs,
        local_rounds=stage2.rounds,
        local_epochs=stage2.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        group_by_length=group_by_length,
        seed=config.seed,
        threads=threads,
        device=device,
        clients=[
            Client(c.id, *(_examples(table, rows, classes) for rows in (c.train, c.val, c.test)))
            for c in federation.clients
        ],
    )
    save_job(folder, job)
    return job


def _examples(table: Table, rows: Index, classes: dict[str, int]) -> Examples:
    part = table.take(rows)
    return Examples([str(text) for text in part.inputs], [classes[c] for c in part.labels])


def main() -> None:
    """Write the job that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", type=Path, help="a recipe of fedms; default: all defaults")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shuffle", action="store_true", help="batches of rows of any length")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    words = parser.parse_intermixed_args()
    config = load_config(words.config, words.overrides)
    write_job(words.folder, config, threads=words.threads, group_by_length=not words.shuffle)


if __name__ == "__main__":
    main()
