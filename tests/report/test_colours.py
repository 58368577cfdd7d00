"""Colours of a report can be told apart by everybody, in light and in dark."""

from __future__ import annotations

import itertools
import re
from importlib.resources import files

import numpy as np
import pytest

STYLE = (files("fedms.report") / "assets" / "report.css").read_text(encoding="utf-8")
SEES = {
    "all": np.eye(3),
    # of Machado, Oliveira and Fernandes (2009), at full severity, on linear RGB
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                   [0.0193339, 0.1191920, 0.9503041]])  # fmt: skip
WHITE = TO_XYZ.sum(1)
ROLES = ("personal", "global", "local", "zero", "oracle")
LEVELS = tuple(f"h{k}" for k in range(1, 9))


def colours(scheme):
    """Linear RGB by name."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    block = blocks[{"light": 0, "dark": 1, "print": 2}[scheme]]
    found = {}
    for name, value in re.findall(r"--([\w]+): #([0-9a-f]{6});", block):
        parts = np.array([int(value[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        found[name] = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return found


def lab(linear, sees):
    ratio = TO_XYZ @ np.clip(SEES[sees] @ linear, 0, 1) / WHITE
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sees", SEES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_roles_can_be_told_apart(scheme, sees):
    """A difference of 2.3 is just noticed side by side (CIE 1976); here it is five times that."""
    known = colours(scheme)
    for a, b in itertools.combinations(ROLES, 2):
        apart = np.linalg.norm(lab(known[a], sees) - lab(known[b], sees))
        assert apart > 11.5, (a, b, apart)


@pytest.mark.parametrize("sees", SEES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_shades_go_one_way(scheme, sees):
    known = colours(scheme)
    lightness = [lab(known[level], sees)[0] for level in LEVELS]
    steps = np.diff(lightness) * (-1 if scheme == "light" else 1)
    assert (steps > 4).all(), steps


def test_paper_has_the_light_colours():
    light, paper = colours("light"), colours("print")
    assert all((light[name] == paper[name]).all() for name in (*ROLES, *LEVELS))
