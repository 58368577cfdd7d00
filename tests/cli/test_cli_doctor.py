"""`fedms doctor`: what is there, what is missing, and the command that adds it."""

from __future__ import annotations

import builtins
import json
import sys
from importlib import metadata

import pytest

from fedms import doctor


@pytest.fixture
def without(monkeypatch):
    """The metadata of a machine that lacks a package, or has another version of it."""

    def lacking(package: str, found: str | None = None) -> None:
        original = metadata.version

        def version(name: str) -> str:
            if name != package:
                return original(name)
            if found is None:
                raise metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(metadata, "version", version)

    return lacking


def checks(fedms) -> dict[str, dict[str, str]]:
    return {c["name"]: c for c in json.loads(fedms("doctor", "--json").out)["checks"]}


def test_all_is_well_here(fedms, tmp_path):
    ended = fedms("doctor")
    assert ended.code == 0, ended.out
    assert "fedms can run here" in ended.out
    assert list(tmp_path.iterdir()) == []  # nothing was left behind
    said = json.loads(fedms("doctor", "--json").out)
    assert said["fine"] is True
    names = {check["name"] for check in said["checks"]}
    assert {"Python", "torch", "CPU", "CUDA", "MPS", "glyphclip", "disk"} <= names
    declared = metadata.metadata("fedms").get_all("Provides-Extra")
    extras = {name for name in names if name.startswith("fedms[")}
    assert {"fedms[flower]", "fedms[minilm]", "fedms[ray]"} <= extras
    assert len(extras) == len(declared)


def test_a_missing_package_is_bad(fedms, without):
    without("peft")
    ended = fedms("doctor")
    assert ended.code == 1
    (line,) = [line for line in ended.out.splitlines() if line.startswith("BAD")]
    assert "peft is not installed" in line
    assert f"{sys.executable} -m pip install 'peft>=0.18'" in ended.out
    assert "Traceback" not in ended.out + ended.err


def test_another_version_is_bad(fedms, without):
    without("transformers", "4.40.0")
    check = checks(fedms)["transformers"]
    assert check["state"] == "bad"
    assert check["said"] == "transformers is 4.40.0; expected <6,>=5.0"


def test_a_missing_extra_is_no_harm(fedms, without):
    without("ray")
    ended = fedms("doctor")
    assert ended.code == 0
    assert f"{sys.executable} -m pip install 'fedms[ray]'" in ended.out
    assert checks(fedms)["fedms[ray]"]["state"] == "absent"
    assert checks(fedms)["fedms[minilm]"]["state"] != "bad"


def test_what_developers_need_comes_last_and_is_not_urged(fedms, without):
    without("pytest")
    extras = [c for c in checks(fedms).values() if c["name"].startswith("fedms[")]
    developers = ["browser", "dev", "docs", "fuzz", "training"]
    assert [c["name"] for c in extras[-5:]] == [f"fedms[{name}]" for name in developers]
    assert (extras[-4]["said"], extras[-4]["fix"]) == ("for work on fedms itself", None)


def test_torch_that_cannot_be_loaded(fedms, monkeypatch):
    original = builtins.__import__

    def refuse(name, *rest, **options):
        if name == "torch":
            raise OSError("libcudart.so: cannot open shared object file")
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    found = [check for check in doctor._torch() if check.state == "bad"]
    assert [check.name for check in found] == ["torch"]
    assert "libcudart" in found[0].said


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    (check,) = doctor._folder(tmp_path / "a" / "runs")
    assert check.state == "bad"
    assert f"cannot be written in {tmp_path}: Permission denied" in check.said


def test_telemetry_that_somebody_asked_for_is_told(monkeypatch):
    assert doctor._telemetry().state == "good"
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    assert doctor._telemetry().fix == "unset FLWR_TELEMETRY_ENABLED"
