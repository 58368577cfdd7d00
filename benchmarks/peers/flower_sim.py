"""Federated averaging of LoRA in Flower's simulation (Ray), as Flower's examples write it.

    python benchmarks/peers/flower_sim.py JOB_FOLDER --out RESULT.json [--workers N] [--keep-model]

The ClientApp loads model and data in its function, as the examples for transformers and PEFT do;
`--keep-model` keeps both in the worker's memory from call to call instead. `--workers` are Ray's
cores, and so its client processes.
"""

from __future__ import annotations

import flower_runtime
import torch
from flower_client import load_model, make_client
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from job import arguments, load_job, save_result
from memory import measured
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from task import global_accuracy


def main() -> None:
    """Run the job."""
    clock = flower_runtime.Clock()
    parser = arguments(__doc__)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--keep-model", action="store_true")
    words = parser.parse_args()
    job = load_job(words.job)
    torch.manual_seed(job.seed)
    model = load_model(job)
    clients = len(job.clients)

    def server(grid: Grid) -> None:
        initial = ArrayRecord(get_peft_model_state_dict(model.encoder))
        result = flower_runtime.fedavg(grid, initial, clients, job.rounds, clock)
        set_peft_model_state_dict(model.encoder, result.arrays.to_torch_state_dict())

    client = make_client(words.job.resolve(), words.keep_model)
    with measured() as spent:
        flower_runtime.simulate(server, client, clients=clients, workers=words.workers)
    result = {
        "peer": "flower_sim",
        "workers": words.workers,
        "keep_model": words.keep_model,
        **spent,
        **clock.seconds(),
        **global_accuracy(model, job, job.clients),
    }
    save_result(words.out, job, ["flwr", "ray"], result)


if __name__ == "__main__":
    main()
