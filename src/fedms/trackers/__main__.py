"""The process of one tracker."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

from fedms.trackers import Opened, Tracker


def main() -> None:
    """Track what standard input says."""
    tracker, summary = _opened(json.loads(sys.stdin.readline())), None
    for line in sys.stdin:
        said: dict[str, Any] = json.loads(line)
        if "summary" in said:
            summary = said
            break
        tracker.log(said["step"], said["values"])
    if summary is None:
        tracker.finish({}, complete=False)
    else:
        tracker.finish(summary["summary"], complete=summary["complete"])


def _opened(facts: dict[str, Any]) -> Tracker:
    tracker: Tracker = import_module(f"fedms.trackers.to_{sys.argv[1]}").opened(Opened(**facts))
    return tracker


if __name__ == "__main__":
    main()
