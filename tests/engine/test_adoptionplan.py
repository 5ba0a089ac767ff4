"""
Owns the tests of deciding what of a cache is taken for which file.

Knows nothing of disks: files are made of names and numbers.
Invariants: none.
Source: engine/adoptionplan.py.
"""

from __future__ import annotations

from pathlib import Path

from p2pcache.core.digest import BlobDigest
from p2pcache.core.lfs import DEFAULT_PATTERNS
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.engine.adoptionplan import Origin, SnapshotPlan, gather_units, plan_snapshot
from p2pcache.store.hfcache import FileIdentity, FoundFile, FoundSnapshot

ID = SnapshotId(RepoId("hf", "models", "org/model"), "a" * 40)
A, B = BlobDigest("sha256", "a" * 64), BlobDigest("sha256", "b" * 64)
GIT = BlobDigest("gitsha1", "c" * 40)


def make_file(
    shown: str, name: BlobDigest | None, *, inode: int = 1, size_bytes: int = 10
) -> FoundFile:
    """Make a file of a cache."""
    return FoundFile(shown, Path("/", shown), FileIdentity(1, inode, size_bytes, 0), name)


def make_plan(
    files: dict[str, FoundFile],
    entries: dict[str, BlobDigest] | None = None,
    blobs: dict[BlobDigest, list[FoundFile]] | None = None,
    *,
    origin: Origin = Origin.HUB,
    is_public: bool = True,
) -> SnapshotPlan:
    """Plan one commit of files with ten bytes each."""
    listed = [
        FileEntry(path, 10, digest, GIT.hex if digest.algorithm == "sha256" else digest.hex)
        for path, digest in (entries or {}).items()
    ]
    listing = None if entries is None else Snapshot.of(ID, listed)
    found = FoundSnapshot(ID, files, None, DEFAULT_PATTERNS)
    return plan_snapshot(found, listing, blobs or {}, origin=origin, is_public=is_public)


def test_plan_list_decides_over_the_caches_own_names() -> None:
    """A link to another blob than the list says is not taken for it; its right blob is."""
    wrong, right = make_file("snap/x", B), make_file("blobs/a", A, inode=2)
    plan = make_plan({"x": wrong}, {"x": A}, {A: [right]})
    assert plan.candidates == {A: [right]}
    assert plan.skipped == {"snap/x": f"the file list of its commit has {A} there"}


def test_plan_file_of_another_size_is_not_hashed() -> None:
    """The list has a size; hashing a truncated file is a waste."""
    short = make_file("snap/x", A, size_bytes=9)
    plan = make_plan({"x": short}, {"x": A})
    assert plan.candidates == {A: []}
    assert "9 bytes" in plan.skipped["snap/x"]


def test_plan_nameless_file_is_what_the_list_says_or_nothing() -> None:
    """A copy without a name gets the list's; one that the list lacks is left alone."""
    plan = make_plan(
        {"x": make_file("snap/x", None), "y": make_file("snap/y", None, inode=2)}, {"x": A}
    )
    assert [file.shown for file in plan.candidates[A]] == ["snap/x"]
    assert set(plan.skipped) == {"snap/y"}
    assert plan.nameless == {}


def test_plan_without_a_list_adds_the_folder_to_what_is_known() -> None:
    """Known entries stay; named files are entries, nameless ones wait for their content."""
    files = {
        "new.bin": make_file("snap/new.bin", B, inode=2),
        "copy.bin": make_file("snap/copy.bin", None, inode=3),
    }
    plan = make_plan(files, {"known": A}, origin=Origin.FOLDER)
    assert {path: entry.digest for path, entry in plan.entries.items()} == {
        "known": A,
        "new.bin": B,
    }
    assert (list(plan.nameless), plan.choose_algorithm("copy.bin")) == (["copy.bin"], "sha256")
    plan.name("copy.bin", A)
    assert plan.entries["copy.bin"].digest == A
    assert plan.identities == {file.identity for file in files.values()}


def test_gather_units_joins_all_that_one_file_may_be() -> None:
    """Hashed once for all commits; public if anybody may have it by one of them."""
    one = make_file("one", A)
    same = make_file("same", B)
    copy = make_file("copy", None)
    plans = [
        make_plan({"x": one}, {"x": A}, is_public=False),
        make_plan({"y.safetensors": same}, {"y.safetensors": B}, is_public=True),
        make_plan({"z.txt": copy}, origin=Origin.FOLDER, is_public=False),
    ]
    (unit,) = gather_units(plans).values()
    assert (unit.names, unit.algorithms, unit.is_public) == ({A, B}, {"gitsha1"}, True)
    assert unit.file is one
    assert not unit.may_have_tensors


def test_gather_units_large_file_with_tensors_by_its_path() -> None:
    """As for who fetches it: the name in the repository says whether to look at the head."""
    size_bytes = 64 << 20
    found = FoundSnapshot(
        ID,
        {
            "x.safetensors": make_file("x", A, size_bytes=size_bytes),
            "y.gguf": make_file("y", None, inode=2, size_bytes=size_bytes),
            "z.bin": make_file("z", B, inode=3, size_bytes=size_bytes),
        },
        None,
        DEFAULT_PATTERNS,
    )
    plan = plan_snapshot(found, None, {}, origin=Origin.FOLDER, is_public=True)
    units = gather_units([plan]).values()
    assert {unit.file.shown: unit.may_have_tensors for unit in units} == {
        "x": True,
        "y": True,
        "z": False,
    }
