"""Federated methods. Each is a `FederatedAlgorithm` and sees the model only as a `Learner`."""

from fedms.algorithms.fedms import Options, Stage, fedavg, fedms
from fedms.algorithms.local import local
from fedms.algorithms.sal import Sal

__all__ = ["Options", "Sal", "Stage", "fedavg", "fedms", "local"]
