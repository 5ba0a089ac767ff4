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
from p2pcache.errors import BlobCorruptError
from p2pcache.store.bloblist import BlobRow
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.hubtree import HubTree
from p2pcache.store.index import Index
from p2pcache.store.partial import FilePartial
from p2pcache.store.rebuild import recover
from tests.samples import PEER_ID, Sample, make_sample

SAMPLES = [make_sample(3 * 4096 - 5), make_sample(4096), make_sample(0), make_sample(100)]
samples = st.sampled_from(SAMPLES)


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
        rows = {row.blob: row.stamp for row in self.index.blobs.iter_all()}
        assert set(on_disk) == set(rows) == set(self.published)
        assert rows == on_disk
        for blob, sample in self.published.items():
            found = self.store.find_blob(blob)
            assert found is not None
            assert os.pread(found.fd, len(sample.content) + 1, 0) == sample.content
            os.close(found.fd)

    def teardown(self) -> None:
        """Close and remove everything."""
        for partial in self.open.values():
            partial.close()
        self.index.close()
        self.folder.cleanup()


@pytest.mark.usefixtures("small_chunks")
def test_store_and_index_any_sequence_agrees_with_a_dict() -> None:
    """Forty sequences of up to thirty steps."""
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(max_examples=40, stateful_step_count=30, deadline=None),
    )
