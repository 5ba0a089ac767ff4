"""
Owns the tests of daemon.hf_listing: the JSON that clients read.

Knows nothing of requests.
Invariants: sizes and digests are the snapshot's; no key names Xet.
Source: daemon/hf_listing.py; docs/reference/hub-dialect.md.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.daemon.hf_listing import describe_repository, find_paths, has_folder, list_tree
from p2pcache.store.catalogue import SnapshotRow

COMMIT = "a" * 40
OID = "b" * 40
SHA256 = "c" * 64
PATHS = ["README.md", "a/b/deep.bin", "a/x.bin", "ab/y.bin", "model.safetensors"]


def make_snapshot(paths: list[str] = PATHS) -> Snapshot:
    """Make a snapshot; `.bin` and `.safetensors` are LFS files."""
    entries = []
    for size, path in enumerate(paths, 1):
        is_lfs = path.endswith((".bin", ".safetensors"))
        digest = (
            BlobDigest("sha256", f"{size:064x}")
            if is_lfs
            else BlobDigest("gitsha1", f"{size:040x}")
        )
        entries.append(FileEntry(path, size, digest, OID))
    return Snapshot.of(SnapshotId(RepoId("hf", "models", "org/name"), COMMIT), entries)


def names(listed: list[dict[str, object]]) -> list[tuple[object, object]]:
    """Return type and path of each entry."""
    return [(entry["type"], entry["path"]) for entry in listed]


def test_tree_recursive_lists_folders_before_what_is_in_them() -> None:
    """Every folder once, every file, in order."""
    listed = names(list_tree(make_snapshot(), "", recursive=True))
    assert listed == [
        ("file", "README.md"),
        ("directory", "a"),
        ("directory", "a/b"),
        ("file", "a/b/deep.bin"),
        ("file", "a/x.bin"),
        ("directory", "ab"),
        ("file", "ab/y.bin"),
        ("file", "model.safetensors"),
    ]


def test_tree_of_one_level_lists_files_and_folders_of_that_level() -> None:
    """Without recursion nothing deeper shows."""
    assert names(list_tree(make_snapshot(), "", recursive=False)) == [
        ("file", "README.md"),
        ("directory", "a"),
        ("directory", "ab"),
        ("file", "model.safetensors"),
    ]


def test_tree_of_a_folder_is_not_confused_by_a_longer_name() -> None:
    """`a` is not `ab`."""
    assert names(list_tree(make_snapshot(), "a", recursive=False)) == [
        ("directory", "a/b"),
        ("file", "a/x.bin"),
    ]
    assert names(list_tree(make_snapshot(), "a", recursive=True)) == [
        ("directory", "a/b"),
        ("file", "a/b/deep.bin"),
        ("file", "a/x.bin"),
    ]


@pytest.mark.parametrize(
    ("folder", "is_there"),
    [("", True), ("a", True), ("a/b", True), ("b", False), ("README.md", False), ("a/", False)],
)
def test_folder_is_there_if_a_file_is_below_it(folder: str, is_there: bool) -> None:
    """A file is no folder; the root always is."""
    assert has_folder(make_snapshot(), folder) is is_there


def test_lfs_file_shows_the_digest_of_its_bytes_and_the_oid_of_its_pointer() -> None:
    """What clients name the file by is `lfs.oid`; a git file has its own id alone."""
    by_path = {entry["path"]: entry for entry in list_tree(make_snapshot(), "", recursive=True)}
    large: Any = by_path["model.safetensors"]
    assert (large["oid"], large["size"]) == (OID, 5)
    assert (large["lfs"]["oid"], large["lfs"]["size"]) == (f"{5:064x}", 5)
    assert "lfs" not in by_path["README.md"]


def test_paths_are_answered_in_the_order_asked_and_unknown_ones_left_out() -> None:
    """Files and folders that exist, nothing else."""
    found = find_paths(make_snapshot(), ["model.safetensors", "none", "a", "", "../x", "README.md"])
    assert names(found) == [
        ("file", "model.safetensors"),
        ("directory", "a"),
        ("file", "README.md"),
    ]


@pytest.mark.parametrize("with_blobs", [True, False])
def test_description_is_the_hubs_with_our_list_of_files(with_blobs: bool) -> None:
    """What the hub said of the repository stays; sha and siblings are the snapshot's; no Xet."""
    about: dict[str, object] = {
        "id": "org/Name",
        "sha": "0" * 40,
        "siblings": [{"rfilename": "other"}],
        "xetEnabled": True,
        "cardData": {"xetHash": "x", "license": "mit"},
        "downloads": 7,
    }
    row = SnapshotRow(make_snapshot(), True, about, None)
    described: Any = describe_repository(row, with_blobs=with_blobs)
    assert (described["id"], described["sha"], described["downloads"]) == ("org/Name", COMMIT, 7)
    assert [s["rfilename"] for s in described["siblings"]] == sorted(PATHS)
    assert ("size" in described["siblings"][0]) is with_blobs
    assert "xet" not in json.dumps(described).lower()
    assert described["cardData"] == {"license": "mit"}


def test_description_without_the_hubs_word_has_what_clients_need() -> None:
    """A snapshot that a peer told of is described too."""
    row = SnapshotRow(make_snapshot([]), False, None, None)
    described = describe_repository(row, with_blobs=False)
    assert (described["id"], described["siblings"]) == ("org/name", [])
    assert {"private", "gated", "tags", "downloads", "likes"} <= set(described)
