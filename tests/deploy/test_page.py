"""The commands of docs/deployment.md in order, as somebody follows them, on one machine.

In place of the server's name stands this machine's address, in place of the rows' path a file of
the test; without nginx the page's `--proxy none` is taken.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas
import pytest

from fedms.config import load_config
from fedms.run import run

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fedms[flower]'")

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text("utf-8")
COMMANDS = re.findall(r"^ {4}((?:RAY_ADDRESS=auto )?fedms .*)$", PAGE, re.MULTILINE)
DONE = {"deploy", "server", "site", "submit", "predict", "evaluate", "export", "run"}


def _picture(folder: Path) -> None:
    rows = pandas.read_parquet(folder / "all.parquet")
    (folder / "letter.png").write_bytes(rows.input[0])


def _until(process: Any, log: Path, text: str) -> None:
    ends = time.monotonic() + 120
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < ends, log.read_text()
        time.sleep(0.2)


@pytest.mark.e2e
def test_a_ray_cluster_is_used(loopback):
    """Of one machine, which says that it has a GPU: nobody looks."""
    ray = Path(sys.executable).with_name("ray")
    if not ray.exists():
        pytest.skip("Ray is not installed: pip install 'fedms[ray]'")
    here = loopback()
    (command,) = [c for c in COMMANDS if c.startswith("RAY_ADDRESS=auto fedms ")]
    words = ["start", "--head", "--block", "--num-cpus=2", "--num-gpus=1"]
    words += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats"]
    temporary = Path(tempfile.mkdtemp(prefix="ray-"))  # names of its sockets must be short
    words += [f"--port={here.port}", f"--temp-dir={temporary}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    with (here.folder / "ray.log").open("w") as log:
        cluster = subprocess.Popen(
            [str(ray), *words], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        _until(cluster, here.folder / "ray.log", "Ray runtime started")
        done = subprocess.run(
            [sys.executable, "-m", "fedms.cli", *shlex.split(command)[2:], "data.max_rows=150"],
            cwd=here.folder,
            env={**environment, "RAY_ADDRESS": f"127.0.0.1:{here.port}"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert list((here.folder / "runs").glob("*/summary.json"))
        assert cluster.poll() is None
    finally:
        with suppress(ProcessLookupError):
            os.kill(cluster.pid, signal.SIGTERM)
        cluster.wait(60)
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.mark.loopback
def test_the_page_is_followed(loopback, same, tmp_path):
    """And its first run is the simulator's.

    The longest is the last of its file: what xdist hands on is what comes last.
    """
    here = loopback(sites=("north", "south"))
    assert {shlex.split(command.split("fedms ")[1])[0] for command in COMMANDS} == DONE
    port = here.port if here.nginx else here.port + 1
    folder = here.folder  # holds clinics.toml and every site's rows
    _picture(folder)

    for command in COMMANDS:
        words = shlex.split(command.replace("fl.example.org:9443", f"127.0.0.1:{here.port}"))
        if words[0] != "fedms":
            continue  # Ray's, above
        match words[1]:
            case "server":
                here.start("server", *[*words[1:], *([] if here.nginx else ["--proxy", "none"])])
                _until(here.running["server"], folder / "server.log", "sites come to")
            case "site":
                for site in here.sites:
                    shutil.copytree(folder / "deployment" / "sites" / site, folder / site)
                    own = [f"data.path={folder / site}.parquet", "--server", f"127.0.0.1:{port}"]
                    assert words[2:] == ["north", "data.path=/data/letters.csv"]
                    here.start(site, "site", site, *own)
            case _:
                state = next(iter((folder / "north" / "state").glob("first-*")), None)
                words = [word.replace("north/state/RUN", str(state)) for word in words]
                done = here.fedms(*words[1:])
                assert done.returncode == 0, (command, done.stdout, done.stderr)
    for name in ("first", "second"):
        assert (folder / "runs" / name / "summary.json").exists()
    assert (folder / "letters" / "README.md").exists()
    run(load_config(here.config), tmp_path / "simulated")
    kept = {}
    for site in here.sites:
        (kept[site],) = (folder / site / "state").glob("first-*")
    same(folder / "runs" / "first", tmp_path / "simulated", kept)
    summary = json.loads((tmp_path / "simulated" / "summary.json").read_text())
    for site, own in kept.items():
        assert "its models are kept" in here.said(site)
        (scores,) = json.loads(here.fedms("evaluate", own, "--json").stdout).values()
        own_accuracy = summary["test"]["personal"]["per_client"][site]
        assert scores["personal"]["accuracy"] == own_accuracy
