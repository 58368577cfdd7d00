"""What is learnt from what: the model, the data, and who holds them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedms.config.section import Fraction, Section, studied

PATHLESS = ("digits", "memory")
"""Sources without `data.path`."""


class Model(Section):
    """The frozen foundation model and how classes are scored."""

    name: str = Field(
        "glyphclip", min_length=1, description="embedded name, local folder or hub id"
    )
    head: Literal["auto", "prompt", "linear"] = Field(
        "auto", description="score classes by their prompts, or by a linear layer of the expert"
    )
    prompt: str | list[str] = Field(
        "{label}", description="class prompt, or several to average; {label} is the class"
    )
    label_names: dict[str, str] = Field(
        default_factory=dict, description="words for a class in its prompt, where not its label"
    )
    temperature: float | None = Field(
        None, gt=0, description="factor of cosines; unset: the model's own"
    )
    class_vectors: Literal["statistics", "prompt"] = studied(
        "statistics",
        "2026-11-24 · Where a class is, before anything is trained",
        description="where experts look for classes: between prompts and means of rows, if class "
        "statistics are gathered (gate.statistics), or at prompts alone; linear heads start there",
    )
    max_length: int | None = Field(None, ge=4, description="tokens; unset: the model's limit")

    @model_validator(mode="after")
    def _prompt_has_label(self) -> Model:
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not prompts or not all("{label}" in prompt for prompt in prompts):
            raise ValueError("model.prompt must contain {label}")
        return self


class Data(Section):
    """Where examples come from."""

    source: Literal["csv", "parquet", "folder", "hub", "digits", "memory"] = Field(
        "digits",
        description="what the data are; digits: scikit-learn's; memory: what a program gives",
    )
    path: str | None = Field(None, description="file, folder or hub id; unused for digits")
    config: str | None = Field(None, description="configuration name of a hub data set")
    input: str = Field("text", description='column with the text or image; "a+b" joins columns')
    label: str = Field("label", description="column with the class")
    split: str | None = Field(
        None, description="column with train / val / test, where there is one"
    )
    classes: list[str] = Field(
        default_factory=list,
        description="of the whole federation, in this order, where a site sees only some (one that "
        "nobody has is a class like any other); empty: those of the data",
    )
    drop_labels: list[str] = Field(default_factory=list, description="classes to leave out")
    drop_duplicates: bool = Field(False, description="keep the first of equal inputs")
    drop_empty: bool = Field(False, description="leave out rows without text, instead of an error")
    drop_damaged: bool = Field(False, description="leave out images that cannot be read, likewise")
    max_rows: int | None = Field(None, ge=2, description="use only so many rows, drawn at random")

    @model_validator(mode="after")
    def _classes_differ(self) -> Data:
        if len(set(self.classes)) < len(self.classes) or len(self.classes) == 1:
            raise ValueError("data.classes must be two or more, and different")
        return self


class Partition(Section):
    """Who holds what."""

    by: Literal["iid", "dirichlet", "shards", "quantity", "column"] = Field(
        "dirichlet", description="how rows are dealt; column: to those to whom they belong"
    )
    alpha: float = Field(0.3, gt=0, description="concentration of dirichlet; small is skewed")
    clients: int = Field(8, ge=1, description="number of clients; by = column: see max_clients")
    shards: int = Field(2, ge=1, description="shards of sorted classes a client gets")
    column: str | None = Field(None, description="natural clients: the column that names them")
    min_rows: int = Field(
        1, ge=1, description="natural clients with fewer (training) rows are left out"
    )
    max_clients: int | None = Field(None, ge=1, description="keep only the largest natural clients")
    test_fraction: Fraction = Field(0.2, description="of a client's rows, where data give no split")
    val_fraction: Fraction = Field(0.1, description="of the same rows, likewise")
    unseen_clients: int = Field(0, ge=0, description="kept out of training, scored at the end")
    unseen_rows: int = Field(
        32, ge=1, description="training rows with which an unseen client adapts, to be scored again"
    )
    unseen_rounds: int = Field(5, ge=0, description="rounds of the method's that it adapts for")

    @model_validator(mode="after")
    def _column_named(self) -> Partition:
        if self.by == "column" and not self.column:
            raise ValueError('partition.by = "column" needs partition.column')
        if self.column and "by" not in self.model_fields_set:
            raise ValueError(
                f'got partition.column = "{self.column}" without partition.by; expected both; '
                'try partition.by="column"'
            )
        return self
