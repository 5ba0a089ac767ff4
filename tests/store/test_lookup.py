"""
Owns the tests of store.lookup that are about one look: what counts, and what is told of it.

Knows nothing of daemons; reading beside a writer is test_indexreader's.
Invariants: equal states give equal answers, whatever was kept.
Source: store/lookup.py.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import ModelReference, RepoId, SnapshotId
from p2pcache.core.residency import State
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.core.tensors import Format
from p2pcache.core.weights import FileWeights
from p2pcache.errors import NotFoundError
from p2pcache.store import lookup
from p2pcache.store.bloblist import BlobRow
from p2pcache.store.blobs import FileBlobStore, stamp_of
from p2pcache.store.catalogue import RefRow
from p2pcache.store.hubtree import HubTree
from p2pcache.store.index import Index
from p2pcache.store.lookjson import describe_look
from p2pcache.store.lookup import WHOLE_AGE_S_MAX, Look, Question, ResidencyReader
from tests.samples import COMMIT, OTHER_COMMIT, PEER_ID, Sample, make_sample

REPO = RepoId.of("hf", "models", "org/model")
REFERENCE = ModelReference(REPO, COMMIT)
# Three chunks of a page each, the last one short.
LARGE = make_sample(10_000, seed=1)
SMALL = make_sample(10, seed=2)
TWIN = make_sample(9000, seed=3)
FILES = {"config.json": SMALL, "model.safetensors": LARGE, "pytorch_model.bin": TWIN}


def make_snapshot(files: dict[str, Sample], repo: RepoId = REPO, commit: str = COMMIT) -> Snapshot:
    """Return the snapshot of some files."""
    entries = [FileEntry(name, len(s.content), s.blob, COMMIT) for name, s in files.items()]
    return Snapshot.of(SnapshotId(repo, commit), entries)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store's folder."""
    FileBlobStore(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def index(root: Path) -> Iterator[Index]:
    """An index that knows one model."""
    opened = Index(root / "index.sqlite")
    add(opened, make_snapshot(FILES))
    yield opened
    opened.close()


@pytest.fixture
def reader(root: Path, index: Index) -> Iterator[ResidencyReader]:
    """A reader of the store."""
    opened = ResidencyReader(root)
    yield opened
    opened.close()


def add(index: Index, snapshot: Snapshot) -> None:
    """Make a snapshot known."""
    index.catalogue.put_snapshot(snapshot, is_confirmed=True, about=None, wall_s=1.0)


def put_whole(
    root: Path, index: Index, *samples: Sample, is_proven: bool = True, is_public: bool = True
) -> None:
    """Put blobs in their place."""
    for sample in samples:
        path = FileBlobStore(root).path_of(sample.blob)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.content)
        row = BlobRow(sample.blob, stamp_of(path.stat()), None, is_proven, is_public, 9.0)
        index.blobs.put(row)


def link(root: Path, snapshot: Snapshot, names: Sequence[str]) -> Path:
    """Link files of a snapshot into the tree; return its folder."""
    folder = HubTree(root / "hub").snapshot_path(snapshot.id)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).symlink_to(FileBlobStore(root).path_of(snapshot.get_file(name).digest))
    return folder


def ask(
    reader: ResidencyReader,
    *,
    now_s: float = 0.0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Look:
    """Look at the model."""
    found = reader.look(Question(REFERENCE, tuple(include), tuple(exclude)), now_s=now_s)
    assert found is not None
    return found


def test_look_at_a_commit_that_nobody_listed_is_none(reader: ResidencyReader) -> None:
    """It could be one; there is nothing to measure by."""
    assert reader.look(Question(ModelReference(REPO, OTHER_COMMIT)), now_s=0.0) is None
    other = ModelReference(RepoId.of("hf", "datasets", "org/model"), COMMIT)
    assert reader.look(Question(other), now_s=0.0) is None


def test_look_into_a_folder_without_an_index_says_so(tmp_path: Path, root: Path) -> None:
    """No daemon has used it; and a reader is closed twice without harm."""
    with pytest.raises(NotFoundError, match="index"):
        ResidencyReader(tmp_path / "nothing")
    Index(root / "index.sqlite").close()
    reader = ResidencyReader(root)
    assert reader.index.list_snapshots() == []
    reader.close()
    reader.close()


def test_look_counts_the_files_that_a_pull_would_bring(
    root: Path, index: Index, reader: ResidencyReader
) -> None:
    """Without patterns not the same weights twice; with patterns what they choose."""
    put_whole(root, index, SMALL)
    found = ask(reader)
    assert [entry.path for entry in found.files] == ["config.json", "model.safetensors"]
    assert (found.residency.bytes_total, found.residency.bytes_local) == (10_010, 10)
    assert found.snapshot == make_snapshot(FILES)
    everything = ask(reader, include=["*"])
    assert (everything.residency.state, everything.residency.bytes_total) == (State.PARTIAL, 19_010)
    config = ask(reader, include=["*.json"])
    assert (config.residency.state, config.residency.bytes_total) == (State.RESIDENT, 10)
    without = ask(reader, exclude=["*.safetensors"])
    assert [entry.path for entry in without.files] == ["config.json", "pytorch_model.bin"]
    assert without.weights is None


def test_look_counts_what_have_records_speak_of(
    root: Path, index: Index, reader: ResidencyReader, small_chunks: int
) -> None:
    """Chunk by chunk while a file is filled, and the disk's part of it is not needed again."""
    put_whole(root, index, SMALL)
    partial = FileBlobStore(root).open_partial(LARGE.blob, LARGE.layout)
    assert ask(reader).residency.bytes_local == 10
    held = 10
    for chunk_index in (2, 0):
        partial.put(LARGE.chunk(chunk_index), PEER_ID)
        held += LARGE.layout.length_of(chunk_index)
        found = ask(reader)
        assert (found.residency.state, found.residency.bytes_local) == (State.PARTIAL, held)
        assert found.residency.bytes_missing == 10_010 - held
    taken = found.presences[LARGE.blob].taken_bytes
    assert set(found.presences) == {LARGE.blob}
    assert found.need_bytes == max(0, 3 * small_chunks - taken) < 3 * small_chunks
    partial.put(LARGE.chunk(1), PEER_ID)
    found = ask(reader)
    assert (found.residency.state, found.residency.bytes_missing) == (State.VERIFYING, 0)
    assert found.path is None
    partial.close()


def test_look_whole_file_that_is_not_proven_is_being_verified(
    root: Path, index: Index, reader: ResidencyReader
) -> None:
    """All bytes are here, and nobody is sent to them yet."""
    put_whole(root, index, SMALL)
    put_whole(root, index, LARGE, is_proven=False)
    link(root, make_snapshot(FILES), ["config.json", "model.safetensors"])
    found = ask(reader)
    assert (found.residency.state, found.residency.bytes_missing) == (State.VERIFYING, 0)
    assert (found.need_bytes, found.path, found.residency.verified_wall_s) == (0, None, None)


def test_look_damaged_file_is_corrupt_until_it_is_proven_again(
    root: Path, index: Index, reader: ResidencyReader
) -> None:
    """Whatever else is missing; damage of a file that does not count is not told."""
    put_whole(root, index, SMALL)

    def state(*damaged: BlobDigest) -> State:
        found = reader.look(Question(REFERENCE), now_s=0.0, is_damaged=lambda blob: blob in damaged)
        assert found is not None
        return found.residency.state

    assert state(LARGE.blob) is State.CORRUPT
    assert state(TWIN.blob) is State.PARTIAL
    put_whole(root, index, LARGE)
    assert state(LARGE.blob) is State.RESIDENT


def test_look_folder_is_told_when_every_link_leads_somewhere(
    root: Path, index: Index, reader: ResidencyReader
) -> None:
    """Half a folder is no path, nor is one with a link that leads nowhere."""
    snapshot = make_snapshot(FILES)
    put_whole(root, index, SMALL, LARGE)
    folder = link(root, snapshot, ["config.json"])
    assert ask(reader).path is None
    link(root, snapshot, ["model.safetensors"])
    assert ask(reader).path == str(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("../gone")
    found = ask(reader, now_s=WHOLE_AGE_S_MAX)
    assert (found.residency.state, found.path) == (State.RESIDENT, None)


def test_look_folder_of_modelscope_is_in_its_own_tree(
    root: Path, index: Index, reader: ResidencyReader
) -> None:
    """Where the link farm for that hub's clients is."""
    repo = RepoId.of("ms", "models", "org/model")
    snapshot = make_snapshot({"config.json": SMALL}, repo)
    add(index, snapshot)
    put_whole(root, index, SMALL)
    folder = link(root, snapshot, ["config.json"])
    found = reader.look(Question(ModelReference(repo, COMMIT)), now_s=0.0)
    assert found is not None
    assert found.path == str(folder)
    assert folder.is_relative_to(root / "modelscope")


def test_look_that_was_whole_a_moment_ago_is_told_again_while_nothing_changed(
    root: Path, index: Index, reader: ResidencyReader
) -> None:
    """Within a second the disk is not asked; what the index says counts at once."""
    put_whole(root, index, SMALL, LARGE)
    index.weights.put(LARGE.blob, FileWeights(Format.SAFETENSORS, 1, 8, 8, (("F32", 2),)))
    folder = link(root, make_snapshot(FILES), ["config.json", "model.safetensors"])
    first = ask(reader, now_s=5.0)
    assert first.path == str(folder)
    (folder / "config.json").unlink()
    assert ask(reader, now_s=5.0 + 0.9 * WHOLE_AGE_S_MAX) == first
    index.roots.put_pin(RefRow(REPO, COMMIT, COMMIT, 1.0))
    found = ask(reader, now_s=5.0 + 0.9 * WHOLE_AGE_S_MAX)
    assert (found.facts.is_pinned, found.path) == (True, None)
    # A clock that went back is no reason to believe what was.
    link(root, make_snapshot(FILES), ["config.json"])
    assert ask(reader, now_s=9.0).path == str(folder)
    (folder / "config.json").unlink()
    assert ask(reader, now_s=8.9).path is None


def test_look_answers_are_the_same_when_selections_are_not_kept(
    root: Path, index: Index, reader: ResidencyReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks about many models in turn gets what the others get."""
    put_whole(root, index, SMALL)
    patterns = ["*.json", "*.safetensors", "*.bin"]
    expected = [ask(reader, include=[pattern]) for pattern in patterns]
    monkeypatch.setattr(lookup, "CHOICES_KEPT_MAX", 1)
    forgetful = ResidencyReader(root)
    found = [ask(forgetful, include=[pattern]) for pattern in [*patterns, *patterns]]
    forgetful.close()
    assert found == expected * 2
    assert len({look.files for look in expected}) == 3


@pytest.mark.parametrize("is_whole", [True, False])
def test_first_answer_about_a_model_leaves_no_object_for_a_file(
    root: Path, index: Index, reader: ResidencyReader, is_whole: bool
) -> None:
    """Python's collector walks over what is kept, and did so in one answer of a hundred."""
    samples = {f"{n}.safetensors": make_sample(10, seed=n) for n in range(20)}
    add(index, make_snapshot(samples, commit=OTHER_COMMIT))
    for sample in samples.values():
        index.weights.put(sample.blob, FileWeights(Format.SAFETENSORS, 1, 8, 8, (("F32", 2),)))
    if is_whole:
        put_whole(root, index, *samples.values())

    def count() -> int:
        gc.collect()
        return sum(isinstance(kept, FileEntry | BlobDigest) for kept in gc.get_objects())

    before, reference = count(), ModelReference(REPO, OTHER_COMMIT)
    found = reader.look(Question(reference), now_s=0.0)
    assert found is not None
    assert describe_look(reference, found, 0)["bytes_local"] == (200 if is_whole else 0)
    del found
    assert count() == before


def test_look_tells_quantisations_apart(root: Path, index: Index, reader: ResidencyReader) -> None:
    """A series of numbered files is one; each blob counts once."""
    parts = [make_sample(100, seed=n) for n in range(4)]
    names = ["m-Q4.gguf", "m-Q8-00001-of-00002.gguf", "m-Q8-00002-of-00002.gguf", "copy.gguf"]
    files = dict(zip(names, [*parts[:3], parts[0]], strict=True))
    add(index, make_snapshot(files, commit=OTHER_COMMIT))
    for part in parts[:3]:
        index.weights.put(part.blob, FileWeights(Format.GGUF, 1, 40, 40, (("Q4_K", 256),)))
    reference = ModelReference(REPO, OTHER_COMMIT)
    found = reader.look(Question(reference), now_s=0.0)
    assert found is not None
    assert found.weights is not None
    assert (found.weights.files, found.weights.tensor_bytes) == (3, 120)
    assert found.residency.bytes_total == 300
    assert found.variants == 2
    one = reader.look(Question(reference, ("*Q8*",)), now_s=0.0)
    assert one is not None
    assert (one.variants, len(one.files)) == (1, 2)


def test_held_blobs_are_those_that_anybody_may_have(
    root: Path, index: Index, reader: ResidencyReader
) -> None:
    """Whole, proven, public and really there: peers are told of nothing else."""
    restricted, unproven, gone, unknown = (make_sample(20, seed=n) for n in range(10, 14))
    put_whole(root, index, SMALL, LARGE, gone)
    put_whole(root, index, restricted, is_public=False)
    put_whole(root, index, unproven, is_proven=False)
    os.unlink(FileBlobStore(root).path_of(gone.blob))
    samples = [SMALL, restricted, unproven, gone, unknown, LARGE, SMALL]
    asked = [(sample.blob, len(sample.content)) for sample in samples]
    assert reader.find_held(asked) == {SMALL.blob: 10, LARGE.blob: 10_000}
    assert reader.find_held([]) == {}
    os.unlink(FileBlobStore(root).path_of(LARGE.blob))
    assert reader.find_held(asked) == {SMALL.blob: 10}
