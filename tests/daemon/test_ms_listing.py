"""
Owns the tests of the JSON that ModelScope's clients get.

Knows nothing of requests.
Invariants: what the client's own parser of listings reads is there and true.
Source: daemon/ms_listing.py; docs/reference/modelscope-dialect.md.
"""

from __future__ import annotations

from p2pcache.core.digest import BlobDigest
from p2pcache.core.msjson import read_entries, read_files
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.daemon.ms_listing import (
    describe_revisions,
    list_files,
    make_listing,
    wrap,
    wrap_error,
)
from p2pcache.store.catalogue import SnapshotRow

COMMIT = "c" * 40
ID = SnapshotId(RepoId("ms", "models", "org/name"), COMMIT)


def make_snapshot(*paths: str) -> Snapshot:
    """Return a snapshot of files that differ."""
    entries = [
        FileEntry(path, n, BlobDigest("sha256", f"{n:064x}"), f"{n:040x}")
        for n, path in enumerate(paths)
    ]
    return Snapshot.of(ID, entries)


SNAPSHOT = make_snapshot("a.txt", "b/c/d.txt", "b/e.txt", "bc.txt")


def paths_of(folder: str, *, is_deep: bool) -> list[tuple[object, object]]:
    """Return (type, path) of what is listed."""
    return [(e["Type"], e["Path"]) for e in list_files(SNAPSHOT, folder, is_deep=is_deep)]


def test_listing_deep_has_folders_before_their_files() -> None:
    """Everything below the root."""
    assert paths_of("", is_deep=True) == [
        ("blob", "a.txt"),
        ("tree", "b"),
        ("tree", "b/c"),
        ("blob", "b/c/d.txt"),
        ("blob", "b/e.txt"),
        ("blob", "bc.txt"),
    ]


def test_listing_shallow_has_what_is_directly_inside() -> None:
    """A folder's own files and folders; a name that begins alike is not inside."""
    assert paths_of("", is_deep=False) == [("blob", "a.txt"), ("tree", "b"), ("blob", "bc.txt")]
    assert paths_of("b", is_deep=False) == [("tree", "b/c"), ("blob", "b/e.txt")]
    assert paths_of("b", is_deep=True)[1:] == [("blob", "b/c/d.txt"), ("blob", "b/e.txt")]
    assert paths_of("nope", is_deep=True) == []


def test_listing_is_read_back_as_the_same_files() -> None:
    """What we say is what we would believe of a hub: a daemon may be another's upstream."""
    listing = read_files(make_listing(SNAPSHOT, list_files(SNAPSHOT, "", is_deep=True)))
    assert listing.commit == COMMIT
    assert [(e.path, e.size_bytes, e.digest) for e in read_entries(listing.items)] == [
        (e.path, e.size_bytes, e.digest) for e in SNAPSHOT.files
    ]


def test_revisions_are_the_hubs_own_or_those_asked_for() -> None:
    """What the hub said is passed on; without its word, the names that are known here."""
    said = {"RevisionMap": {"Branches": [], "Tags": [{"Revision": "v1"}]}}
    row = SnapshotRow(SNAPSHOT, True, {"revisions": said}, None)
    assert describe_revisions(row, []) == said
    silent = SnapshotRow(SNAPSHOT, False, None, None)
    known = describe_revisions(silent, [("master", COMMIT)])["RevisionMap"]
    assert known == {"Branches": [{"Revision": "master", "CreatedAt": 0}], "Tags": []}


def test_envelopes_say_whether_they_are_good() -> None:
    """The client looks at Success and Code."""
    assert (wrap(1)["Success"], wrap(1)["Code"], wrap(1)["Data"]) == (True, 200, 1)
    refused = wrap_error(404, "no")
    assert (refused["Success"], refused["Code"], refused["Message"]) == (False, 404, "no")
