"""Commands that use the models of a run: predict, evaluate, export."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer

from fedms.cli.base import app, fail, say, say_aside
from fedms.cli.completion import clients, run_folders

FOLDER = Annotated[
    Path,
    typer.Argument(help="A run folder; at a site, SITE/state/RUN.", autocompletion=run_folders),
]
CLIENT = Annotated[
    str | None,
    typer.Option(
        help="Whose model; new: of somebody who took no part [the only one there].",
        autocompletion=clients,
    ),
]
DEVICE = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps [as the run's].")]


@app.command()
def predict(
    folder: FOLDER,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUT]...",
            help="Texts, image files or folders of them, csv or Parquet files, or - for lines of "
            "standard input.",
        ),
    ] = None,
    client: CLIENT = None,
    column: Annotated[
        str | None, typer.Option(help="Column of files, or several with + [data.input].")
    ] = None,
    device: DEVICE = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="So many likeliest classes of each [1; in JSON all]."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, with probabilities.")
    ] = False,
) -> None:
    """Say what a client's model says of new examples, and what its two experts do.

    Example: fedms predict runs/banking77-fedms-seed0 --client 3 "where is my card?"
    """
    from fedms.inputs import read_inputs
    from fedms.use import Models

    models = Models(folder, device=device)
    who = client or models.only()
    name, tables = column or models.config.data.input, column is not None
    table = read_inputs(inputs or [], sys.stdin, models.takes, name, tables=tables)
    if table.dropped:
        say_aside(f"left out {table.dropped:,} of {table.dropped + len(table):,} rows: empty")
    for i, said in enumerate(models.predict(table, who)):
        if as_json:
            given, where = table.inputs[i], table.where(i)  # which is a text's own, in quotes
            shown = given if where == repr(given) else where
            facts = {"input": shown, "client": who, **asdict(said)}
            if top is not None:
                facts["probabilities"] = said.likeliest(top)
            typer.echo(json.dumps(facts))
            continue
        line = f"{said.label}\t{said.probability:.3f}\t{table.where(i)}"
        if said.gate_weight is not None:
            parts = [f"{name} expert {label} {p:.3f}" for name, (label, p) in said.experts.items()]
            line += f"\t({'; '.join(parts)}; weight on the global one {said.gate_weight:.3f})"
        say(line)
        for label, probability in [*said.likeliest(top or 1).items()][1:]:
            say(f"\t{probability:.3f}\t{label}")


@app.command()
def adapt(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A complete run's folder, or what fedms export --client new made of one.",
            autocompletion=run_folders,
        ),
    ],
    to: Annotated[Path, typer.Option(help="Folder that is made.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Of the newcomer's own: data.path=FILE, training.learning_rate=1e-3, …",
        ),
    ] = None,
    client: Annotated[str | None, typer.Option(help="The newcomer's name [the folder's].")] = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=0, help="So many, 0: train nothing [partition.unseen_rounds]."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what was adapted there before.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Make a model for somebody who took no part in a run, of its own rows; nothing is sent.

    The folder is used as a run's: fedms predict, evaluate, serve and export take it.

    Example: fedms adapt runs/banking77-fedms-seed0 data.path=mine.csv --to hospital-7
    """
    from fedms.newcomers import adapt as perform

    tell = (lambda text: None) if as_json else say
    found = perform(folder, to, words or [], client=client, rounds=rounds, force=force, tell=tell)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    after = "after 1 round" if found["rounds"] == 1 else f"after {found['rounds']} rounds"
    for split, name in (("val", "validation"), ("test", "test")):
        for when, role, title in (
            ("before", "global", "global expert, as anyone has it"),
            ("before", "personal", "what is shared, with its own classes"),
            ("after", "local", f"its local expert alone, {after}"),
            ("after", "personal", f"its model, {after}"),
        ):
            if score := found[when].get(split, {}).get(role):
                say(
                    f"{name} rows\t{title}\taccuracy {score['accuracy']:.3f}\t"
                    f"log loss {score['loss']:.3f}"
                )
    first, last = (found[when].get("val", {}).get("personal") for when in ("before", "after"))
    if first and last and last["loss"] > first["loss"]:
        say("its validation rows were better off before; try fewer --rounds, or --rounds 0")
    say(f"models in {to}; try fedms predict {to} INPUT")


@app.command()
def evaluate(
    folder: FOLDER,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Of labelled data that are used in place of test rows, as data.path=FILE; of the "
            "run's own data only test rows are used.",
        ),
    ] = None,
    client: CLIENT = None,
    device: DEVICE = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Score models of a run on their clients' test rows, or on other labelled rows.

    Beside a mixture its two experts alone: bare, as predict says what they hold. (In a run's table
    the same experts have class statistics and calibration.)

    Example: fedms evaluate runs/digits-fedms-seed0 --client 3
    """
    from fedms.scoring import evaluate as perform

    found = perform(folder, words or [], client, device=device, tell=say_aside)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for who, roles in found.items():
        for role, score in roles.items():
            bare = "" if role == "personal" else ", bare"
            say(
                f"{who}\t{role}{bare}\taccuracy {score['accuracy']:.3f}\t"
                f"log loss {score['loss']:.3f}\t{score['rows']:,} rows"
            )
    if len(found) > 1:
        mean = fmean(roles["personal"]["accuracy"] for roles in found.values())
        say(f"mean of {len(found)} clients\tpersonal\taccuracy {mean:.3f}")


@app.command()
def export(
    folder: FOLDER,
    to: Annotated[Path, typer.Option(help="Folder that is made.")],
    client: CLIENT = None,
    merged: Annotated[
        str | None,
        typer.Option(
            help="local or global: a plain transformers model with that expert in its weights."
        ),
    ] = None,
    licence: Annotated[
        str, typer.Option("--license", help="For the model card: what you give the models under.")
    ] = "other",
    repository: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub",
            metavar="OWNER/NAME",
            help="Upload what was written, as whoever is logged in, into a private repository.",
        ),
    ] = None,
    public: Annotated[
        bool,
        typer.Option(
            "--public",
            help="The repository may be seen by anyone. The files tell of the client's rows.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what was exported.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Write a client's models as PEFT adapters with a model card, for use without fedms.

    Example: fedms export runs/digits-fedms-seed0 --client 3 --to letters
    """
    from fedms import hub
    from fedms.export import export as perform

    if merged not in (None, "local", "global"):
        fail(f"got --merged {merged}; expected local or global")
    if public and repository is None:
        fail("got --public; expected --push-to-hub OWNER/NAME with it")
    if repository is not None:
        hub.check_repository(repository)
    paths = perform(folder, to, client, merged=merged, licence=licence, force=force)
    url = None if repository is None else hub.push(to, repository, public=public)
    if as_json:
        typer.echo(json.dumps({"written": [str(path) for path in paths], "pushed": url}, indent=2))
        return
    for path in paths:
        say(str(path))
    if url is not None:
        typer.echo(f"pushed to {url}, {'for anyone to see' if public else 'private'}")
