"""What can be compared: a method with the settings that make it fair, and its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Group = Literal["reference", "one global model", "personal", "ours"]
_PLAIN = (
    "gate.mix_prior=none",
    "gate.calibration=false",
    "stage1.prior=none",
    "stage1.server_momentum=0.0",
    "stage2.checkpoint=best",
)
"""Without what the configuration may give FedMS: calibration, priors, momentum, means of rounds."""
_STANDARD = ("stage2.local_init=global",)
"""Options of FedMS' own that other methods would read too."""
_CHOOSING = "bound for gates that choose one expert"
"""A mixture can be right where both experts are wrong."""


@dataclass(frozen=True)
class Variant:
    """A row of the comparison.

    Args:
        title: in tables.
        group: of methods.
        settings: on top of the configuration; `{rounds}` is the rounds of both its stages.
        role: of the run's models, the one that is scored.
        run: name of the variant whose runs it reads; empty: its own.
        bound: in what way it is a bound and no method; empty for methods.
        choices: settings of which each is tried beside the configuration as it is, where learning
            rates are, and decided in the same way.
    """

    title: str
    group: Group
    settings: tuple[str, ...] = ()
    role: Literal["zero_shot", "global", "local", "personal", "oracle"] = "personal"
    run: str = ""
    bound: str = ""
    choices: tuple[str, ...] = ()


def _plain(
    method: str,
    title: str,
    group: Group,
    *settings: str,
    bound: str = "",
    choices: tuple[str, ...] = (),
) -> Variant:
    whole = (f"method={method}", *_PLAIN, *_STANDARD, *settings)
    return Variant(title, group, whole, bound=bound, choices=choices)


def _as_ours(title: str, group: Group, *settings: str, statistics: bool = False) -> Variant:
    """A baseline with everything that FedMS has beside its mixture, SAL and class statistics.

    With class statistics it is a mixture of them and the one expert.
    """
    has = "class statistics, calibration" if statistics else "calibration"
    added = ("gate.calibration=true", f"gate.statistics={'personal' if statistics else 'none'}")
    whole = f"{title}, with FedMS' {has}, means and momentum"
    return Variant(whole, group, (*settings, *added, *_STANDARD))


def _ours(title: str, *settings: str) -> Variant:
    return Variant(title, "ours", ("method=fedms", *settings))


VARIANTS: Mapping[str, Variant] = {
    "zeroshot": Variant("zero-shot", "reference", ("method=fedms",), "zero_shot", run="fedms"),
    "probe": _plain("probe", "linear probe, local", "reference", "model.head=linear"),
    "local": _plain("local", "local-only LoRA", "reference"),
    "local+calibration": _as_ours(
        "local-only LoRA",
        "reference",
        "method=finetune",
        "stage1.rounds=0",
        "stage2.rounds={rounds}",
    ),
    "centralised": _plain("centralised", "centralised LoRA", "reference", bound="not federated"),
    "fedavg": _plain("fedavg", "FedAvg-LoRA", "one global model"),
    "fedavg+calibration": _as_ours(
        "FedAvg-LoRA",
        "one global model",
        "method=fedms",
        "sal.trigger=all",
        "stage1.rounds={rounds}",
        "stage2.rounds=0",
    ),
    "fedprox": _plain("fedprox", "FedProx", "one global model"),
    "fedadam": _plain("fedadam", "FedAdam", "one global model"),
    "ffa": _plain("ffa", "FFA-LoRA", "one global model"),
    "flora": _plain("flora", "FLoRA", "one global model"),
    "fedex": _plain("fedex", "FedEx-LoRA", "one global model"),
    "flexlora": _plain("flexlora", "FlexLoRA", "one global model"),
    "fedra": _plain("fedra", "FedRA", "one global model"),
    "fedcgs": _plain("fedcgs", "FedCGS", "one global model"),
    "promptfl": _plain("promptfl", "PromptFL", "one global model"),
    "fedclip": _plain("fedclip", "FedCLIP", "one global model"),
    "finetune": _plain("finetune", "FedAvg-LoRA, then local fine-tuning", "personal"),
    "finetune+calibration": _as_ours(
        "FedAvg-LoRA, then local fine-tuning", "personal", "method=finetune"
    ),
    "finetune+statistics": _as_ours(
        "FedAvg-LoRA, then local fine-tuning", "personal", "method=finetune", statistics=True
    ),
    "ditto": _plain("ditto", "Ditto", "personal", choices=("baselines.own_pull=0.01",)),
    "fedper": _plain("fedper", "FedPer", "personal"),
    "fedrep": _plain("fedrep", "FedRep", "personal"),
    "fedsa": _plain("fedsa", "FedSA-LoRA", "personal"),
    "fedalt": _plain("fedalt", "FedALT", "personal"),
    "feddpa": _plain("feddpa", "FedDPA-F", "personal"),
    "dual": _plain("dual", "two LoRAs and a gate in every layer", "personal"),
    "dual-mlp": _plain(
        "dual", "two LoRAs and an MLP gate in every layer", "personal", "baselines.gate_hidden=16"
    ),
    "fedms": _ours("**FedMS**"),
    "fedms:global": Variant("its global expert, for anyone", "ours", role="global", run="fedms"),
    "fedms:local": Variant(
        "its local experts, without the global one", "ours", role="local", run="fedms"
    ),
    "fedms:oracle": Variant("its oracle gate", "ours", role="oracle", run="fedms", bound=_CHOOSING),
    "fedms-even": _ours("FedMS, equal weights", "gate.mixture=even"),
    "fedms-all-blocks": _ours("FedMS without SAL", "sal.trigger=all"),
    "fedms-no-stage1": _ours("FedMS without stage 1", "stage1.rounds=0", "stage2.rounds={rounds}"),
    "fedms-share-all": _ours("FedMS, whole gate shared", "gate.share=all"),
    "fedms-share-none": _ours("FedMS, no gate shared", "gate.share=none"),
    "fedms-no-statistics": _ours("FedMS without class statistics", "gate.statistics=none"),
    "fedms-shared-statistics": _ours(
        "FedMS, class statistics without a client's own rows", "gate.statistics=shared"
    ),
    "fedms-prompts": _ours("FedMS, classes where their prompts are", "model.class_vectors=prompt"),
    "fedms-no-calibration": _ours(
        "FedMS without calibration and class statistics",
        "gate.calibration=false",
        "stage1.prior=none",
    ),
    "fedms-best": _ours("FedMS, best rounds instead of means", "stage2.checkpoint=best"),
    "fedms-plain": _ours(
        "FedMS with nothing of ours: no calibration, statistics, means, momentum",
        *_PLAIN,
    ),
}
"""By the name in `--methods`."""


def trained_together(name: str) -> bool:
    """Whether it is one of the others that train, and not alone: FedCGS counts only."""
    return VARIANTS[name].group in ("one global model", "personal") and name != "fedcgs"
