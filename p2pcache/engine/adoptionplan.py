"""
Owns deciding what of a cache is taken for which file of a commit.

Knows nothing of the disk; it gets what was read and what the file lists say.
Invariants: a file list decides over the cache's own names; what fits neither is named with the
reason; equal inputs give equal plans.
Source: docs/how-to/adopt-a-cache.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from p2pcache.core.digest import Algorithm, BlobDigest
from p2pcache.core.lfs import choose_algorithm, make_pointer_oid
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.core.tensors import may_have_tensors
from p2pcache.store.hfcache import FileIdentity, FoundFile, FoundSnapshot

Blobs = Mapping[BlobDigest, list[FoundFile]]


class Origin(StrEnum):
    """Whose word a file list is."""

    HUB = "hub"
    # What a client wrote down of the hub's answer, or a trusted peer's word.
    NOTED = "noted"
    # What lies in the folder, for want of a list.
    FOLDER = "folder"


@dataclass(slots=True)
class SnapshotPlan:
    """
    One commit: its files as far as they are known, and where the bytes of each may be.

    `nameless` are files of which only the content can tell the digest.
    """

    found: FoundSnapshot
    origin: Origin
    is_public: bool
    entries: dict[str, FileEntry] = field(default_factory=dict)
    candidates: dict[BlobDigest, list[FoundFile]] = field(default_factory=dict)
    nameless: dict[str, FoundFile] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def identities(self) -> set[FileIdentity]:
        """Return every distinct file that may be part of the commit."""
        named = {file.identity for files in self.candidates.values() for file in files}
        return named | {file.identity for file in self.nameless.values()}

    def name(self, path: str, digest: BlobDigest) -> None:
        """Enter a nameless file under the digest that its content turned out to have."""
        size_bytes = self.nameless[path].identity.size_bytes
        self.entries[path] = _make_entry(path, size_bytes, digest)

    def choose_algorithm(self, path: str) -> Algorithm:
        """Return which digest the hub would have for a nameless file."""
        size_bytes = self.nameless[path].identity.size_bytes
        return choose_algorithm(path, size_bytes, self.found.patterns)


@dataclass(slots=True)
class AdoptionUnit:
    """One distinct file, to be hashed once: what it may be, for all snapshots together."""

    file: FoundFile
    names: set[BlobDigest] = field(default_factory=set)
    algorithms: set[Algorithm] = field(default_factory=set)
    is_public: bool = False
    may_have_tensors: bool = False


def plan_snapshot(
    found: FoundSnapshot,
    listing: Snapshot | None,
    blobs: Blobs,
    *,
    origin: Origin,
    is_public: bool,
) -> SnapshotPlan:
    """
    Match the files of one commit with what lies in a cache.

    Args:
        found: The commit's folder.
        listing: Its file list; with origin FOLDER what is known of it, to which the folder adds.
        blobs: Every file of the cache that has a name, of whatever repository.
        origin: Whose word the list is.
        is_public: Whether anybody may have the files.
    """
    plan = SnapshotPlan(found, origin, is_public)
    for entry in () if listing is None else listing.files:
        plan.entries[entry.path] = entry
        plan.candidates.setdefault(entry.digest, [])
        _add(plan, entry, [*_list_own(plan, entry), *blobs.get(entry.digest, [])])
    for path, file in found.files.items():
        if path in plan.entries:
            continue
        if origin is not Origin.FOLDER:
            plan.skipped[file.shown] = "the file list of its commit has no such file"
        elif file.name is None:
            plan.nameless[path] = file
        else:
            entry = _make_entry(path, file.identity.size_bytes, file.name)
            plan.entries[path] = entry
            _add(plan, entry, [file, *blobs.get(file.name, [])])
    return plan


def _list_own(plan: SnapshotPlan, entry: FileEntry) -> list[FoundFile]:
    file = plan.found.files.get(entry.path)
    if file is None:
        return []
    if file.name not in (None, entry.digest):
        plan.skipped[file.shown] = f"the file list of its commit has {entry.digest} there"
        return []
    return [file]


def _add(plan: SnapshotPlan, entry: FileEntry, files: Iterable[FoundFile]) -> None:
    """Note the distinct files that may have an entry's content, the first one to be tried first."""
    chosen = plan.candidates.setdefault(entry.digest, [])
    known = {file.identity for file in chosen}
    for file in files:
        size_bytes = file.identity.size_bytes
        if size_bytes != entry.size_bytes:
            plan.skipped[file.shown] = (
                f"it has {size_bytes:,} bytes, the file list of its commit says "
                f"{entry.size_bytes:,}"
            )
        elif file.identity not in known:
            known.add(file.identity)
            chosen.append(file)


def _make_entry(path: str, size_bytes: int, digest: BlobDigest) -> FileEntry:
    return FileEntry(path, size_bytes, digest, make_pointer_oid(digest, size_bytes))


def gather_units(plans: Iterable[SnapshotPlan]) -> dict[FileIdentity, AdoptionUnit]:
    """Return each distinct file of some plans, in their order, with all that it may be."""
    units: dict[FileIdentity, AdoptionUnit] = {}
    for plan in plans:
        entries = plan.entries.values()
        with_tensors = {e.digest for e in entries if may_have_tensors(e.path, e.size_bytes)}
        for digest, files in plan.candidates.items():
            for file in files:
                unit = units.setdefault(file.identity, AdoptionUnit(file))
                unit.names.add(digest)
                unit.is_public |= plan.is_public
                unit.may_have_tensors |= digest in with_tensors
        for path, file in plan.nameless.items():
            unit = units.setdefault(file.identity, AdoptionUnit(file))
            unit.algorithms.add(plan.choose_algorithm(path))
            unit.is_public |= plan.is_public
            unit.may_have_tensors |= may_have_tensors(path, file.identity.size_bytes)
    return units
