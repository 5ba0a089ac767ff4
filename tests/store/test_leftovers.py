"""
Owns the tests of store.leftovers and store.repofolder: what leaves the hub tree, and what may not.

Knows nothing of the index.
Invariants: what programs put into the tree themselves is never touched; what is ours and not
needed is found; what was needed again meanwhile stays.
Source: store/leftovers.py, store/repofolder.py; huggingface_hub's cache layout.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2pcache.core.eviction import Leftover
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.errors import StoreError
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.hubtree import HubTree
from p2pcache.store.leftovers import list_leftovers, note_changes, remove_leftover
from tests.samples import COMMIT, OTHER_COMMIT, Sample, make_sample

REPO = RepoId("hf", "models", "org/name")
FIRST, SECOND = SnapshotId(REPO, COMMIT), SnapshotId(REPO, OTHER_COMMIT)
SHARED, OWN, OTHER = (make_sample(5000, seed=seed) for seed in range(3))
FOREIGN_HEX = "9" * 64


@pytest.fixture
def tree(store: FileBlobStore) -> HubTree:
    """The tree of that store."""
    return HubTree(store.root / "hub")


@pytest.fixture
def folder(tree: HubTree) -> Path:
    """The folder of the repository."""
    return tree.repo_path(REPO)


def put(store: FileBlobStore, sample: Sample) -> Path:
    """Publish a blob unless it is there; returns its file."""
    path = store.path_of(sample.blob)
    if not path.exists():
        partial = store.open_partial(sample.blob, sample.layout)
        for chunk in sample.chunks():
            partial.put(chunk, "upstream")
        store.publish(partial, sample.proof(), is_public=True)
        partial.close()
        store.discard(sample.blob)
    return path


def publish(
    store: FileBlobStore,
    tree: HubTree,
    snapshot_id: SnapshotId,
    files: dict[str, Sample],
    *revisions: str,
) -> None:
    """Publish a snapshot in the tree, as the engine does."""
    entries = [
        FileEntry(path, len(sample.content), sample.blob, "c" * 40)
        for path, sample in files.items()
    ]
    tree.open_repo(snapshot_id.repo, is_public=True)
    tree.publish_tree(Snapshot.of(snapshot_id, entries))
    for entry, sample in zip(entries, files.values(), strict=True):
        tree.publish_file(snapshot_id, entry, put(store, sample))
    for revision in revisions:
        tree.publish_ref(snapshot_id.repo, revision, snapshot_id.commit)


def publish_both(store: FileBlobStore, tree: HubTree) -> None:
    """Publish two commits that share a file."""
    publish(store, tree, FIRST, {"a/b/shared.bin": SHARED, "own.bin": OWN}, "main", "v1/x")
    publish(store, tree, SECOND, {"shared.bin": SHARED, "other.bin": OTHER}, "next")


def download_foreign(folder: Path, commit: str = COMMIT) -> list[Path]:
    """Put a file into the tree as huggingface_hub does by itself; returns what was made."""
    blob = folder / "blobs" / FOREIGN_HEX
    link = folder / "snapshots" / commit / "foreign.bin"
    marker = folder / ".no_exist" / commit / "adapter_config.json"
    for path in (blob, link, marker):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(b"foreign")
    blob.chmod(0o644)
    link.symlink_to(f"../../blobs/{FOREIGN_HEX}")
    marker.write_bytes(b"")
    return [blob, link, marker]


def find(store: FileBlobStore, tree: HubTree, *known: SnapshotId) -> list[Leftover]:
    """Return the leftovers of a store that nobody uses right now."""
    return list_leftovers(store, tree, set(known), note_changes(tree))


def clean(store: FileBlobStore, tree: HubTree, *known: SnapshotId) -> set[str]:
    """Remove the leftovers; returns their names."""
    found, changes = find(store, tree, *known), note_changes(tree)
    assert all(remove_leftover(store, tree, leftover.name, changes) for leftover in found)
    return {leftover.name for leftover in found}


def list_names(folder: Path) -> set[str]:
    """Return every file and link below a folder."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


# --- withdrawing ---


def test_withdrawn_snapshot_takes_what_no_other_needs(
    store: FileBlobStore, tree: HubTree, folder: Path
) -> None:
    """Refs, listing, links and folders of the one; the other is as whole as before."""
    publish_both(store, tree)
    for _ in range(2):
        tree.withdraw_snapshot(FIRST, store.path_of)
        assert list_names(folder) == {
            "refs/next",
            f"trees/{OTHER_COMMIT}.json",
            f"snapshots/{OTHER_COMMIT}/shared.bin",
            f"snapshots/{OTHER_COMMIT}/other.bin",
            f"blobs/{SHARED.blob.hex}",
            f"blobs/{OTHER.blob.hex}",
        }
        assert not (folder / "snapshots" / COMMIT).exists()
        assert not (folder / "refs" / "v1").exists()
    assert (folder / "snapshots" / OTHER_COMMIT / "shared.bin").read_bytes() == SHARED.content
    tree.withdraw_snapshot(SECOND, store.path_of)
    assert not folder.exists()
    assert store.path_of(SHARED.blob).read_bytes() == SHARED.content


def test_withdrawn_snapshot_leaves_what_programs_put_there(
    store: FileBlobStore, tree: HubTree, folder: Path
) -> None:
    """Their files, links and notes stay, and so do the names under which they find them."""
    publish(store, tree, FIRST, {"own.bin": OWN}, "main")
    foreign = download_foreign(folder)
    (folder / "snapshots" / COMMIT / "notes.txt").write_text("somebody's")
    tree.withdraw_snapshot(FIRST, store.path_of)
    assert all(os.path.lexists(path) for path in foreign)
    assert (folder / "snapshots" / COMMIT / "foreign.bin").read_bytes() == b"foreign"
    assert (folder / "refs" / "main").read_text() == COMMIT
    assert not (folder / "blobs" / OWN.blob.hex).exists()
    assert not os.path.lexists(folder / "snapshots" / COMMIT / "own.bin")


def test_withdrawn_snapshot_leaves_a_foreign_file_of_the_same_name(
    store: FileBlobStore, tree: HubTree, folder: Path
) -> None:
    """A blob that a program downloaded itself is not ours, though we have the same content."""
    publish(store, tree, FIRST, {"own.bin": OWN}, "main")
    link = folder / "blobs" / OWN.blob.hex
    link.unlink()
    link.write_bytes(OWN.content)
    link.chmod(0o644)
    tree.withdraw_snapshot(FIRST, store.path_of)
    assert (folder / "snapshots" / COMMIT / "own.bin").read_bytes() == OWN.content
    assert find(store, tree) == []


def test_withdrawn_snapshot_without_hard_links_leaves_nothing(
    store: FileBlobStore, tree: HubTree, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system has none, the tree's blobs are symbolic links; they go as well."""

    def fail(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", fail)
    publish_both(store, tree)
    assert (folder / "blobs" / OWN.blob.hex).is_symlink()
    assert find(store, tree, FIRST, SECOND) == []
    tree.withdraw_snapshot(FIRST, store.path_of)
    assert not os.path.lexists(folder / "blobs" / OWN.blob.hex)
    tree.withdraw_snapshot(SECOND, store.path_of)
    assert not folder.exists()


def test_withdrawing_what_was_never_here_is_no_error(store: FileBlobStore, tree: HubTree) -> None:
    """An eviction of something that was listed and never linked."""
    tree.withdraw_snapshot(FIRST, store.path_of)
    assert not tree.repo_path(REPO).exists()


def test_folder_that_went_while_it_was_opened_keeps_its_mode(
    store: FileBlobStore, tree: HubTree, folder: Path
) -> None:
    """A private repository's folder is the daemon's alone, also when it is made anew."""
    tree.open_repo(REPO, is_public=False)
    tree.withdraw_snapshot(FIRST, store.path_of)
    assert not folder.exists()
    tree.publish_ref(REPO, "main", COMMIT)
    assert folder.stat().st_mode & 0o777 == 0o700


# --- leftovers ---


def test_store_without_a_crash_has_no_leftovers(store: FileBlobStore, tree: HubTree) -> None:
    """What is known and here is not a leftover, however it is linked."""
    publish_both(store, tree)
    download_foreign(tree.repo_path(REPO))
    assert find(store, tree, FIRST, SECOND) == []


def test_snapshot_that_the_index_forgot_is_a_leftover_but_for_what_is_shared(
    store: FileBlobStore, tree: HubTree, folder: Path
) -> None:
    """A crash between the rows and the links of an eviction; gc does what that left undone."""
    publish_both(store, tree)
    names = clean(store, tree, SECOND)
    assert names == {
        f"hub/models--org--name/{name}"
        for name in (
            "refs/main",
            "refs/v1/x",
            f"trees/{COMMIT}.json",
            f"snapshots/{COMMIT}/a/b/shared.bin",
            f"snapshots/{COMMIT}/own.bin",
            f"blobs/{OWN.blob.hex}",
        )
    }
    assert (folder / "snapshots" / OTHER_COMMIT / "shared.bin").read_bytes() == SHARED.content
    assert not (folder / "snapshots" / COMMIT).exists()
    assert clean(store, tree) != set()
    assert not folder.exists()
    assert store.path_of(OWN.blob).exists()


def test_snapshot_of_a_program_is_no_leftover(
    store: FileBlobStore, tree: HubTree, folder: Path
) -> None:
    """What nobody told the index of is somebody's download, with its refs and listing."""
    download_foreign(folder)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "trees").mkdir()
    (folder / "trees" / f"{COMMIT}.json").write_text("{}")
    (folder / "trees" / "notes.json").write_text("{}")
    (folder / "refs" / "strange").write_text("not a commit")
    (tree.root / "models--org--name--of--nobody").mkdir()
    (tree.root / "version.txt").write_text("1")
    before = list_names(tree.root)
    assert clean(store, tree) == set()
    assert list_names(tree.root) == before


def test_link_whose_blob_is_gone_is_a_leftover(
    store: FileBlobStore, tree: HubTree, folder: Path
) -> None:
    """Of a known snapshot, too: a hard link would hold the bytes for nobody."""
    publish_both(store, tree)
    taken = store.path_of(OWN.blob).stat().st_blocks * 512
    store.path_of(OWN.blob).unlink()
    found = find(store, tree, FIRST, SECOND)
    assert [(Path(x.name).name, x.own_bytes) for x in found] == [
        ("own.bin", 0),
        (OWN.blob.hex, taken),
    ]
    (folder / "blobs" / OWN.blob.hex).unlink()
    assert [x.name for x in find(store, tree, FIRST, SECOND)] == [found[0].name]
    clean(store, tree, FIRST, SECOND)
    assert not os.path.lexists(folder / "snapshots" / COMMIT / "own.bin")
    assert (folder / "snapshots" / COMMIT / "a" / "b" / "shared.bin").exists()


def test_link_that_was_taken_out_of_the_tree_is_no_leftover_while_its_blob_is_here(
    store: FileBlobStore, tree: HubTree, folder: Path
) -> None:
    """Publishing again mends what somebody cleaned away."""
    publish(store, tree, FIRST, {"own.bin": OWN}, "main")
    (folder / "blobs" / OWN.blob.hex).unlink()
    assert find(store, tree, FIRST) == []


def test_temporary_names_of_ours_are_leftovers(
    store: FileBlobStore, tree: HubTree, folder: Path
) -> None:
    """Of links and small files that a kill interrupted; names that only look alike are not."""
    publish(store, tree, FIRST, {"own.bin": OWN}, "main")
    ours = [
        store.root / ".1.140001.new",
        folder / "trees" / ".1.140001.new",
        folder / "refs" / ".1.140001.new",
        folder / "blobs" / f".{OWN.blob.hex}.1",
        folder / "snapshots" / COMMIT / ".1.link",
    ]
    foreign = [
        store.root / f".{os.getpid()}.140001.new",  # somebody of this process writes it
        store.root / ".new",
        store.root / "1.2.new",
        folder / "blobs" / f"{FOREIGN_HEX}.incomplete",
        folder / "snapshots" / COMMIT / ".hidden",
    ]
    for path in [*ours, *foreign]:
        path.write_bytes(b"torn")
    assert clean(store, tree, FIRST) == {str(path.relative_to(store.root)) for path in ours}
    assert all(path.exists() for path in foreign)
    assert (folder / "snapshots" / COMMIT / "own.bin").read_bytes() == OWN.content


def test_records_without_a_file_are_leftovers(store: FileBlobStore, tree: HubTree) -> None:
    """A record goes with its file; whose it was is said, for that blob may be busy."""
    partial = store.root / "partial"
    name = f"sha256-{OWN.blob.hex}"
    opened = store.open_partial(OTHER.blob, OTHER.layout)
    opened.close()
    for path in (f"{name}.have", f"{name}.have.new", "notes.have", "notes.txt"):
        (partial / path).write_bytes(b"")
    found = find(store, tree)
    assert [(x.name, x.blobs) for x in found] == [
        (f"partial/{name}.have", (OWN.blob,)),
        (f"partial/{name}.have.new", (OWN.blob,)),
    ]
    clean(store, tree)
    assert (partial / "notes.have").exists()
    assert (partial / f"sha256-{OTHER.blob.hex}.have").exists()


def test_marker_without_its_blob_is_a_leftover(store: FileBlobStore, tree: HubTree) -> None:
    """The note that a file is somebody else's goes with the file, and never before it."""
    path = put(store, OWN)
    store.mark_foreign(OWN.blob)
    store.path_of(OTHER.blob).parent.mkdir(exist_ok=True)
    store.mark_foreign(OTHER.blob)
    (path.parent / "notes.adopted").write_bytes(b"")
    found = find(store, tree)
    marker = store.path_of(OTHER.blob).with_name(f"{OTHER.blob.hex}.adopted")
    assert [(x.name, x.blobs) for x in found] == [
        (str(marker.relative_to(store.root)), (OTHER.blob,))
    ]
    put(store, OTHER)
    store.mark_foreign(OTHER.blob)
    assert not remove_leftover(store, tree, found[0].name, {})
    assert marker.exists()
    store.path_of(OTHER.blob).unlink()
    assert remove_leftover(store, tree, found[0].name, {})
    assert not marker.exists()


def test_strange_names_in_the_tree_are_passed_over(
    store: FileBlobStore, tree: HubTree, folder: Path
) -> None:
    """Folders and files where links belong, links to elsewhere, folders that are linked."""
    publish(store, tree, FIRST, {"own.bin": OWN}, "main")
    (folder / "blobs" / ("8" * 64)).mkdir()
    (folder / "blobs" / "notes.txt").write_text("somebody's")
    (folder / "snapshots" / "latest").symlink_to(COMMIT)
    (folder / "snapshots" / COMMIT / "elsewhere.bin").symlink_to("/dev/null")
    (folder / "snapshots" / COMMIT / "folder.bin").symlink_to(f"../../blobs/{'8' * 64}")
    (tree.root / "spaces--org--empty").mkdir()
    before = list_names(folder)
    assert find(store, tree, FIRST) == []
    tree.withdraw_snapshot(FIRST, store.path_of)
    assert before - list_names(folder) == {
        f"snapshots/{COMMIT}/own.bin",
        f"blobs/{OWN.blob.hex}",
    }
    (folder / "snapshots" / COMMIT / "elsewhere.bin").unlink()
    assert (folder / "refs" / "main").read_text() == COMMIT


def test_link_that_refers_to_an_absent_disk_is_no_leftover(
    store: FileBlobStore, tree: HubTree, folder: Path
) -> None:
    """A blob that is somebody's file elsewhere may be back tomorrow."""
    publish(store, tree, FIRST, {"own.bin": OWN}, "main")
    path = store.path_of(OWN.blob)
    path.unlink()
    path.symlink_to("/nowhere/blob")
    assert find(store, tree, FIRST) == []


def test_leftover_that_is_needed_again_stays(
    store: FileBlobStore, tree: HubTree, folder: Path
) -> None:
    """A snapshot that is published while gc runs keeps its links, known to gc or not."""
    publish_both(store, tree)
    changes = note_changes(tree)
    found = list_leftovers(store, tree, {SECOND}, changes)
    assert found
    publish(store, tree, FIRST, {"a/b/shared.bin": SHARED, "own.bin": OWN}, "main")
    before = list_names(folder)
    assert not any(remove_leftover(store, tree, x.name, changes) for x in found)
    assert list_names(folder) == before
    # What changed since the index was asked is not even looked at.
    assert list_leftovers(store, tree, {SECOND}, changes) == []


def test_disk_that_fails_is_an_error_of_the_store(
    store: FileBlobStore, tree: HubTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking and removing tell it in our words."""
    publish_both(store, tree)
    (store.root / ".1.140001.new").write_bytes(b"")
    changes = note_changes(tree)

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", fail)
        with pytest.raises(StoreError, match="disk failed"):
            list_leftovers(store, tree, set(), changes)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        for name in (".1.140001.new", "hub/models--org--name/refs/main"):
            with pytest.raises(StoreError, match="disk failed"):
                remove_leftover(store, tree, name, changes)
        with pytest.raises(StoreError, match="disk failed"):
            tree.withdraw_snapshot(FIRST, store.path_of)
