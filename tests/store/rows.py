"""
Owns reading all the rows that an index has on blobs, for tests that look at every one.

Knows nothing of files.
Invariants: reads through what the daemon itself reads by.
Source: store/checklist.py, store/bloblist.py.
"""

from __future__ import annotations

from p2pcache.store.bloblist import BlobRow
from p2pcache.store.index import Index


def list_rows(index: Index) -> list[BlobRow]:
    """Return every row on a blob."""
    found = [index.blobs.find(check.blob) for check in index.checks.list_all()]
    return [row for row in found if row is not None]
