"""
Owns what this machine can inject: found by trying, at run time.

Knows nothing of what is done with it.
Invariants: a class that cannot be injected is named with the reason, never passed silently; what
was made to try is gone afterwards.
Source: reliability.md §3.1.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import vfs
from tests.faults.disk import MEBIBYTE, Disk

# Memory when there is enough of it: a case writes a few hundred kilobytes, thousands of times.
FAST_FOLDER = Path("/dev/shm")  # noqa: S108
FAST_BYTES_MIN = 512 * MEBIBYTE
PROBE_DISK_BYTES = 32 * MEBIBYTE
_STRACE_S_MAX = 10.0

FORK, SQLITE_CALLS, STRACE, TMPFS = "fork", "SQLite's calls", "strace", "tmpfs"
EXT4, XFS, BTRFS = "ext4 power cut", "xfs power cut", "btrfs power cut"


@dataclass(slots=True)
class Abilities:
    """What can be injected here, and why the rest cannot."""

    missing: dict[str, str] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Return whether something can be injected."""
        return name not in self.missing


def find_abilities() -> Abilities:
    """Try everything once."""
    found = Abilities()
    checks: dict[str, Callable[[Path], None]] = {
        FORK: _try_fork,
        SQLITE_CALLS: _try_vfs,
        STRACE: _try_strace,
        TMPFS: _try_tmpfs,
        EXT4: lambda folder: _try_power_cut(folder, "ext4"),
        XFS: lambda folder: _try_power_cut(folder, "xfs"),
        BTRFS: lambda folder: _try_power_cut(folder, "btrfs"),
    }
    for name, check in checks.items():
        with fast_folder() as folder:
            try:
                check(folder)
            except (OSError, subprocess.SubprocessError) as error:
                found.missing[name] = str(error).splitlines()[0] if str(error) else repr(error)
    return found


@contextlib.contextmanager
def fast_folder() -> Iterator[Path]:
    """Make a folder on the fastest disk with room, and remove it afterwards."""
    parent = None
    if FAST_FOLDER.is_dir() and os.access(FAST_FOLDER, os.W_OK):
        parent = FAST_FOLDER if shutil.disk_usage(FAST_FOLDER).free >= FAST_BYTES_MIN else None
    folder = Path(tempfile.mkdtemp(prefix="p2pcache-faults-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _try_fork(_: Path) -> None:
    if not hasattr(os, "fork") or not Path("/proc/self/fd").is_dir():
        raise OSError("this system has no fork() or no /proc")


def _try_vfs(_: Path) -> None:
    if vfs.find_vfs() is None:
        raise OSError("SQLite is built into this Python, and its file layer cannot be reached")


def _try_strace(folder: Path) -> None:
    if shutil.which("strace") is None:
        raise OSError("there is no strace")
    log = folder / "log"
    work = f"import os; os.fsync(os.open({str(folder)!r}, os.O_RDONLY))"
    inject = ["-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1"]
    command = ["strace", "-f", *inject, "-o", str(log), sys.executable, "-c", work]
    subprocess.run(command, capture_output=True, check=False, timeout=_STRACE_S_MAX)
    if not log.exists() or "(INJECTED)" not in log.read_text():
        raise OSError("strace may not trace here, or cannot inject")


def _try_tmpfs(folder: Path) -> None:
    _check_root()
    with Disk(folder, "tmpfs", MEBIBYTE) as disk:
        (disk.mount_point / "file").write_bytes(b"x")


def _try_power_cut(folder: Path, kind: str) -> None:
    _check_root()
    if shutil.which(f"mkfs.{kind}") is None:
        raise OSError(f"there is no mkfs.{kind}")
    with Disk(folder, kind, PROBE_DISK_BYTES) as disk:
        kept, lost = disk.mount_point / "kept", disk.mount_point / "lost"
        kept.write_bytes(b"kept")
        disk.sync()
        lost.write_bytes(b"lost")
        disk.cut_power()
        disk.restore_power()
        if not kept.exists() or lost.exists():
            raise OSError(f"{kind} does not lose what was not synced when it is shut down")


def _check_root() -> None:
    if os.geteuid():
        raise OSError("mounting takes root")
