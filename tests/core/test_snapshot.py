"""
Owns the tests of core.snapshot.

Knows nothing of stores.
Invariants: a snapshot that exists can be laid out as files, and nothing leaves its folder.
Source: core/snapshot.py.
"""

from __future__ import annotations

import hashlib
import time
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core import snapshot as snapshot_module
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import BLOB_SIZE_BYTES_MAX
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot, order_for_fetching
from p2pcache.errors import EntryNotFoundError, InputError, InvalidNameError
from tests.samples import COMMIT

SNAPSHOT_ID = SnapshotId(RepoId("hf", "models", "org/name"), COMMIT)


def make_entry(path: str, size_bytes: int = 1, number: int | None = None) -> FileEntry:
    """Make a file whose digest follows from its path, or from a number."""
    name = hashlib.sha1(path.encode()).hexdigest() if number is None else f"{number:040x}"
    return FileEntry(path, size_bytes, BlobDigest("gitsha1", name), COMMIT)


def make_snapshot(*paths: str) -> Snapshot:
    """Make a snapshot of one-byte files."""
    return Snapshot.of(SNAPSHOT_ID, [make_entry(path) for path in paths])


def test_snapshot_files_are_put_in_path_order() -> None:
    """A listing in any order gives the same snapshot."""
    assert make_snapshot("b", "a") == make_snapshot("a", "b")
    assert [entry.path for entry in make_snapshot("z", "a/b", "m").files] == ["a/b", "m", "z"]


@pytest.mark.parametrize(
    "paths",
    [("a", "a"), ("a", "a/b"), ("a/b", "a/b/c/d"), ("x/y", "x/y/z", "x"), ("a", "a!", "a/b")],
)
def test_snapshot_impossible_listing_is_refused(paths: tuple[str, ...]) -> None:
    """Duplicates, and files that are folders too, cannot be laid out."""
    with pytest.raises(InputError):
        make_snapshot(*paths)


def test_snapshot_traversal_is_refused() -> None:
    """Each path is checked again, whoever made the entry."""
    with pytest.raises(InvalidNameError):
        make_snapshot("../etc/passwd")


def test_snapshot_one_digest_with_two_sizes_is_refused() -> None:
    """A digest names bytes, and bytes have one size."""
    with pytest.raises(InputError):
        Snapshot.of(SNAPSHOT_ID, [make_entry("a", 1, number=7), make_entry("b", 2, number=7)])


def test_snapshot_impossible_size_is_refused() -> None:
    """A size beyond every limit is refused with the listing."""
    with pytest.raises(InputError):
        Snapshot.of(SNAPSHOT_ID, [make_entry("a", BLOB_SIZE_BYTES_MAX + 1)])


def test_snapshot_too_many_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing has a limit, which itself is still allowed."""
    monkeypatch.setattr(snapshot_module, "FILES_PER_SNAPSHOT_MAX", 3)
    assert len(make_snapshot("a", "b", "c").files) == 3
    with pytest.raises(InputError):
        make_snapshot("a", "b", "c", "d")


def test_snapshot_get_file_finds_or_says_which_commit() -> None:
    """A missing path is an error that carries the commit, for the client's cache."""
    snapshot = make_snapshot("a", "b/c")
    assert snapshot.get_file("b/c").path == "b/c"
    with pytest.raises(EntryNotFoundError) as caught:
        snapshot.get_file("b")
    assert caught.value.commit == COMMIT


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        ((), (), ["README.md", "config.json", "onnx/model.onnx", "tf/Model.H5"]),
        (("*.json",), (), ["config.json"]),
        (("onnx/*", "*.md"), (), ["README.md", "onnx/model.onnx"]),
        (("*.onnx",), (), ["onnx/model.onnx"]),
        (("onnx/",), (), ["onnx/model.onnx"]),
        (("onnx",), (), []),
        ((), ("*/*",), ["README.md", "config.json"]),
        (("*.json", "*.md"), ("README*",), ["config.json"]),
        (("*.h5",), (), []),
        (("[cR]*",), (), ["README.md", "config.json"]),
        (("?????????.json",), (), []),
        (("*",), ("*",), []),
    ],
)
def test_snapshot_globs_choose_as_the_usual_client_does(
    include: tuple[str, ...], exclude: tuple[str, ...], chosen: list[str]
) -> None:
    """`*` crosses folders, a pattern that ends in `/` means all below, case counts."""
    snapshot = make_snapshot("config.json", "README.md", "onnx/model.onnx", "tf/Model.H5")
    assert [entry.path for entry in snapshot.select(include, exclude)] == chosen


@given(st.lists(st.text("ab*?./", max_size=6), max_size=3), st.lists(st.text("ab*?/", max_size=6)))
def test_snapshot_any_globs_agree_with_fnmatch(include: list[str], exclude: list[str]) -> None:
    """The choice is that of the standard library's matching over whole paths."""
    snapshot = make_snapshot("a", "b.a", "c/a", "c/b/a.b")

    def matches(path: str, patterns: list[str]) -> bool:
        return any(fnmatchcase(path, p + "*" if p[-1:] == "/" else p) for p in patterns)

    expected = [
        entry
        for entry in snapshot.files
        if (not include or matches(entry.path, include)) and not matches(entry.path, exclude)
    ]
    assert snapshot.select(include, exclude) == expected


def test_snapshot_order_for_fetching_is_small_first_and_each_blob_once() -> None:
    """Configuration comes before weights; a blob under two names is fetched once."""
    entries = [
        make_entry("big", 100, number=1),
        make_entry("b", 5, number=2),
        make_entry("a", 5, number=3),
        make_entry("copy-of-big", 100, number=1),
    ]
    ordered = order_for_fetching(entries)
    assert [entry.size_bytes for entry in ordered] == [5, 5, 100]
    assert [entry.path for entry in ordered[:2]] == ["a", "b"]


def test_snapshot_order_for_fetching_is_metadata_first_whatever_its_size() -> None:
    """A large tokenizer and an index come before small weights; what is both comes early."""
    names = [
        ("model-00001-of-00002.safetensors", 900),
        ("onnx/tiny.ONNX", 3),
        ("tokenizer.json", 17_000_000),
        ("model.safetensors.index.json", 40_000),
        ("config.json", 600),
        ("archive", 70_000_000),
    ]
    entries = [make_entry(path, size, number=n) for n, (path, size) in enumerate(names)]
    entries.append(make_entry("weights.bin", 600, number=4))  # the same bytes as config.json
    assert [entry.path for entry in order_for_fetching(entries)] == [
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "archive",
        "onnx/tiny.ONNX",
        "model-00001-of-00002.safetensors",
    ]


def test_snapshot_entry_layout_follows_its_size() -> None:
    """The chunk boundaries of a file are known from its listing."""
    assert make_entry("a", 5).layout.size_bytes == 5


@pytest.mark.parametrize(
    ("paths", "is_possible"),
    [
        (("a", "a-b", "a/b"), False),
        (("a-b", "a/b", "a.c"), True),
        (("a/b", "a/b/c"), False),
        (("a/b", "a/bc/d"), True),
        (("a", "a b", "a!", "a/b/c/d"), False),
    ],
)
def test_snapshot_file_that_is_a_folder_too_is_refused(
    paths: tuple[str, ...], is_possible: bool
) -> None:
    """Whatever sorts between the two."""
    if is_possible:
        assert len(make_snapshot(*paths).files) == len(paths)
    else:
        with pytest.raises(InputError, match="below a file"):
            make_snapshot(*paths)


def test_snapshot_of_deep_paths_costs_what_their_letters_cost() -> None:
    """A hostile listing of paths with hundreds of folders each is no more work than long names."""

    def measure(paths: list[str]) -> float:
        spans = []
        for _ in range(3):
            started_s = time.process_time()
            assert len(make_snapshot(*paths).files) == len(paths)
            spans.append(time.process_time() - started_s)
        return min(spans)

    deep = [f"{'a/' * 500}{number}" for number in range(500)]
    long = [f"{'a' * 250}/{'b' * 250}/{'c' * 250}/{'d' * 240}/{number}" for number in range(500)]
    # Looking up every folder of every path takes some hundred times as long.
    assert measure(deep) < 30 * measure(long)
