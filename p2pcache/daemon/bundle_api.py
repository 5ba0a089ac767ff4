"""
Owns the part of the management API that moves whole snapshots: bundles out and in.

Knows nothing of the format.
Invariants: what is not public goes to the admin token's holder alone; a body is taken and sent in
pieces, however long it is; one that is wrong is broken off, never ended.
Source: docs/reference/http-api.md; docs/reference/bundle-format.md.
"""

from __future__ import annotations

import asyncio
from urllib.parse import unquote

from aiohttp import web

from p2pcache.core.refs import ModelReference
from p2pcache.daemon.guard import MANAGEMENT_PREFIX, Guard
from p2pcache.daemon.sending import SEND_STALL_S
from p2pcache.engine.bundleimport import ImportedBundle, ImportOrder
from p2pcache.engine.bundles import BundleExport, Bundles
from p2pcache.engine.cache import Cache
from p2pcache.errors import InputError
from p2pcache.store.bundle import parse_bundle_id

CONTENT_TYPE = "application/x-tar"
_VISIBILITIES = {"public": True, "restricted": False}


class BundleApi:
    """The handlers for bundles."""

    def __init__(self, cache: Cache, guard: Guard) -> None:
        self._cache = cache
        self._bundles = Bundles(cache)
        self._guard = guard

    def add_routes(self, app: web.Application) -> None:
        """Put the handlers in."""
        base = MANAGEMENT_PREFIX + "v1"
        app.router.add_get(f"{base}/bundles/{{reference:.+}}", self.export)
        app.router.add_post(f"{base}/bundles", self.take_in)

    async def export(self, request: web.Request) -> web.StreamResponse:
        """Send a snapshot that is here."""
        reference = ModelReference.parse(unquote(request.match_info["reference"]))
        is_admin = self._guard.is_admin(request)
        async with self._bundles.exporting(reference, is_admin=is_admin) as export:
            response = web.StreamResponse(headers=describe_export(export))
            await response.prepare(request)
            if request.method != "HEAD":
                async for content in export.iter_bytes():
                    async with asyncio.timeout(SEND_STALL_S):
                        await response.write(content)
            await response.write_eof()
            return response

    async def take_in(self, request: web.Request) -> web.Response:
        """Take a bundle in; the answer comes when it is resident."""
        if request.content_type != CONTENT_TYPE:
            raise InputError(f"Send a bundle: Content-Type: {CONTENT_TYPE}.")
        imported = await self._bundles.take_in(read_order(request), request.content.readany)
        path = self._cache.path_of(imported.snapshot_id)
        return web.json_response({**describe_import(imported), "path": path})


def read_order(request: web.Request) -> ImportOrder:
    """
    Read `id` and `visibility` of a query.

    Raises:
        InputError: Something else is asked.
    """
    unknown = set(request.query) - {"id", "visibility"}
    if unknown:
        raise InputError(f"{min(unknown)[:40]!r} is not a parameter; there are id and visibility.")
    bundle_id, visibility = request.query.get("id"), request.query.get("visibility")
    if visibility is not None and visibility not in _VISIBILITIES:
        raise InputError("visibility is public or restricted; leave it out to believe the bundle.")
    return ImportOrder(
        None if bundle_id is None else parse_bundle_id(bundle_id),
        None if visibility is None else _VISIBILITIES[visibility],
    )


def describe_export(export: BundleExport) -> dict[str, str]:
    """Return the headers that say what follows."""
    manifest = export.manifest
    return {
        "Content-Type": CONTENT_TYPE,
        "Content-Length": str(export.size_bytes),
        "X-P2PCache-Bundle": export.bundle_id,
        "X-P2PCache-Model": str(manifest.snapshot.id.repo),
        "X-P2PCache-Commit": manifest.snapshot.id.commit,
        "X-P2PCache-Files": str(len(manifest.snapshot.files)),
        "X-P2PCache-Visibility": "public" if manifest.is_public else "restricted",
    }


def describe_import(imported: ImportedBundle) -> dict[str, object]:
    """Return what came of an import."""
    manifest = imported.manifest
    return {
        "id": imported.bundle_id,
        "model": str(imported.snapshot_id.repo),
        "commit": imported.snapshot_id.commit,
        "revisions": list(manifest.revisions),
        "files": len(manifest.snapshot.files),
        "bytes": sum(table.layout.size_bytes for table in manifest.tables),
        "bytes_written": imported.written_bytes,
        "public": imported.is_public,
    }
