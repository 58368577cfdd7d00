"""What `fedms deploy` writes, and what is made of it."""

from __future__ import annotations

import os
import stat
import tomllib

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from fedms.config import load_config
from fedms.core.errors import UserError
from fedms.deploy import certificates
from fedms.deploy.bundle import write_bundle
from fedms.deploy.folders import read_server, read_site, site_config, write_deployment
from fedms.deploy.submit import Waiting, submit
from fedms.deploy.terms import differences

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
    for _ in range(2):  # in place of the one before
        write_bundle(tmp_path / "app", config, run="one", out=tmp_path / "out", sites=2)
    for path in (*files(tmp_path / "d").values(), *files(tmp_path / "app").values()):
        assert b"/secret/place" not in path.read_bytes()
    assert set(files(tmp_path / "app")) == {"LICENSE", "pyproject.toml"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="mine, which is no app of a run"):
        write_bundle(tmp_path / "mine", config, run="one", out=tmp_path / "out", sites=2)
    assert set(files(tmp_path / "mine")) == {"thesis.txt"}


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
