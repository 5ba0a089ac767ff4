"""
Owns the tests of core.listing: columns and entries are the same files.

Knows nothing of the index.
Invariants: what goes in as entries comes out as equal ones; only well-formed digests go in.
Source: core/listing.py.
"""

from __future__ import annotations

import pytest

from p2pcache.core.listing import Listing
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.errors import InvalidDigestError
from tests.samples import COMMIT, make_sample

ID = SnapshotId(RepoId.of("hf", "models", "org/model"), COMMIT)
SAMPLES = [make_sample(size, seed=size) for size in (10, 0, 9000)]
ENTRIES = tuple(
    FileEntry(f"{n}.bin", len(sample.content), sample.blob, COMMIT)
    for n, sample in enumerate([*SAMPLES, SAMPLES[0]])
)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_listing_makes_the_entries_that_it_was_made_of(count: int) -> None:
    """No file, one, and two with the same content."""
    listing = Listing.of(ID, ENTRIES[:count])
    assert listing.files == listing.make_files() == ENTRIES[:count]
    assert listing.snapshot == Snapshot(ID, ENTRIES[:count])
    assert listing.files is listing.files
    assert listing == Listing.of(ID, ENTRIES[:count])
    assert listing.size_blobs() == {str(e.digest): e.size_bytes for e in ENTRIES[:count]}


def test_listing_refuses_rows_with_a_digest_that_is_none() -> None:
    """Names of files on the disk are made of it: nothing else may pass, wherever it came from."""
    rows = [("a", 1, str(SAMPLES[0].blob), COMMIT), ("b", 1, "sha256:" + "../" * 21 + "a", COMMIT)]
    with pytest.raises(InvalidDigestError):
        Listing.of_rows(ID, rows)
