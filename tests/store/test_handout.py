"""
Owns the tests of store.handout: files in folders outside of the store.

Knows nothing of jobs.
Invariants: nothing outside of the roots is touched; somebody else's file is never replaced.
Source: store/handout.py.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry
from p2pcache.errors import ForbiddenError, InputError, StoreError
from p2pcache.store import handout as handout_module
from p2pcache.store.handout import RECORD_NAME, Handout, find_place

ID = SnapshotId(RepoId("hf", "models", "org/name"), "a" * 40)


class World:
    """A store with some blobs, and an allowed root."""

    def __init__(self, folder: Path) -> None:
        self.store, self.root = folder / "store", folder / "out"
        self.store.mkdir()
        self.root.mkdir()

    def add(self, path: str, content: bytes) -> tuple[FileEntry, Path]:
        """Put a blob into the store."""
        digest = hashlib.sha256(content).hexdigest()
        blob = self.store / digest
        if not blob.exists():
            blob.write_bytes(content)
            blob.chmod(0o444)
        return FileEntry(path, len(content), BlobDigest("sha256", digest), "b" * 40), blob

    def hand_out(self, files: dict[str, bytes], folder: str = "m") -> Handout:
        """Put files into a folder below the root."""
        handout = Handout(find_place([self.root], str(self.root / folder)), self.store, ID)
        try:
            handout.open()
            for path, content in files.items():
                handout.place(*self.add(path, content))
            handout.finish()
        finally:
            handout.close()
        return handout


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Make a store and a root."""
    return World(tmp_path)


@pytest.mark.parametrize("way", ["best", "link", "copy"])
def test_files_appear_whole_whatever_the_disk_can(
    world: World, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared where that works, copied where not; again, nothing is done twice."""
    if way != "best":
        monkeypatch.setattr(handout_module, "_try_reflink", lambda source, target: False)
    if way == "copy":
        monkeypatch.setattr(handout_module, "_try_link", lambda blob, name, fd: False)
    files = {"config.json": b"{}", "sub/deep/w.bin": b"x" * 100_000, "empty": b""}
    handout = world.hand_out(files)
    expected = {"link": {"linked": 3}, "copy": {"copied": 3}}
    assert dict(handout.placings) == expected.get(way, dict(handout.placings))
    folder = world.root / "m"
    for path, content in files.items():
        assert (folder / path).read_bytes() == content
    assert dict(world.hand_out(files).placings) == {"present": 3}
    assert not [p for p in folder.rglob("*") if p.name.endswith("part")]


def test_newer_commit_replaces_what_is_ours_and_nothing_else(world: World) -> None:
    """Our files follow the commit; a file of somebody else is in the way, or stays."""
    world.hand_out({"a": b"one", "b": b"gone"})
    folder = world.root / "m"
    (folder / "mine.txt").write_text("mine")
    world.hand_out({"a": b"two", "c": b"new"})
    assert {p.name for p in folder.iterdir()} == {"a", "c", "mine.txt", RECORD_NAME}
    assert (folder / "a").read_bytes() == b"two"
    with pytest.raises(InputError, match=r"mine\.txt"):
        world.hand_out({"mine.txt": b"yours"})
    assert (folder / "mine.txt").read_text() == "mine"
    world.hand_out({"mine.txt": b"mine"})  # the same content is no quarrel


def test_links_do_not_lead_out(world: World, tmp_path: Path) -> None:
    """Neither the folder, nor one in it, nor a file's name may be a link to elsewhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (world.root / "l").symlink_to(outside)
    with pytest.raises(ForbiddenError):
        world.hand_out({"a": b"1"}, "l/m")
    world.hand_out({"a": b"1"})
    (world.root / "m" / "sub").symlink_to(outside)
    with pytest.raises(ForbiddenError):
        world.hand_out({"sub/a": b"1"})
    (outside / "target").write_text("theirs")
    (world.root / "m" / "t").symlink_to(outside / "target")
    with pytest.raises(InputError):
        world.hand_out({"t": b"theirs"})
    assert [p.name for p in outside.iterdir()] == ["target"]


def test_store_itself_is_no_place(world: World, tmp_path: Path) -> None:
    """Not by its name, and not by a root that is a link to it."""
    (tmp_path / "alias").symlink_to(world.store)
    for root in (world.store, tmp_path / "alias", tmp_path):
        place = find_place([root], str(root / ("store/x" if root == tmp_path else "x")))
        with pytest.raises(ForbiddenError, match="store"):
            Handout(place, world.store, ID).open()


def test_place_is_found_by_name_alone() -> None:
    """Below a root, or refused; the deepest root counts."""
    roots = [Path("/models"), Path("/models/team"), Path("/data")]
    assert find_place(roots, "/models/team/x/./y/").steps == ("x", "y")
    assert find_place(roots, "/data").path == Path("/data")
    for outside in ("/modelsx", "/", "/etc", "/model"):
        with pytest.raises(ForbiddenError, match="--allow-path"):
            find_place(roots, outside)
    for bad in ("", "models", "~/x", "/models/../etc", "/models/..", "/models/\0", "/models/\n"):
        with pytest.raises(InputError, match="absolute path"):
            find_place(roots, bad)


def test_folder_that_is_not_ours_to_write_is_said(world: World) -> None:
    """A root that is not there, and a copy that was stopped, leave no half file."""
    with pytest.raises(StoreError, match="cannot be written"):
        Handout(
            find_place([world.root / "no"], str(world.root / "no" / "x")), world.store, ID
        ).open()
    assert os.listdir(world.root) == []
