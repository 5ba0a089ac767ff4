"""
Owns the memory that a measurement will write, kept ready while it runs.

Knows nothing of what is measured.
Invariants: on a machine without a host below it changes nothing but the order of allocations;
others' programs are given memory as soon as they take some; all is free again at the end.
Source: measured: a virtual machine whose host takes back free pages writes a new file at 0.2 GB/s
the first time and at 4 GB/s into pages that were touched shortly before.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

STEP_BYTES = 16 * 1024 * 1024
PAGE_BYTES = 4096
# Left free, for what is taken between two looks.
SPARED_BYTES = 1024 * 1024 * 1024
# How often what is free is looked at: in that time the fastest writer takes a fifth of what is
# spared, and looking costs no measurable share of a core. Hosts are given pages back that were free
# for two seconds.
LOOK_S = 0.05
# Should memory run out all the same, the kernel ends this process, and not somebody's work.
OOM_SCORE_ADJ = "1000"
# A tmpfs, on every Linux.
MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108
_PREFIX = "p2pcache-memory-"


@contextlib.contextmanager
def keep_ready(reserved_bytes: int) -> Iterator[None]:
    """
    Touch nearly all memory that is free, then give it back as the work takes what is left.

    Args:
        reserved_bytes: What the work takes at its beginning, before it writes; given back at once.
    """
    keeper = subprocess.Popen(
        [sys.executable, "-m", "bench.memory", str(reserved_bytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert keeper.stdin is not None, "piped"
    assert keeper.stdout is not None, "piped"
    try:
        keeper.stdout.readline()
        yield
    finally:
        keeper.kill()
        keeper.wait()
        keeper.stdin.close()
        keeper.stdout.close()


@contextlib.contextmanager
def open_memory_folder(size_bytes: int) -> Iterator[Path | None]:
    """
    Make a folder in memory with room for so many bytes; None when there is none.

    What is measured there is not how fast many machines' stores are written to one disk. For root
    it has large pages: a disk's controller takes a block as it is, but every small page costs the
    processors some work, and those are shared by all machines.
    """
    if not _has_room(size_bytes):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=MEMORY_FOLDER) as name:
        try:
            if os.geteuid() == 0:
                _mount(name)
            yield Path(name)
        finally:
            if os.path.ismount(name):
                # Of its own session: a second Ctrl-C must not keep it from its work.
                order = ["umount", "--lazy", name]
                subprocess.run(order, check=False, start_new_session=True)


def _has_room(size_bytes: int) -> bool:
    try:
        disk = os.statvfs(MEMORY_FOLDER)
    except OSError:
        return False
    # Half of what there is: the rest of the machine goes on working.
    return min(disk.f_bavail * disk.f_frsize, read_available_bytes() // 2) >= size_bytes


def _mount(folder: str) -> None:
    """Give a folder large pages, where the kernel has them."""
    order = ["mount", "-t", "tmpfs", "-o", "huge=within_size,size=75%", "tmpfs", folder]
    with contextlib.suppress(OSError):
        subprocess.run(order, capture_output=True, check=False)


def is_memory(folder: Path) -> bool:
    """Return whether a folder's files are in memory."""
    return folder.is_relative_to(MEMORY_FOLDER)


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
    """Touch, say so, and free step by step; ends with whoever started it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE_ADJ)
        # Who needs memory would otherwise run, and want more, while this process waits.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    wanted = int(sys.argv[1])
    steps: list[mmap.mmap] = []
    # All but a little of what is free: else the kernel takes other pages than those.
    while read_free_bytes() > SPARED_BYTES + STEP_BYTES:
        step = mmap.mmap(-1, STEP_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):
            # In large pages, so that what is given back can be used as such.
            step.madvise(mmap.MADV_HUGEPAGE)
        for offset in range(0, STEP_BYTES, PAGE_BYTES):
            step[offset] = 1
        steps.append(step)
    while steps and wanted > 0:
        steps.pop().close()
        wanted -= STEP_BYTES
    print("ready", flush=True)
    while steps and not select.select([sys.stdin], [], [], LOOK_S)[0]:
        lacking = SPARED_BYTES - read_free_bytes()
        while steps and lacking > 0:
            steps.pop().close()
            lacking -= STEP_BYTES


if __name__ == "__main__":
    main()
