"""`fedms server`: Flower's SuperLink, what runs apps for it, and the proxy before it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from fedms.core.errors import UserError
from fedms.deploy import engine
from fedms.deploy.folders import ServerFolder
from fedms.store.files import safe_name, write_json

_START = 120.0
"""Seconds in which the SuperLink must be there."""


def serve(server: ServerFolder, say: Callable[[str], None], *, proxy: str = "nginx") -> None:
    """Run until interrupted.

    Args:
        server: its folder.
        say: is told what happens.
        proxy: `nginx`; or `none`: then only this machine reaches the SuperLink, unless something
            else hands on what `nginx.conf` does.

    Raises:
        UserError: if a program is missing, cannot start, or ends.
    """
    flower, inner = home(server), server.address.inner_port
    near = "127.0.0.1" if server.secure else _near(server.address.listen)
    engine.connect(flower, near, inner, server.path / "ca.crt" if server.secure else None)
    if proxy not in ("nginx", "none"):
        raise UserError(f"got --proxy {proxy}; expected nginx or none")
    published = server.secure and proxy == "nginx"
    if published:
        engine.program("nginx")
    for port in {server.address.port, inner} if published else {inner}:
        _check_free(server, port)
    with engine.Processes(flower, server.path / "logs") as processes:
        processes.start("superlink", _superlink(server))
        _wait(processes, inner, near)
        if server.secure:
            register(server, say)
        processes.start("superexec", _superexec(server))
        if published:
            (server.path / "nginx").mkdir(exist_ok=True)
            words = ["-p", f"{server.path}/", "-c", "nginx.conf", "-g", "daemon off;"]
            processes.start("nginx", [engine.program("nginx"), *words])
            _wait(processes, server.address.port, _near(server.address.listen))
        if not server.secure:
            say(
                f"INSECURE: without TLS and keys. Whoever reaches {server.address.listens} can "
                "read what is sent, and run code at every site"
            )
        say(f"sites come to {server.address}; logs are in {server.path / 'logs'}")
        processes.wait()


def home(server: ServerFolder) -> Path:
    """Where Flower keeps what it needs to find this server."""
    return server.path / "flower"


def register(server: ServerFolder, say: Callable[[str], None]) -> None:
    """Let in whose keys are in `nodes`, and nobody else."""
    known = home(server) / "registered.json"
    before: dict[str, list[str]] = json.loads(known.read_text()) if known.exists() else {}
    inside = _inside(server)
    keys = {path.stem: path.read_text() for path in sorted((server.path / "nodes").glob("*.pub"))}
    now: dict[str, list[str]] = {}
    for stem, (key, node) in before.items():
        if node not in inside:
            continue
        if keys.get(stem) == key:
            now[stem] = [key, node]
            continue
        engine.ask(home(server), "supernode", "unregister", node, engine.CONNECTION)
        say(f"site {unquote(stem)} is not let in with its key any more")
    write_json(known, now)
    names = {safe_name(name): name for name in server.sites}
    for stem in sorted(keys.keys() - now.keys()):
        name = names.get(stem, unquote(stem))
        strays = inside - {node for _, node in now.values()}
        if (number := _let_in(server, name, stem, strays, say)) is not None:
            now[stem] = [keys[stem], number]
            write_json(known, now)
    if not now:
        say(f"no site is let in: no key is in {server.path / 'nodes'}")


def _let_in(
    server: ServerFolder, name: str, stem: str, strays: set[str], say: Callable[[str], None]
) -> str | None:
    """A node's number. One key that is none, or was shut out, keeps nobody else out."""
    path = server.path / "nodes" / f"{stem}.pub"
    try:
        words = ("supernode", "register", str(path), engine.CONNECTION, "--name", name)
        return str(engine.ask(home(server), *words)["node-id"])
    except UserError as error:
        if "in use" in str(error) and len(strays) == 1:
            return strays.pop()  # this ended before it was written down
        say(
            f"site {name} is not let in: {error}; a key that was shut out once stays out; try to "
            f"take {path} away, and fedms deploy --sites {name} for a new one"
        )
        return None


def _inside(server: ServerFolder) -> set[str]:
    """Nodes that are let in, as Flower knows them."""
    found = engine.ask(home(server), "supernode", "ls", engine.CONNECTION)["nodes"]
    return {str(n["node-id"]) for n in found if n["status"] not in ("unregistered", "deleted")}


def _superlink(server: ServerFolder) -> list[str]:
    if server.secure:
        safety = [
            *("--ssl-ca-certfile", str(server.path / "ca.crt")),
            *("--ssl-certfile", str(server.path / "server.crt")),
            *("--ssl-keyfile", str(server.path / "server.key")),
            "--enable-supernode-auth",
        ]
    else:
        safety = ["--insecure"]
    host = "127.0.0.1" if server.secure else server.address.listen
    return [
        engine.program("flower-superlink"),
        *("--host", host, "--port", str(server.address.inner_port)),
        *("--database", str(server.path / "flower" / "state.db"), "--isolation", "process"),
        *("--superexec-auth-secret-file", str(server.path / "superexec.secret")),
        "--disable-runtime-dependency-installation",
        *safety,
    ]


def _inner_host(server: ServerFolder) -> str:
    host = "127.0.0.1" if server.secure else _near(server.address.listen)
    return f"[{host}]" if ":" in host else host


def _superexec(server: ServerFolder) -> list[str]:
    authority = ["--root-certificates", str(server.path / "ca.crt")]
    return [
        engine.program("flower-superexec"),
        *("--runtime-api-address", f"{_inner_host(server)}:{server.address.inner_port}"),
        *("--superexec-auth-secret-file", str(server.path / "superexec.secret")),
        *(authority if server.secure else ["--insecure"]),
    ]


def _near(listen: str) -> str:
    """An address by which this machine reaches what listens there."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen, listen)  # noqa: S104


def _check_free(server: ServerFolder, port: int) -> None:
    if _is_open(port, "127.0.0.1"):
        raise UserError(
            f"got port {port} for {server.path}, where something listens already; try to end it, "
            "or fedms deploy --address HOST:OTHER"
        )


def _wait(processes: engine.Processes, port: int, host: str) -> None:
    """Until something listens."""
    ends = time.monotonic() + _START
    while not _is_open(port, host):
        processes.check()
        if time.monotonic() > ends:
            raise UserError(f"nothing listens at {host}:{port} after {_START:g} s")
        time.sleep(0.2)


def _is_open(port: int, host: str) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False
