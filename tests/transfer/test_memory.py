"""
Owns the tests of transfer.memory that the conformance suite does not cover.

Knows nothing of networks.
Invariants: a lie is found.
Source: transfer/memory.py.
"""

from __future__ import annotations

import pytest

from p2pcache.core.views import RunRequest
from p2pcache.errors import ChunkMismatchError
from p2pcache.transfer.memory import MemorySource
from tests.samples import PEER_ID, Sample
from tests.transfer.sink import RecordingSink


def test_memory_tampered_chunk_is_found_and_blamed(sample: Sample) -> None:
    """What came before the lie stays; the lie and what follows are not delivered."""

    def tamper(index: int, content: bytearray) -> None:
        if index == 3:
            content[0] ^= 1

    source = MemorySource(PEER_ID, sample.content, tamper=tamper)
    sink = RecordingSink()
    run = RunRequest(PEER_ID, 2, 4)
    with pytest.raises(ChunkMismatchError) as caught:
        source.fetch_run(sample.blob, sample.layout, run, sink)
    assert (caught.value.chunk_index, caught.value.peer_id) == (3, PEER_ID)
    assert sink.order == [2]
    assert source.requests == [run]


def test_memory_shortened_chunk_is_found(sample: Sample) -> None:
    """A chunk of another length is refused like any wrong one."""
    source = MemorySource(PEER_ID, sample.content, tamper=lambda _, content: content.clear())
    with pytest.raises(ChunkMismatchError):
        source.fetch_run(sample.blob, sample.layout, RunRequest(PEER_ID, 0, 0), RecordingSink())
