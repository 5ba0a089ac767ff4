"""
Owns the JSON that a ModelScope client expects, built from a cached snapshot.

Knows nothing of requests.
Invariants: sizes and digests are those that files are checked against; every answer is in the
envelope.
Source: docs/reference/modelscope-dialect.md (JSON shapes).
"""

from __future__ import annotations

import secrets

from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.store.catalogue import SnapshotRow

# Git's modes of a file and of a folder, in decimal, as the hub gives them.
_FILE_MODE, _FOLDER_MODE = "33188", "16384"


def wrap(content: object) -> dict[str, object]:
    """Return the envelope of a good answer."""
    return {
        "Code": 200,
        "Data": content,
        "Message": "success",
        "RequestId": secrets.token_hex(16),
        "Success": True,
    }


def wrap_error(code: int, message: str) -> dict[str, object]:
    """Return the envelope of a refusal."""
    return {
        "Code": code,
        "Message": message,
        "RequestId": secrets.token_hex(16),
        "Success": False,
    }


def list_files(snapshot: Snapshot, folder: str, *, is_deep: bool) -> list[dict[str, object]]:
    """Return the entries below a folder, `""` for the root; folders before what is in them."""
    prefix = f"{folder}/" if folder else ""
    commit = snapshot.id.commit
    listed: dict[str, dict[str, object]] = {}
    for entry in snapshot.files:
        if not entry.path.startswith(prefix):
            continue
        inside = entry.path[len(prefix) :].split("/")
        depths = range(1, len(inside)) if is_deep else range(1, min(2, len(inside)))
        for depth in depths:
            path = prefix + "/".join(inside[:depth])
            listed.setdefault(path, _describe_folder(path, commit))
        if is_deep or len(inside) == 1:
            listed[entry.path] = _describe_file(entry, commit)
    return list(listed.values())


def make_listing(snapshot: Snapshot, entries: list[dict[str, object]]) -> dict[str, object]:
    """Return what `repo/files` and `repo/tree` answer."""
    commit = snapshot.id.commit
    return {
        "Files": entries,
        "IsVisual": 0,
        "LatestCommitter": {"Id": commit, "ShortId": commit[:8]},
    }


def describe_revisions(row: SnapshotRow, known: list[tuple[str, str]]) -> dict[str, object]:
    """
    Return what `revisions` answers.

    Args:
        row: A snapshot of the repository, with what the hub said of it.
        known: Names that were asked for before, for when the hub said nothing.
    """
    said = (row.about or {}).get("revisions")
    if isinstance(said, dict):
        return said
    branches = [{"Revision": name, "CreatedAt": 0} for name, _ in known]
    return {"RevisionMap": {"Branches": branches, "Tags": []}}


def _describe_file(entry: FileEntry, commit: str) -> dict[str, object]:
    return {
        "Path": entry.path,
        "Name": entry.path.rpartition("/")[2],
        "Type": "blob",
        "Size": entry.size_bytes,
        "Sha256": entry.digest.hex,
        "IsLFS": False,
        "InCheck": False,
        "Mode": _FILE_MODE,
        "Revision": commit,
        "CommitId": commit,
    }


def _describe_folder(path: str, commit: str) -> dict[str, object]:
    return {
        "Path": path,
        "Name": path.rpartition("/")[2],
        "Type": "tree",
        "Size": 0,
        "Sha256": "",
        "IsLFS": False,
        "InCheck": False,
        "Mode": _FOLDER_MODE,
        "Revision": commit,
        "CommitId": commit,
    }
