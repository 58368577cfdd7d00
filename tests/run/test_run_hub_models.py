"""Foundation models of the hub, in its client's cache, where there is no network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RUN = ("stage1.rounds=1", "stage2.rounds=1", "partition.clients=2", "runtime.threads=1")
TEXTS = ("data.source=csv", "data.path=rows.csv")


@pytest.fixture
def cached(tmp_path, model_folder):
    """`cached(kind)` puts a tiny model into an empty cache, as the hub's client does; its id."""

    def put(kind: str, commit: str = COMMIT) -> str:
        repository = tmp_path / "home" / "hub" / f"models--somebody--tiny-{kind}"
        shutil.copytree(model_folder(kind), repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        return f"somebody/tiny-{kind}"

    lines = [f"{word} card number {i},{word}" for i in range(20) for word in ("red", "blue")]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return put


ONE_AFTER_ANOTHER = """
import json, sys
from fedms.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["fedms", *words]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            sys.exit(ended.code)
"""


@pytest.fixture
def fedms(tmp_path):
    """Commands, in a process of their own, whose environment says where the cache is."""
    env = {
        **{k: v for k, v in os.environ.items() if k not in ("HF_HUB_CACHE", "TRANSFORMERS_CACHE")},
        **{"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    }

    def perform(*commands: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", ONE_AFTER_ANOTHER, json.dumps(commands)]
        return subprocess.run(
            words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )

    return perform


@pytest.mark.slow
def test_runs_of_texts_and_of_images(cached, fedms, tmp_path):
    runs = {"sentence": TEXTS, "clip": ("data.max_rows=80",)}
    done = fedms(
        *(
            ("run", f"model.name={cached(kind)}", *data, *RUN, "--out", kind, "--quiet")
            for kind, data in runs.items()
        )
    )
    assert done.returncode == 0, done.stderr
    for kind in runs:
        facts = json.loads((tmp_path / kind / "environment.json").read_text())
        assert facts["identity"]["weights"] == COMMIT


@pytest.mark.slow
def test_what_a_run_left_is_used_and_another_commit_is_another_model(cached, fedms, tmp_path):
    name = f"model.name={cached('bert')}"
    done = fedms(
        ("run", name, *TEXTS, *RUN, "--out", "run", "--quiet"),
        ("evaluate", "run"),
        ("export", "run", "--client", "new", "--to", "shared"),
        ("adapt", "shared", "data.path=rows.csv", "--to", "own"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "own" / "adapted.json").is_file()
    (tmp_path / "run" / "summary.json").unlink()
    cached("bert", COMMIT[::-1])
    done = fedms(("resume", "run"))
    assert done.returncode == 2
    assert "whose weights (somebody/tiny-bert) are other ones now" in done.stderr
