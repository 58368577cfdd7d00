"""What of a configuration does not fit: method, model and rule; names of classes and clients.

Options that are wrong by themselves do not get here: `config/` refuses them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fedms import models
from fedms.config import Config
from fedms.core.errors import UserError, did_you_mean


def check(config: Config) -> None:
    """Make sure that method and model fit, as far as is known without data and weights.

    Raises:
        UserError: if they do not.
    """
    prompted(config, models.look_up(config.model.name).scores_prompts)
    wanted, most = config.lora.ranks, config.lora.rank
    if wanted and config.method != "flexlora":
        raise UserError(
            f'got lora.ranks with method = "{config.method}", whose clients have one rank; '
            'expected method = "flexlora"'
        )
    _ruled(config.aggregation.rule, config.method)
    if config.runtime.name == "ray" and config.data.source == "memory":
        raise UserError(
            'got runtime.name = "ray" for rows in memory, which processes cannot read; expected '
            "rows in files; try runtime.workers"
        )
    if config.runtime.name == "ray" and config.runtime.stack > 1:
        raise UserError(
            f'got runtime.stack = {config.runtime.stack} with runtime.name = "ray", whose clients '
            "are trained one by one; expected 1"
        )
    if any(rank > most for rank in wanted.values()):
        raise UserError(
            f"got lora.ranks of {max(wanted.values())}; expected at most lora.rank = {most}"
        )


def _ruled(rule: str, method: str) -> None:
    """Whether a method can do with what a rule makes of updates."""
    got = f'got aggregation.rule = "{rule}" with method = "{method}", '
    if rule == "clip" and method in ("flora", "fedex", "flexlora"):
        raise UserError(
            f"{got}which averages products, of which no change is known; "
            'try aggregation.rule = "geometric"'
        )
    if rule in ("median", "trimmed") and method in ("flora", "fedex"):
        raise UserError(
            f"{got}which sends an average of products as pairs of no more rank than clients' own "
            'have together; a median has more; try aggregation.rule = "geometric"'
        )
    if rule != "mean" and method == "fedalt":
        raise UserError(f'{got}whose clients take their share out of a mean; expected "mean"')


def prompted(config: Config, scores_prompts: bool) -> bool:
    """Whether classes are scored by their prompts, rather than by a linear head.

    Raises:
        UserError: if model or method cannot do with that.
    """
    wanted, method = config.model, config.method
    if wanted.head == "prompt" and not scores_prompts:
        raise UserError(
            f'got model.head = "prompt" for model.name = {wanted.name!r}, which cannot score class '
            'prompts; expected CLIP or a sentence encoder; try model.head = "linear"'
        )
    by_prompts = scores_prompts and wanted.head != "linear"
    if method == "probe" and by_prompts:
        raise UserError(
            'got method = "probe" with class prompts, of which nothing trains; '
            'expected a linear head; try model.head = "linear"'
        )
    if method in ("promptfl", "fedclip") and not by_prompts:
        raise UserError(
            f'got method = "{method}" with a linear head; expected class prompts, as CLIP '
            "or a sentence encoder can score them"
        )
    return by_prompts


def expect_known(names: Iterable[str], classes: Collection[str]) -> None:
    """Make sure that what `model.label_names` names are classes.

    Raises:
        UserError: if one is none.
    """
    for name in names:
        if name not in classes:
            raise UserError(
                f"got model.label_names of {name!r}, which is no class; expected some of the "
                f"{len(classes)} there are{did_you_mean(name, classes)}"
            )


def check_named(key: str, wanted: Iterable[str], clients: list[str]) -> None:
    """Make sure that what an option names are clients, or all others (`*`).

    Args:
        key: the option.
        wanted: the names in it.
        clients: those that there are.

    Raises:
        UserError: if one is none.
    """
    unknown = {*wanted} - {*clients, "*"}
    if unknown:
        known = ", ".join(clients[:5])
        raise UserError(
            f"got {key} for client {min(unknown)!r}, which is not there; expected one of "
            f'{known}{", …" if len(clients) > 5 else ""}, or "*"'
        )
