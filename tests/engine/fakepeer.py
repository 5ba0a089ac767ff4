"""
Owns a peer in this event loop that behaves as a test tells it to.

Knows nothing of the engine that asks it.
Invariants: listens on 127.0.0.1 only; what it was asked is counted.
Source: docs/reference/peer-protocol.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from types import TracebackType

from aiohttp import web

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.messages import Exchange, Hello, SwarmEntry, table_to_json
from p2pcache.core.verify import digest_of
from tests.ports import pick_port
from tests.serving import cut

Tamper = Callable[[int, bytes], bytes]


class FakePeer:
    """
    A peer that holds blobs. Attributes may be changed at any time.

    Attributes:
        tamper: Changes the bytes of a chunk before they are sent, under their own digest.
        bans_others: Says to everybody that it has banned them.
        run_status: What requests for runs are answered with.
        vanishes_after: Chunks that are sent before the connection is cut, in every run.
        claim: Digest to name for every chunk in place of its own.
        swarm_body: Replaces the answer of an exchange.
        documents: Answers to other paths.
        layouts: How it cuts blobs; every chunk's size where it does not say.
        have: Which chunks it says it has of every blob; all of them if None.
        is_silent: Nothing is answered while set.
        hangs_runs: Requests for runs are not answered until it stops.
    """

    def __init__(self, *contents: bytes, number: int = 1, name: str = "") -> None:
        self.peer_id = f"{number:032x}"
        self.name = name or f"peer-{number}"
        self.contents = {sha256_name(content): content for content in contents}
        self.tamper: Tamper = lambda _, chunk: chunk
        self.run_status = 200
        self.bans_others = False
        self.vanishes_after: int | None = None
        self.claim = ""
        self.swarm_body: bytes | None = None
        self.documents: dict[str, object] = {}
        self.layouts: dict[BlobDigest, Layout] = {}
        self.have: list[int] | None = None
        self.is_silent = False
        self.hangs_runs = False
        self.is_fetching = False
        self.hides_blobs = False
        self.exchanges: list[Exchange] = []
        self.runs: list[tuple[int, int]] = []
        self.asked: list[str] = []
        self.sent_chunks = 0
        self._runner: web.AppRunner | None = None
        self._port = 0
        self._released = asyncio.Event()

    @property
    def address(self) -> str:
        """Return where it listens."""
        return f"127.0.0.1:{self._port}"

    @property
    def hello(self) -> Hello:
        """Return who it says it is."""
        return Hello(self.peer_id, self.name, "0.1.0")

    async def start(self) -> FakePeer:
        """Listen, on the port of the last time if there was one."""
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/swarm", self._swarm)
        app.router.add_get("/v1/hello", self._hello)
        app.router.add_get("/v1/blobs/{digest}/chunks/{run}", self._run)
        app.router.add_get("/{tail:.*}", self._document)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.05, handler_cancellation=True
        )
        await self._runner.setup()
        self._port = self._port or pick_port()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()
        return self

    async def stop(self) -> None:
        """Cut every connection and listen no more."""
        self._released.set()
        runner, self._runner = self._runner, None
        if runner is not None:
            await cut(runner)

    async def __aenter__(self) -> FakePeer:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _wait_if_silent(self) -> None:
        if self.is_silent:
            await self._released.wait()

    async def _hello(self, request: web.Request) -> web.Response:
        await self._wait_if_silent()
        return web.json_response(self.hello.to_json())

    async def _swarm(self, request: web.Request) -> web.Response:
        self.exchanges.append(Exchange.from_json(json.loads(await request.read())))
        await self._wait_if_silent()
        if self.swarm_body is not None:
            return web.Response(body=self.swarm_body, content_type="application/json")
        entries = () if self.hides_blobs else tuple(map(self._entry, self.contents))
        ours = Exchange(self.hello, 1, entries, self.bans_others)
        return web.json_response(ours.to_json())

    def layout_of(self, blob: BlobDigest) -> Layout:
        """Return how it cuts a blob."""
        return self.layouts.get(blob) or Layout(len(self.contents[blob]))

    def cut(self, content: bytes, layout: Layout) -> ChunkTable:
        """Cut a blob in another way, and serve its table; returns it, to be tampered with."""
        blob = sha256_name(content)
        self.layouts[blob] = layout
        table = ChunkTable(blob, layout)
        for index in range(layout.chunk_count):
            start, length = layout.span_of(index, index)
            table.set(index, digest_of(content[start : start + length]))
        self.documents[f"/v1/blobs/{blob}/table"] = table_to_json(table)
        return table

    def _entry(self, blob: BlobDigest) -> SwarmEntry:
        layout = self.layout_of(blob)
        count = layout.chunk_count
        have = Bitfield.of(count, range(count) if self.have is None else self.have)
        return SwarmEntry(blob, layout.id, have, Bitfield(count), self.is_fetching)

    async def _run(self, request: web.Request) -> web.StreamResponse:
        first, last = (int(text) for text in request.match_info["run"].split("-"))
        self.runs.append((first, last))
        await self._wait_if_silent()
        if self.hangs_runs:
            await self._released.wait()
            return web.Response(status=503)
        if self.run_status != 200:
            return web.json_response({"error": "Refused"}, status=self.run_status)
        content = self.contents[BlobDigest.parse(request.match_info["digest"])]
        layout = self.layout_of(sha256_name(content))
        chunks = []
        for index in range(first, last + 1):
            offset, length = layout.span_of(index, index)
            chunks.append(self.tamper(index, content[offset : offset + length]))
        claims = ",".join(self.claim or str(digest_of(chunk)) for chunk in chunks)
        response = web.StreamResponse(headers={"X-P2PCache-Chunks": claims})
        response.content_length = sum(map(len, chunks))
        await response.prepare(request)
        for number, chunk in enumerate(chunks):
            if number == self.vanishes_after:
                assert request.transport is not None
                request.transport.close()
                return response
            await response.write(chunk)
            self.sent_chunks += 1
        return response

    async def _document(self, request: web.Request) -> web.Response:
        self.asked.append(request.raw_path)
        await self._wait_if_silent()
        if request.raw_path not in self.documents:
            return web.json_response({"error": "NotFound"}, status=404)
        return web.json_response(self.documents[request.raw_path])


def sha256_name(content: bytes) -> BlobDigest:
    """Return the LFS name of some bytes."""
    return BlobDigest("sha256", hashlib.sha256(content).hexdigest())
