"""
Owns the memory that a measurement will write, kept ready while it runs.

Knows nothing of what is measured.
Invariants: on a machine without a host below it changes nothing but the order of allocations;
what was not used is free again at the end.
Source: measured: a virtual machine whose host takes back free pages writes a new file at 0.2 GB/s
the first time and at 4 GB/s into pages that were touched shortly before.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

STEP_BYTES = 16 * 1024 * 1024
# Hosts are given pages back that were free for about two seconds.
LEAD_S = 0.5
PAGE_BYTES = 4096
# Left alone, so that nothing else runs short: other programs need more at any moment.
SPARED_BYTES = 3 * 1024 * 1024 * 1024
# Should memory run out all the same, the kernel ends this process, and not somebody's work.
OOM_SCORE_ADJ = "1000"
# A tmpfs, on every Linux.
MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108


@contextlib.contextmanager
def keep_ready(size_bytes: int, *, rate_bps: float) -> Iterator[None]:
    """
    Touch so much memory, then free it beside the work, at the pace at which that will write.

    Args:
        size_bytes: What will be written.
        rate_bps: Bytes a second, at best.
    """
    # All but a little of what is free: else the kernel takes other pages than those.
    most = read_free_bytes() - SPARED_BYTES
    size_bytes = max(min(size_bytes, read_available_bytes() - SPARED_BYTES), most, STEP_BYTES)
    keeper = subprocess.Popen(
        [sys.executable, "-m", "bench.memory", str(size_bytes), str(int(rate_bps))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert keeper.stdin is not None, "piped"
    assert keeper.stdout is not None, "piped"
    try:
        keeper.stdout.readline()
        keeper.stdin.write(b"go\n")
        keeper.stdin.flush()
        yield
    finally:
        keeper.kill()
        keeper.wait()
        keeper.stdin.close()
        keeper.stdout.close()


def find_memory_folder(size_bytes: int) -> Path | None:
    """
    Return a folder in memory with room for so many bytes, None when there is none.

    What is measured there is not how fast many machines' stores are written to one disk.
    """
    try:
        disk = os.statvfs(MEMORY_FOLDER)
    except OSError:
        return None
    room = min(disk.f_bavail * disk.f_frsize, read_available_bytes() - SPARED_BYTES)
    return MEMORY_FOLDER if room >= size_bytes else None


def read_free_bytes() -> int:
    """Return how much memory nobody uses, not even as a cache; 0 where that is not told."""
    return _read_memory("MemFree:")


def read_available_bytes() -> int:
    """Return how much memory can be had, caches given up; 0 where that is not told."""
    return _read_memory("MemAvailable:")


def _read_memory(key: str) -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(n.split()[1]) * 1024 for n in lines if n.startswith(key)), 0)


def main() -> None:
    """Touch, say so, wait for the word, and free step by step."""
    parser = argparse.ArgumentParser(description="Keep memory ready for a measurement.")
    parser.add_argument("size_bytes", type=int)
    parser.add_argument("rate_bps", type=float)
    arguments = parser.parse_args()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE_ADJ)
    steps = []
    for _ in range(-(-arguments.size_bytes // STEP_BYTES)):
        step = mmap.mmap(-1, STEP_BYTES)
        for offset in range(0, STEP_BYTES, PAGE_BYTES):
            step[offset] = 1
        steps.append(step)
    print("ready", flush=True)
    sys.stdin.readline()
    started_s = time.monotonic()
    freed = 0
    while steps:
        due = (time.monotonic() - started_s + LEAD_S) * arguments.rate_bps
        while steps and freed < due:
            steps.pop().close()
            freed += STEP_BYTES
        time.sleep(STEP_BYTES / arguments.rate_bps / 4)


if __name__ == "__main__":
    main()
