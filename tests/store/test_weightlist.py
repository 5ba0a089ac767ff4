"""
Owns the tests of store.weightlist.

Knows nothing of heads.
Invariants: a row never changes; what cannot be counted is known not to be.
Source: store/weightlist.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.core.tensors import Format
from p2pcache.core.weights import FileWeights, ShapeCount
from p2pcache.store.index import Index
from p2pcache.store.indexreader import IndexReader

BLOBS = [BlobDigest("sha256", f"{n:064x}") for n in range(4)]
GITS = BlobDigest("gitsha1", "0" * 40)
WEIGHTS = FileWeights(
    Format.GGUF,
    3,
    # More than 32 bits have, and more than a double counts exactly.
    (1 << 53) + 1,
    1 << 40,
    (("BF16", 1 << 39), ("Q4_K", 256)),
    (ShapeCount((1 << 20, 1 << 19), 1 << 40, 1), ShapeCount((), 7, 2)),
)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """An index."""
    opened = Index(tmp_path / "index.sqlite")
    yield opened
    opened.close()


def test_weights_that_nobody_put_are_unknown_in_the_order_asked(index: Index) -> None:
    """One that lists nothing is known as well: its head is not read again."""
    assert index.weights.find_unknown([]) == []
    assert index.weights.find_unknown(reversed(BLOBS)) == BLOBS[::-1]
    index.weights.put(BLOBS[2], WEIGHTS)
    index.weights.put(BLOBS[1], None)
    assert index.weights.find_unknown([BLOBS[3], GITS, *BLOBS[:3]]) == [BLOBS[3], GITS, BLOBS[0]]


def texts(blobs: Sequence[BlobDigest]) -> list[str]:
    """Return digests as the reader takes them."""
    return [str(blob) for blob in blobs]


def test_weights_are_read_back_by_the_reader_beside_the_index(index: Index) -> None:
    """Counts are exact, types and shapes are those that were put."""
    small = replace(WEIGHTS, tensor_bytes=9, params=(("F32", 1),))
    index.weights.put(BLOBS[0], small)
    reader = IndexReader(index.path)
    summed, unread = reader.sum_weights(texts(BLOBS[:1]))
    assert (summed, unread) == (replace(small, shapes=()), ())
    assert reader.find_shapes(texts(BLOBS[:1])) == WEIGHTS.shapes
    assert reader.sum_weights(texts(BLOBS[:2])) == (None, (BLOBS[1],))
    reader.close()


def test_weights_row_never_changes(index: Index, tmp_path: Path) -> None:
    """It follows from the bytes; whoever says something else later is not believed."""
    index.weights.put(BLOBS[0], WEIGHTS)
    index.weights.put(BLOBS[1], None)
    index.weights.put(BLOBS[0], replace(WEIGHTS, tensors=4))
    index.weights.put(BLOBS[0], None)
    index.weights.put(BLOBS[1], WEIGHTS)
    reader = IndexReader(index.path)
    summed, _ = reader.sum_weights(texts(BLOBS[:1]))
    assert summed is not None
    assert summed.tensors == 3
    assert reader.sum_weights(texts(BLOBS[1:2])) == (None, ())
    reader.close()


def test_weights_stay_when_the_index_is_opened_again(tmp_path: Path) -> None:
    """A row is durable as soon as it is put."""
    path = tmp_path / "other.sqlite"
    first = Index(path)
    first.weights.put(BLOBS[0], WEIGHTS)
    second = Index(path)
    assert second.weights.find_unknown(BLOBS[:2]) == [BLOBS[1]]
    second.close()
    first.close()
