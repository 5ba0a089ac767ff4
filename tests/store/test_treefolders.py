"""
Owns the tests of where repositories' folders are, and of ModelScope's tree in particular.

Knows nothing of hubs and clients; tests/clients opens the tree with the real one.
Invariants: no two repositories share a folder; names lead to what they say or are gone.
Source: store/treefolders.py; docs/reference/store-layout.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.hubtree import HubTree
from p2pcache.store.index import Index
from p2pcache.store.leftovers import list_leftovers, note_changes, remove_leftover
from p2pcache.store.rebuild import recover
from p2pcache.store.treefolders import TreeFolders
from tests.samples import Sample

MODEL = RepoId("ms", "models", "org/name.v1")
TWIN = RepoId("hf", "models", "org/name.v1")
REPOS = [
    MODEL,
    TWIN,
    RepoId("ms", "datasets", "org/rows"),
    RepoId("hf", "datasets", "squad"),
    RepoId("hf", "models", "gpt2"),
]
COMMIT, LATER = "a" * 40, "b" * 40
SAMPLE = Sample(b"weights")
ENTRY = FileEntry("deep/model.bin", 7, SAMPLE.blob, "1" * 40)


@pytest.fixture
def store(tmp_path: Path) -> FileBlobStore:
    """Return a store that holds one file."""
    store = FileBlobStore(tmp_path / "store")
    path = store.path_of(SAMPLE.blob)
    path.parent.mkdir(parents=True)
    path.write_bytes(SAMPLE.content)
    path.chmod(0o444)
    (store.root / "partial").mkdir(exist_ok=True)
    return store


@pytest.fixture
def tree(store: FileBlobStore) -> HubTree:
    """Return the trees of the store."""
    return HubTree(store.root / "hub")


@pytest.fixture
def index(store: FileBlobStore) -> Iterator[Index]:
    """Return an empty index."""
    index = Index(store.root / "index.sqlite")
    yield index
    index.close()


def publish(store: FileBlobStore, tree: HubTree, repo: RepoId, commit: str, *names: str) -> Path:
    """Put the file into a tree, under some revisions; return the repository's folder."""
    snapshot = Snapshot.of(SnapshotId(repo, commit), [ENTRY])
    tree.open_repo(repo, is_public=True)
    tree.publish_tree(snapshot)
    tree.publish_file(snapshot.id, ENTRY, store.path_of(ENTRY.digest))
    for name in names:
        tree.publish_ref(repo, name, commit)
    return tree.repo_path(repo)


def test_folders_of_repositories_are_apart_and_found_again(tmp_path: Path) -> None:
    """Each has its own, and what is inside leads back to it."""
    folders = TreeFolders(tmp_path / "hub")
    paths = {folders.path_of(repo): repo for repo in REPOS}
    assert len(paths) == len(REPOS)
    for path, repo in paths.items():
        path.mkdir(parents=True)
        assert folders.find_repo(path) == folders.find_repo(path / "refs" / "x") == repo
    (tmp_path / "modelscope" / "models" / ".lock").mkdir()
    (tmp_path / "modelscope" / "models" / "one-part").mkdir()
    (tmp_path / "modelscope" / "hub").mkdir()
    (tmp_path / "hub" / ".locks").mkdir()
    assert sorted(folders.iter_repos()) == sorted(REPOS)
    assert folders.find_repo(tmp_path / "blobs" / "x") is None
    assert folders.find_repo(tmp_path / "modelscope" / "models") is None


def test_modelscope_revision_leads_to_its_snapshot(store: FileBlobStore, tree: HubTree) -> None:
    """By name, with slashes or without; a commit is there by itself."""
    folder = publish(store, tree, MODEL, COMMIT, "master", "feature/x/y", COMMIT)
    for name in ("master", "feature/x/y", COMMIT):
        assert (folder / "snapshots" / name / ENTRY.path).read_bytes() == SAMPLE.content
    assert folder == store.root / "modelscope" / "models" / "org--name.v1"
    assert not (folder / "snapshots" / COMMIT).is_symlink()
    twin = publish(store, tree, TWIN, COMMIT, "main")
    assert sorted(path.name for path in (twin / "snapshots").iterdir()) == [COMMIT]


def test_modelscope_branch_that_moved_leads_to_the_later_snapshot(
    store: FileBlobStore, tree: HubTree
) -> None:
    """The link is replaced, and both snapshots stay."""
    folder = publish(store, tree, MODEL, COMMIT, "master")
    publish(store, tree, MODEL, LATER, "master")
    assert (folder / "snapshots" / "master").readlink() == Path(LATER)
    assert (folder / "snapshots" / COMMIT / ENTRY.path).exists()


def test_modelscope_folder_that_a_client_filled_is_left_alone(
    store: FileBlobStore, tree: HubTree
) -> None:
    """A client that downloaded into the tree keeps its files; the snapshot is there by commit."""
    own = tree.repo_path(MODEL) / "snapshots" / "master" / "own.txt"
    own.parent.mkdir(parents=True)
    own.write_text("own")
    publish(store, tree, MODEL, COMMIT, "master")
    assert own.read_text() == "own"
    tree.withdraw_snapshot(SnapshotId(MODEL, COMMIT), store.path_of)
    assert own.read_text() == "own"
    assert not (own.parent.parent / COMMIT).exists()


def test_modelscope_names_that_are_in_each_others_way_do_not_fail(
    store: FileBlobStore, tree: HubTree
) -> None:
    """`a` and `a/b` cannot both be folders; whoever came first stays."""
    folder = publish(store, tree, MODEL, COMMIT, "a")
    publish(store, tree, MODEL, COMMIT, "a/b", f"{COMMIT}/c")
    assert (folder / "snapshots" / "a").readlink() == Path(COMMIT)
    assert sorted(p.name for p in (folder / "snapshots" / COMMIT).iterdir()) == ["deep"]


def test_modelscope_snapshot_that_leaves_takes_its_names_along(
    store: FileBlobStore, tree: HubTree
) -> None:
    """Of two snapshots the names of one go; with the last the folder goes."""
    folder = publish(store, tree, MODEL, COMMIT, "v1", "feature/x")
    publish(store, tree, MODEL, LATER, "master")
    tree.withdraw_snapshot(SnapshotId(MODEL, COMMIT), store.path_of)
    assert sorted(path.name for path in (folder / "snapshots").iterdir()) == [LATER, "master"]
    assert (folder / "snapshots" / "master" / ENTRY.path).read_bytes() == SAMPLE.content
    tree.withdraw_snapshot(SnapshotId(MODEL, LATER), store.path_of)
    assert not folder.exists()


def test_modelscope_leftovers_are_found_and_go(store: FileBlobStore, tree: HubTree) -> None:
    """Names, links and listings of a commit that the index does not know."""
    folder = publish(store, tree, MODEL, COMMIT, "master")
    changes = note_changes(tree)
    assert list_leftovers(store, tree, {SnapshotId(MODEL, COMMIT)}, changes) == []
    found = [item.name for item in list_leftovers(store, tree, set(), changes)]
    below = "modelscope/models/org--name.v1"
    assert f"{below}/snapshots/master" in found
    assert f"{below}/trees/{COMMIT}.json" in found
    for name in found:
        assert remove_leftover(store, tree, name, changes)
    # The blob's link is not needed any more once the snapshot's are gone.
    for item in list_leftovers(store, tree, set(), note_changes(tree)):
        remove_leftover(store, tree, item.name, note_changes(tree))
    assert not folder.exists()


def test_modelscope_tree_teaches_a_new_index(
    store: FileBlobStore, tree: HubTree, index: Index
) -> None:
    """Snapshot and ref come back under their own hub; temporary links go."""
    folder = publish(store, tree, MODEL, COMMIT, "master")
    temporary = folder / "snapshots" / ".123.link"
    temporary.symlink_to(COMMIT)
    publish(store, tree, TWIN, LATER, "main")
    recover(store, tree, index, wall_s=1.0)
    assert set(index.catalogue.list_snapshots()) == {
        SnapshotId(MODEL, COMMIT),
        SnapshotId(TWIN, LATER),
    }
    ref = index.catalogue.find_ref(MODEL, "master")
    assert ref is not None
    assert ref.commit == COMMIT
    row = index.catalogue.find_snapshot(SnapshotId(MODEL, COMMIT))
    assert row is not None
    assert row.snapshot.files == (ENTRY,)
    assert isinstance(row.snapshot.files[0].digest, BlobDigest)
    assert not temporary.is_symlink()
