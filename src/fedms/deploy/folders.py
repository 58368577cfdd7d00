"""What `fedms deploy` writes: a folder for the server, one to hand to each site, and an authority.

    ca.key                      signs certificates; needed for `fedms deploy` alone
    server/                     stays on the server
      deployment.toml           address, ports
      config.toml               the runs' configuration
      nodes/NAME.pub            who may connect: files may be added, and taken away
      ca.crt server.crt server.key superexec.secret nginx.conf
    sites/NAME/                 for that site: `fedms site` reads it
      site.toml config.toml ca.crt node.key

What is secret can be read by its owner alone. Written again, a deployment keeps its authority, keys
and secrets, and what it does not write itself.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fedms.config import Config, dump_config, load_config, untracked
from fedms.core.errors import UserError
from fedms.deploy.certificates import make_authority, make_node_key, make_server
from fedms.deploy.parts import ELSEWHERE
from fedms.deploy.proxy import nginx
from fedms.store.files import safe_name, write_bytes, write_text

_FACTS = "deployment.toml"
_PORT = 9443
_LONGEST = 100


@dataclass(frozen=True)
class Address:
    """Where sites find the server.

    Args:
        host, port: by which they reach it.
        listen: the server's own address on which it listens for them.
        inner_port: of Flower's SuperLink, on loopback, where that is not what sites reach.
    """

    host: str
    port: int
    listen: str
    inner_port: int

    def __str__(self) -> str:
        return _join(self.host, self.port)

    @property
    def listens(self) -> str:
        return _join(self.listen, self.port)


@dataclass(frozen=True)
class ServerFolder:
    """What the server has. `secure`: sites come through TLS with keys, or not at all."""

    path: Path
    name: str
    address: Address
    secure: bool
    sites: tuple[str, ...]

    @property
    def let_in(self) -> tuple[str, ...]:
        """Sites that may come: where keys are asked for, those whose key is there."""
        return tuple(n for n in self.sites if not self.secure or _key_of(self.path, n).exists())

    @property
    def site_folders(self) -> list[Path]:
        """To be handed over."""
        return [self.path.parent / "sites" / safe_name(name) for name in self.sites]


@dataclass(frozen=True)
class SiteFolder:
    """What a site has."""

    path: Path
    name: str
    client: str
    server: str
    secure: bool


def write_deployment(
    folder: Path,
    config: Config,
    sites: Sequence[str],
    *,
    address: str | None = None,
    listen: str | None = None,
    secure: bool = True,
) -> ServerFolder:
    """Write what server and sites need, or write it again with other settings or more sites.

    Args:
        folder: where.
        config: of the runs, with `data.classes`.
        sites: their names, which are the clients' ids. Sites that are there already stay, unless
            their keys were taken away; named again, those get new ones.
        address: `HOST` or `HOST:PORT` by which sites reach the server; IPv6 in brackets. None: as
            before, and at first 127.0.0.1.
        listen: the server's own address on which it listens for them. None: as before, for the same
            address; else all, or for a loopback address that one.
        secure: whether with TLS and keys of nodes.

    Raises:
        UserError: if something does not fit, or cannot be written.
    """
    _check(folder, config, sites)
    there = read_server(folder) if (folder / "server" / _FACTS).exists() else None
    place = _place(address, listen, there.address if there else None, secure=secure)
    everyone = tuple(dict.fromkeys((*(there.let_in if there else ()), *sites)))
    server = ServerFolder(folder / "server", config.name, place, secure, everyone)
    where = config.data.model_copy(update={"path": None if _embedded(config) else ELSEWHERE})
    config = config.model_copy(update={"data": where})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        authority = _authority(folder, config.name, place.host) if secure else None
        _write_server(server, dump_config(config), authority)
        for name in everyone:
            _write_site(folder, server, name, dump_config(_for_site(config, name)), authority)
    except OSError as error:
        raise UserError(f"got folder {folder}, which cannot be written: {error}") from error
    return server


def read_server(path: Path) -> ServerFolder:
    """Of a server's folder.

    Raises:
        UserError: if it is none.
    """
    path = path / "server" if (path / "server" / _FACTS).exists() else path
    facts = _read(path / _FACTS, "a folder that fedms deploy wrote for the server")
    try:
        address, sites = Address(**facts["address"]), tuple(facts["sites"])
        return ServerFolder(path.resolve(), facts["name"], address, facts["secure"], sites)
    except (KeyError, TypeError) as error:
        raise UserError(f"got {path / 'deployment.toml'}, which lacks {error}") from None


def read_site(path: Path) -> SiteFolder:
    """Of a site's folder.

    Raises:
        UserError: if it is none.
    """
    facts = _read(path / "site.toml", "a folder that fedms deploy wrote for a site")
    try:
        return SiteFolder(path.resolve(), **facts)
    except TypeError as error:
        raise UserError(f"got {path / 'site.toml'}, which does not fit: {error}") from None


def site_config(site: SiteFolder, overrides: Sequence[str]) -> Config:
    """The configuration with what the site says of its data.

    Raises:
        UserError: if it says nothing of them.
    """
    config = load_config(site.path / "config.toml", overrides)
    if config.data.path == ELSEWHERE:
        raise UserError(
            f"got no data.path for site {site.client!r}; expected where its rows are; try "
            f"fedms site {site.path} data.path=FILE"
        )
    return config


def _check(folder: Path, config: Config, sites: Sequence[str]) -> None:
    if not config.data.classes:
        raise UserError(
            "got no data.classes; expected all classes of the federation, for no site may have "
            'all; try data.classes=["one", "two"]'
        )
    if not sites or len(set(sites)) < len(sites):
        raise UserError(f"got sites {', '.join(sites) or '(none)'}; expected names, each once")
    for name in sites:
        if not 0 < len(name) <= _LONGEST or not name.isprintable():
            raise UserError(f"got site {name!r}; expected 1 to {_LONGEST} printable characters")
    if config.runtime.workers > 1:
        raise UserError("got runtime.workers > 1; expected 1, for every site has its own process")
    if config.method == "centralised":
        raise UserError('got method = "centralised"; expected one whose data stay where they are')
    known = (folder / "server" / _FACTS).exists()
    if folder.exists() and not known and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"got folder {folder}, which is no deployment; try --to OTHER")


def _for_site(config: Config, name: str) -> Config:
    """Without the server's trackers, and without what is said of other sites."""
    caps, ranks = (
        {who: limit for who, limit in limits.items() if who in (name, "*")}
        for limits in (config.sal.caps, config.lora.ranks)
    )
    own = {
        "sal": config.sal.model_copy(update={"caps": caps}),
        "lora": config.lora.model_copy(update={"ranks": ranks}),
    }
    return untracked(config).model_copy(update=own)


def _embedded(config: Config) -> bool:
    return config.data.source == "digits"


def _place(
    address: str | None, listen: str | None, before: Address | None, *, secure: bool
) -> Address:
    if address is None and before is not None:
        host, port = before.host, before.port
    else:
        host, port = _parse(address or "127.0.0.1")
    if listen is not None and not _is_host(listen):
        raise UserError(f"got --listen {listen}; expected an address of this machine, without port")
    same = before is not None and (before.host, before.port) == (host, port)
    if listen is None and before is not None and same:
        listen = before.listen
    every = "::" if ":" in host else "0.0.0.0"  # noqa: S104 - who is far comes in
    here = listen or (host if _is_loopback(host) else every)
    return Address(host, port, here, port + 1 if secure else port)


def _is_host(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9A-Fa-f:]+|[A-Za-z0-9.-]+", text))


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse(address: str) -> tuple[str, int]:
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:]+)\]|([A-Za-z0-9.-]+))(?::(\d{1,5}))?", address)
    host = (found[1] or found[2]) if found else ""
    port = int(found[3] or _PORT) if found else 0
    if not host or not 0 < port < 2**16 - 1:
        raise UserError(f"got --address {address}; expected HOST:PORT, e.g. fl.example.org:{_PORT}")
    return host, port


def _authority(folder: Path, name: str, host: str) -> tuple[bytes, bytes]:
    """The deployment's authority, made once; and a new certificate of the server's."""
    key, certificate = folder / "ca.key", folder / "server" / "ca.crt"
    if certificate.exists() and not key.exists():
        raise UserError(
            f"got {certificate} without {key}, which signed it; expected both; try to put it back "
            "for as long as this takes"
        )
    if not (key.exists() and certificate.exists()):
        made = make_authority(f"fedms {name}")
        _write_secret(key, made[1])
        write_bytes(certificate, made[0])
    authority = certificate.read_bytes(), key.read_bytes()
    public, private = make_server(authority, host)
    write_bytes(folder / "server" / "server.crt", public)
    _write_secret(folder / "server" / "server.key", private)
    return authority


def _write_server(server: ServerFolder, config: str, authority: tuple[bytes, bytes] | None) -> None:
    facts = {name: value for name, value in asdict(server).items() if name != "path"}
    write_text(server.path / "config.toml", config)
    (server.path / "nodes").mkdir(exist_ok=True)
    if not (server.path / "superexec.secret").exists():
        _write_secret(server.path / "superexec.secret", secrets.token_bytes(32))
    if authority is not None:
        text = nginx(server.address.listens, server.address.inner_port)
        write_text(server.path / "nginx.conf", text)
    write_text(server.path / _FACTS, tomli_w.dumps(facts))


def _write_site(
    folder: Path,
    server: ServerFolder,
    name: str,
    config: str,
    authority: tuple[bytes, bytes] | None,
) -> None:
    site = folder / "sites" / safe_name(name)
    public = _key_of(server.path, name)
    facts = {
        "name": server.name,
        "client": name,
        "server": str(server.address),
        "secure": server.secure,
    }
    if authority is not None:
        write_bytes(site / "ca.crt", authority[0])
        if not public.exists():  # else it has its key, wherever that is
            made = make_node_key()
            _write_secret(site / "node.key", made[1])
            write_bytes(public, made[0])
    write_text(site / "config.toml", config)
    write_text(site / "site.toml", tomli_w.dumps(facts))


def _key_of(server: Path, site: str) -> Path:
    """Of a site that is let in: its public key."""
    return server / "nodes" / f"{safe_name(site)}.pub"


def _write_secret(path: Path, content: bytes) -> None:
    """A file that only its owner can read, from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _read(path: Path, what: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"got {path.parent}, which has no {path.name}; expected {what}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"got {path}, which cannot be read: {error}") from None
