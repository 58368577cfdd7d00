"""The configuration: one typed schema, TOML on disk, `section.key=value` on the command line.

Command line wins over file, file over default. Whatever is unknown, of the wrong type or out of
range is an error that names the key, what it got, what it expects and the nearest known key.

Sections are in `task`, `method`, `rounds` and `runtime`, and `schema` is all of them; `reading` has
files and command lines, `errors` the words for what is wrong.
"""

from __future__ import annotations

from fedms.config.errors import ConfigError
from fedms.config.method import Method, Sal
from fedms.config.reading import dump_config, load_config, validate
from fedms.config.rounds import Faults, Rounds
from fedms.config.schema import Config, choices, known_keys, untracked
from fedms.config.section import DEVICE, SIZE, Section

__all__ = [
    "DEVICE",
    "SIZE",
    "Config",
    "ConfigError",
    "Faults",
    "Method",
    "Rounds",
    "Sal",
    "Section",
    "choices",
    "dump_config",
    "known_keys",
    "load_config",
    "untracked",
    "validate",
]
