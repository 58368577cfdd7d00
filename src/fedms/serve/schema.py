"""What is sent and answered, as OpenAPI describes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, model_validator

from fedms.inputs import is_unicode


def _whole(text: str) -> str:
    if not is_unicode(text):
        raise ValueError("half a character; expected Unicode")
    return text


Inputs = Annotated[list[Annotated[str, AfterValidator(_whole)]], FailFast()]
"""The first fault is told: of a large body all of them would take minutes, and gigabytes."""


class Ask(BaseModel):
    """Examples for one client's model."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"client": "new", "inputs": ["where is my card?"]}]},
    )

    client: str = Field(
        min_length=1,
        max_length=1000,
        description="Whose model, as GET /clients says; new: of somebody who took no part.",
    )
    inputs: Inputs = Field(
        min_length=1,
        description="Texts; or where GET /model says that it takes images, the content of PNG, "
        "JPEG, WebP, GIF, BMP or TIFF files in base64.",
    )
    top: int = Field(default=1, ge=1, description="So many likeliest classes in probabilities.")

    @model_validator(mode="before")
    @classmethod
    def _few(cls, given: Any) -> Any:
        """Each key that is not known would be a fault of its own."""
        if isinstance(given, Mapping) and len(given) > len(cls.model_fields):
            raise ValueError(f"{len(given)} keys; expected {', '.join(cls.model_fields)}")
        return given


class Opinion(BaseModel):
    """What one expert alone holds likeliest."""

    label: str
    probability: float


class Prediction(BaseModel):
    """What a client's model says of one input."""

    label: str = Field(description="The likeliest class.")
    probability: float
    gate_weight: float | None = Field(
        description="The gate's weight on the global expert, 0 to 1; null where there is no gate."
    )
    experts: dict[Literal["global", "local"], Opinion] = Field(
        description="What each expert says alone; empty where the model has but one."
    )
    probabilities: dict[str, float] = Field(description="Of the likeliest classes.")


class Answer(BaseModel):
    """Predictions in the order of the inputs."""

    client: str
    predictions: list[Prediction]


class Clients(BaseModel):
    """Who has a model of its own."""

    clients: list[str]


class Bounds(BaseModel):
    """What a request may be at most."""

    body: int = Field(description="Bytes of a request's body.")
    inputs: int
    characters: int = Field(description="Of a text.")
    pixels: int = Field(description="Of a picture.")


class Model(BaseModel):
    """What all models here have in common."""

    name: str = Field(description="Of the run.")
    method: str
    takes: Literal["text", "image"]
    classes: list[str]
    limits: Bounds


class Health(BaseModel):
    """That the service is there."""

    status: Literal["ok"] = "ok"


class Refusal(BaseModel):
    """Why a request was not answered."""

    error: str
