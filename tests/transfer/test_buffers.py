"""
Owns the tests of transfer.buffers: who has a buffer, and how many there are.

Knows nothing of chunks.
Invariants: a kept buffer is nobody else's until it is returned.
Source: transfer/buffers.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from p2pcache.core.layout import CHUNK_SIZE_BYTES
from p2pcache.transfer import buffers
from p2pcache.transfer.buffers import KEPT_BUFFERS_MAX, keep_buffer, return_buffer, thread_buffer


@pytest.fixture
def kept() -> Iterator[list[memoryview]]:
    """Buffers that a test keeps; all are returned at its end."""
    views: list[memoryview] = []
    yield views
    for view in views:
        return_buffer(view)


def test_buffer_of_a_thread_is_the_same_every_time_and_its_own() -> None:
    """One allocation for each thread."""
    assert len(thread_buffer()) == CHUNK_SIZE_BYTES
    assert thread_buffer().obj is thread_buffer().obj
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(thread_buffer).result().obj is not thread_buffer().obj


def test_buffer_that_is_kept_is_not_written_over(kept: list[memoryview]) -> None:
    """The thread goes on with another one."""
    view = thread_buffer()[:100]
    view[:] = b"a" * 100
    assert keep_buffer(view)
    kept.append(view)
    thread_buffer()[:100] = b"b" * 100
    assert view == b"a" * 100


def test_buffer_of_somebody_else_is_not_kept(kept: list[memoryview]) -> None:
    """Only the thread that filled its buffer can give it away, and only once."""
    thread_buffer()
    assert not keep_buffer(memoryview(bytearray(10)))
    with ThreadPoolExecutor(1) as threads:
        assert not keep_buffer(threads.submit(thread_buffer).result())
    view = thread_buffer()
    assert keep_buffer(view)
    kept.append(view)
    assert not keep_buffer(view)


def test_buffers_are_kept_up_to_a_limit(kept: list[memoryview]) -> None:
    """Memory is bounded however many chunks wait; room comes back with a return."""
    for _ in range(KEPT_BUFFERS_MAX):
        view = thread_buffer()
        assert keep_buffer(view)
        kept.append(view)
    assert not keep_buffer(thread_buffer())
    return_buffer(kept.pop())
    view = thread_buffer()
    assert keep_buffer(view)
    kept.append(view)


def test_buffer_that_was_returned_is_used_again_and_freed_at_last() -> None:
    """No page is touched anew while a proof runs; an idle daemon holds a few of them at most."""
    first = thread_buffer()
    assert keep_buffer(first)
    second = thread_buffer()
    assert keep_buffer(second)
    return_buffer(first)
    assert thread_buffer().obj is first.obj
    third = thread_buffer()
    assert keep_buffer(third)
    thread_buffer()
    return_buffer(third)
    assert buffers._spare
    return_buffer(second)
    assert len(buffers._spare) <= buffers.SPARE_BUFFERS_MAX
    assert not buffers._kept
