"""
Owns the story of a request, from a name to bytes that may be sent.

Knows nothing of HTTP servers or command lines; read find_file(), then open_found().
Invariants: nobody gets bytes that the hub would refuse them; nothing is handed out that is
neither checked nor from a trusted source; what is here is never fetched again.
Source: design.md §5.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass

from p2pcache.core.chunktable import ChunkTable, Standing
from p2pcache.core.credentials import Credentials
from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.messages import SwarmEntry
from p2pcache.core.promises import Promise
from p2pcache.core.refs import ModelReference, SnapshotId
from p2pcache.core.residency import FileResidency, Residency, measure_residency
from p2pcache.core.selection import select_default
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.engine.access import Access
from p2pcache.engine.checkup import Checkup
from p2pcache.engine.claims import Claims
from p2pcache.engine.context import Context
from p2pcache.engine.fetches import ActiveFetch, Fetches
from p2pcache.engine.holds import Room
from p2pcache.engine.librarian import Librarian, Resolved
from p2pcache.engine.reader import BlobReader
from p2pcache.engine.residency import Residencies
from p2pcache.engine.shelf import ChunkRun, Shelf
from p2pcache.engine.space import Space
from p2pcache.engine.swarm import Swarm
from p2pcache.errors import (
    BlobNotFoundError,
    DaemonBusyError,
    IntegrityError,
    InvalidRangeError,
    OtherLayoutError,
    StoreError,
    StoreFullError,
)
from p2pcache.store.disk import store_error
from p2pcache.store.index import Index

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that a caller may read, and whether anybody may."""

    resolved: Resolved
    entry: FileEntry
    is_public: bool


@dataclass(frozen=True, slots=True)
class Landing:
    """A file that is here, or on its way: exactly one of the two."""

    entry: FileEntry
    fd: int
    active: ActiveFetch | None

    def close(self) -> None:
        """Release the descriptor, for callers that only wait."""
        os.close(self.fd)


class Cache:
    """What the daemon's endpoints talk to. Event loop only."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.shelf = Shelf(context)
        self.swarm = Swarm(context, self.shelf.describe_all)
        self.access = Access(context)
        self.librarian = Librarian(context, self.swarm, self.access)
        self.fetches = Fetches(context, self.swarm, self.shelf)
        self.claims = Claims(self.fetches)
        self.access.visibility.on_revoked.append(self.fetches.hide)
        self.space = Space(context)
        self.space.holds.busy_checks += [
            lambda blob: self.fetches.find(blob) is not None,
            self.claims.is_held,
            self.shelf.is_busy,
        ]
        self.claims.settle = self.space.settle
        self.checkup = Checkup(self)
        self.residencies = Residencies(self)
        self.weights = self.residencies.weighing

    async def find_file(
        self,
        reference: ModelReference,
        path: str,
        credentials: Credentials,
        *,
        promise: Promise | None = None,
    ) -> FoundFile:
        """
        Return what is known of a file of a repository, for a caller who may read it.

        Raises:
            NotFoundError: No such repository, revision or file.
            UpstreamAuthError: The hub refuses this caller.
            UpstreamUnreachableError: The hub cannot be asked, and nothing is cached.
        """
        resolved = await self.librarian.resolve(reference, credentials, promise=promise)
        is_public = await self.access.check_may_read(resolved.snapshot, credentials, path)
        return FoundFile(resolved, resolved.snapshot.get_file(path), is_public)

    async def open_found(self, found: FoundFile, credentials: Credentials) -> BlobReader:
        """
        Open a file that its caller was just allowed to read, wherever its bytes are now.

        Raises:
            NotFoundError, SourceError: As the hub says by now.
            StoreError: No room, or the disk failed.
        """
        resolved, entry = found.resolved, found.entry
        self.space.note_used(resolved.snapshot.id)
        landing = await self.land(resolved.snapshot, entry, credentials, is_public=found.is_public)
        try:
            if landing.active is None:
                await self._try_publish_to_tree(resolved, entry)
            else:
                self._publish_when_done(resolved, entry, landing.active)
        except BaseException:
            landing.close()
            raise
        return BlobReader(landing.fd, entry.size_bytes, landing.active)

    def check_may_resume(self, entry: FileEntry) -> None:
        """
        Refuse to go on with a body that may have begun with wrong bytes.

        Raises:
            DaemonBusyError: A reader of this blob was given bytes that the proof then refuted.
        """
        if self.context.taints.has(entry.digest):
            raise DaemonBusyError(
                f"{entry.path}: wrong bytes of it were sent a short while ago and the body was "
                "broken off; ask for the file from its first byte, not for the rest."
            )

    async def land(
        self, snapshot: Snapshot, entry: FileEntry, credentials: Credentials, *, is_public: bool
    ) -> Landing:
        """
        Make sure that a file is here or on its way; the caller closes `fd`.

        Raises:
            StoreError: No room, or the disk failed.
        """
        with ExitStack() as stack:
            room: Room | None = None
            while True:
                await self.claims.wait_free(entry.digest)
                found = await self.shelf.open_proven(entry.digest)
                if found is not None:
                    try:
                        check_size(snapshot, entry, found.stamp.size_bytes)
                        if is_public and not await self.shelf.is_shared(entry.digest):
                            visibility = self.access.visibility
                            await visibility.prove_file(snapshot, entry, found.fd)
                            await self.shelf.note_public(entry.digest)
                    except BaseException:
                        os.close(found.fd)
                        raise
                    return Landing(entry, found.fd, None)
                if self.claims.is_held(entry.digest):
                    continue  # somebody else fills it, since a moment ago
                active = self.fetches.find(entry.digest)
                if active is None and room is None:
                    room = await self.space.rooms.make(snapshot.id, [entry])
                    stack.enter_context(room)
                    continue  # somebody else may have brought it meanwhile
                if active is not None:
                    check_size(snapshot, entry, active.fetch.layout.size_bytes)
                    if is_public and not active.fetch.state.order.is_public:
                        # It is fetched for somebody whom the hub lets in. Whether it may be shown
                        # to others can be told once it is here.
                        await asyncio.wait({active.task})
                        continue
                active = await self._fetch(snapshot, entry, credentials, room, is_public=is_public)
                if not active.is_done:
                    stack.pop_all()
                    if room is not None:
                        room.release_after(active.task)
                    return Landing(entry, os.dup(active.fetch.partial.fd), active)
                await active.result()

    async def _fetch(
        self,
        snapshot: Snapshot,
        entry: FileEntry,
        credentials: Credentials,
        room: Room | None,
        *,
        is_public: bool,
    ) -> ActiveFetch:
        """Begin to fetch a file, or join; if its room is gone, make it once more."""
        try:
            return await self.fetches.start(snapshot, entry, credentials, is_public=is_public)
        except StoreFullError:
            if room is None:
                raise
            await self.space.rooms.renew(room)
            return await self.fetches.start(snapshot, entry, credentials, is_public=is_public)

    def _publish_when_done(self, resolved: Resolved, entry: FileEntry, active: ActiveFetch) -> None:
        """Link the file for offline workers once it is proven, whether a reader waits or not."""
        self.fetches.after(active, lambda: self.publish_to_tree(resolved, [entry]))

    async def _try_publish_to_tree(self, resolved: Resolved, entry: FileEntry) -> None:
        """Link a file that is here already; a full disk must not keep it from its reader."""
        try:
            await self.publish_to_tree(resolved, [entry])
        except StoreError as error:
            log.warning("%s was not linked into the tree: %s", entry.path, error)

    async def publish_to_tree(self, resolved: Resolved, entries: list[FileEntry]) -> None:
        """Link proven files into the tree that workers read without asking anybody."""
        snapshot = resolved.snapshot
        with self.space.holds.holding(snapshot.id):
            row = await self.librarian.find_cached(
                ModelReference(snapshot.id.repo, snapshot.id.commit)
            )
            if row is None:
                return  # evicted a moment ago, and its files with it
            await self._link_files(resolved, entries, is_public=row.public_wall_s is not None)

    async def _link_files(
        self, resolved: Resolved, entries: list[FileEntry], *, is_public: bool
    ) -> None:
        snapshot, tree = resolved.snapshot, self.context.tree

        def publish() -> None:
            tree.open_repo(snapshot.id.repo, is_public=is_public)
            tree.publish_tree(snapshot, entries)
            for entry in entries:
                path = self.context.store.path_of(entry.digest)
                if path.exists():
                    tree.publish_file(snapshot.id, entry, path)
            tree.publish_ref(snapshot.id.repo, resolved.revision, snapshot.id.commit)

        try:
            await self.context.in_bulk(publish)
        except OSError as error:
            raise store_error(error, tree.root) from error

    # --- what peers ask ---

    async def open_run(
        self, blob: BlobDigest, first: int, last: int, layout: str | None
    ) -> ChunkRun:
        """
        Open a run of chunks for a peer; the caller closes its descriptor.

        Raises:
            OtherLayoutError: The peer cuts the blob differently.
            InvalidRangeError: No such chunks.
            ChunkNotYetError, BlobNotFoundError: Not here, or not for sharing.
            BlobCorruptError: The chunks on this disk are damaged.
        """
        description = await self.describe(blob)
        if description is None:
            raise BlobNotFoundError(f"{blob} is not here, or not for sharing.")
        if layout not in (None, description.layout.name):
            raise OtherLayoutError(
                f"{blob} is cut as {description.layout.name} here; read its table."
            )
        if not 0 <= first <= last < description.layout.chunk_count:
            raise InvalidRangeError(f"{blob} has {description.layout.chunk_count} chunks.")
        run = self.fetches.open_run(blob, first, last)
        if run is None:
            run = await self.shelf.open_run(blob, first, last)
        if run is None:
            raise BlobNotFoundError(f"{blob} is not here, or not for sharing.")
        run_bytes_max = self.context.limits.run_bytes_max
        if run.length > run_bytes_max:
            os.close(run.fd)
            raise InvalidRangeError(f"A run has at most {run_bytes_max} bytes.")
        return run

    async def open_chunk(self, chunk: ChunkDigest) -> ChunkRun:
        """
        Open one chunk by its hash, from any public blob that has it.

        Raises:
            BlobNotFoundError: None has it.
        """
        place = await self.context.index.call(
            lambda index: index.blobs.find_chunk(chunk, is_public_only=True)
        )
        run = None if place is None else await self.shelf.open_run(place[0], place[1], place[1])
        if run is None:
            raise BlobNotFoundError(f"Chunk {chunk} is not here, or not for sharing.")
        return run

    async def describe(self, blob: BlobDigest) -> SwarmEntry | None:
        """Return what peers may hear of a blob, arriving or whole."""
        active = self.fetches.find(blob)
        if active is not None and active.is_open.is_set():
            return active.fetch.report()
        return await self.shelf.describe(blob)

    async def get_table(self, blob: BlobDigest) -> ChunkTable:
        """
        Return the chunk table of a public blob.

        Raises:
            BlobNotFoundError: Not here, or not for sharing.
        """
        active = self.fetches.find(blob)
        table = None
        if active is not None and active.is_open.is_set() and active.fetch.state.order.is_public:
            table = active.fetch.partial.snapshot().table
            table.standing = Standing.CLAIMED
            for index in active.fetch.state.have - active.fetch.state.find_shareable():
                table.clear(index)
        if table is None:
            table = await self.shelf.find_table(blob)
        if table is None:
            raise BlobNotFoundError(f"{blob} is not here, or not for sharing.")
        return table

    # --- what the index knows ---

    async def measure(self, files: list[FileEntry]) -> Residency:
        """Return how much of some files is here, asking nobody."""
        distinct = {entry.digest: entry for entry in files}

        def find_proven(index: Index) -> dict[BlobDigest, float]:
            return index.checks.find_proven(distinct)

        proven = await self.context.index.call(find_proven)
        states = []
        for digest, entry in distinct.items():
            is_here = self.context.store.path_of(digest).exists()
            held = entry.size_bytes if is_here else self._count_held_bytes(entry)
            is_proven = is_here and digest in proven
            states.append(
                FileResidency(
                    entry.size_bytes,
                    held,
                    is_proven,
                    proven.get(digest, 0.0),
                    self.checkup.healer.is_damaged(digest),
                )
            )
        return measure_residency(states)

    def _count_held_bytes(self, entry: FileEntry) -> int:
        active = self.fetches.find(entry.digest)
        if active is not None:
            return active.fetch.state.held_bytes
        try:
            return min(self.context.store.count_held_bytes(entry.digest), entry.size_bytes)
        except StoreError as error:
            log.warning("what is here of %s cannot be told: %s", entry.digest, error)
            return 0

    async def find_path(self, snapshot: Snapshot) -> str | None:
        """
        Return the folder that a loader opens, with every file of a pull without patterns in it.

        Links that are missing are made: files may have come for another snapshot, or a crash
        came before the links. None where they cannot be made.
        """
        folder = self.context.tree.snapshot_path(snapshot.id)

        files = select_default(snapshot.files)

        def list_missing() -> list[FileEntry]:
            return [entry for entry in files if not (folder / entry.path).exists()]

        missing = await self.context.in_bulk(list_missing)
        if missing:
            names = [
                name
                for name, commit in await self.librarian.list_branches(snapshot.id.repo)
                if commit == snapshot.id.commit
            ]
            reference = ModelReference(snapshot.id.repo, snapshot.id.commit)
            row = await self.librarian.find_cached(reference)
            if row is None:
                return None
            try:
                for name in names or [snapshot.id.commit]:
                    await self.publish_to_tree(Resolved(row, name, is_stale=True), missing)
            except StoreError as error:
                log.warning("%s was not linked into the tree: %s", snapshot.id, error)
            if await self.context.in_bulk(list_missing):
                return None
        return str(folder)

    def path_of(self, snapshot_id: SnapshotId) -> str:
        """Return the folder that a loader opens."""
        return str(self.context.tree.snapshot_path(snapshot_id))

    async def close(self) -> None:
        """Stop everything; what was fetched is kept."""
        await self.residencies.close()
        await self.checkup.close()
        await self.fetches.close()
        await self.swarm.close()
        await self.librarian.close()
        await self.access.close()
        await self.shelf.close()
        await self.space.close()


def check_size(snapshot: Snapshot, entry: FileEntry, size_bytes: int) -> None:
    """
    Insist that a listing gives a blob the size that it has.

    Raises:
        IntegrityError: It gives another; a client would get part of the file, or wait for more.
    """
    if entry.size_bytes != size_bytes:
        raise IntegrityError(
            f"{snapshot.id} says that {entry.path} has {entry.size_bytes:,} bytes, but "
            f"{entry.digest} has {size_bytes:,}; tell the owner of the repository."
        )
