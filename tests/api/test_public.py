"""What is public, and that asking for nothing loads nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fedms

PUBLIC = ["Config", "ConfigError", "FedMS", "Result", "UserError", "load_config"]


def test_public_names():
    assert fedms.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(fedms, name).__doc__, name
    assert {*PUBLIC} <= {*dir(fedms)}
    assert fedms.__version__


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'fedMS'"):
        fedms.fedMS  # noqa: B018


@pytest.mark.parametrize("module", ["fedms", "fedms.cli", "fedms.trackers"])
def test_imports_are_light(module):
    heavy = "{'torch', 'transformers', 'datasets', 'numpy', 'pydantic', 'matplotlib'}"
    code = f"import sys, {module}; raise SystemExit(','.join({heavy} & {{*sys.modules}}) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
