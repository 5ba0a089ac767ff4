"""
Owns bringing files into the page cache before somebody reads them, within a budget of memory.

Knows nothing of models; it is given files in the order in which they will be read.
Invariants: never more bytes than the budget; what is cached already is not read again; what cannot
be read is left to whoever needs it: warming is a favour, never a failure.
Source: posix_fadvise(2), mincore(2), proc_meminfo(5), cgroups(7). One POSIX_FADV_WILLNEED brings in
no more than the disk's largest request, silently, so ranges are advised ahead and then read.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.selection import plan_selection
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.store.filelayout import read_into
from p2pcache.store.pagecache import find_absent

# Of the memory that is available: the loader needs room of its own, for pinned buffers and for
# weights that stay on the CPU; what else is cached here should not all go for one model.
MEMORY_SHARE = 0.5
# A disk of a cloud machine is fastest with some eight requests of some megabytes in flight.
THREADS = 8
SPAN_BYTES = 4 * 1024 * 1024
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_SMALL_FILE_BYTES_MAX = 64 * 1024
# Which files are chosen depends on their paths and sizes alone.
_ANY_BLOB = BlobDigest("sha256", "0" * 64)
_ANY_SNAPSHOT = SnapshotId(RepoId("hf", "models", "any/any"), "0" * 40)


@dataclass(frozen=True, slots=True)
class _CgroupNames:
    """What a version of control groups calls its files and fields."""

    limit: str
    used: str
    cached: str


_CGROUP_V1 = _CgroupNames("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
_CGROUP_V2 = _CgroupNames("memory.max", "memory.current", "file")


@dataclass(frozen=True, slots=True)
class WarmSpan:
    """A range of a file to bring in."""

    path: Path
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Warmth:
    """
    What warming did.

    Attributes:
        bytes_total: Of all files.
        bytes_warm: Of them in the page cache now, as far as this brought or found them there.
        bytes_read: Of them read from the disk.
        budget_bytes: How many were allowed.
        elapsed_s: How long it took.
    """

    bytes_total: int
    bytes_warm: int
    bytes_read: int
    budget_bytes: int
    elapsed_s: float


def plan_spans(files: Sequence[tuple[Path, int]], budget_bytes: int) -> list[WarmSpan]:
    """Return what to bring in, in reading order: the first budget_bytes of the files."""
    spans, left = [], budget_bytes
    for path, size_bytes in files:
        for offset in range(0, min(size_bytes, max(0, left)), SPAN_BYTES):
            length = min(SPAN_BYTES, size_bytes - offset, left - offset)
            spans.append(WarmSpan(path, offset, length))
        left -= size_bytes
        if left <= 0:
            break
    return spans


def find_budget(share: float = MEMORY_SHARE) -> int:
    """
    Return how many bytes may be warmed: a share of the memory that this process could have.

    Inside a container that is what its limit leaves; pages count against whoever brings them in.
    """
    available = _read_available()
    for folder, names in _iter_cgroups():
        limit = _read_number(folder / names.limit)
        if limit is None:
            continue
        used = _read_number(folder / names.used) or 0
        cached = _read_field(folder / "memory.stat", names.cached) or 0
        available = min(available, max(0, limit - max(0, used - cached)))
    return int(available * share)


def warm_files(files: Sequence[tuple[Path, int]], budget_bytes: int) -> Warmth:
    """
    Bring files into the page cache, in the order given, in threads; returns when they are there.

    Args:
        files: Paths and sizes.
        budget_bytes: How many bytes of them at most.
    """
    started_s = time.monotonic()
    spans = plan_spans(files, budget_bytes)
    readers = _Readers()
    threads = ThreadPoolExecutor(THREADS, "warm")
    try:
        counts = list(threads.map(readers.bring, spans))
    finally:
        # After Ctrl-C nobody waits for the rest.
        threads.shutdown(cancel_futures=True)
        readers.close()
    return Warmth(
        bytes_total=sum(size for _, size in files),
        bytes_warm=sum(warm for warm, _ in counts),
        bytes_read=sum(read for _, read in counts),
        budget_bytes=budget_bytes,
        elapsed_s=time.monotonic() - started_s,
    )


def list_snapshot_files(
    folder: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[tuple[Path, int]]:
    """
    Return the files below a snapshot's folder as loaders read them: small ones, then by name.

    Args:
        folder: The snapshot's.
        include: The patterns of the pull, so that what others pulled of it stays on the disk.
        exclude: The same.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(OSError):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                found.append(FileEntry(name, path.stat().st_size, _ANY_BLOB, ""))
    chosen = plan_selection(Snapshot(_ANY_SNAPSHOT, tuple(found)), include, exclude).chosen
    # Configuration and tokenizer come before any weights, whatever their names are.
    ordered = sorted(chosen, key=lambda entry: entry.size_bytes > SPAN_BYTES)
    return [(folder / entry.path, entry.size_bytes) for entry in ordered]


class _Readers:
    """Open files and buffers of the threads that read."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._fds: dict[Path, int | None] = {}
        self._opening = threading.Lock()

    def bring(self, span: WarmSpan) -> tuple[int, int]:
        """Return how many bytes of a span are in the page cache now, and were read for that."""
        fd = self._find_fd(span.path)
        if fd is None:
            return 0, 0
        try:
            # Of somebody else's file the system says that all is cached.
            is_told = os.access(span.path, os.W_OK) or os.fstat(fd).st_uid == os.geteuid()
            absent = [(span.offset, span.length)]
            if is_told:
                absent = find_absent(fd, span.offset, span.length)
            end = span.offset + span.length
            read = 0
            for offset, length in absent:
                os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)
                view = self._buffer[: min(length, end - offset)]
                read += read_into(fd, view, offset)
        except OSError:
            return 0, 0  # whoever needs it will say so
        return span.length, read

    def close(self) -> None:
        """Close the files."""
        for fd in self._fds.values():
            if fd is not None:
                os.close(fd)

    @property
    def _buffer(self) -> memoryview:
        if not hasattr(self._own, "buffer"):
            self._own.buffer = memoryview(bytearray(SPAN_BYTES))
        buffer: memoryview = self._own.buffer
        return buffer

    def _find_fd(self, path: Path) -> int | None:
        with self._opening:
            if path not in self._fds:
                try:
                    self._fds[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError:
                    self._fds[path] = None
            return self._fds[path]


def _read_available() -> int:
    """Return MemAvailable in bytes; 0 where the system does not say."""
    kibibytes = _read_field(_MEMINFO, "MemAvailable:")
    return 0 if kibibytes is None else kibibytes * 1024


def _iter_cgroups() -> Iterator[tuple[Path, _CgroupNames]]:
    """Iterate over the control groups that limit this process, from its own up to the root."""
    for line in _read_small(Path("/proc/self/cgroup")).splitlines():
        _, controllers, own = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            root, names = _CGROUP, _CGROUP_V2
        elif "memory" in controllers.split(","):
            root, names = _CGROUP / "memory", _CGROUP_V1
        else:
            continue
        folder = root / own.strip("/")
        while folder != root.parent:
            yield folder, names
            folder = folder.parent


def _read_field(path: Path, name: str) -> int | None:
    for line in _read_small(path).splitlines():
        field, _, rest = line.partition(" ")
        if field == name:
            number = rest.partition(" kB")[0].strip()
            return int(number) if number.isdigit() else None
    return None


def _read_number(path: Path) -> int | None:
    text = _read_small(path).strip()
    return int(text) if text.isdigit() else None


def _read_small(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_SMALL_FILE_BYTES_MAX).decode("ascii", "replace")
    except OSError:
        return ""
