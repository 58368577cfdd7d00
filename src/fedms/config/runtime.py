"""What executes a run, and where it is followed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedms.config.section import DEVICE, Section, Size

Tracker = Literal["tensorboard", "mlflow", "wandb", "trackio"]


class Runtime(Section):
    """What executes the run."""

    name: Literal["simulator", "ray"] = Field(
        "simulator", description="ray: Flower's simulation engine, for who has a Ray cluster"
    )
    device: str = Field("auto", pattern=DEVICE, description="auto: CUDA where there is one")
    workers: int = Field(1, ge=1, le=1024, description="processes that share the clients")
    threads: int | None = Field(
        None, ge=1, description="of torch in every worker; unset: its own choice, shared out"
    )
    stack: int = Field(
        1, ge=1, le=1024, description="clients that are trained together; on a GPU 8 take a quarter"
    )
    gpus: float = Field(
        0.0, ge=0.0, le=64.0, description="share of a GPU that each of Ray's workers takes"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the frozen model; auto: bfloat16 where the hardware gains by it"
    )
    cache_bytes: Size = Field("2GB", description="memory of the prefix cache; 0B: no cache")
    cache_disk_bytes: Size = Field(
        "20GB", description="files of the prefix cache in the run folder, when memory is full"
    )
    cache_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of what the cache keeps; auto: as computed, without loss"
    )


class Tracking(Section):
    """Where rounds are logged beside the run folder's own records; no part of what a run is."""

    to: Tracker | list[Tracker] = Field(
        default_factory=list, description="tensorboard, mlflow, wandb, trackio; one, or several"
    )
    project: str = Field("fedms", min_length=1, description="experiment or project of runs there")
    mlflow_uri: str | None = Field(
        None, description="of an MLflow server; unset: an SQLite file in the run folder"
    )
    wandb_mode: Literal["offline", "online"] = Field(
        "offline", description="offline: into the run folder, for wandb sync"
    )
    trackio_space: str | None = Field(
        None, description="a Hugging Face Space to send to; unset: Trackio's own local files"
    )

    @model_validator(mode="after")
    def _no_secrets(self) -> Tracking:
        authority = (self.mlflow_uri or "").partition("://")[2].partition("/")[0]
        if "@" in authority:  # not repeated: it would be kept in logs
            raise ValueError(
                "got tracking.mlflow_uri with a user or password, which records and reports would "
                f"tell; expected it without, as in //{authority.rpartition('@')[2]}; try "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
            )
        return self

    @property
    def trackers(self) -> tuple[Tracker, ...]:
        """Each once, in the order given."""
        return tuple(dict.fromkeys([self.to] if isinstance(self.to, str) else self.to))
