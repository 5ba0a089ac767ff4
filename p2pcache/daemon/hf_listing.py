"""
Owns the JSON that a Hugging Face client expects, built from a cached snapshot.

Knows nothing of requests.
Invariants: no key names Xet; sizes and digests are those that files are checked against.
Source: docs/reference/hub-dialect.md (JSON shapes).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from p2pcache.core.hubjson import strip_xet
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.errors import InputError
from p2pcache.store.catalogue import SnapshotRow

# Git's LFS pointer is three lines; clients only want the key to be there.
_POINTER_SIZE_BYTES = 134
_CURSOR = re.compile(r"at-(\d{1,7})", re.ASCII)


def describe_repository(row: SnapshotRow, *, with_blobs: bool) -> dict[str, object]:
    """Return what `/api/models/{repo}/revision/{revision}` answers."""
    snapshot = row.snapshot
    about = strip_xet(row.about or {})
    assert isinstance(about, dict), "a description is an object"
    name = snapshot.id.repo.name
    return {
        "private": False,
        "gated": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        **about,
        "id": about.get("id", name),
        "sha": snapshot.id.commit,
        "siblings": [_sibling(entry, with_blobs=with_blobs) for entry in snapshot.files],
    }


def _sibling(entry: FileEntry, *, with_blobs: bool) -> dict[str, object]:
    if not with_blobs:
        return {"rfilename": entry.path}
    return {
        "rfilename": entry.path,
        "size": entry.size_bytes,
        "blobId": entry.tree_oid,
        **_describe_lfs(entry, "sha256"),
    }


def _describe_lfs(entry: FileEntry, digest_key: str) -> dict[str, object]:
    """Return the `lfs` field of a file that has one; siblings and trees name its digest apart."""
    if entry.digest.algorithm != "sha256":
        return {}
    size_bytes, pointer_bytes = entry.size_bytes, _POINTER_SIZE_BYTES
    lfs = {digest_key: entry.digest.hex, "size": size_bytes, "pointerSize": pointer_bytes}
    return {"lfs": lfs}


def describe_file(entry: FileEntry) -> dict[str, object]:
    """Return a file as `tree` and `paths-info` list it."""
    return {
        "type": "file",
        "oid": entry.tree_oid,
        "size": entry.size_bytes,
        "path": entry.path,
        **_describe_lfs(entry, "oid"),
    }


def describe_folder(path: str) -> dict[str, object]:
    """
    Return a folder as `tree` lists it.

    The hub's `oid` of a folder is git's tree id, which a file list does not tell; ours is made
    from the path. Clients want the key and never use its value.
    """
    oid = hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": path}


def list_tree(snapshot: Snapshot, folder: str, *, recursive: bool) -> list[dict[str, object]]:
    """Return the entries below a folder, `""` for the root; folders before what is in them."""
    prefix = f"{folder}/" if folder else ""
    listed: dict[str, dict[str, object]] = {}
    for entry in snapshot.files:
        if not entry.path.startswith(prefix):
            continue
        inside = entry.path[len(prefix) :].split("/")
        depths = range(1, len(inside)) if recursive else range(1, min(2, len(inside)))
        for depth in depths:
            path = prefix + "/".join(inside[:depth])
            listed.setdefault(path, describe_folder(path))
        if recursive or len(inside) == 1:
            listed[entry.path] = describe_file(entry)
    return list(listed.values())


def has_folder(snapshot: Snapshot, folder: str) -> bool:
    """Return whether any file lies below a folder."""
    return not folder or any(entry.path.startswith(f"{folder}/") for entry in snapshot.files)


def find_paths(snapshot: Snapshot, paths: list[str]) -> list[dict[str, object]]:
    """Return what `paths-info` answers: the paths that exist, in the order asked."""
    by_path = {entry.path: entry for entry in snapshot.files}
    found = []
    for path in paths:
        if path in by_path:
            found.append(describe_file(by_path[path]))
        elif path and has_folder(snapshot, path):
            found.append(describe_folder(path))
    return found


def cut_page(
    entries: list[dict[str, object]], query: Mapping[str, list[str]]
) -> tuple[list[dict[str, object]], str | None]:
    """
    Return the page that a caller asks for by `limit` and `cursor`, and the cursor of the next.

    Without a limit everything is one page: some clients read no second one.

    Raises:
        InputError: The cursor is not one of ours.
    """
    limit, cursor = query.get("limit", [""])[0], query.get("cursor", [""])[0]
    start = 0
    if cursor:
        match = _CURSOR.fullmatch(cursor)
        if match is None:
            raise InputError("That page cannot be told from here; begin with the first one.")
        start = int(match[1])
    is_limited = limit.isascii() and limit.isdecimal() and 0 < len(limit) < 7 and int(limit) > 0
    stop = start + int(limit) if is_limited else len(entries)
    return entries[start:stop], f"at-{stop}" if stop < len(entries) else None
