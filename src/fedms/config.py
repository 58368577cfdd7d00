"""The configuration: one typed schema, TOML on disk, `section.key=value` on the command line.

Command line wins over file, file over default. Whatever is unknown, of the wrong type or out of
range is an error that names the key, what it got, what it expects and the nearest known key.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Cohort = Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0.0, le=1.0)]
DEVICE = r"^(auto|cpu|mps|cuda(:\d+)?)$"
SIZE = r"^\d+(\.\d+)?\s?[kKMG]?B$"
"""Of bytes, as `60kB` or `2GB`."""
Size = Annotated[str, Field(pattern=SIZE)]

Rank = Annotated[int, Field(ge=1, strict=True)]
Cap = Annotated[int, Field(ge=1, strict=True)] | Size

_LONGEST = 200
"""Characters of a value that is wrong, in a message."""


class ConfigError(ValueError):
    """One line that says which key is wrong and how."""


class Section(BaseModel):
    """Frozen, strict about unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )


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
    class_vectors: Literal["statistics", "prompt"] = Field(
        "statistics",
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


_PATHLESS = ("digits", "memory")
"""Sources without `data.path`."""


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


class Lora(Section):
    """The adapters of an expert."""

    rank: int = Field(8, ge=1, description="columns of A, rows of B")
    alpha: float = Field(16.0, gt=0, description="low-rank products are scaled by alpha / rank")
    targets: str = Field("qv", pattern="^[qkvo]+$", description="projections, of q, k, v and o")
    ranks: dict[str, Rank] = Field(
        default_factory=dict, description='flexlora: ranks of clients, at most lora.rank; "*": all'
    )


class Sal(Section):
    """Sparsely activated LoRA: which blocks are trained, and when there are more."""

    trigger: Literal["queue", "schedule", "all"] = Field(
        "queue", description="when accuracy stands still; by the calendar; all from the start"
    )
    start: int = Field(1, ge=1, description="active blocks at first")
    step: int = Field(1, ge=1, description="blocks activated at a time")
    queue: int = Field(3, ge=2, description="validation scores in the capability queue")
    epsilon: float = Field(0.002, ge=0, description="gain below which more is activated")
    every: int = Field(2, ge=1, description="rounds between activations, trigger = schedule")
    carry_depth: bool = Field(True, description="stage 2 begins at the depth stage 1 reached")
    caps: dict[str, Cap] = Field(
        default_factory=dict,
        description='most blocks a client trains: a number, or "60kB" of upload; "*" is for all',
    )


class Stage1(Section):
    """The global expert."""

    rounds: int = Field(10, ge=0, description="of this stage")
    cohort: Cohort = Field(1.0, description="fraction (float) or number (int) of clients a round")
    epochs: int = Field(1, ge=1, description="passes over a client's rows in a round")
    prior: Literal["none", "client", "learned"] = Field(
        "learned",
        description="class frequencies added to a client's logits while it trains; learned: as "
        "calibration weighs them, if there is one",
    )
    server_momentum: float = Field(
        0.0, ge=0, lt=1, description="going on as in earlier rounds; 0: federated averaging"
    )


class Stage2(Section):
    """Local experts and gate."""

    rounds: int = Field(10, ge=0, description="of this stage")
    cohort: Cohort = Field(1.0, description="fraction (float) or number (int) of clients a round")
    epochs: int = Field(1, ge=1, description="passes over a client's rows in a round")
    local_init: Literal["global", "zero"] = Field(
        "global", description="a local expert starts as the global one, or as no adapter"
    )
    checkpoint: Literal["mean", "best", "last"] = Field(
        "mean", description="of a client's rounds: mean of local experts, best on validation, last"
    )


class Rounds(Section):
    """When a round counts. What is said of waiting is for clients on other machines."""

    deadline: float = Field(
        0.0, ge=0, description="seconds to wait for clients that do not answer; 0: for ever"
    )
    spare: float = Field(
        0.0,
        ge=0,
        description="clients asked beyond a cohort, as a share of it: the first answers suffice",
    )
    min_updates: int = Field(1, ge=1, description="usable updates that a round needs")
    attempts: int = Field(3, ge=1, description="cohorts tried for a round before the run stops")


class Screen(Section):
    """Which updates are used, of those that can be read."""

    max_norm_ratio: float = Field(
        0.0,
        ge=0,
        description="longest change of parameters, in multiples of its cohort's median; 0: any",
    )
    above: Literal["reject", "warn"] = Field(
        "reject", description="what is done with longer ones; warn: they are used, and told of"
    )
    contradictions: Literal["reject", "warn", "off"] = Field(
        "reject",
        description="what is done with class statistics of a client whose classes are where "
        "others have other classes",
    )
    max_rows_ratio: float = Field(
        0.0,
        ge=0,
        description="a client counts as no more rows than so many times its cohort's median, of "
        "training or validation rows; 0: as all it says",
    )


class Aggregation(Section):
    """How updates become one."""

    rule: Literal["mean", "median", "trimmed", "geometric", "krum", "multikrum", "clip"] = Field(
        "mean", description="federated averaging, or a rule that bears malicious clients"
    )
    malicious: float = Field(
        0.2, ge=0, lt=0.5, description="share of clients that may be, for trimmed and both krums"
    )


class Faults(Section):
    """What goes wrong on purpose, in simulations only: clients that fail, and clients that lie."""

    drop: float = Field(0.0, ge=0, le=1, description="share of a round's clients not reached")
    data: float = Field(0.0, ge=0, le=1, description="share that cannot read its rows")
    crash: float = Field(0.0, ge=0, le=1, description="share that crashes in training")
    slow: float = Field(0.0, ge=0, le=1, description="share whose answer comes too late")
    attack: Literal["none", "sign", "scale", "random", "invalid", "labels"] = Field(
        "none", description="what attackers send, or train on"
    )
    attackers: float = Field(0.0, ge=0, lt=1, description="share of clients that are attackers")
    strength: float = Field(10.0, gt=0, description="times their change, of scale and random")

    @model_validator(mode="after")
    def _shares(self) -> Faults:
        if self.drop + self.data + self.crash + self.slow > 1:
            raise ValueError("drop, data, crash and slow add up to more than 1; expected 1 at most")
        if (self.attack == "none") != (self.attackers == 0):
            raise ValueError("attack and attackers go together; expected both, or neither")
        return self


class Gate(Section):
    """How the two experts are joined."""

    share: Literal["adapter", "all", "none"] = Field(
        "adapter", description="what of the gate is averaged"
    )
    mixture: Literal["gate", "even", "none"] = Field(
        "gate", description="of both experts: by the gate, with equal weights, or local one alone"
    )
    mix: Literal["probabilities", "logits", "features"] = Field(
        "probabilities", description="what of the experts is weighed"
    )
    mix_prior: Literal["none", "client", "both", "learned"] = Field(
        "none",
        description="whose logits get the log of the client's class frequencies; learned: both, in "
        "training, as calibration weighs them",
    )
    smoothing: float = Field(0.5, gt=0, description="added to class counts of the client prior")
    data: Literal["train", "val"] = Field(
        "train",
        description="rows the gate learns on; if val, calibration is fitted on rows it has seen",
    )
    calibration: bool = Field(
        True, description="predict by weights of evidence that all clients fit on validation rows"
    )
    statistics: Literal["personal", "shared", "none"] = Field(
        "personal",
        description="class statistics of the foundation model's features, sent once, if models are "
        "calibrated: as evidence, with each client's own rows or without, and for class vectors",
    )
    bottleneck: int = Field(4, ge=1, description="width of the gate adapter")
    local_loss: float = Field(
        0.0, ge=0, description="weight of the local expert's own loss beside the mixture's"
    )

    @model_validator(mode="after")
    def _prior_needs_logits(self) -> Gate:
        if self.mix_prior == "learned" and not self.calibration:
            raise ValueError('gate.mix_prior = "learned" needs gate.calibration = true')
        if self.mix == "features" and self.mix_prior == "client":
            raise ValueError('gate.mix_prior = "client" needs gate.mix "probabilities" or "logits"')
        if self.mix == "features" and self.calibration:
            raise ValueError('gate.mix = "features" needs gate.calibration = false')
        return self


class Baselines(Section):
    """What methods other than FedMS can be told."""

    pull: float = Field(
        0.01, ge=0, description="fedprox: weight of the squared distance to the global model"
    )
    own_pull: float = Field(
        1.0, ge=0, description="ditto: weight of its own model's squared distance to the global one"
    )
    private_blocks: int = Field(
        1, ge=1, description="fedper, fedrep: the last blocks, which stay with the client"
    )
    random_blocks: int = Field(3, ge=1, description="fedra: blocks a client trains in a round")
    context_words: int = Field(4, ge=1, description="promptfl: learned vectors before a class")
    likeness: float = Field(
        0.5, ge=0, le=1, description="feddpa: local adapter's weight in a row like the client's own"
    )
    adam_rate: float = Field(0.01, gt=0, description="fedadam: learning rate of the server")


class Training(Section):
    """A client's optimiser."""

    batch_size: int = Field(32, ge=1, description="rows of a step")
    learning_rate: float = Field(3e-3, gt=0, description="AdamW's, of adapters and heads")
    gate_learning_rate: float = Field(1e-3, gt=0, description="of the gate")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's")
    learning_rate_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="over the rounds of a stage: constant, or half a cosine towards 0"
    )


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


Tracker = Literal["tensorboard", "mlflow", "wandb", "trackio"]


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


Method = Literal[
    "fedms",
    "finetune",
    "fedavg",
    "fedprox",
    "fedadam",
    "ffa",
    "flora",
    "fedex",
    "flexlora",
    "promptfl",
    "fedclip",
    "fedra",
    "fedcgs",
    "ditto",
    "fedper",
    "fedrep",
    "fedsa",
    "dual",
    "fedalt",
    "feddpa",
    "local",
    "probe",
    "centralised",
]


class Config(Section):
    """A whole run."""

    name: str = Field(
        "digits",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="first part of the run folder's name, NAME-METHOD-seedN",
    )
    method: Method = Field("fedms", description="what is run (docs/evaluation.md lists all)")
    seed: int = Field(0, ge=0, lt=2**63, description="of everything that is drawn")
    evaluate_every: int = Field(
        5, ge=0, description="rounds between test scores; 0: stage ends only"
    )
    checkpoint_every: int = Field(
        1, ge=1, description="rounds between checkpoints, from which a run that ended goes on"
    )
    model: Model = Field(default_factory=Model)
    data: Data = Field(default_factory=Data)
    partition: Partition = Field(default_factory=Partition)
    lora: Lora = Field(default_factory=Lora)
    sal: Sal = Field(default_factory=Sal)
    stage1: Stage1 = Field(default_factory=Stage1)
    stage2: Stage2 = Field(default_factory=Stage2)
    rounds: Rounds = Field(default_factory=Rounds)
    screen: Screen = Field(default_factory=Screen)
    aggregation: Aggregation = Field(default_factory=Aggregation)
    faults: Faults = Field(default_factory=Faults)
    gate: Gate = Field(default_factory=Gate)
    baselines: Baselines = Field(default_factory=Baselines)
    training: Training = Field(default_factory=Training)
    runtime: Runtime = Field(default_factory=Runtime)
    tracking: Tracking = Field(default_factory=Tracking)

    @model_validator(mode="after")
    def _some_rounds(self) -> Config:
        if self.stage1.rounds + self.stage2.rounds == 0:
            raise ValueError(
                "stage1.rounds and stage2.rounds are both 0; expected at least one round"
            )
        if self.data.source not in _PATHLESS and self.data.path is None:
            raise ValueError(f'data.source = "{self.data.source}" needs data.path')
        path = self.data.path
        if path is not None and "source" not in self.data.model_fields_set:
            raise ValueError(
                f'got data.path = "{path}" without data.source; expected both; '
                f"try data.source={_source(path)}"
            )
        return self


def _source(path: str) -> str:
    """By the end of a path."""
    kinds = {".csv": "csv", ".gz": "csv", ".parquet": "parquet"}
    return kinds.get(Path(path).suffix.lower(), "folder")


def load_config(
    path: Path | None = None, overrides: Sequence[str] = (), *, elsewhere: str | None = None
) -> Config:
    """Read a TOML file (None: all defaults) and apply `section.key=value` overrides.

    A value is read as TOML where it is TOML (`0.1`, `true`, `["a"]`), else as text. Nothing behind
    the sign (`data.split=`) takes the default, whatever the file says. `elsewhere` stands for
    `data.path` where one is needed and none is given.

    Raises:
        ConfigError: naming the key, what it got, what it expects and what to try.
    """
    values = _read(path) if path else {}
    for override in overrides:
        _apply(values, override)
    data = values.get("data")
    if elsewhere and isinstance(data, dict) and data.get("source", "digits") not in _PATHLESS:
        data.setdefault("path", elsewhere)
    return validate(values)


def validate(values: Mapping[str, Any]) -> Config:
    """A configuration from plain values, as TOML or JSON hold them.

    Raises:
        ConfigError: as `load_config`.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def untracked(config: Config) -> Config:
    """What identifies a run: a configuration without trackers."""
    return config.model_copy(update={"tracking": Tracking()})


def dump_config(config: Config) -> str:
    """TOML with every key that has a value: re-runs the run as it is."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def known_keys() -> dict[str, Any]:
    """Every `section.key` of the schema with its default."""
    return dict(_flatten(Config().model_dump()))


def choices(key: str) -> tuple[str, ...]:
    """The values that a `section.key` can have, where they are words of a list."""
    model: type[BaseModel] = Config
    *sections, last = key.split(".", 2)
    for name in sections:
        found = model.model_fields.get(name)
        if found is None or not (isinstance(found.annotation, type)):
            return ()
        model = found.annotation
    field = model.model_fields.get(last)
    kind = field.annotation if field else None
    if kind is bool:
        return ("true", "false")
    return get_args(kind) if get_origin(kind) is Literal else ()


def _flatten(values: Mapping[str, Any], start: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        nested = isinstance(value, dict) and start == "" and value
        flat += _flatten(value, f"{key}.") if nested else [(f"{start}{key}", value)]
    return flat


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = _hint(str(path), _files(path), 0.4)
        raise ConfigError(f"got config {path}, which does not exist{hint}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"got config {path}, which is not TOML: {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"got config {path}, which cannot be read: {error}") from None


def _files(path: Path) -> list[str]:
    """Recipes by that name, or if there is none, TOML files beside it."""
    recipe = (Path("recipes") / path.name).with_suffix(".toml")
    return [str(recipe)] if recipe.is_file() else [str(p) for p in path.parent.glob("*.toml")]


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"got {override!r}; expected section.key=value, e.g. stage1.rounds=5")
    text = text.lstrip().rstrip("\r\n")  # a column's name may end in a blank
    *sections, last = key.strip().split(".", 2)
    for name in sections:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ConfigError(f"got {override!r}, but {name} is not a section")
    if text.strip():
        values[last] = _value(text)
    else:
        _known(key.strip(), override)
        values.pop(last, None)


def _known(key: str, override: str) -> None:
    """Refuse to take the default of what has none."""
    defaults = known_keys()
    tables = tuple(f"{name}." for name, default in defaults.items() if isinstance(default, dict))
    if key not in defaults and not key.startswith(tables):
        raise ConfigError(f"got {override!r} with unknown key {key}{_hint(key, defaults)}")


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # also numbers of thousands of digits
        return text


def _explain(error: ValidationError) -> str:
    """The first problem, in one line."""
    first = error.errors()[0]
    parts = 3 if first["loc"][:2] in (("sal", "caps"), ("lora", "ranks")) else 2
    key = ".".join(str(word) for word in first["loc"][:parts])
    if first["type"] == "extra_forbidden":
        return f"got unknown key {key}{_hint(key, [*known_keys(), *Config.model_fields])}"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    wanted = _expected(error, first["loc"])
    got = _brief(first["input"])
    hint = _hint(got.strip('"'), choices(key))
    return f"got {key} = {got}; expected {wanted}{hint}"


def _brief(value: Any) -> str:
    try:
        return json.dumps(value, default=str)[:_LONGEST]
    except ValueError:
        return "a number of thousands of digits"


def _hint(word: str, names: Iterable[str], cutoff: float = 0.5) -> str:
    """What was probably meant, if something was."""
    near = difflib.get_close_matches(word, names, n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""


def _expected(error: ValidationError, loc: tuple[int | str, ...]) -> str:
    """What a key expects; all alternatives where it is of several types."""
    same = [e["msg"] for e in error.errors() if e["loc"][:2] == loc[:2]]
    words = [m.removeprefix("Input should be ").removeprefix("a valid ") for m in same]
    return " or ".join(dict.fromkeys(words))
