"""
Owns cutting the power under an operation: a real file system that stops, and comes back.

Knows nothing of what the operation does.
Invariants: what the stage laid out was durable before; what the kernel may have written on its
own before a cut (nothing, the journal, some files) is chosen by the case's seed.
Source: reliability.md §3.1: shutdown without log flush, umount, mount.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.faults.case import Bay
from tests.faults.disk import MEBIBYTE, Disk

# Room for a site and a journal; XFS's smallest is 16 MiB.
DISK_BYTES = 32 * MEBIBYTE
_SCRATCH_NAME = "scratch"


class Mains:
    """The power of one disk, for one case after the other."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._scratch = disk.mount_point / _SCRATCH_NAME

    def bay(self, seed: int) -> Bay:
        """Return where a case finds its site, with a power cut of its own."""
        random = Random(seed)
        early = random.choice((self._write_nothing, self._commit_journal, self._write_some))
        share = random.random()

        def cut() -> None:
            early(Random(seed), share)
            self._disk.cut_power()

        return Bay(
            self._disk.mount_point,
            cut=cut,
            before_fault=self._settle,
            after_fault=self._disk.restore_power,
        )

    def _settle(self) -> None:
        self._scratch.write_bytes(b"\0")
        self._disk.sync()

    def _write_nothing(self, _: Random, __: float) -> None:
        """The kernel was lazy."""

    def _commit_journal(self, _: Random, __: float) -> None:
        """The kernel wrote its journal, and with it every name, but no pages."""
        with self._scratch.open("r+b", buffering=0) as file:
            file.write(b"\1")
            os.fsync(file.fileno())

    def _write_some(self, random: Random, share: float) -> None:
        """The kernel wrote the pages of some files and not of others."""
        for path in sorted(_walk(self._disk.mount_point)):
            if random.random() < share:
                with contextlib.suppress(OSError):
                    fd = os.open(path, os.O_RDONLY)
                    os.fdatasync(fd)
                    os.close(fd)


def _walk(folder: Path) -> list[Path]:
    return [
        Path(root) / name
        for root, _, names in os.walk(folder)
        for name in names
        if not (Path(root) / name).is_symlink()
    ]


EarlyWrite = Callable[[Random, float], None]
