"""
Owns the tests of store.indexreader and store.lookup: reading beside a writer, and without one.

Knows nothing of daemons.
Invariants: a reader never changes what is on the disk.
Source: store/indexreader.py; store/lookup.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from p2pcache.core.refs import ModelReference, RepoId, SnapshotId
from p2pcache.core.residency import State
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.core.tensors import Format
from p2pcache.core.weights import FileWeights, ShapeCount
from p2pcache.errors import IndexCorruptError, InputError, NotFoundError, StoreError
from p2pcache.store.bloblist import BlobRow
from p2pcache.store.blobs import FileBlobStore, stamp_of
from p2pcache.store.catalogue import RefRow
from p2pcache.store.hubtree import HubTree
from p2pcache.store.index import Index
from p2pcache.store.indexreader import IndexReader
from p2pcache.store.lookup import WHOLE_AGE_S_MAX, Look, Question, ResidencyReader
from tests.samples import COMMIT, make_sample

REPO = RepoId.of("hf", "models", "org/model")
SNAPSHOT_ID = SnapshotId(REPO, COMMIT)
NAMES = ("a.safetensors", "b.safetensors", "config.json")
SAMPLES = [make_sample(size, seed=n) for n, size in enumerate((5000, 7000, 10))]
ENTRIES = [
    FileEntry(name, len(sample.content), sample.blob, COMMIT)
    for name, sample in zip(NAMES, SAMPLES, strict=True)
]
WEIGHTS = FileWeights(
    Format.SAFETENSORS, 2, 4096, 4000, (("BF16", 2000), ("F32", 24)), (ShapeCount((2, 2), 8, 1),)
)
QUESTION = Question(ModelReference(REPO, "main"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return an empty store's folder."""
    FileBlobStore(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def index(root: Path) -> Iterator[Index]:
    """Open an index that a reader finds beside it."""
    opened = Index(root / "index.sqlite")
    opened.catalogue.put_snapshot(
        Snapshot.of(SNAPSHOT_ID, ENTRIES), is_confirmed=True, about=None, wall_s=1.0
    )
    opened.catalogue.put_ref(RefRow(REPO, "main", COMMIT, 1.0))
    yield opened
    opened.close()


def publish(root: Path, index: Index, *, is_linked: bool = True) -> None:
    """Put every file in its place, proven."""
    store, tree = FileBlobStore(root), HubTree(root / "hub")
    for sample, entry in zip(SAMPLES, ENTRIES, strict=True):
        path = store.path_of(sample.blob)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.content)
        index.blobs.put(BlobRow(sample.blob, stamp_of(path.stat()), None, True, True, 9.0))
        if is_linked:
            link = tree.snapshot_path(SNAPSHOT_ID) / entry.path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)


def look(reader: ResidencyReader, now_s: float = 0.0, question: Question = QUESTION) -> Look:
    """Look at a snapshot that is known."""
    found = reader.look(question, now_s=now_s)
    assert found is not None
    return found


def test_reader_sees_what_a_writer_has_just_committed(root: Path, index: Index) -> None:
    """Pins, proofs, visibility, heads: each as soon as it is durable."""
    reader = ResidencyReader(root)
    assert reader.look(Question(ModelReference(REPO, "other")), now_s=0.0) is None
    found = look(reader)
    assert (found.residency.state, found.residency.bytes_total) == (State.ABSENT, 12_010)
    assert found.need_bytes == 4096 * 5
    assert (found.facts.is_public, found.facts.is_pinned) == (False, False)
    assert found.weights is None
    assert set(found.unread) == {SAMPLES[0].blob, SAMPLES[1].blob}
    index.roots.put_pin(RefRow(REPO, "main", COMMIT, 1.0))
    index.catalogue.set_public(SNAPSHOT_ID, 5.0)
    publish(root, index)
    index.weights.put(SAMPLES[0].blob, WEIGHTS)
    found = look(reader)
    assert (found.facts.public_wall_s, found.facts.is_pinned) == (5.0, True)
    assert (found.residency.state, found.residency.verified_wall_s) == (State.RESIDENT, 9.0)
    assert found.path == str(HubTree(root / "hub").snapshot_path(SNAPSHOT_ID))
    assert found.unread == (SAMPLES[1].blob,)
    index.weights.put(SAMPLES[1].blob, WEIGHTS)
    weights = look(reader).weights
    assert weights is not None
    assert (weights.files, weights.tensors, weights.tensor_bytes) == (2, 4, 8192)
    assert weights.params == {"BF16": 4000, "F32": 48}
    assert weights.file_bytes == 12_000
    shaped = look(reader, question=Question(ModelReference(REPO, COMMIT), with_shapes=True))
    assert shaped.weights is not None
    assert shaped.weights.rank_bytes(2) == 8
    reader.close()


def test_reader_from_the_start_and_a_new_one_say_the_same(root: Path, index: Index) -> None:
    """What was kept from earlier questions makes no difference, after any change."""
    early, store = ResidencyReader(root), FileBlobStore(root)
    assert look(early).residency.state is State.ABSENT
    for n, sample in enumerate(SAMPLES):
        path = store.path_of(sample.blob)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.content)
        for is_proven in (False, True):
            row = BlobRow(sample.blob, stamp_of(path.stat()), None, is_proven, True, 9.0 + n)
            index.blobs.put(row)
            late = ResidencyReader(root)
            found = look(early)
            assert found == look(late)
            assert sorted(found.facts.proven.values()) == [9.0 + m for m in range(n + is_proven)]
            late.close()
    assert look(early).residency.verified_wall_s == 9.0
    # A file of the list that is also another one's content counts once.
    twice = [*ENTRIES, replace(ENTRIES[0], path="again.safetensors")]
    snapshot = Snapshot.of(replace(SNAPSHOT_ID, commit="f" * 40), twice)
    index.catalogue.put_snapshot(snapshot, is_confirmed=True, about=None, wall_s=2.0)
    found = look(early, question=Question(ModelReference(REPO, "f" * 40)))
    assert (found.residency.state, found.residency.bytes_total) == (State.RESIDENT, 12_010)
    assert len(found.facts.snapshot.files) == 4
    early.close()


def test_heads_add_up_with_the_types_that_one_file_lacks(root: Path, index: Index) -> None:
    """Counts are of all files; as long as one head is not read there is no sum."""
    index.weights.put(SAMPLES[0].blob, WEIGHTS)
    other = replace(WEIGHTS, largest_tensor_bytes=5, params=(("BF16", 3), ("F8_E4M3", 7)))
    reader = ResidencyReader(root)
    assert (look(reader).weights, look(reader).unread) == (None, (SAMPLES[1].blob,))
    index.weights.put(SAMPLES[1].blob, other)
    found = look(reader, question=Question(ModelReference(REPO, "main"), with_shapes=True)).weights
    assert found is not None
    assert found.params == {"BF16": 2003, "F32": 24, "F8_E4M3": 7}
    assert (found.files, found.tensors, found.tensor_bytes) == (2, 4, 8192)
    assert found.largest_tensor_bytes == 4000
    assert found.shapes == WEIGHTS.shapes * 2
    reader.close()


def test_head_that_is_not_what_its_name_says_makes_the_weights_unknown(
    root: Path, index: Index
) -> None:
    """A sum that lacks a file would be believed; nobody reads that head again either."""
    index.weights.put(SAMPLES[0].blob, WEIGHTS)
    index.weights.put(SAMPLES[1].blob, None)
    reader = ResidencyReader(root)
    found = look(reader)
    assert (found.weights, found.unread) == (None, ())
    reader.close()


def test_file_that_is_deleted_by_hand_is_missed_a_moment_later(root: Path, index: Index) -> None:
    """What was whole is not looked at again for a second, nor for longer."""
    publish(root, index)
    reader = ResidencyReader(root)
    assert look(reader, 10.0).residency.state is State.RESIDENT
    FileBlobStore(root).path_of(SAMPLES[1].blob).unlink()
    found = look(reader, 10.0 + WHOLE_AGE_S_MAX)
    assert (found.residency.state, found.residency.bytes_missing) == (State.PARTIAL, 7000)
    assert found.path is None
    reader.close()


@pytest.mark.parametrize(("include", "exclude"), [(("*.gguf",), ()), ((), ("*",))])
def test_patterns_that_match_no_file_are_refused(
    root: Path, index: Index, include: tuple[str, ...], exclude: tuple[str, ...]
) -> None:
    """Nothing of nothing is missing: without this, a slip of the pen would be resident."""
    reader = ResidencyReader(root)
    question = Question(ModelReference(REPO, "main"), include, exclude)
    with pytest.raises(InputError, match=r"3 files, for example 'a\.safetensors'"):
        reader.look(question, now_s=0.0)
    empty = replace(SNAPSHOT_ID, commit="e" * 40)
    index.catalogue.put_snapshot(Snapshot.of(empty, []), is_confirmed=True, about=None, wall_s=2.0)
    question = Question(ModelReference(REPO, "e" * 40), include, exclude)
    assert look(reader, question=question).residency.state is State.RESIDENT
    reader.close()


def test_snapshot_without_its_links_has_no_path(root: Path, index: Index) -> None:
    """The bytes are here; the folder that a loader opens is not."""
    publish(root, index, is_linked=False)
    reader = ResidencyReader(root)
    found = look(reader)
    assert (found.residency.state, found.path) == (State.RESIDENT, None)
    reader.close()


def test_reader_goes_on_when_the_writer_ends_and_when_it_begins_again(root: Path) -> None:
    """With a log and without one; without one nothing is made beside the index."""
    path = root / "index.sqlite"
    with pytest.raises(NotFoundError):
        IndexReader(path)
    Index(path).close()
    reader = ResidencyReader(root)
    assert reader.look(QUESTION, now_s=0.0) is None
    assert sorted(os.listdir(root)) == ["blobs", "index.sqlite", "partial"]
    opened = Index(path)
    opened.catalogue.put_snapshot(
        Snapshot.of(SNAPSHOT_ID, ENTRIES), is_confirmed=True, about=None, wall_s=1.0
    )
    opened.catalogue.put_ref(RefRow(REPO, "main", COMMIT, 1.0))
    assert look(reader).residency.state is State.ABSENT
    opened.close()
    assert look(reader).residency.state is State.ABSENT
    reader.close()


def test_index_that_cannot_be_read_is_one_sentence(root: Path) -> None:
    """Rubbish, and an index of before this release."""
    path = root / "index.sqlite"
    path.write_bytes(b"rubbish" * 1000)
    with pytest.raises(IndexCorruptError):
        IndexReader(path)
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="earlier release"):
        IndexReader(path)
