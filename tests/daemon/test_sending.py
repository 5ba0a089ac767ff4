"""
Owns the tests of daemon.sending and daemon.interim: bodies, and patience before them.

Knows nothing of what the bytes are.
Invariants: a body is exact or broken off; the event loop never waits for a client.
Source: daemon/sending.py, interim.py; RFC 9110 §15.2.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from p2pcache.daemon import interim, sending
from p2pcache.daemon.answers import answer_errors
from p2pcache.daemon.interim import hold
from p2pcache.daemon.sending import send_file_range
from p2pcache.errors import BlobNotFoundError
from tests.daemon.local import ask_raw, serve_handler
from tests.engine.engine import eventually, list_open_files

CONTENT = Random(3).randbytes(3_000_000)
GET = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """Close what a test opened."""
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of three megabytes."""
    path = tmp_path / "blob"
    path.write_bytes(CONTENT)
    return path


class Sender:
    """Serves a range of a file, and notes how sending it ended."""

    def __init__(self, path: Path, offset: int, length: int) -> None:
        self.path, self.offset, self.length = path, offset, length
        self.begun = asyncio.Event()
        self.ended: asyncio.Future[BaseException | None] = (
            asyncio.get_running_loop().create_future()
        )
        self.waits_for: asyncio.Event | None = None

    async def serve(self, stack: AsyncExitStack) -> str:
        """Listen; returns the address."""
        app = web.Application(middlewares=[answer_errors])
        app.router.add_get("/", self.handle)
        return await serve_handler(stack, app)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Send the range."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            response = web.StreamResponse()
            response.content_length = self.length
            await response.prepare(request)
            self.begun.set()
            if self.waits_for is not None:
                await self.waits_for.wait()
            await send_file_range(request, response, fd, self.offset, self.length)
            await response.write_eof()
        except BaseException as error:
            self.ended.set_result(error)
            raise
        finally:
            os.close(fd)
        self.ended.set_result(None)
        return response


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (0, 65_536), (0, 65_537), (1, 2_999_999), (2_999_999, 1), (1_000_000, 1_500_000)],
)
async def test_range_is_sent_exactly(
    stack: AsyncExitStack, file: Path, offset: int, length: int
) -> None:
    """Small ranges by copy, large ones by sendfile: the bytes are the file's."""
    answer = await ask_raw(await Sender(file, offset, length).serve(stack), GET)
    assert answer.partition(b"\r\n\r\n")[2] == CONTENT[offset : offset + length]


async def test_slices_of_a_long_range_join_without_a_gap(
    stack: AsyncExitStack, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range of many slices is one body."""
    monkeypatch.setattr(sending, "SLICE_BYTES", 100_000)
    answer = await ask_raw(await Sender(file, 5, 2_900_000).serve(stack), GET)
    assert answer.partition(b"\r\n\r\n")[2] == CONTENT[5:2_900_005]


async def test_slow_reader_holds_up_nobody(stack: AsyncExitStack, file: Path) -> None:
    """While one client reads little by little, another gets its body, and the loop its turns."""
    address = await Sender(file, 0, len(CONTENT)).serve(stack)
    host, _, port = address.rpartition(":")
    slow_reader, slow_writer = await asyncio.open_connection(host, int(port), limit=1024)
    slow_writer.write(GET.encode())
    await slow_reader.readuntil(b"\r\n\r\n")
    other = await Sender(file, 0, len(CONTENT)).serve(stack)
    answer = await ask_raw(other, GET)
    assert answer.endswith(CONTENT)
    received = await slow_reader.read()
    assert received == CONTENT
    slow_writer.close()


async def test_reader_that_stopped_is_let_go(
    stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that takes nothing any more costs a bounded time and no descriptor."""
    monkeypatch.setattr(sending, "SEND_STALL_S", 0.2)
    path = tmp_path / "large"
    with path.open("wb") as large:
        large.truncate(64 * 1024 * 1024)
    sender = Sender(path, 0, 64 * 1024 * 1024)
    address = await sender.serve(stack)
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(GET.encode())
    async with asyncio.timeout(5):
        error = await sender.ended
    assert isinstance(error, TimeoutError | ConnectionError)
    writer.transport.abort()
    await eventually(lambda: list_open_files(tmp_path) == [], "the file is closed")


async def test_client_that_is_gone_ends_the_sending(stack: AsyncExitStack, tmp_path: Path) -> None:
    """A connection that breaks ends the body and closes the file."""
    path = tmp_path / "large"
    with path.open("wb") as large:
        large.truncate(256 * 1024 * 1024)
    sender = Sender(path, 0, 256 * 1024 * 1024)
    address = await sender.serve(stack)
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(GET.encode())
    await reader.readexactly(100_000)
    writer.transport.abort()
    async with asyncio.timeout(5):
        assert await sender.ended is not None
    await eventually(lambda: list_open_files(tmp_path) == [], "the file is closed")


@pytest.mark.parametrize("length", [3_000_000, 50_000])
async def test_file_that_became_shorter_breaks_the_body_off(
    stack: AsyncExitStack, file: Path, length: int
) -> None:
    """A promised length that cannot be kept ends the connection: nothing else follows as body."""
    sender = Sender(file, 0, length)
    sender.waits_for = asyncio.Event()
    address = await sender.serve(stack)
    request = GET.replace("Connection: close\r\n", "")
    asking = asyncio.create_task(ask_raw(address, request + request))
    await sender.begun.wait()
    os.truncate(file, 20_000)
    sender.waits_for.set()
    answer = await asking
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"Content-Length: {length}".encode() in head
    assert CONTENT.startswith(body)
    assert len(body) < length


async def test_error_after_the_body_began_is_not_written_into_it(
    stack: AsyncExitStack,
) -> None:
    """Once a body has begun, the only honest answer left is to break off."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 1000
        await response.prepare(request)
        await response.write(b"x" * 10)
        if request.path == "/ours":
            raise BlobNotFoundError("It is gone; ask again.")
        raise OSError(5, "Input/output error")

    app = web.Application(middlewares=[answer_errors])
    app.router.add_get("/{name}", handle)
    address = await serve_handler(stack, app)
    for name in ("ours", "other"):
        answer = await ask_raw(address, f"GET /{name} HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.partition(b"\r\n\r\n")[2] == b"x" * 10


# --- interim answers ---


class Holder:
    """Serves an answer after a while, held by interim answers."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.may_answer, self.work_ended = asyncio.Event(), asyncio.Event()

    async def serve(self, stack: AsyncExitStack) -> str:
        """Listen; returns the address."""
        app = web.Application(middlewares=[answer_errors])
        app.router.add_get("/", self.handle)
        return await serve_handler(stack, app)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Work, then answer."""
        return web.Response(text=await hold(request, self._work()))

    async def _work(self) -> str:
        try:
            await self.may_answer.wait()
            if self.fails:
                raise BlobNotFoundError("It is nowhere; ask another.")
            return "done"
        finally:
            self.work_ended.set()


class Waits:
    """Counts how often work was waited for."""

    def __init__(self) -> None:
        self.count = 0

    async def wait(self, *arguments: Any, **options: Any) -> Any:
        """As asyncio.wait()."""
        self.count += 1
        return await asyncio.wait(*arguments, **options)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Send interim answers often, and count the waits before them."""
    waits = Waits()
    names = {**vars(asyncio), "wait": waits.wait}
    monkeypatch.setattr(interim, "asyncio", SimpleNamespace(**names))
    monkeypatch.setattr(interim, "INTERIM_INTERVAL_S", 0.05)
    return waits


async def test_slow_answer_is_preceded_by_interim_ones(stack: AsyncExitStack, waits: Waits) -> None:
    """A client that waits gets 100 Continue now and then, and one final answer."""
    holder = Holder()
    host, _, port = (await holder.serve(stack)).rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(GET.encode())
    assert await reader.readexactly(3 * len(INTERIM)) == 3 * INTERIM
    holder.may_answer.set()
    answer = await reader.read()
    writer.close()
    assert answer.replace(INTERIM, b"").startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\ndone")


async def test_quick_answer_has_no_interim_one(stack: AsyncExitStack) -> None:
    """Who need not wait notices nothing."""
    holder = Holder()
    holder.may_answer.set()
    answer = await ask_raw(await holder.serve(stack), GET)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_old_protocol_gets_no_interim_answer(stack: AsyncExitStack, waits: Waits) -> None:
    """HTTP/1.0 knows no interim answers; the final one comes all the same."""
    holder = Holder()
    asking = asyncio.create_task(
        ask_raw(await holder.serve(stack), "GET / HTTP/1.0\r\nHost: x\r\n\r\n")
    )
    await eventually(lambda: waits.count >= 3, "three interim answers are due")
    holder.may_answer.set()
    answer = await asking
    assert INTERIM not in answer
    assert answer.endswith(b"done")


async def test_error_after_interim_answers_is_a_whole_answer(
    stack: AsyncExitStack, waits: Waits
) -> None:
    """A failure while a client is held has its status and its body."""
    holder = Holder(fails=True)
    asking = asyncio.create_task(ask_raw(await holder.serve(stack), GET))
    await eventually(lambda: waits.count >= 2, "an interim answer is sent")
    holder.may_answer.set()
    answer = await asking
    assert answer.startswith(INTERIM)
    assert answer.replace(INTERIM, b"").startswith(b"HTTP/1.1 404 ")
    assert b"BlobNotFound" in answer


async def test_client_that_leaves_cancels_what_it_waited_for(
    stack: AsyncExitStack, waits: Waits
) -> None:
    """Nobody works for a client that is gone."""
    holder = Holder()
    address = await holder.serve(stack)
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(GET.encode())
    assert await reader.readexactly(len(INTERIM)) == INTERIM
    writer.transport.abort()
    async with asyncio.timeout(10):  # for ever, if the work went on
        await holder.work_ended.wait()
