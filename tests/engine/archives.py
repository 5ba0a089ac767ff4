"""
Owns bundles in memory, for tests: taken from an engine, changed, given to another.

Knows nothing of single tests.
Invariants: forge() changes what an archive says and makes every digest of ours fit again, as
somebody would who wants it to be believed.
Source: docs/reference/bundle-format.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import ModelReference
from p2pcache.core.snapshot import Snapshot
from p2pcache.core.verify import digest_of
from p2pcache.engine.bundleimport import ImportedBundle, ImportOrder
from p2pcache.engine.bundles import Bundles
from p2pcache.store.bundle import (
    HEAD_SIZE_BYTES,
    BundledBlob,
    BundleManifest,
    head_to_bytes,
    manifest_span,
    read_head,
    read_manifest,
)
from tests.engine.engine import Engine

# As a socket gives them: neither blocks nor chunks.
PIECE_BYTES = 7_001


async def export_archive(engine: Engine, repo: str, *, is_admin: bool = True) -> bytes:
    """Export a snapshot into memory."""
    reference = ModelReference.parse(repo)
    async with Bundles(engine.cache).exporting(reference, is_admin=is_admin) as export:
        archive = b"".join([content async for content in export.iter_bytes()])
        assert len(archive) == export.size_bytes
    return archive


async def import_archive(
    engine: Engine,
    archive: bytes,
    *,
    bundle_id: str | None = None,
    is_public: bool | None = None,
) -> ImportedBundle:
    """Import an archive from memory."""
    order = ImportOrder(bundle_id, is_public)
    return await Bundles(engine.cache).take_in(order, reader_of(archive))


def reader_of(archive: bytes) -> Callable[[], Awaitable[bytes]]:
    """Return a function that gives an archive in pieces, as a request's body does."""
    pieces = (archive[i : i + PIECE_BYTES] for i in range(0, len(archive), PIECE_BYTES))

    async def read_some() -> bytes:
        return next(pieces, b"")

    return read_some


def manifest_of(archive: bytes) -> BundleManifest:
    """Read the manifest of an archive that is right."""
    bundle_id, size_bytes = read_head(archive[:HEAD_SIZE_BYTES])
    end = HEAD_SIZE_BYTES + manifest_span(size_bytes)
    return read_manifest(archive[HEAD_SIZE_BYTES:end], size_bytes, bundle_id)


def place_of(archive: bytes, path: str) -> int:
    """Return where the bytes of a file begin."""
    manifest = manifest_of(archive)
    place = len(head_to_bytes(manifest.to_bytes()))
    for part in manifest.iter_parts():
        if isinstance(part, BundledBlob):
            if manifest.snapshot.get_file(path).digest == part.table.blob:
                return place
            place += part.table.layout.size_bytes
        else:
            place += len(part.content)
    raise AssertionError(f"{path} is not in the archive")


def flip(archive: bytes, place: int) -> bytes:
    """Change one bit."""
    changed = bytearray(archive)
    changed[place] ^= 1
    return bytes(changed)


def forge(archive: bytes, contents: Mapping[str, bytes]) -> bytes:
    """Replace the bytes of some files by others of the same length, and make the tables fit."""
    manifest = manifest_of(archive)
    wrong = {manifest.snapshot.get_file(path).digest: new for path, new in contents.items()}
    tables = {
        table.blob: _retable(table, wrong[table.blob]) if table.blob in wrong else table
        for table in manifest.tables
    }
    forged = BundleManifest.of(
        manifest.snapshot, list(manifest.revisions), tables, is_public=manifest.is_public
    )
    return head_to_bytes(forged.to_bytes()) + b"".join(
        _content_of(archive, part, wrong, manifest)
        if isinstance(part, BundledBlob)
        else part.content
        for part in forged.iter_parts()
    )


def relist(archive: bytes, path: str) -> bytes:
    """Give one file another entry in the tree, as a forged list does, and make the rest fit."""
    manifest = manifest_of(archive)
    files = [
        replace(entry, tree_oid="f" * 40) if entry.path == path else entry
        for entry in manifest.snapshot.files
    ]
    forged = BundleManifest.of(
        Snapshot.of(manifest.snapshot.id, files),
        list(manifest.revisions),
        {table.blob: table for table in manifest.tables},
        is_public=manifest.is_public,
    )
    head = head_to_bytes(forged.to_bytes())
    return head + archive[len(head_to_bytes(manifest.to_bytes())) :]


def _retable(table: ChunkTable, content: bytes) -> ChunkTable:
    made = ChunkTable(table.blob, table.layout)
    for index in range(table.layout.chunk_count):
        offset, length = table.layout.span_of(index, index)
        made.set(index, digest_of(content[offset : offset + length]))
    return made


def _content_of(
    archive: bytes, part: BundledBlob, wrong: Mapping[BlobDigest, bytes], manifest: BundleManifest
) -> bytes:
    if part.table.blob in wrong:
        return wrong[part.table.blob]
    start = place_of(archive, part.path)
    return archive[start : start + part.table.layout.size_bytes]
