"""
Owns the tests of engine.single: joining callers that want the same thing.

Knows nothing of what they want.
Invariants: none beyond the module's own.
Source: engine/single.py.
"""

from __future__ import annotations

import asyncio

import pytest

from p2pcache.engine.single import SingleFlight
from p2pcache.errors import NotFoundError


class Work:
    """Work that ends when it is told to, and counts how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_end = asyncio.Event()

    async def __call__(self) -> int:
        self.begun += 1
        await self.may_end.wait()
        return self.begun


async def settle() -> None:
    """Let every ready task take a few steps."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_run_callers_of_one_key_join() -> None:
    """Ten callers cause one piece of work and get one result."""
    flights, work = SingleFlight(), Work()
    callers = [asyncio.create_task(flights.run("key", work)) for _ in range(10)]
    await settle()
    work.may_end.set()
    assert await asyncio.gather(*callers) == [1] * 10


async def test_run_after_the_end_begins_anew() -> None:
    """A result is not kept."""
    flights, work = SingleFlight(), Work()
    work.may_end.set()
    assert [await flights.run("key", work), await flights.run("key", work)] == [1, 2]


async def test_run_other_keys_do_not_join() -> None:
    """Work of different keys runs at the same time."""
    flights, work = SingleFlight(), Work()
    callers = [asyncio.create_task(flights.run(key, work)) for key in "ab"]
    await settle()
    assert work.begun == 2
    work.may_end.set()
    await asyncio.gather(*callers)


async def test_run_cancelled_caller_does_not_stop_the_others() -> None:
    """The one who began may leave; who joined gets the result."""
    flights, work = SingleFlight(), Work()
    first = asyncio.create_task(flights.run("key", work))
    second = asyncio.create_task(flights.run("key", work))
    await settle()
    first.cancel()
    await settle()
    assert first.cancelled()
    work.may_end.set()
    assert await second == 1


async def test_run_error_is_told_to_all_callers() -> None:
    """An exception reaches everyone who waited, and the next caller tries again."""
    flights = SingleFlight()

    async def fail() -> int:
        await asyncio.sleep(0)
        raise NotFoundError("No such thing; look elsewhere.")

    callers = [asyncio.create_task(flights.run("key", fail)) for _ in range(3)]
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results] == [NotFoundError] * 3
    work = Work()
    work.may_end.set()
    assert await flights.run("key", work) == 1


async def test_start_failure_that_nobody_awaits_is_no_complaint() -> None:
    """Work begun without waiting may fail; the loop's exception handler hears nothing."""
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    flights = SingleFlight()

    async def fail() -> None:
        raise NotFoundError("No such thing; look elsewhere.")

    task = flights.start("key", fail)
    await asyncio.wait({task})
    del task
    await settle()
    assert complaints == []


async def test_start_while_under_way_returns_the_same_task() -> None:
    """Beginning twice is beginning once."""
    flights, work = SingleFlight(), Work()
    assert flights.start("key", work) is flights.start("key", work)
    await settle()
    assert work.begun == 1
    await flights.close()


async def test_close_ends_work_and_frees_its_key() -> None:
    """Callers are released by cancellation, and nothing runs on."""
    flights, work = SingleFlight(), Work()
    caller = asyncio.create_task(flights.run("key", work))
    await settle()
    await flights.close()
    with pytest.raises(asyncio.CancelledError):
        await caller
    work.may_end.set()
    assert await flights.run("key", work) == 2


async def test_close_before_work_took_its_first_step_frees_its_key() -> None:
    """Work cancelled before it began leaves no dead flight behind."""
    flights, work = SingleFlight(), Work()
    flights.start("key", work)
    await flights.close()
    work.may_end.set()
    assert await flights.run("key", work) == 1


async def test_settle_waits_for_the_end_whatever_it_is() -> None:
    """settle() returns at once without work, and after its end with it, failed or not."""
    flights, work = SingleFlight(), Work()
    await flights.settle("key")

    async def fail() -> None:
        await work()
        raise NotFoundError("No such thing; look elsewhere.")

    flights.start("key", fail)
    waiting = asyncio.create_task(flights.settle("key"))
    await settle()
    assert not waiting.done()
    work.may_end.set()
    await waiting
