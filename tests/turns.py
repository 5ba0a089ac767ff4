"""
Owns whose turn it is: tests of several processes share the machine, one that measures it does not.

Knows nothing of pytest, and of what is measured.
Invariants: nobody else has a turn during a lone one; who waits for a lone turn lets nobody past.
Source: flock(2); a turnstile before a readers-writer lock.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def take_turn(folder: Path, *, is_alone: bool) -> Iterator[None]:
    """Wait for a turn on the machine that the folder stands for, and have it until the end."""
    with (folder / "gate").open("ab") as gate, (folder / "floor").open("ab") as floor:
        # A lone turn is waited for inside the gate, so that it comes after those under way.
        fcntl.flock(gate, fcntl.LOCK_EX)
        try:
            fcntl.flock(floor, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            # Closing alone would not do, had a child inherited the descriptor.
            fcntl.flock(floor, fcntl.LOCK_UN)
