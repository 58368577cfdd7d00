"""Federated methods. Each is a `FederatedAlgorithm` and sees the model only as a `Learner`."""

from collections.abc import Callable, Mapping

from fedms.algorithms.ditto import ditto
from fedms.algorithms.dual import dual, fedalt, feddpa
from fedms.algorithms.fedcgs import fedcgs
from fedms.algorithms.fedms import fedms, finetune
from fedms.algorithms.keygroups import (
    fedadam,
    fedavg,
    fedclip,
    fedper,
    fedprox,
    fedra,
    fedrep,
    fedsa,
    ffa,
    local,
    probe,
    promptfl,
)
from fedms.algorithms.options import Options, Stage
from fedms.algorithms.products import fedex, flexlora, flora
from fedms.algorithms.sal import Sal
from fedms.algorithms.server import Server
from fedms.core.algorithm import FederatedAlgorithm
from fedms.core.layout import Layout

METHODS: Mapping[str, Callable[[Layout, Options], FederatedAlgorithm]] = {
    "fedms": fedms,
    "finetune": finetune,
    "fedavg": fedavg,
    "fedprox": fedprox,
    "fedadam": fedadam,
    "ffa": ffa,
    "flora": flora,
    "fedex": fedex,
    "flexlora": flexlora,
    "promptfl": promptfl,
    "fedclip": fedclip,
    "fedra": fedra,
    "fedcgs": fedcgs,
    "ditto": ditto,
    "fedper": fedper,
    "fedrep": fedrep,
    "fedsa": fedsa,
    "dual": dual,
    "fedalt": fedalt,
    "feddpa": feddpa,
    "local": local,
    "probe": probe,
}
"""By the name in the configuration."""

__all__ = [
    "METHODS",
    "Options",
    "Sal",
    "Server",
    "Stage",
    "ditto",
    "dual",
    "fedadam",
    "fedalt",
    "fedavg",
    "fedcgs",
    "fedclip",
    "feddpa",
    "fedex",
    "fedms",
    "fedper",
    "fedprox",
    "fedra",
    "fedrep",
    "fedsa",
    "ffa",
    "finetune",
    "flexlora",
    "flora",
    "local",
    "probe",
    "promptfl",
]
