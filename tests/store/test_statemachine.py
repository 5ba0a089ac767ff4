"""
Owns the state machine that drives a file store and its index against a dict.

Knows nothing of sources.
Invariants: after any sequence of calls, restarts and lost indexes included, the store holds what
the model says, and the index names exactly the blobs that are on disk.
Source: design.md §4.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.errors import BlobCorruptError
from p2pcache.store.adopt import AdoptOrder, adopt_file
from p2pcache.store.bloblist import BlobRow
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.catalogue import RefRow
from p2pcache.store.check import FileCheck
from p2pcache.store.disk import CopyPlace
from p2pcache.store.hfcache import FileIdentity
from p2pcache.store.hubtree import HubTree
from p2pcache.store.index import Index
from p2pcache.store.partial import FilePartial
from p2pcache.store.quarantine import Wreck, condemn, keep_good_chunks, withdraw
from p2pcache.store.rebuild import recover
from p2pcache.store.usage import remove_blob
from tests.samples import COMMIT, OTHER_COMMIT, PEER_ID, Sample, make_sample
from tests.store.rows import list_rows

FIRST = make_sample(3 * 4096 - 5)
# Begins with the same two chunks as the first one.
TWIN = Sample(FIRST.content[: 2 * 4096] + make_sample(50).content)
SAMPLES = [FIRST, TWIN, make_sample(4096), make_sample(0), make_sample(100)]
samples = st.sampled_from(SAMPLES)
REPO = RepoId.of("hf", "models", "org/name")
SNAPSHOTS = {
    SnapshotId(REPO, commit): [
        FileEntry(f"file-{n}", len(sample.content), sample.blob, "c" * 40)
        for n, sample in enumerate(listed)
    ]
    for commit, listed in ((COMMIT, SAMPLES[:3]), (OTHER_COMMIT, SAMPLES[1:]))
}
snapshot_ids = st.sampled_from(sorted(SNAPSHOTS, key=str))


class EverythingGoes:
    """An adoption that nobody limits. Implements AdoptWatch."""

    def note_hashed(self, size_bytes: int) -> None:
        """Nobody wants to know."""

    def is_stopped(self) -> bool:
        """Nobody stops it."""
        return False

    def may_copy(self, size_bytes: int) -> bool:
        """There is room."""
        return True

    def may_place(self, blob: BlobDigest) -> bool:
        """It is not here."""
        return True


class StoreMachine(RuleBasedStateMachine):
    """The real store beside a dict: chunks of partials (right or wrong), published blobs."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name)
        self.store = FileBlobStore(root)
        self.tree = HubTree(root / "hub")
        self.index = Index(root / "index.sqlite")
        self.open: dict[BlobDigest, FilePartial] = {}
        self.chunks: dict[BlobDigest, dict[int, bool]] = {}
        self.published: dict[BlobDigest, Sample] = {}
        self.snapshots: set[SnapshotId] = set()
        self.pins: set[SnapshotId] = set()
        self.foreign: dict[Path, bytes] = {}

    def partial(self, sample: Sample) -> FilePartial:
        """Open a blob's partial, once."""
        if sample.blob not in self.open:
            self.open[sample.blob] = self.store.open_partial(sample.blob, sample.layout)
            self.chunks.setdefault(sample.blob, {})
        return self.open[sample.blob]

    @rule(sample=samples, number=st.integers(0, 2), is_right=st.booleans())
    def put(self, sample: Sample, number: int, is_right: bool) -> None:
        """Put a chunk; one that is held already does not change."""
        if number < sample.layout.chunk_count:
            chunk = sample.chunk(number) if is_right else sample.wrong_chunk(number)
            self.partial(sample).put(chunk, PEER_ID)
            self.chunks[sample.blob].setdefault(number, is_right)

    @rule(sample=samples, number=st.integers(0, 2))
    def forget(self, sample: Sample, number: int) -> None:
        """Take a chunk out."""
        if number < sample.layout.chunk_count:
            self.partial(sample).forget([number])
            self.chunks[sample.blob].pop(number, None)

    @rule(sample=samples)
    def flush(self, sample: Sample) -> None:
        """Make a partial durable."""
        self.partial(sample).flush()

    @rule(sample=samples)
    def publish(self, sample: Sample) -> None:
        """Publish what is complete; refused unless every byte is right."""
        partial = self.partial(sample)
        state = self.chunks[sample.blob]
        is_right = len(state) == sample.layout.chunk_count and all(state.values())
        proof = sample.proof()
        if not is_right:
            proof.update(b"?")
            with pytest.raises(BlobCorruptError):
                self.store.publish(partial, proof, is_public=True)
            return
        stamp = self.store.publish(partial, proof, is_public=True)
        table = partial.snapshot().table
        self.index.blobs.put(BlobRow(sample.blob, stamp, table, True, True, 0.0))
        partial.close()
        self.store.discard(sample.blob)
        del self.open[sample.blob], self.chunks[sample.blob]
        self.published[sample.blob] = sample

    @rule(sample=samples)
    def fetch(self, sample: Sample) -> None:
        """Put every chunk that is missing, take out the wrong ones, publish."""
        partial = self.partial(sample)
        state = self.chunks[sample.blob]
        wrong = [number for number, is_right in state.items() if not is_right]
        partial.forget(wrong)
        for number in range(sample.layout.chunk_count):
            partial.put(sample.chunk(number), PEER_ID)
            state[number] = True
        self.publish(sample)

    @rule(sample=samples, partial_only=st.booleans())
    def discard(self, sample: Sample, partial_only: bool) -> None:
        """Remove a blob's partial, or all of it."""
        if sample.blob in self.open:
            self.open.pop(sample.blob).close()
        self.chunks.pop(sample.blob, None)
        self.store.discard(sample.blob, partial_only=partial_only)
        if not partial_only:
            self.index.blobs.remove(sample.blob)
            self.published.pop(sample.blob, None)

    @rule(sample=samples, number=st.integers(0, 2), donor=samples)
    def copy(self, sample: Sample, number: int, donor: Sample) -> None:
        """Take a chunk from a published file: right bytes are held, others leave no trace."""
        is_wanted = number < sample.layout.chunk_count and donor.blob in self.published
        found = self.store.find_blob(donor.blob) if is_wanted else None
        if found is None:
            return
        offset = sample.layout.offset_of(number)
        is_same = donor.content[offset:].startswith(sample.bytes_of(number))
        is_held = number in self.chunks.get(sample.blob, {})
        expected = sample.digest_of(number)
        place = CopyPlace(found.fd, offset)
        is_taken = self.partial(sample).copy_chunk(number, place, expected, PEER_ID)
        os.close(found.fd)
        assert is_taken is (is_same or is_held)
        if is_taken:
            self.chunks[sample.blob].setdefault(number, True)

    @rule(sample=samples)
    def adopt(self, sample: Sample) -> None:
        """Take in somebody else's file."""
        # Once each: a link to an earlier copy of somebody else's is a program's own for eviction.
        if sample.blob in self.published or sample.content in (b"", *self.foreign.values()):
            return
        path = Path(self.folder.name, f"foreign-{len(self.foreign)}")
        path.write_bytes(sample.content)
        self.foreign[path] = sample.content
        identity = FileIdentity.of(path.stat())
        order = AdoptOrder(path, identity, frozenset({sample.blob}), frozenset(), is_public=True)
        adopted = adopt_file(self.store, order, memoryview(bytearray(4096)), EverythingGoes())
        (blob,) = adopted.blobs
        row = BlobRow(
            blob.blob, blob.stamp, blob.table, True, True, 0.0, is_adopted=blob.placing.is_shared
        )
        self.index.blobs.put(row)
        if sample.blob in self.open:
            self.open.pop(sample.blob).close()
        self.chunks.pop(sample.blob, None)
        self.store.discard(sample.blob)
        self.published[sample.blob] = sample

    @rule(sample=samples, number=st.integers(0, 2))
    def rot(self, sample: Sample, number: int) -> None:
        """A chunk changes on the disk; a check finds it, and what is good of the file is kept."""
        is_there = sample.blob in self.published and number < sample.layout.chunk_count
        if not is_there or sample.blob in self.open:
            return
        path = self.store.path_of(sample.blob)
        if path.stat().st_mode & 0o200:
            return  # somebody else's: what is done with those, test_quarantine says
        self.flip(path, sample.layout.offset_of(number))
        found, row = self.store.find_blob(sample.blob), self.index.blobs.find(sample.blob)
        assert found is not None
        assert row is not None
        check = FileCheck(found, sample.blob, row.table)
        while not check.is_over:
            check.step(memoryview(bytearray(4096)), 1 << 20)
        is_hashed = row.table is not None
        expected = [number] if is_hashed else list(range(sample.layout.chunk_count))
        assert check.find_lost() == expected
        places = condemn(self.index, sample.blob)
        withdraw(self.store, self.tree, places)
        bad = frozenset(check.find_lost())
        wreck = Wreck(sample.blob, found, row.table, bad, sample.layout.chunk_count)
        keep_good_chunks(self.store, wreck)
        os.close(found.fd)
        self.index.blobs.remove(sample.blob)
        del self.published[sample.blob]
        self.chunks.pop(sample.blob, None)
        if is_hashed:
            self.chunks[sample.blob] = {
                n: True for n in range(sample.layout.chunk_count) if n != number
            }

    @staticmethod
    def flip(path: Path, offset: int) -> None:
        """Change a byte of a file that nobody may write to."""
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 1]))
        path.chmod(0o444)

    @rule(snapshot_id=snapshot_ids, is_pinned=st.booleans())
    def list_snapshot(self, snapshot_id: SnapshotId, is_pinned: bool) -> None:
        """Learn of a snapshot, link what is here of it, perhaps pin it."""
        snapshot = Snapshot.of(snapshot_id, SNAPSHOTS[snapshot_id])
        self.index.catalogue.put_snapshot(snapshot, is_confirmed=True, about=None, wall_s=1.0)
        self.index.catalogue.put_ref(RefRow(REPO, "main", snapshot_id.commit, 1.0))
        self.tree.open_repo(REPO, is_public=True)
        self.tree.publish_tree(snapshot)
        for entry in snapshot.files:
            if entry.digest in self.published:
                path = self.store.path_of(entry.digest)
                self.tree.publish_file(snapshot_id, entry, path)
        self.snapshots.add(snapshot_id)
        if is_pinned:
            self.index.roots.put_pin(RefRow(REPO, snapshot_id.commit, snapshot_id.commit, 1.0))
            self.pins.add(snapshot_id)

    @rule(snapshot_id=snapshot_ids)
    def unpin(self, snapshot_id: SnapshotId) -> None:
        """Protect a snapshot no longer."""
        was_pinned = self.index.roots.remove_pin(REPO, snapshot_id.commit)
        assert was_pinned is (snapshot_id in self.pins)
        self.pins.discard(snapshot_id)

    @rule(snapshot_id=snapshot_ids)
    def evict(self, snapshot_id: SnapshotId) -> None:
        """A snapshot goes with what no other one lists; a pinned one stays."""
        blobs = [entry.digest for entry in SNAPSHOTS[snapshot_id]]
        gone = self.index.inventory.evict(snapshot_id, blobs)
        if snapshot_id in self.pins:
            assert gone is None
            return
        self.snapshots.discard(snapshot_id)
        listed = {entry.digest for other in self.snapshots for entry in SNAPSHOTS[other]}
        assert gone is not None
        assert set(gone) == set(blobs) - listed
        self.tree.withdraw_snapshot(snapshot_id, self.store.path_of)
        assert not self.tree.snapshot_path(snapshot_id).exists()
        for blob in gone:
            if blob in self.open:
                self.open.pop(blob).close()
            remove_blob(self.store, blob)
            self.chunks.pop(blob, None)
            self.published.pop(blob, None)

    @rule(loses_index=st.booleans())
    def restart(self, loses_index: bool) -> None:
        """Close everything, perhaps lose the index, recover as the daemon does."""
        for partial in self.open.values():
            partial.close()
        self.open.clear()
        self.index.close()
        if loses_index:
            for path in self.store.root.glob("index.sqlite*"):
                path.unlink()
            # Pins have a file of their own, which the engine writes; the tree tells the rest.
            self.pins.clear()
        self.index = Index(self.index.path)
        self.store = FileBlobStore(self.store.root)
        report = recover(self.store, self.tree, self.index, wall_s=0.0)
        assert report.blobs_found == (len(self.published) if loses_index else 0)
        assert report.blobs_lost == 0
        # A second copy of what is published already is not kept.
        self.chunks = {b: held for b, held in self.chunks.items() if b not in self.published}

    @precondition(lambda self: self.chunks)
    @invariant()
    def partials_hold_what_the_model_says(self) -> None:
        """Every chunk has its bytes and the digest that was put."""
        for sample in SAMPLES:
            if sample.blob not in self.open:
                continue
            partial, expected = self.open[sample.blob], self.chunks[sample.blob]
            state = partial.snapshot()
            assert set(state.have) == set(expected)
            for number, is_right in expected.items():
                chunk = sample.chunk(number) if is_right else sample.wrong_chunk(number)
                assert state.table.find(number) == chunk.digest
                view = memoryview(bytearray(len(chunk.view)))
                partial.read_into(chunk.offset, view)
                assert view == chunk.view

    @invariant()
    def published_blobs_are_what_the_model_says(self) -> None:
        """Files, rows and the model agree, byte for byte."""
        on_disk = dict(self.store.iter_blobs())
        rows = {row.blob: row.stamp for row in list_rows(self.index)}
        assert set(on_disk) == set(rows) == set(self.published)
        assert rows == on_disk
        for blob, sample in self.published.items():
            found = self.store.find_blob(blob)
            assert found is not None
            assert os.pread(found.fd, len(sample.content) + 1, 0) == sample.content
            os.close(found.fd)

    @invariant()
    def snapshots_are_what_the_model_says(self) -> None:
        """The index lists what was learnt and not evicted; every link leads to right bytes."""
        assert set(self.index.inventory.list_contents()) == self.snapshots
        pins = self.index.roots.list_pins()
        assert {SnapshotId(pin.repo, pin.commit) for pin in pins} == self.pins
        contents = {sample.blob: sample.content for sample in SAMPLES}
        for snapshot_id, entries in SNAPSHOTS.items():
            for entry in entries:
                path = self.tree.snapshot_path(snapshot_id) / entry.path
                if path.exists():
                    assert path.read_bytes() == contents[entry.digest]

    @invariant()
    def foreign_files_stay_as_they_are(self) -> None:
        """Nobody writes to what is somebody else's."""
        for path, content in self.foreign.items():
            assert path.read_bytes() == content

    def teardown(self) -> None:
        """Close and remove everything."""
        for partial in self.open.values():
            partial.close()
        self.index.close()
        self.folder.cleanup()


@pytest.mark.usefixtures("small_chunks")
def test_store_and_index_any_sequence_agrees_with_a_dict() -> None:
    """Sixty sequences of up to forty steps."""
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(max_examples=60, stateful_step_count=40, deadline=None),
    )
