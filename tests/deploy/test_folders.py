"""What `fedms deploy` writes, and what is made of it."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from fedms.config import load_config
from fedms.core.errors import UserError
from fedms.deploy import certificates, engine
from fedms.deploy import submit as submitting
from fedms.deploy.bundle import Request, read_request, requested, write_bundle
from fedms.deploy.folders import read_server, read_site, site_config, write_deployment
from fedms.deploy.parts import ELSEWHERE
from fedms.deploy.submit import Waiting, resume, submit
from fedms.deploy.terms import differences, terms
from fedms.store.run_folder import RunFolder

WORDS = (
    "data.source=csv",
    "data.path=/secret/place/letters.csv",
    'data.classes=["a", "b"]',
    "partition.by=iid",
)
SITES = ("north", "St. Mary's/ü")


def config(*words):
    return load_config(None, [*WORDS, *words])


def written(folder, *words, sites=SITES, **options):
    return write_deployment(folder, config(*words), sites, **options)


def files(folder):
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def others_may_read():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("others_may_read")
def test_secrets_are_their_owners_and_each_site_has_its_own(tmp_path):
    written(tmp_path / "d", address="fl.example.org:9443")
    found = files(tmp_path / "d")
    secret = {n for n, p in found.items() if stat.S_IMODE(p.stat().st_mode) == 0o600}
    assert secret == {n for n in found if n.endswith((".key", ".secret"))}
    private = [p.read_bytes() for n, p in found.items() if n in secret]
    assert len(set(private)) == len(private) == 5  # authority, server, programs, two sites
    for name, path in found.items():
        if name not in secret:
            assert not any(one in path.read_bytes() for one in private)
    for name in ("north", "St. Mary%27s%2F%C3%BC"):
        assert {n for n in found if n.startswith(f"sites/{name}/")} == {
            f"sites/{name}/{file}" for file in ("ca.crt", "config.toml", "node.key", "site.toml")
        }


def test_no_path_of_this_machine_is_handed_over(tmp_path):
    there = written(tmp_path / "d")
    config = load_config(there.path / "config.toml")
    assert config.data.path == ELSEWHERE
    for path in files(tmp_path / "d").values():
        assert b"/secret/place" not in path.read_bytes()


def test_sites_have_nothing_of_the_servers_or_of_other_sites(tmp_path):
    words = ('tracking.to="mlflow"', "tracking.mlflow_uri=https://track.example.org")
    limits = (
        "sal.caps.north=1",
        "sal.caps.*=2",
        f"sal.caps.{SITES[1]}=3",
        "lora.ranks.north=4",
    )
    there = written(tmp_path / "d", *words, *limits)
    configs = [load_config(site / "config.toml") for site in there.site_folders]
    assert [c.sal.caps for c in configs] == [{"north": 1, "*": 2}, {SITES[1]: 3, "*": 2}]
    assert [c.lora.ranks for c in configs] == [{"north": 4}, {}]
    assert all(c.tracking == config().tracking for c in configs)
    ours = load_config(there.path / "config.toml")
    assert ours.tracking.mlflow_uri.startswith("https://track")
    assert len(ours.sal.caps) == 3
    assert {terms(c)["configuration"] for c in (ours, *configs)} == {terms(ours)["configuration"]}
    assert differences(ours, config(*words, *limits[:3])) == ["lora.ranks.north"]


def test_what_flower_hands_to_sites_says_nothing_but_the_runs_name(tmp_path):
    write_bundle(tmp_path, "one-12ab")
    assert set(files(tmp_path)) == {"LICENSE", "pyproject.toml"}
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())
    assert project["tool"]["flwr"]["app"]["config"] == {"run": "one-12ab"}


def test_a_request_is_there_while_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    wanted = Request("a = 1", "../one/" + 300 * "x", "/runs/one", 2, SITES, 5.0, again=True)
    with requested(tmp_path, wanted):
        assert read_request(wanted.run) == wanted
    with pytest.raises(UserError, match="of which the server has no"):
        read_request(wanted.run)
    assert list(files(tmp_path)) == []


def test_what_was_written_is_read(tmp_path):
    made = written(tmp_path / "d", address="[2001:db8::1]:4000", listen="10.0.0.7")
    for path in (tmp_path / "d", tmp_path / "d" / "server"):
        got = read_server(path)
        assert (got.path, got.sites, got.secure) == (made.path.resolve(), SITES, True)
        assert str(got.address) == "[2001:db8::1]:4000"
        assert got.address.listens == "10.0.0.7:4000"
        assert got.address.inner_port == 4001
    assert "listen 10.0.0.7:4000 ssl;" in (made.path / "nginx.conf").read_text()
    site = read_site(made.site_folders[1])
    assert (site.client, site.server, site.secure) == (SITES[1], "[2001:db8::1]:4000", True)
    assert site_config(site, ["data.path=/mine.csv"]).data.path == "/mine.csv"
    with pytest.raises(UserError, match=r"got no data\.path for site"):
        site_config(site, [])


@pytest.mark.parametrize(
    ("address", "listens"),
    [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost"), ("a.org", "0.0.0.0")],
)
def test_who_is_far_finds_the_server_and_who_is_near_alone_otherwise(tmp_path, address, listens):
    assert written(tmp_path / "d", address=address).address.listen == listens


def test_written_again_it_keeps_keys_and_takes_new_sites_and_settings(tmp_path):
    written(tmp_path / "d", sites=["north"])
    kept = ("ca.key", "server/ca.crt", "server/superexec.secret", "sites/north/node.key")
    before = {name: (tmp_path / "d" / name).read_bytes() for name in kept}
    again = written(tmp_path / "d", "stage2.rounds=3", sites=["south"])
    assert again.sites == ("north", "south")
    assert before == {name: (tmp_path / "d" / name).read_bytes() for name in kept}
    for site in again.site_folders:
        assert tomllib.loads((site / "config.toml").read_text())["stage2"]["rounds"] == 3


def test_certificates_are_signed_by_their_own_authority_for_their_host(tmp_path):
    written(tmp_path / "d", address="fl.example.org:9443")
    authority, server = (
        x509.load_pem_x509_certificate((tmp_path / "d" / "server" / name).read_bytes())
        for name in ("ca.crt", "server.crt")
    )
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    other, _ = certificates.make_authority("fedms digits")
    with pytest.raises((InvalidSignature, ValueError)):
        server.verify_directly_issued_by(x509.load_pem_x509_certificate(other))
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)


def test_without_tls_there_are_no_certificates(tmp_path):
    there = written(tmp_path / "d", secure=False)
    assert not any(n.endswith((".crt", ".key", ".pub", ".conf")) for n in files(tmp_path / "d"))
    assert there.address.inner_port == there.address.port
    assert not read_site(there.site_folders[0]).secure


@pytest.mark.parametrize(
    ("options", "words", "says"),
    [
        ({}, ["data.classes=[]"], r"got no data\.classes"),
        ({"sites": []}, [], "got sites .none."),
        ({"sites": ["a", "a"]}, [], "each once"),
        ({"sites": ["a\nb"]}, [], "printable"),
        ({"address": "a b"}, [], "expected HOST:PORT"),
        ({"address": "a:99999"}, [], "expected HOST:PORT"),
        ({"address": "http://a"}, [], "expected HOST:PORT"),
        ({}, ["runtime.workers=2"], "every site has its own process"),
        ({}, ["method=centralised"], "data stay where they are"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(tmp_path, options, words, says):
    with pytest.raises(UserError, match=says):
        written(tmp_path / "d", *words, **options)
    assert not (tmp_path / "d").exists()


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="which is no deployment"):
        written(tmp_path / "d")
    assert set(files(tmp_path / "d")) == {"thesis.tex"}
    for read in (read_server, read_site):
        with pytest.raises(UserError, match="which has no"):
            read(tmp_path / "d")


def test_a_site_whose_folder_was_handed_over_keeps_its_key(tmp_path):
    made = written(tmp_path / "d", sites=["north"])
    public = (made.path / "nodes" / "north.pub").read_bytes()
    made.site_folders[0].rename(tmp_path / "at north's")
    written(tmp_path / "d", sites=["west"])
    assert (made.path / "nodes" / "north.pub").read_bytes() == public
    assert not (tmp_path / "d" / "sites" / "north" / "node.key").exists()  # it is with the site


def test_without_the_authoritys_key_nothing_is_made_anew(tmp_path):
    made = written(tmp_path / "d", address="a.org:4000")
    before = (made.path / "ca.crt").read_bytes()
    (tmp_path / "d" / "ca.key").rename(tmp_path / "safe")
    with pytest.raises(UserError, match=r"ca\.crt without .*ca\.key, which signed it"):
        written(tmp_path / "d", sites=["west"])
    assert (made.path / "ca.crt").read_bytes() == before


def test_a_site_that_was_shut_out_stays_out_unless_it_is_named(tmp_path):
    made = written(tmp_path / "d", sites=["north", "south"])
    (made.path / "nodes" / "north.pub").unlink()
    again = written(tmp_path / "d", sites=["west"])
    assert again.sites == ("south", "west")
    assert written(tmp_path / "d", sites=["north"]).sites == ("south", "west", "north")


def test_the_address_stays_unless_another_is_given(tmp_path):
    written(tmp_path / "d", address="a.org:4000", listen="10.0.0.7")
    again = written(tmp_path / "d", sites=["west"]).address
    assert (str(again), again.listens) == ("a.org:4000", "10.0.0.7:4000")
    moved = written(tmp_path / "d", sites=["west"], address="b.org").address
    assert (str(moved), moved.listens) == ("b.org:9443", "0.0.0.0:9443")
    far = written(tmp_path / "d", sites=["west"], address="[2001:db8::1]:5000").address
    assert far.listens == "[::]:5000"


@pytest.mark.parametrize("listen", ["1.2.3.4:80", "x ssl; include /etc/passwd", "", "a b"])
def test_where_to_listen_is_an_address_alone(tmp_path, listen):
    with pytest.raises(UserError, match="got --listen"):
        written(tmp_path / "d", listen=listen)


@pytest.fixture
def flower(monkeypatch):
    """Runs that are submitted, each with what the server finds when it packs the app."""
    packed = []

    def ask(home, *words, **more):
        if words[0] != "run":
            return {"runs": [{"status": "finished:completed", "status-details": ""}]}
        if before := flower.before.pop() if flower.before else None:
            before()
        app = tomllib.loads((Path(words[1]) / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
        monkeypatch.setenv("FLWR_HOME", str(home))
        packed.append(read_request(app["config"]["run"]))
        return {"run-id": str(len(packed))}

    flower = SimpleNamespace(packed=packed, before=[])
    monkeypatch.setattr(engine, "ask", ask)
    monkeypatch.setattr(submitting, "_follow", lambda server, number: None)
    return flower


def test_runs_that_are_submitted_at_once_are_each_their_own(tmp_path, flower):
    """The second one begins while the first is packed."""
    there = written(tmp_path / "d")

    def submitted(seed):
        ours = load_config(there.path / "config.toml", [f"seed={seed}"])
        how = Waiting(2, names=there.let_in)
        submit(there, ours, tmp_path / f"run{seed}", how, say=str)

    flower.before.append(lambda: submitted(2))
    submitted(1)
    assert [Path(r.folder).name for r in flower.packed] == ["run2", "run1"]
    assert ["seed = 2" in r.configuration for r in flower.packed] == [True, False]
    assert all(r.names == SITES for r in flower.packed)
    assert not [name for name in files(there.path) if "requests" in name]


def test_a_site_that_was_shut_out_is_not_waited_for(tmp_path, flower):
    there = written(tmp_path / "d")
    assert there.let_in == SITES
    (there.path / "nodes" / "north.pub").unlink()
    assert there.let_in == SITES[1:]
    assert written(tmp_path / "e", secure=False).let_in == SITES
    with pytest.raises(UserError, match=r"got no key in .*nodes, so no site is let in"):
        submit(there, load_config(there.path / "config.toml"), tmp_path / "r", Waiting(0), say=str)
    assert flower.packed == []


def test_a_complete_run_is_submitted_again_for_its_sites(tmp_path, flower):
    there, said = written(tmp_path / "d"), []
    text = (there.path / "config.toml").read_text()
    RunFolder.create(tmp_path / "r", text, seed=0, computes={"sites": "r-1"}).write_summary({})
    resume(there, tmp_path / "r", Waiting(1), say=said.append)
    assert said[0] == f"{tmp_path / 'r'} is complete; sites are told again to keep their models"
    assert [(r.run, r.again, r.sites) for r in flower.packed] == [("r-1", True, 1)]
    RunFolder.create(tmp_path / "s", text, seed=0).write_summary({})
    with pytest.raises(UserError, match="a run on one machine"):
        resume(there, tmp_path / "s", Waiting(1), say=str)


def test_settings_that_sites_would_refuse_are_refused_at_once(tmp_path):
    first = config()
    own = config("seed=3", "rounds.deadline=5", "evaluate_every=0", "name=other")
    assert differences(first, own) == []
    other = config("stage2.rounds=3", "training.learning_rate=0.5", 'data.classes=["a", "c"]')
    assert differences(first, other) == [
        "data.classes",
        "stage2.rounds",
        "training.learning_rate",
    ]
    with pytest.raises(UserError, match=r"got stage2\.rounds other than sites have"):
        submit(
            written(tmp_path / "d"),
            load_config(tmp_path / "d/server/config.toml", ["stage2.rounds=3"]),
            tmp_path / "run",
            Waiting(1),
            say=str,
        )
