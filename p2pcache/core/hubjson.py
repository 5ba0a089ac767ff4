"""
Owns reading a hub's JSON: file lists in both shapes, and what must not be passed on.

Knows nothing of HTTP.
Invariants: a listing is read whole or refused; nothing that names Xet leaves for a client.
Source: docs/reference/hub-dialect.md (tree and siblings shapes; Xet).
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import BLOB_SIZE_BYTES_MAX
from p2pcache.core.messages import get_text, get_whole
from p2pcache.core.refs import parse_commit, parse_path
from p2pcache.core.snapshot import FileEntry
from p2pcache.errors import InputError, UpstreamProtocolError


def strip_xet(value: object) -> object:
    """
    Return decoded JSON without any key that names Xet.

    A client that sees one leaves the endpoint for another storage, past every cache.
    """
    if isinstance(value, dict):
        return {
            key: strip_xet(item)
            for key, item in value.items()
            if not (isinstance(key, str) and "xet" in key.lower())
        }
    if isinstance(value, list):
        return [strip_xet(item) for item in value]
    return value


def read_commit(about: object) -> str:
    """
    Return the commit that a description of a repository names.

    Raises:
        UpstreamProtocolError: None, or a malformed one.
    """
    try:
        return parse_commit(get_text(about, "sha"))
    except InputError as error:
        raise UpstreamProtocolError(
            "The hub named no valid commit; check that the address is a hub's."
        ) from error


def read_tree(items: Iterable[object]) -> list[FileEntry]:
    """
    Read the tree shape: `type`, `path`, `size`, `oid`, and `lfs.oid` for LFS files.

    Raises:
        UpstreamProtocolError: An entry that cannot be.
    """
    return [
        _read_entry(item, "path", "oid", "oid")
        for item in items
        if not (isinstance(item, dict) and item.get("type") == "directory")
    ]


def read_siblings(about: object) -> list[FileEntry]:
    """
    Read the siblings shape (`?blobs=true`): `rfilename`, `size`, `blobId`, `lfs.sha256`.

    Raises:
        UpstreamProtocolError: No list, or an entry that cannot be.
    """
    siblings = about.get("siblings") if isinstance(about, dict) else None
    if not isinstance(siblings, list):
        raise UpstreamProtocolError("The hub listed no files; check that the address is a hub's.")
    return [_read_entry(item, "rfilename", "blobId", "sha256") for item in siblings]


def _read_entry(item: object, path_key: str, oid_key: str, lfs_key: str) -> FileEntry:
    try:
        path = parse_path(get_text(item, path_key))
        tree_oid = parse_commit(get_text(item, oid_key))
        lfs = item.get("lfs") if isinstance(item, dict) else None
        if lfs:
            digest = BlobDigest("sha256", get_text(lfs, lfs_key))
            return FileEntry(path, _read_size(lfs), digest, tree_oid)
        return FileEntry(path, _read_size(item), BlobDigest("gitsha1", tree_oid), tree_oid)
    except InputError as error:
        raise UpstreamProtocolError(
            f"The hub lists a file that cannot be stored safely: {error}"
        ) from error


def _read_size(item: object) -> int:
    return get_whole(item, "size", maximum=BLOB_SIZE_BYTES_MAX)
