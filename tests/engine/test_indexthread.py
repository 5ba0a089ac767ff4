"""
Owns the tests of engine.indexthread.

Knows nothing of what the index holds.
Invariants: none beyond the module's own.
Source: engine/indexthread.py.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from p2pcache.engine.indexthread import IndexThread
from p2pcache.errors import StoreError
from p2pcache.store.index import Index
from tests.engine.engine import list_open_files


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[IndexThread]:
    """Open an index in its thread."""
    thread = IndexThread()
    await thread.open(tmp_path / "index.sqlite")
    yield thread
    await thread.close()


async def test_call_runs_in_one_thread_that_is_not_the_loops(index: IndexThread) -> None:
    """Every call sees the same thread."""
    threads = {await index.call(lambda _: threading.get_ident()) for _ in range(5)}
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


async def test_call_order_is_the_order_of_the_callers(index: IndexThread) -> None:
    """Calls made at once run one after the other, first come first served."""
    seen: list[int] = []
    await asyncio.gather(*(index.call(lambda _, n=n: seen.append(n)) for n in range(50)))  # type: ignore[misc]
    assert seen == list(range(50))


async def test_call_error_reaches_its_caller_alone(index: IndexThread) -> None:
    """One bad call does not end the thread."""

    def fail(_: Index) -> None:
        raise StoreError("The disk failed; see the system's log.")

    with pytest.raises(StoreError):
        await index.call(fail)
    assert await index.call(lambda open_index: open_index.blobs.measure()) == (0, 0)


async def test_call_of_a_cancelled_caller_is_carried_out(index: IndexThread) -> None:
    """Who gives up while waiting does not undo what was asked."""
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work(_: Index) -> None:
        begun.set()
        may_end.wait(5)
        ended.set()

    caller = asyncio.create_task(index.call(work))
    await asyncio.to_thread(begun.wait, 5)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    may_end.set()
    await index.call(lambda _: None)
    assert ended.is_set()


async def test_close_twice_leaves_no_open_file(tmp_path: Path) -> None:
    """Closing finishes what was asked, closes the file, and may be repeated."""
    index = IndexThread()
    await index.open(tmp_path / "index.sqlite")
    pending = asyncio.create_task(index.call(lambda open_index: open_index.blobs.measure()))
    await asyncio.sleep(0)
    await index.close()
    await index.close()
    assert await pending == (0, 0)
    assert list_open_files(tmp_path) == []


async def test_open_of_a_folder_is_a_store_error(tmp_path: Path) -> None:
    """What cannot be opened is our error, and close() still works."""
    index = IndexThread()
    (tmp_path / "index.sqlite").mkdir()
    with pytest.raises(StoreError):
        await index.open(tmp_path / "index.sqlite")
    await index.close()
