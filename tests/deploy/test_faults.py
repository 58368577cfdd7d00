"""Programs are killed and strangers come: `make e2e`. What survived is printed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from fedms.config import load_config
from fedms.deploy import certificates, engine
from fedms.run import run

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fedms[flower]'")
pytestmark = pytest.mark.e2e
SEED = int(os.environ.get("FEDMS_E2E_SEED", random.SystemRandom().randrange(1000)))


@pytest.fixture
def report(record_property):
    """`report(text)` is shown when all tests have ended (see `tests/conftest.py`)."""
    return lambda text: record_property("survived", f"{text} (FEDMS_E2E_SEED={SEED})")


def rounds(folder):
    path = folder / "rounds.jsonl"
    return [json.loads(s) for s in path.read_text().splitlines()] if path.exists() else []


def until(folder, number, here, timeout=240):
    """Wait until so many rounds are done, and a random while."""
    ends = time.monotonic() + timeout
    while len(rounds(folder)) < number:
        assert time.monotonic() < ends, here.said("submit")
        time.sleep(0.1)
    time.sleep(random.Random(SEED + number).uniform(0, 4))


def children(pid):
    """Processes below one, by their command lines."""
    found = {}
    for line in subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout.splitlines():
        own, parent, words = line.split(None, 2)
        found[int(own)] = (int(parent), words)
    inside, grown = {pid}, True
    while grown:
        new = {p for p, (parent, _) in found.items() if parent in inside} - inside
        inside, grown = inside | new, bool(new)
    return {p: found[p][1] for p in inside - {pid}}


def alive(processes):
    """Those that still run, by what they are; who is dead and not buried does not."""
    found = []
    for pid, words in processes.items():
        status = Path(f"/proc/{pid}/status")
        with contextlib.suppress(OSError):
            if "State:\tZ" not in status.read_text():
                found.append(words)
    return found


def equal(states, here, served):
    """Whether a run with sites has left what an undisturbed simulator leaves."""
    simulated = here.folder / "simulated"
    if not simulated.exists():
        run(load_config(here.config), simulated)
    wanted = {k: v for k, v in states(simulated).items() if "/clients/" not in k}
    return states(served) == wanted


@pytest.mark.parametrize("victim", ["fedms server", "flower-superlink", "flwr-serverapp"])
def test_the_server_dies_and_the_run_goes_on(loopback, states, report, tmp_path, victim):
    here, out = loopback(rounds=2), tmp_path / "served"
    here.everyone()
    here.submit("--out", out)
    until(out, 2, here)
    server = here.running["server"].pid
    if victim == "fedms server":
        below = children(server)
        here.end("server", signal.SIGKILL)
        ends = time.monotonic() + 60
        while alive(below):
            assert time.monotonic() < ends, alive(below)
            time.sleep(0.5)
    else:
        (pid,) = [p for p, words in children(server).items() if f"/{victim} " in words]
        os.kill(pid, signal.SIGKILL)
    if victim == "flower-superlink":
        assert here.running.pop("server").wait(60) == 2
        assert "superlink ended with exit code -9" in here.said("server")
    assert here.ended() == 2
    done = len(rounds(out))
    if victim != "flwr-serverapp":
        here.serve()
    here.submit("--resume", out)
    assert here.ended() == 0, here.said("submit")
    assert [line["round"] for line in rounds(out)] == list(range(5))
    same = equal(states, here, out)
    report(f"{victim} was killed after {done} rounds: resumed, equal to the bit: {same}")
    assert same


ROUNDS = 17
"""Eight a stage, and class statistics first."""


def test_a_site_dies_and_comes_back(loopback, report, tmp_path):
    here, out = loopback(rounds=8), tmp_path / "served"
    here.everyone()
    here.submit("rounds.deadline=20", "--out", out)
    until(out, 2, here)
    here.end("south", signal.SIGKILL)
    time.sleep(random.Random(SEED).uniform(0, 10))
    here.attend("south")
    assert here.ended() == 0, here.said("submit")
    missed = [line["round"] for line in rounds(out) if "south" in line["rejected"]]
    scored = json.loads((out / "summary.json").read_text())["test"]["personal"]["per_client"]
    back = [n for n in range(ROUNDS) if n > min(missed, default=ROUNDS) and n not in missed]
    report(
        f"a site was killed: it missed {len(missed)} of {ROUNDS} rounds, "
        f"took part in {len(back)} again"
    )
    assert back
    assert "south" in scored


def test_strangers_are_kept_out(loopback, report, tmp_path):
    here = loopback()
    here.deploy()
    here.serve()
    here.attend("west")  # who may come in
    port = here.port if here.nginx else here.port + 1
    north = here.there / "sites" / "north"
    attempts = {
        "without a key": _strange(here, "a", lambda site: (site / "node.key").unlink()),
        "with an unknown key": _strange(here, "b", _other_key),
        "with another authority": _strange(here, "c", _other_authority),
        "without TLS": _strange(here, "d", _insecure),
    }
    for site in attempts.values():
        name = site.name
        here.start(
            *(name, "site", site, f"data.path={here.folder / 'north'}.parquet"),
            *("--server", f"127.0.0.1:{port}"),
        )
    time.sleep(45)
    nodes = engine.ask(here.there / "server" / "flower", "supernode", "ls", engine.CONNECTION)
    online = [node for node in nodes["nodes"] if node["status"] == "online"]
    report(f"strangers {', '.join(attempts)}: {len(online) - 1} of {len(attempts)} let in")
    assert len(online) == 1
    if not here.nginx:
        pytest.skip("nginx is not installed: what it publishes was not tried")
    context = ssl.create_default_context(cafile=str(north / "ca.crt"))
    tried = (
        *("/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", "/"),
        *("/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run"),
        *("/v1/fleet/..%2fcontrol/start-run", "//v1/control/start-run", "/v1/fleet"),
    )
    for path in tried:
        asked = urllib.request.Request(f"https://127.0.0.1:{port}{path}", data=b"x")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked, context=context, timeout=10)
        assert refused.value.code in (301, 404), path
    report(f"with the authority's certificate: {len(tried)} ways to other parts, none of them open")


def _strange(here, name, change):
    """A copy of a site's folder, changed."""
    site = here.folder / name
    shutil.copytree(here.there / "sites" / "north", site)
    change(site)
    return site


def _other_key(site):
    _, key = certificates.make_node_key()
    (site / "node.key").write_bytes(key)


def _other_authority(site):
    certificate, _ = certificates.make_authority("another")
    (site / "ca.crt").write_bytes(certificate)


def _insecure(site):
    text = (site / "site.toml").read_text()
    (site / "site.toml").write_text(re.sub("secure = true", "secure = false", text))
