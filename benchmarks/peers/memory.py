"""Peak memory of a process and all its descendants, and its age, from `/proc` (Linux).

Proportional set size: a page that processes share is divided among them, so the sum over a tree
counts it once.

python benchmarks/peers/memory.py COMMAND …
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_PROC = Path("/proc")


def pss_bytes(pid: int) -> int:
    """Proportional set size of one process; 0 where it is gone."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def descendants(pid: int) -> set[int]:
    """A process and everything it started that still hangs below it."""
    parents = {int(entry.name): _parent(entry) for entry in _PROC.iterdir() if entry.name.isdigit()}
    found, new = {pid}, {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return -1


def age() -> float:
    """Seconds since this process began, before any import."""
    fields = (_PROC / "self" / "stat").read_text().rsplit(")", 1)[1].split()
    begun = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - begun


class PeakPss:
    """Samples a process tree in a thread while the context is open.

    Args:
        pid: root of the tree.
        interval: seconds between samples.
    """

    def __init__(self, pid: int, interval: float = 0.5) -> None:
        self.peak = 0
        self._pid, self._interval = pid, interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> PeakPss:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            total = sum(pss_bytes(pid) for pid in descendants(self._pid))
            self.peak = max(self.peak, total)
            if self._stop.wait(self._interval):
                return


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """At its end holds what this process took: its age, and the peak of its tree since."""
    spent: dict[str, float] = {}
    with PeakPss(os.getpid()) as memory:
        yield spent
    spent.update(seconds=age(), peak_pss_bytes=memory.peak)


def run_measured(command: Sequence[str]) -> tuple[float, int]:
    """Run a command; its seconds and the peak of its tree in bytes.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    start = time.perf_counter()
    with subprocess.Popen(command) as process, PeakPss(process.pid) as memory:  # noqa: S603
        status = process.wait()
    if status:
        raise subprocess.CalledProcessError(status, command)
    return time.perf_counter() - start, memory.peak


def main() -> None:
    """Run the command line's command and say what it took on the error stream."""
    seconds, peak = run_measured(sys.argv[1:])
    sys.stderr.write(f"{seconds:.1f} s, peak {peak / 1e6:.0f} MB in {os.cpu_count()} cores\n")


if __name__ == "__main__":
    main()
