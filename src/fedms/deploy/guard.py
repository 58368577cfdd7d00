"""Become a program that ends when the process ends that started it, however that ends.

    python -m fedms.deploy.guard PARENT PROGRAM [WORD]...

By Linux' parent death signal; elsewhere the program is ended only by a parent that has the time to.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PARENT_DEATH_SIGNAL = 1


def main(parent: int, words: list[str]) -> None:
    """Become the program, if the parent is still there."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(1)
    os.execv(words[0], words)  # noqa: S606 - what we were told


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
