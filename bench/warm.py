"""
Owns the measure of a warm start: how long loading a model takes from the disk, and from the page
cache after `exec` has warmed it; and what warming takes.

Knows nothing of the daemon; files of a model, and a process that loads them.
Invariants: before each cold load the files' pages are dropped; what a load read from the disk is
counted by the kernel; a load is a process of its own.
Source: posix_fadvise(2); /proc/PID/io.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.model import make_model
from p2pcache.store.warming import Warmth, list_snapshot_files, warm_files

# As programs load: a plain reader, and one that maps the file and touches it as tensors are copied.
LOADERS = {
    "read": "for p in paths:\n"
    "    with open(p, 'rb', buffering=0) as f:\n"
    "        while f.readinto(buffer): pass\n",
    "mmap": "for p in paths:\n"
    "    with open(p, 'rb') as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:\n"
    "        for i in range(0, len(m), len(buffer)):\n"
    "            piece = m[i:i + len(buffer)]\n",
}
_PROGRAM = """
import json, mmap, sys, time
buffer, paths = bytearray(16 << 20), sys.argv[1:]
def read_bytes():
    return int(next(l for l in open('/proc/self/io') if l.startswith('read_bytes')).split()[1])
before, started = read_bytes(), time.monotonic()
{loader}
print(json.dumps([time.monotonic() - started, read_bytes() - before]))
"""


@dataclass(frozen=True, slots=True)
class Load:
    """One load: how long, and how many bytes of it came from the disk."""

    seconds: float
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """One loader: from the disk, and after warming."""

    loader: str
    cold: Load
    warming: Warmth
    warm: Load


def drop(files: list[tuple[Path, int]]) -> None:
    """Take files out of the page cache."""
    for path, _ in files:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def load(loader: str, files: list[tuple[Path, int]]) -> Load:
    """Load files in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(loader=LOADERS[loader])]
        + [str(path) for path, _ in files],
        capture_output=True,
        text=True,
        check=True,
    )
    return Load(*json.loads(result.stdout))


def compare(loader: str, files: list[tuple[Path, int]]) -> Comparison:
    """Load cold, warm the files, load again."""
    drop(files)
    cold = load(loader, files)
    drop(files)
    warming = warm_files(files, sum(size for _, size in files))
    return Comparison(loader, cold, warming, load(loader, files))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Loading from the disk and from memory.")
    parser.add_argument("--bytes", type=int, default=1_000_000_000)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="p2pcache-warm-", dir=arguments.folder) as folder:
        model = make_model(Path(folder), arguments.bytes)
        files = list_snapshot_files(model.folder)
        head = ("loader", "cold s", "from disk", "warming s", "warm s", "from disk", "faster")
        print("{:<8}{:>8}{:>12}{:>11}{:>8}{:>12}{:>8}".format(*head))
        for loader in LOADERS:
            one = compare(loader, files)
            print(
                f"{loader:<8}{one.cold.seconds:>8.2f}{one.cold.disk_bytes / 1e6:>9.0f} MB"
                f"{one.warming.elapsed_s:>11.2f}{one.warm.seconds:>8.2f}"
                f"{one.warm.disk_bytes / 1e6:>9.0f} MB"
                f"{one.cold.seconds / one.warm.seconds:>7.1f}x"
            )


if __name__ == "__main__":
    main()
