"""
Owns the conformance suite of the Source boundary, run by every source.

Knows nothing of what a source is made of.
Invariants: each test holds for each source.
Source: transfer/base.py.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from p2pcache.core.upstream import UpstreamLocation
from p2pcache.core.views import RunRequest
from p2pcache.errors import StoreFullError
from p2pcache.transfer.base import RunCancelled, Source
from p2pcache.transfer.connection import ConnectionPool
from p2pcache.transfer.memory import MemorySource
from p2pcache.transfer.peer import PeerSource
from p2pcache.transfer.upstream import UpstreamSource
from tests.samples import PEER_ID, Sample, make_sample
from tests.sizes import INTERESTING_SIZES_BYTES
from tests.transfer.conftest import ServerStarter
from tests.transfer.server import answer_as_hub, answer_as_peer
from tests.transfer.sink import RecordingSink

SourceMaker = Callable[[Sample], Source]


@pytest.fixture(params=["memory", "peer", "upstream"])
def make_source(
    request: pytest.FixtureRequest, start_server: ServerStarter, pool: ConnectionPool
) -> SourceMaker:
    """Each kind of source, honest."""

    def make_peer(sample: Sample) -> Source:
        return PeerSource(PEER_ID, start_server(answer_as_peer(sample)).url, pool)

    def make_upstream(sample: Sample) -> Source:
        url = start_server(answer_as_hub(sample)).url
        return UpstreamSource(UpstreamLocation(url, f"{url}/file", "a file"), pool)

    makers: dict[str, SourceMaker] = {
        "memory": lambda sample: MemorySource(PEER_ID, sample.content),
        "peer": make_peer,
        "upstream": make_upstream,
    }
    return makers[request.param]


def fetch(source: Source, sample: Sample, first: int, last: int) -> RecordingSink:
    """Fetch one run into a new sink."""
    sink = RecordingSink()
    run = RunRequest(source.source_id, first, last)
    source.fetch_run(sample.blob, sample.layout, run, sink)
    return sink


@pytest.mark.parametrize(("first", "last"), [(0, 5), (0, 0), (2, 4), (5, 5), (0, 4)])
def test_source_run_is_delivered_in_order_with_right_bytes(
    make_source: SourceMaker, sample: Sample, first: int, last: int
) -> None:
    """Exactly the chunks of the run arrive, in order, verified, and every byte is counted."""
    sink = fetch(make_source(sample), sample, first, last)
    assert sink.order == list(range(first, last + 1))
    for index in sink.order:
        assert sink.contents[index] == sample.bytes_of(index)
        assert sink.chunks[index].digest == sample.digest_of(index)
        assert sink.chunks[index].offset == sample.layout.offset_of(index)
        assert sink.chunks[index].blob == sample.blob
    assert sink.received_bytes == sample.layout.span_of(first, last)[1]


@pytest.mark.parametrize("size_bytes", [size for size in INTERESTING_SIZES_BYTES if size])
def test_source_interesting_size_arrives_whole(make_source: SourceMaker, size_bytes: int) -> None:
    """Real chunks of 4 MiB, odd sizes included."""
    sample = make_sample(size_bytes)
    sink = fetch(make_source(sample), sample, 0, sample.layout.chunk_count - 1)
    assert b"".join(sink.contents[index] for index in sink.order) == sample.content


def test_source_runs_follow_each_other(make_source: SourceMaker, sample: Sample) -> None:
    """A source serves many runs, in any order."""
    source = make_source(sample)
    for first, last in [(4, 5), (0, 1), (2, 3), (0, 5)]:
        assert fetch(source, sample, first, last).order == list(range(first, last + 1))


def test_source_runs_at_once_do_not_mix(make_source: SourceMaker, sample: Sample) -> None:
    """Several threads fetch at the same time, each with buffers of its own."""
    source = make_source(sample)
    runs = [(0, 2), (3, 5), (1, 4), (0, 5)] * 3
    with ThreadPoolExecutor(4) as threads:
        sinks = [threads.submit(fetch, source, sample, *run) for run in runs]
        for job in sinks:
            for index, content in job.result().contents.items():
                assert content == sample.bytes_of(index)


def test_source_cancelled_run_ends_and_keeps_what_came(
    make_source: SourceMaker, sample: Sample, small_chunks: int
) -> None:
    """A sink that wants no more ends the run at its next piece; then the source still works."""
    source = make_source(sample)
    sink = RecordingSink(cancels_after_bytes=2 * small_chunks + 1)
    with pytest.raises(RunCancelled):
        source.fetch_run(sample.blob, sample.layout, RunRequest(source.source_id, 0, 5), sink)
    assert sink.order == [0, 1]
    assert fetch(source, sample, 0, 5).order == list(range(6))


def test_source_disk_that_is_full_ends_the_run(make_source: SourceMaker, sample: Sample) -> None:
    """The sink's own error comes out unchanged: the source is not to blame."""
    source = make_source(sample)
    error = StoreFullError("The disk is full; free some space.")
    sink = RecordingSink(error=error)
    with pytest.raises(StoreFullError) as caught:
        source.fetch_run(sample.blob, sample.layout, RunRequest(source.source_id, 0, 5), sink)
    assert caught.value is error
    assert fetch(source, sample, 1, 1).order == [1]


def test_source_close_may_come_at_any_time(make_source: SourceMaker, sample: Sample) -> None:
    """Closing is repeatable and leaves shared connections to others."""
    source, other = make_source(sample), make_source(sample)
    fetch(source, sample, 0, 0)
    source.close()
    source.close()
    assert fetch(other, sample, 0, 1).order == [0, 1]
