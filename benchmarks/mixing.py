"""How should two experts be joined? Rules tried on the same two experts of every client.

    python benchmarks/mixing.py recipes/femnist.toml partition.max_clients=60 stage1.prior=none

FedMS runs once, uncalibrated; after its last round the rules weigh what the experts say. Whatever
a rule fits, it fits on validation rows, with the ridge of `core.calibration`, and with weights of
any sign unless it says otherwise; test rows are only scored. Printed: mean over clients of test
accuracy and log loss, weights that all clients share.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pages
import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.build import build
from fedms.config import load_config
from fedms.core import calibration
from fedms.core.algorithm import View
from fedms.core.discriminant import Discriminant
from fedms.core.discriminant import discriminant as make
from fedms.core.rows import ClientData
from fedms.models import ModelLearner
from fedms.models.mixture import class_evidence, evidence
from fedms.run import run
from fedms.store.run_folder import RunFolder

UNCALIBRATED = ("gate.calibration=false", "evaluate_every=0", "stage2.checkpoint=last")
CALIBRATION = "shared: all six, no opinion's weight negative (as `core.calibration`)"
_STEPS = 30


@dataclass(frozen=True)
class Known:
    """A client's evidence and labels, on validation and test rows."""

    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def sure(x: Tensor) -> Tensor:
    """Evidence with the experts' own scaled by how sure both are, and where they agree."""
    shared, own = x[..., 0], x[..., 1]
    entropies = [-(e.exp() * e).sum(-1, keepdim=True) for e in (shared, own)]
    agree = (shared.argmax(-1) == own.argmax(-1)).to(x)[:, None]
    scales = (*entropies, agree)
    return torch.stack([*x.unbind(-1), *(s * e for s in scales for e in (shared, own))], -1)


def columns(*indices: int) -> Callable[[Tensor], Tensor]:
    """Some of the six pieces of evidence."""
    return lambda x: x[..., list(indices)]


def fit(
    rows: Sequence[tuple[Tensor, Tensor]], start: Tensor, opinions: Sequence[int] = ()
) -> Tensor:
    """Weights with the least log loss, and a ridge in nats around the start, by Newton's method.

    Those of `opinions` are at least 0.
    """
    weights = start.double()
    apart = torch.cat([(x - x.mean(1, keepdim=True)).flatten(0, 1) for x, _ in rows]).double()
    spread = apart.T @ apart / len(apart)
    ridge = spread + calibration.FLOOR * torch.eye(len(start)).double()
    for _ in range(_STEPS):
        pull, curvature = ridge @ start.double(), ridge
        for x, y in rows:
            z = x.double()
            p = F.softmax(z @ weights, -1)
            mean = torch.einsum("nc,nci->ni", p, z)
            bend = torch.einsum("nc,nci,ncj->ij", p, z, z) - mean.T @ mean
            pull = pull + bend @ weights - (mean - z[torch.arange(len(y)), y]).sum(0)
            curvature = curvature + bend
        step = calibration.lowest(curvature, pull, opinions) - weights
        weights = weights + calibration.damped(step, spread)
    return weights


def score(found: Sequence[tuple[Tensor, Tensor]]) -> str:
    """Mean over clients of accuracy and log loss, of log-probabilities and labels."""
    kept = [(p, y) for p, y in found if len(y)]
    accuracy = statistics.fmean(float((p.argmax(-1) == y).float().mean()) for p, y in kept)
    loss = statistics.fmean(float(F.nll_loss(p, y)) for p, y in kept)
    return f"{accuracy:.3f} ({loss:.3f})"


def gathered(learner: ModelLearner, clients: Sequence[ClientData]) -> Discriminant:
    """Class statistics of all clients."""
    parts = [learner.statistics(client) for client in clients]
    total = {name: torch.stack([p[name] for p in parts]).sum(0) for name in parts[0]}
    made = Discriminant.of(make(total), personal=True)
    assert made is not None
    return made


def gather(words: Sequence[str]) -> list[Known]:
    """Run FedMS, and ask every client's experts, gate and counts."""
    config = load_config(Path(words[0]), [*UNCALIBRATED, *words[1:]])
    with tempfile.TemporaryDirectory(prefix="fedms-mixing-") as scratch:
        path = Path(scratch) / "run"
        run(config, path)
        experiment, folder = build(config), RunFolder(path)
        server = folder.server_states.load()[0]
        learner, known = experiment.learner, []
        discriminant = gathered(learner, experiment.clients)
        for client in experiment.clients:
            own = folder.client_states.load(client.id)
            view = experiment.algorithm.view(server, own, "personal")
            assert view is not None
            assert view.partner is not None
            parts = []
            for rows in (client.val, client.test):
                said = [learner.predict(View(e), client, rows) for e in (view.partner, view.expert)]
                shared, mine = (s.log_probabilities for s in said)
                weight = learner.predict(view, client, rows).gate_weight
                even = torch.full((len(rows),), 0.5) if weight is None else weight
                seen, smoothing = client.train.labels, config.gate.smoothing
                evident = discriminant.scores(
                    learner.frozen(rows),
                    learner.frozen(client.train),
                    torch.from_numpy(seen),
                    learner.head.prompts,
                )
                counted = class_evidence(seen, shared.shape[-1], smoothing)
                x = evidence(shared, mine, even, evident, counted)
                parts.append((x, torch.from_numpy(rows.labels)))
            known.append(Known(*parts))
    return known


def gate(x: Tensor) -> Tensor:
    """The mixture of probabilities by the gate's weight, read off its own evidence."""
    lean, apart = x[..., 2] - x[..., 1], x[..., 0] - x[..., 1]
    at = apart.abs().argmax(-1, keepdim=True)
    weight = (lean.gather(-1, at) / apart.gather(-1, at).clamp_min(-1e9)).nan_to_num(0.5)
    weight = weight.clamp(1e-6, 1 - 1e-6)
    return torch.logaddexp(weight.log() + x[..., 0], (1 - weight).log() + x[..., 1])


def table(clients: Sequence[Known]) -> list[list[str]]:
    """Every rule's score on test rows."""
    tests = [client.test for client in clients]
    half = torch.tensor(0.5).log()
    fixed: dict[str, Callable[[Tensor], Tensor]] = {
        "global expert": lambda x: x[..., 0],
        "local expert": lambda x: x[..., 1],
        "the gate, probabilities": gate,
        "equal weights, probabilities": lambda x: torch.logaddexp(x[..., 0], x[..., 1]) + half,
        "equal weights, logits": lambda x: F.log_softmax((x[..., 0] + x[..., 1]) / 2, -1),
    }
    lines = [[name, score([(rule(x), y) for x, y in tests])] for name, rule in fixed.items()]
    every, first = columns(*range(6)), calibration.initial().tolist()
    fitted: dict[str, tuple[Callable[[Tensor], Tensor], list[float]]] = {
        "shared: global, local, prior": (columns(0, 1, 3), [0.5, 0.5, 0.0]),
        "shared: global, local, prior, unseen": (columns(0, 1, 3, 4), [0.5, 0.5, 0.0, 0.0]),
        "shared: these and the gate": (columns(0, 1, 2, 3, 4), first[:-1]),
        "shared: all six": (every, first),
        CALIBRATION: (every, first),
        "shared: all but the global expert and the gate": (columns(1, 3, 4, 5), [1.0, 0, 0, 0.05]),
        "shared: all but the local expert and the gate": (columns(0, 3, 4, 5), [1.0, 0, 0, 0.05]),
        "shared: prior, unseen, statistics": (columns(3, 4, 5), [0.0, 0.0, 0.05]),
        "shared: all six, and how sure experts are": (sure, [*first, *[0] * 6]),
    }
    for name, (pick, start) in fitted.items():
        rows = [(pick(c.val[0]), c.val[1]) for c in clients]
        opinions = calibration.OPINIONS if name == CALIBRATION else ()
        weights = fit(rows, torch.tensor(start), opinions)
        said = [(F.log_softmax(pick(x).double() @ weights, -1), y) for x, y in tests]
        values = ", ".join(f"{w:+.2f}" for w in weights.tolist())
        lines.append([name, f"{score(said)}: {values}"])
    three, even = columns(0, 1, 3), torch.tensor([0.5, 0.5, 0.0])
    shared = fit([(three(c.val[0]), c.val[1]) for c in clients], even)
    alone = [fit([(three(c.val[0]), c.val[1])], shared) for c in clients]
    said = [
        (F.log_softmax(three(x).double() @ w, -1), y)
        for (x, y), w in zip(tests, alone, strict=True)
    ]
    lines.append(["a client's own: global, local, prior", score(said)])
    return lines


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="+", metavar="CONFIG KEY=VALUE")
    print(pages.table(["rule", "test"], table(gather(parser.parse_args().words))))  # noqa: T201


if __name__ == "__main__":
    main()
