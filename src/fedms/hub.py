"""The model hub: what stands in a card for its index, and uploads. The only importer of its client.

Nothing is sent anywhere but by `push`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import EvalResult, HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from fedms.core.errors import UserError


class Hub(Protocol):
    """What is asked of the hub; `HfApi` can."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any: ...

    def model_info(self, repo_id: str) -> Any: ...

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> Any: ...


def metadata(
    title: str,
    *,
    licence: str,
    base: str | None,
    dataset: str | None,
    takes: str,
    tags: Sequence[str],
    scores: Mapping[str, float],
) -> str:
    """YAML of a model card's head, as the hub reads it.

    Args:
        title: of the model.
        licence: its short name.
        base: id of the foundation model on the hub, or None.
        dataset: id of the data set there, or None.
        takes: `text` or `image`.
        tags: for searches.
        scores: accuracies on test rows, by what they are of.
    """
    task = f"{takes}-classification"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=dataset or "private",
            dataset_name=dataset or "the client's test rows",
            metric_type="accuracy",
            metric_name=f"test accuracy, {role}",
            metric_value=score,
        )
        for role, score in scores.items()
    ]
    return ModelCardData(
        license=licence,
        base_model=base,
        datasets=[dataset] if dataset else None,
        library_name="peft",
        pipeline_tag=task,
        tags=list(tags),
        model_name=title,
        eval_results=results or None,
    ).to_yaml()


def check_repository(repository: str) -> None:
    """Make sure that it is named as the hub's are.

    Raises:
        UserError: if it is not.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository):
        raise UserError(f"got --push-to-hub {repository!r}; expected OWNER/NAME")


def push(folder: Path, repository: str, *, public: bool = False, hub: Hub | None = None) -> str:
    """Upload a folder, into a repository that is made if needed; where it is then.

    Who uploads is who has logged in (`hf auth login`, or HF_TOKEN).

    Args:
        folder: what is uploaded.
        repository: OWNER/NAME.
        public: whether anyone may see it.
        hub: what is asked.

    Raises:
        UserError: if it cannot be done, or the repository is public and this should not be.
    """
    check_repository(repository)
    api: Hub = hub or HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        if not public and not api.model_info(repository).private:
            raise UserError(
                f"got --push-to-hub {repository}, which is public; expected a private repository, "
                "for adapters are made from a client's rows; to publish them: --public"
            )
        said = f"{folder.name}, exported by fedms"
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=said)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"got --push-to-hub {repository}, which failed ({reason}); expected to be logged in "
            "with the right to write there; try: hf auth login"
        ) from None
    return f"https://huggingface.co/{repository}"
