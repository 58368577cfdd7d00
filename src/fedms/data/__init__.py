"""From files to clients: tables of labelled examples, dealt to clients and split into three.

`load_table` reads a source, `Partitioning` says how rows are dealt, `assign` makes the federation,
or `alone` the one client of a site.
"""

from __future__ import annotations

from fedms.data.given import Part
from fedms.data.images import decode_image
from fedms.data.partition import Partitioning, partition
from fedms.data.sources import load_inputs, load_table
from fedms.data.splits import (
    ClientIndex,
    Federation,
    alone,
    assign,
    describe,
    spread,
    summary,
)
from fedms.data.table import Kind, Table

__all__ = [
    "ClientIndex",
    "Federation",
    "Kind",
    "Part",
    "Partitioning",
    "Table",
    "alone",
    "assign",
    "decode_image",
    "describe",
    "load_inputs",
    "load_table",
    "partition",
    "spread",
    "summary",
]
