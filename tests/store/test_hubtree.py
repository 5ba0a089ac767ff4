"""
Owns the tests of store.hubtree: the real client reads the tree, offline.

Knows nothing of the hub.
Invariants: a complete snapshot is readable without network, a partial one is refused.
Source: store/hubtree.py; huggingface_hub's cache.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.errors import StoreError, StoreFullError
from p2pcache.store.hubtree import HubTree
from tests.samples import COMMIT, OTHER_COMMIT

REPO = RepoId("hf", "models", "org/name")
ID = SnapshotId(REPO, COMMIT)
CONTENTS = {
    "config.json": b"{}",
    "with space/and more.txt": b"spaces",
    "a/b/c/d/e/deep.bin": b"five levels",
    "model.safetensors": b"weights" * 1000,
    "empty.txt": b"",
    "copy of config.json": b"{}",
}
CLIENT = """
import hashlib, json, os, sys
from pathlib import Path
from huggingface_hub import hf_hub_download, snapshot_download

def look(revision):
    try:
        root = Path(snapshot_download("org/name", revision=revision))
    except Exception as error:
        return type(error).__name__
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(root.rglob("*")) if p.is_file()}

result = {revision: look(revision) for revision in json.loads(sys.argv[1])}
try:
    result["one file"] = Path(hf_hub_download("org/name", "config.json")).read_text()
except Exception as error:
    result["one file"] = type(error).__name__
print(json.dumps(result))
"""


def make_entry(path: str, content: bytes) -> FileEntry:
    """Make the listing's entry: large files are named by sha256, small ones by git."""
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if path.endswith(".safetensors"):
        digest = BlobDigest("sha256", hashlib.sha256(content).hexdigest())
    else:
        digest = BlobDigest("gitsha1", oid)
    return FileEntry(path, len(content), digest, oid)


SNAPSHOT = Snapshot.of(ID, [make_entry(path, content) for path, content in CONTENTS.items()])


@pytest.fixture
def tree(tmp_path: Path) -> HubTree:
    """A tree with nothing in it."""
    return HubTree(tmp_path / "hub")


def store_blob(tree: HubTree, path: str) -> Path:
    """Put a file where blobs are; returns its path."""
    content = CONTENTS[path]
    blob = tree.root.parent / "blobs" / hashlib.sha256(content).hexdigest()
    if not blob.exists():
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(content)
        blob.chmod(0o444)
    return blob


def publish(tree: HubTree, *, leave_out: tuple[str, ...] = ()) -> None:
    """Publish the sample snapshot, or a part of it."""
    tree.publish_tree(SNAPSHOT)
    for entry in SNAPSHOT.files:
        if entry.path not in leave_out:
            tree.publish_file(ID, entry, store_blob(tree, entry.path))


def ask_client(tree: HubTree, *revisions: str) -> Any:
    """Let the real client look at the tree, with no network allowed."""
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(tree.root.parent),
        "HF_HUB_CACHE": str(tree.root),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(revisions)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def digests() -> dict[str, str]:
    """What the client shall see."""
    return {path: hashlib.sha256(content).hexdigest() for path, content in CONTENTS.items()}


def test_hubtree_complete_snapshot_is_read_by_the_real_client_offline(tree: HubTree) -> None:
    """By branch, by pinned commit, by a ref with slashes, as a whole and one file at a time."""
    publish(tree)
    tree.publish_ref(REPO, "main", COMMIT)
    tree.publish_ref(REPO, "refs/pr/1", COMMIT)
    seen = ask_client(tree, "main", COMMIT, "refs/pr/1", "v9", OTHER_COMMIT)
    assert seen["main"] == digests()
    assert seen[COMMIT] == digests()
    assert seen["refs/pr/1"] == digests()
    assert seen["v9"] == "LocalEntryNotFoundError"
    assert seen[OTHER_COMMIT] == "LocalEntryNotFoundError"
    assert seen["one file"] == "{}"


def test_hubtree_partial_snapshot_is_refused_by_the_real_client(tree: HubTree) -> None:
    """A loader never takes a part for the whole; a file that is there can be had alone."""
    publish(tree, leave_out=("model.safetensors",))
    tree.publish_ref(REPO, "main", COMMIT)
    seen = ask_client(tree, "main", COMMIT)
    assert seen["main"] == "IncompleteSnapshotError"
    assert seen[COMMIT] == "LocalEntryNotFoundError"
    assert seen["one file"] == "{}"


def test_hubtree_blob_is_stored_once(tree: HubTree) -> None:
    """The tree's blobs are hard links of ours; the snapshot's files are relative links."""
    publish(tree)
    repo = tree.repo_path(REPO)
    for entry in SNAPSHOT.files:
        link = tree.snapshot_path(ID) / entry.path
        assert link.is_symlink()
        assert not os.readlink(link).startswith("/")
        assert link.samefile(repo / "blobs" / entry.digest.hex)
        assert link.samefile(store_blob(tree, entry.path))


def test_hubtree_withdrawn_file_is_gone_for_offline_workers(tree: HubTree) -> None:
    """A damaged file is unlinked in both places; withdrawing it twice is harmless."""
    publish(tree)
    entry = SNAPSHOT.files[0]
    blob = store_blob(tree, entry.path)
    assert [tree.withdraw_file(ID, entry, blob) for _ in range(2)] == [True, False]
    assert not (tree.snapshot_path(ID) / entry.path).exists()
    assert not (tree.repo_path(REPO) / "blobs" / entry.digest.hex).exists()


def test_hubtree_where_there_are_no_links_says_so_once(
    tree: HubTree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file system with neither kind of link has listings and refs, and no files to open."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "symlink", refuse)
    publish(tree)
    publish(tree)
    tree.publish_ref(REPO, "main", COMMIT)
    assert caplog.text.count("has no links") == 1
    assert tree.iter_refs(REPO) == [("main", COMMIT)]
    assert not any(path.is_file() for path in tree.snapshot_path(ID).rglob("*"))
    assert not list(tree.root.rglob(".*"))


def test_hubtree_removed_links_harm_nothing(tree: HubTree) -> None:
    """Somebody who cleans the tree does not take our blobs along; publishing mends it."""
    publish(tree)
    for link in (tree.repo_path(REPO) / "blobs").iterdir():
        link.unlink()
    assert store_blob(tree, "config.json").read_bytes() == b"{}"
    publish(tree)
    assert (tree.snapshot_path(ID) / "config.json").read_bytes() == b"{}"


def test_hubtree_publishing_twice_changes_nothing(tree: HubTree) -> None:
    """The second time is cheap and leaves no temporary files."""
    publish(tree)
    tree.publish_ref(REPO, "main", COMMIT)
    before = sorted((str(p), p.lstat().st_ino, p.lstat().st_mtime_ns) for p in tree.root.rglob("*"))
    publish(tree)
    tree.publish_ref(REPO, "main", COMMIT)
    after = sorted((str(p), p.lstat().st_ino, p.lstat().st_mtime_ns) for p in tree.root.rglob("*"))
    assert after == before


def test_hubtree_many_threads_publish_the_same_at_once(tree: HubTree) -> None:
    """Readers that come while a fetch ends all publish: none trips over another's new link."""
    blobs = {entry.path: store_blob(tree, entry.path) for entry in SNAPSHOT.files}

    def publish_all() -> None:
        for _ in range(10):
            tree.publish_tree(SNAPSHOT)
            for entry in SNAPSHOT.files:
                (tree.snapshot_path(ID) / entry.path).unlink(missing_ok=True)
                tree.publish_file(ID, entry, blobs[entry.path])
            tree.publish_ref(REPO, "main", COMMIT)

    with ThreadPoolExecutor(4) as threads:
        for job in [threads.submit(publish_all) for _ in range(4)]:
            job.result()
    assert not list(tree.root.rglob(".*"))


def test_hubtree_unreadable_ref_is_written_anew(tree: HubTree) -> None:
    """A ref that is no text is replaced, not stumbled over."""
    path = tree.repo_path(REPO) / "refs" / "main"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xfe")
    tree.publish_ref(REPO, "main", COMMIT)
    assert path.read_text() == COMMIT


def test_hubtree_old_links_are_replaced(tree: HubTree) -> None:
    """A file that was fetched again, or a link that points elsewhere, is put right."""
    publish(tree)
    entry = SNAPSHOT.get_file("config.json")
    blob = store_blob(tree, "config.json")
    blob.unlink()
    blob.write_bytes(b"{}")
    link = tree.snapshot_path(ID) / entry.path
    link.unlink()
    link.symlink_to("nowhere")
    tree.publish_file(ID, entry, blob)
    assert link.samefile(blob)


def test_hubtree_without_hard_links_uses_symbolic_ones(
    tree: HubTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the tree is on another file system, or links are not allowed, it still works."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", fail)
    publish(tree)
    tree.publish_ref(REPO, "main", COMMIT)
    assert (tree.repo_path(REPO) / "blobs" / SNAPSHOT.files[0].digest.hex).is_symlink()
    assert ask_client(tree, "main")["main"] == digests()


def test_hubtree_listing_names_no_xet(tree: HubTree) -> None:
    """A client that saw a Xet hash would leave for another storage."""
    tree.publish_tree(SNAPSHOT)
    path = tree.repo_path(REPO) / "trees" / f"{COMMIT}.json"
    listing = json.loads(path.read_text())
    assert listing["format_version"] == 1
    assert set(listing["files"]) == set(CONTENTS)
    assert {entry["xet_hash"] for entry in listing["files"].values()} == {None}


def test_hubtree_ref_moves_and_clears_what_is_in_its_way(tree: HubTree) -> None:
    """A branch `a` may become `a/b` at the hub, and back: the old one is gone there."""
    for revision, commit in [("a", COMMIT), ("a/b", OTHER_COMMIT), ("a", OTHER_COMMIT)]:
        tree.publish_ref(REPO, revision, commit)
        assert tree.iter_refs(REPO) == [(revision, commit)]


def test_hubtree_longest_names_are_published(tree: HubTree) -> None:
    """Temporary names do not grow with the final ones."""
    tree.publish_ref(REPO, "r" * 255, COMMIT)
    entry = make_entry("f" * 255, b"{}")
    tree.publish_file(ID, entry, store_blob(tree, "config.json"))
    assert tree.iter_refs(REPO) == [("r" * 255, COMMIT)]
    assert (tree.snapshot_path(ID) / ("f" * 255)).exists()


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, StoreFullError), (errno.EIO, StoreError)]
)
def test_hubtree_disk_that_fails_is_a_store_error(
    tree: HubTree, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StoreError]
) -> None:
    """No bare OSError leaves this layer."""
    blob = store_blob(tree, "config.json")

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "mkdir", fail)
    entry = SNAPSHOT.get_file("config.json")
    calls: list[Callable[[], None]] = [
        lambda: tree.publish_tree(SNAPSHOT),
        lambda: tree.publish_file(ID, entry, blob),
        lambda: tree.publish_ref(REPO, "main", COMMIT),
    ]
    for call in calls:
        with pytest.raises(StoreError) as caught:
            call()
        assert type(caught.value) is kind


def test_hubtree_datasets_and_short_names_have_their_folders(tree: HubTree) -> None:
    """The folder names are those of the client."""
    assert tree.repo_path(RepoId("hf", "datasets", "a/b")).name == "datasets--a--b"
    assert tree.repo_path(RepoId("hf", "models", "gpt2")).name == "models--gpt2"


def test_hubtree_trees_and_refs_are_found_again(tree: HubTree) -> None:
    """A rebuild learns every listing and every ref."""
    publish(tree)
    tree.publish_ref(REPO, "main", COMMIT)
    tree.publish_ref(REPO, "refs/pr/1", OTHER_COMMIT)
    assert list(tree.iter_commits()) == [ID]
    assert set(tree.read_tree(ID) or ()) == set(CONTENTS)
    assert set(tree.iter_refs(REPO)) == {("main", COMMIT), ("refs/pr/1", OTHER_COMMIT)}
    assert tree.iter_refs(RepoId("hf", "models", "a/b")) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"{}", b'{"files": []}', b"\xff", b'{"files": 1}']
)
def test_hubtree_unreadable_listing_is_passed_over(tree: HubTree, content: bytes) -> None:
    """One broken file does not keep the daemon from starting."""
    path = tree.repo_path(REPO) / "trees" / f"{OTHER_COMMIT}.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    [snapshot_id] = tree.iter_commits()
    assert tree.read_tree(snapshot_id) is None


def test_hubtree_foreign_folders_and_files_are_passed_over(tree: HubTree) -> None:
    """What others put into the tree is not taken for ours."""
    for name in ("foo--bar", "models--a--b--c", "models--..--x"):
        path = tree.root / name / "trees" / f"{COMMIT}.json"
        path.parent.mkdir(parents=True)
        path.write_text('{"files": {}}')
    refs = tree.repo_path(REPO) / "refs"
    refs.mkdir(parents=True)
    (refs / "binary").write_bytes(b"\xff\xfe")
    (refs / ".123.new").write_text(COMMIT)
    assert list(tree.iter_commits()) == []
    assert tree.iter_refs(REPO) == []


def test_hubtree_listing_that_another_program_changed_is_written_anew(tree: HubTree) -> None:
    """What was written before may be gone since: removed or replaced, it returns."""
    tree.publish_tree(SNAPSHOT)
    path = tree.repo_path(REPO) / "trees" / f"{COMMIT}.json"
    written = path.read_bytes()
    path.unlink()
    tree.publish_tree(SNAPSHOT)
    assert path.read_bytes() == written
    path.unlink()
    path.write_bytes(b"{}")
    tree.publish_tree(SNAPSHOT)
    assert path.read_bytes() == written
