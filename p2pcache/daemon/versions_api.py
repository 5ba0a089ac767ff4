"""
Owns the part of the management API about a model's commits: list them, compare two, keep the last.

Knows nothing of how a commit is removed.
Invariants: the hub is never asked; what is not proven public is shown to the admin token's holder
alone; a commit that is pinned, leased, in use or current stays.
Source: docs/reference/http-api.md ("Versions").
"""

from __future__ import annotations

from urllib.parse import unquote

from aiohttp import web

from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import ModelReference, RepoId, SnapshotId
from p2pcache.core.residency import State
from p2pcache.core.selection import select_default
from p2pcache.core.snapshot import Snapshot
from p2pcache.core.versions import (
    FileChange,
    KeptVersion,
    VersionDiff,
    diff_snapshots,
    list_differing,
    plan_keep,
)
from p2pcache.daemon.guard import MANAGEMENT_PREFIX, Guard
from p2pcache.daemon.management import read_object, read_reference
from p2pcache.engine.cache import Cache
from p2pcache.errors import InputError, NotFoundError, ProtectedError
from p2pcache.store.catalogue import SnapshotRow
from p2pcache.store.index import Index

# Files that differ are listed up to here, and counted beyond.
CHANGES_SHOWN_MAX = 1000
KEEP_MAX = 10_000


class VersionsApi:
    """The handlers about commits."""

    def __init__(self, cache: Cache, guard: Guard) -> None:
        self._cache = cache
        self._guard = guard

    def add_routes(self, app: web.Application) -> None:
        """Put the handlers in."""
        base = MANAGEMENT_PREFIX + "v1/versions"
        app.router.add_get(f"{base}/{{reference:.+}}", self.show)
        app.router.add_post(base, self.keep)

    async def show(self, request: web.Request) -> web.Response:
        """List the commits of which something is here, oldest first; or compare two."""
        reference = ModelReference.parse(unquote(request.match_info["reference"]))
        sides = [request.query.get(name) for name in ("from", "to")]
        if sides != [None, None]:
            return await self._compare(request, reference, sides)
        listed = [describe for _, describe in await self._list(request, reference.repo)]
        return web.json_response({"model": str(reference.repo), "versions": listed})

    async def keep(self, request: web.Request) -> web.Response:
        """Remove all commits but the last ones; or say which."""
        message = await read_object(request)
        reference = read_reference(message)
        count, is_dry_run = message.get("keep"), message.get("dry_run") is True
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= KEEP_MAX:
            raise InputError(f"'keep' is how many commits stay, 1 to {KEEP_MAX}.")
        kept = [version for version, _ in await self._list(request, reference.repo)]
        if not kept:
            raise NotFoundError(
                f"Nothing of {reference.repo} is here; list what is with: p2pcache ls"
            )
        removed: list[dict[str, object]] = []
        refused: list[dict[str, object]] = []
        for commit in plan_keep(kept, count):
            try:
                freed = await self._remove(SnapshotId(reference.repo, commit), is_dry_run)
            except (ProtectedError, NotFoundError) as error:
                refused.append({"commit": commit, "reason": str(error)})
                continue
            removed.append({"commit": commit, "bytes_freed": freed})
        return web.json_response(
            {
                "model": str(reference.repo),
                "dry_run": is_dry_run,
                "removed": removed,
                "refused": refused,
                "kept": len(kept) - len(removed),
            }
        )

    async def _remove(self, snapshot_id: SnapshotId, is_dry_run: bool) -> int | None:
        if is_dry_run:
            return None  # what files of others share is known when it happens
        return (await self._cache.space.remove(snapshot_id)).own_bytes

    async def _list(
        self, request: web.Request, repo: RepoId
    ) -> list[tuple[KeptVersion, dict[str, object]]]:
        """Return the commits of a repository of which something is here, oldest first."""
        cache, listed = self._cache, []
        pinned = {(pin.repo, pin.commit): pin.revision for pin in await cache.space.pins.list_all()}
        branches = await cache.librarian.list_branches(repo)
        known = await cache.context.index.call(lambda index: index.catalogue.list_snapshots())
        for number, snapshot_id in enumerate(known):
            row = None if snapshot_id.repo != repo else await self._find(snapshot_id)
            if row is None or not self._may_show(request, row):
                continue
            measured = await cache.measure(list(select_default(row.snapshot.files)))
            if measured.state is State.ABSENT:
                continue
            commit = snapshot_id.commit
            revisions = [name for name, target in branches if target == commit]
            is_pinned = (repo, commit) in pinned
            described: dict[str, object] = {
                "commit": commit,
                "revisions": revisions,
                "state": measured.state.value,
                "bytes_total": measured.bytes_total,
                "bytes_local": measured.bytes_local,
                "pinned": is_pinned,
                "path": cache.path_of(snapshot_id),
            }
            is_current = bool(revisions)
            listed.append((KeptVersion(commit, number, is_current, is_pinned), described))
        return listed

    async def _compare(
        self, request: web.Request, reference: ModelReference, sides: list[str | None]
    ) -> web.Response:
        rows = []
        if not all(sides):
            raise InputError("Name both commits: ?from=A&to=B, each a commit or a branch.")
        for side in sides:
            wanted = ModelReference.parse(str(reference.repo), revision=side)
            row = await self._cache.librarian.find_cached(wanted)
            if row is None or not self._may_show(request, row):
                raise NotFoundError(
                    f"{wanted} is not known here; list what is with: p2pcache versions "
                    f"{reference.repo}"
                )
            rows.append(row)
        old, new = rows[0].snapshot, rows[1].snapshot
        diff = diff_snapshots(old, new, await self._find_tables(old, new))
        return web.json_response(describe_diff(old, new, diff))

    async def _find_tables(self, old: Snapshot, new: Snapshot) -> dict[BlobDigest, ChunkTable]:
        """Return the chunk tables of what differs, as far as it is here."""
        blobs = list_differing(old, new)

        def find(index: Index) -> dict[BlobDigest, ChunkTable]:
            rows = [row for blob in blobs if (row := index.blobs.find(blob)) is not None]
            return {row.blob: row.table for row in rows if row.is_proven and row.table is not None}

        return await self._cache.context.index.call(find)

    async def _find(self, snapshot_id: SnapshotId) -> SnapshotRow | None:
        reference = ModelReference(snapshot_id.repo, snapshot_id.commit)
        return await self._cache.librarian.find_cached(reference)

    def _may_show(self, request: web.Request, row: SnapshotRow) -> bool:
        """Return whether a caller may know of a snapshot: a public one, or the admin."""
        return row.public_wall_s is not None or self._guard.is_admin(request)


def describe_diff(old: Snapshot, new: Snapshot, diff: VersionDiff) -> dict[str, object]:
    """Return how two commits differ, for people and programs."""
    added = sum(change.old is None for change in diff.changes)
    removed = sum(change.new is None for change in diff.changes)
    return {
        "model": str(new.id.repo),
        "from": old.id.commit,
        "to": new.id.commit,
        "files": {
            "added": added,
            "removed": removed,
            "changed": len(diff.changes) - added - removed,
            "same": diff.same_files,
        },
        "bytes_shared": diff.shared_bytes,
        "bytes_new": diff.new_bytes,
        "bytes_gone": diff.gone_bytes,
        "bytes_new_in_known_chunks": diff.similar_bytes,
        "changes": [_describe_change(change) for change in diff.changes[:CHANGES_SHOWN_MAX]],
        "changes_total": len(diff.changes),
    }


def _describe_change(change: FileChange) -> dict[str, object]:
    return {
        "path": change.path,
        "bytes_from": None if change.old is None else change.old.size_bytes,
        "bytes_to": None if change.new is None else change.new.size_bytes,
    }
