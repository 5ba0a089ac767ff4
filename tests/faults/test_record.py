"""
Owns the test of the oracle's own reading of the have-record.

Knows nothing of the rest of the harness.
Invariants: none.
Source: docs/reference/store-layout.md, "Have-record".
"""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcache.core import layout
from p2pcache.store.blobs import FileBlobStore
from tests.faults.record import read_record
from tests.samples import make_sample

CHUNK_BYTES = 4096


def test_record_read_by_the_description_is_what_the_store_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Committed chunks, hints behind them, and a chunk that was forgotten are told apart."""
    monkeypatch.setattr(layout, "CHUNK_SIZE_BYTES", CHUNK_BYTES)
    sample = make_sample(5 * CHUNK_BYTES - 7)
    partial = FileBlobStore(tmp_path).open_partial(sample.blob, sample.layout)
    for index in (0, 1, 3):
        partial.put(sample.chunk(index), "upstream")
    partial.flush()
    partial.forget([1])
    partial.put(sample.chunk(4), "upstream")
    partial.close()
    record = read_record(partial.record_path.read_bytes(), CHUNK_BYTES)
    assert record is not None
    assert record.size_bytes == len(sample.content)
    assert record.durable == {n: sample.digest_of(n).raw for n in (0, 3)}
    assert record.hinted == {4: sample.digest_of(4).raw}
    assert record.span_of(4) == (4 * CHUNK_BYTES, len(sample.content))


@pytest.mark.parametrize("raw", [b"", b"P2PHAVE1", b"P2PHAVE9" + bytes(100)])
def test_record_with_a_torn_or_foreign_head_says_nothing(raw: bytes) -> None:
    """Nothing of such a log is believed."""
    assert read_record(raw, CHUNK_BYTES) is None
