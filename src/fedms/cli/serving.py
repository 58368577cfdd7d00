"""`fedms serve`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from fedms.cli.base import app, fail, finite, say_aside, until_told
from fedms.cli.models import DEVICE, FOLDER


@app.command()
def serve(
    folder: FOLDER,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token that requests must bring [FEDMS_TOKEN]."),
    ] = None,
    device: DEVICE = None,
    memory: Annotated[str, typer.Option(help="For clients' models that are kept.")] = "1GB",
    max_body: Annotated[str, typer.Option(help="Of a request.")] = "8MB",
    max_inputs: Annotated[int, typer.Option(min=1, help="Of a request.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Rows in a pass, of all who ask.")] = 64,
    wait: Annotated[
        float,
        typer.Option(
            min=0, max=1, callback=finite, help="Seconds for which a batch waits for more rows."
        ),
    ] = 0.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No line for every request.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say as JSON where it is.")] = False,
) -> None:
    """Answer requests with the models of a run over HTTP, until interrupted.

    Example: fedms serve runs/banking77-fedms-seed0
    """
    from importlib.util import find_spec

    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        fail("got no fastapi and uvicorn; expected both; try: pip install 'fedms[serve]'")
    from fedms.serve import server
    from fedms.serve.limits import Limits
    from fedms.serve.service import Service
    from fedms.use import Models

    token = server.read_token(token_file)
    if token is None and not server.is_local(host):
        fail(
            f"got --host {host} without a token: anyone who reaches it could use the models; "
            f"try {server.TOKEN}, or --token-file"
        )
    body = _bytes(max_body, "--max-body")
    limits = Limits(
        body=body,
        bodies=max(Limits.bodies, body),  # one that may come can be held
        inputs=max_inputs,
        batch=batch,
        waiting=max(Limits.waiting, max_inputs),
        wait=wait,
    )
    models = Models(folder, device=device, room=_bytes(memory, "--memory"))
    line = server.open_socket(host, port)
    url = server.address(line, host)
    if as_json:
        facts = {"url": url, "takes": models.takes, "clients": len(models.clients)}
        typer.echo(json.dumps({**facts, "token": token is not None}))
    else:
        typer.echo(
            f"{url} answers for {len(models.clients)} clients, "
            f"{'with' if token else 'without'} a token; {url}/docs says how to ask"
        )
    say = (lambda _: None) if quiet else say_aside
    with until_told("service ended"):
        server.serve(Service(models, limits), line, token=token, host=host, say=say)


def _bytes(text: str, option: str) -> int:
    from fedms.build import parse_size
    from fedms.config import SIZE

    if not re.fullmatch(SIZE, text):
        fail(f"got {option} {text!r}; expected a size, e.g. {option} 8MB")
    return parse_size(text)
