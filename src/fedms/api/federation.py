"""`FedMS`: a federation that is simulated on data sets in memory."""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from fedms.api.callbacks import Callbacks, checked
from fedms.api.clients import parts_of
from fedms.api.result import Result
from fedms.build import load_table
from fedms.config import Config, load_config, validate
from fedms.core.errors import UserError
from fedms.data import Table
from fedms.events import Event, Warned
from fedms.given import Given
from fedms.models import keep
from fedms.progress import Progress
from fedms.run import resume, run
from fedms.store.run_folder import RunFolder

_NAME = "federation"
"""What a run is called where nothing else is said."""


class FedMS:
    """Trains a global expert, and a private local expert and gate for every client.

    The model is left as it is: a copy is trained with, in this process. What comes out equals a
    `fedms run` with the same settings on the same rows in the same order, to the bit.

    Args:
        model: of transformers, or a sentence encoder; or a name or folder, as `model.name`; None:
            that of the configuration, or glyphclip.
        tokenizer: of the model, or its image processor; None for a name.
        model_options: settings of `[model]`, e.g. `dict(prompt="a photo of a {label}")`.
        config: a TOML file, or a configuration, on which settings are put.
        callbacks: objects with Trainer's methods (`fedms.api.callbacks`).
        progress: whether to show rounds as they come, in a terminal or notebook.
        settings: as in the configuration file, e.g. `seed=1`, `stage1=dict(rounds=5)`.

    Raises:
        ConfigError: if a setting is unknown, or out of range.
        UserError: if model and tokenizer do not fit together.
    """

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        *,
        model_options: Mapping[str, Any] | None = None,
        config: str | Path | Config | None = None,
        callbacks: Sequence[Any] = (),
        progress: bool = True,
        **settings: Any,
    ) -> None:
        name = {"name": str(model)} if isinstance(model, str | Path) else {}
        if name and tokenizer is not None:
            raise UserError(
                f"got a tokenizer beside the name {model!r}, which has its own; expected one of "
                "both; try FedMS(AutoModel.from_pretrained(...), tokenizer)"
            )
        self._model, self._tokenizer = None if name else model, tokenizer
        self._callbacks, self._progress = checked(callbacks), progress
        if not isinstance(model_options, Mapping | None):
            raise UserError(f"got {model_options!r} for model_options; expected a dict of settings")
        own = {"model": {**(model_options or {}), **name}}
        self._settings = _merged(_merged(_values(config), settings), own)
        self._configure("text", "label", {"by": "iid"})  # errors come before data
        self.result: Result | None = None

    def fit(
        self,
        datasets: Any,
        *,
        input: str | None = None,
        label: str | None = None,
        partition: Any = None,
        out: str | Path | None = None,
        force: bool = False,
    ) -> Result:
        """Train, evaluate, and return all models.

        Args:
            datasets: `{"client": Dataset}`; or a list of them; or one `Dataset`, to be dealt. In
                place of each a `DatasetDict` of splits, which are kept. Clients without test or
                validation rows have some split off their training rows.
            input: column with the text or image; "a+b" joins texts. None: as `data.input`.
            label: column with the class; of a `ClassLabel` the names. None: as `data.label`.
            partition: how one data set is dealt: settings of `[partition]`, or a partitioner of
                flwr-datasets.
            out: the run folder; None: a temporary one, as long as the result is there.
            force: replace an earlier run's folder.

        Raises:
            UserError: if data, model and settings do not fit together, or `out` is there.
        """
        dealt = "partition" in self._settings
        parts, deal = parts_of(datasets, partition, dealt=dealt)
        config = self._configure(input, label, deal)
        table = load_table(config, parts)
        with _folder(out, force=force) as folder:
            summary = self._run(config, table, folder, force=force)
            self.result = Result(folder, summary)
            if out is None:
                weakref.finalize(self.result, shutil.rmtree, folder.parent, ignore_errors=True)
        return self.result

    def predict(self, client: str, inputs: Iterable[Any]) -> list[str]:
        """See `Result.predict`, of the last `fit`.

        Raises:
            UserError: if there was none.
        """
        if self.result is None:
            raise UserError("got predict before fit; try fit(datasets) first")
        return self.result.predict(client, inputs)

    @classmethod
    def resume(
        cls,
        folder: str | Path,
        datasets: Any = None,
        *,
        partition: Any = None,
        callbacks: Sequence[Any] = (),
        progress: bool = True,
    ) -> Result:
        """Go on with a run that ended early; it ends as it would have, to the bit.

        Args:
            folder: of the run.
            datasets: as `fit` was given them; None where the configuration names them.
            partition: likewise.
            callbacks: as for `FedMS`.
            progress: likewise.

        Raises:
            UserError: if it cannot go on, or the rows are others than at its beginning.
        """
        path = Path(folder)
        config, table = load_config(RunFolder.open(path).config), None
        if datasets is not None:
            parts, _ = parts_of(datasets, partition, dealt=True)
            table = load_table(config, parts)
        with _watching(config, callbacks, progress) as (watch, stop):
            given = Given(table=table, stop=stop)

            def tell(text: str) -> None:
                watch(Warned(text))

            return Result(path, resume(path, watch=watch, tell=tell, given=given))

    def _configure(
        self, input: str | None, label: str | None, partition: Mapping[str, Any]
    ) -> Config:
        named = {"input": input, "label": label}
        columns = {name: column for name, column in named.items() if column is not None}
        own: dict[str, Any] = {"data": {"source": "memory", **columns}, "partition": partition}
        return validate(_merged({"name": _NAME, **self._settings}, own))

    def _run(self, config: Config, table: Table, folder: Path, *, force: bool) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
            foundation = None
            if self._model is not None:
                foundation = Path(aside) / "foundation"
                keep(self._model, self._tokenizer, foundation)
                named = config.model.model_copy(update={"name": str(foundation)})
                config = config.model_copy(update={"model": named})
            with _watching(config, self._callbacks, self._progress) as (watch, stop):
                given = Given(table, foundation, stop)
                return run(config, folder, force=force, watch=watch, given=given)


def _values(config: str | Path | Config | None) -> dict[str, Any]:
    """What a configuration says, as plain values."""
    if config is None:
        return {}
    if not isinstance(config, str | Path | Config):
        raise UserError(
            f"got {config!r} for config; expected a file, or what load_config returns; try "
            "keywords, as seed=1"
        )
    found = config if isinstance(config, Config) else load_config(Path(config))
    return found.model_dump(mode="json", exclude_unset=True)


def _merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Settings put on others, section by section."""
    merged = dict(values)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = {**merged[key], **value} if both else value
    return merged


@contextmanager
def _watching(
    config: Config, callbacks: Sequence[Any], progress: bool
) -> Iterator[tuple[Callable[[Event], None], Callable[[], bool]]]:
    """Who is told of a run's events, and what asks it to stop."""
    called = Callbacks(checked(callbacks), config)
    with Progress(config) if progress else nullcontext(_warn) as shown:

        def watch(event: Event) -> None:
            shown(event)
            called(event)

        yield watch, called.stop


def _warn(event: Event) -> None:
    """Of a run that shows nothing, what failed."""
    if isinstance(event, Warned):
        warnings.warn(event.text, RuntimeWarning, stacklevel=2)


@contextmanager
def _folder(out: str | Path | None, *, force: bool) -> Iterator[Path]:
    """Where a run goes; a temporary folder is taken away again if it fails."""
    if out is not None:
        path = Path(out)
        RunFolder.check(path, force=force)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        return
    temporary = Path(tempfile.mkdtemp(prefix="fedms-"))
    try:
        yield temporary / "run"
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
