"""
Owns fetching runs of chunks from the hub, through its redirects.

Knows nothing of model references: it is given an address, and a token for the hub alone.
Invariants: a signed address is used while it works and never kept as a name; a 206 must be
exactly the range that was asked for; a token leaves for the hub's own origin only.
Source: docs/reference/hub-dialect.md; RFC 9110 §14 and §15.3.7.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus

from p2pcache.clock import Clock, SystemClock
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.ranges import parse_content_range
from p2pcache.core.upstream import (
    REDIRECT_STATUSES,
    REDIRECTS_MAX,
    UpstreamLocation,
    error_of_answer,
    follow_redirect,
    origin_of,
)
from p2pcache.core.verify import verify_chunk
from p2pcache.core.views import UPSTREAM, RunRequest
from p2pcache.errors import UpstreamProtocolError, UpstreamUnreachableError
from p2pcache.transfer.base import ChunkSink
from p2pcache.transfer.buffers import thread_buffer
from p2pcache.transfer.connection import PIECE_BYTES, BodyError, ConnectionPool, Exchange, Line

# What a crash or a cancelled run costs on a slow line, for each connection: the start of a chunk
# is kept this often. A fast line finishes a chunk sooner, and pays nothing for it.
PREFIX_INTERVAL_S = 0.05

# Some hubs send a file that lives in git whole, whatever range was asked for. Such files are small:
# reading up to the range costs less than not having the file. Larger ones are never kept in git.
SKIPPED_BYTES_MAX = 64 * 1024 * 1024

# Told of the status and the headers of what the hub itself answers, for its words on limits.
AnswerListener = Callable[[int, Mapping[str, str]], None]


class _SignedAddress:
    """Where the hub's last redirect led; None when that is not known, or does not work any more."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.url: str | None = None


class UpstreamSource:
    """The hub, for one blob. Implements Source."""

    source_id = UPSTREAM

    def __init__(
        self,
        location: UpstreamLocation,
        pool: ConnectionPool,
        clock: Clock | None = None,
        on_answer: AnswerListener | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._on_answer = on_answer
        self._location = location
        self._line = Line(pool)
        self._pool = pool
        self._signed = _SignedAddress()

    def fork(self) -> UpstreamSource:
        """Return a source for one more run: cut on its own, the signed address in common."""
        other = UpstreamSource(self._location, self._pool, self._clock, self._on_answer)
        other._signed = self._signed
        return other

    def close(self) -> None:
        """Cut the runs under way; the shared pool stays open."""
        self._line.cut()

    def fetch_run(self, blob: BlobDigest, layout: Layout, run: RunRequest, sink: ChunkSink) -> None:
        """Fetch a run, going on after the start of its first chunk that is already here."""
        offset, length = layout.span_of(run.first, run.last)
        first_length = layout.length_of(run.first)
        resumed = sink.resume(run.first, thread_buffer()[:first_length])
        try:
            start = offset + resumed
            exchange = self._open(start, length - resumed, layout.size_bytes, may_skip=True)
        except BodyError as error:
            raise UpstreamUnreachableError(
                f"The hub does not answer for {self._location.what} ({error}); "
                "check the network, then ask again."
            ) from error
        try:
            for index in run.chunk_indexes:
                self._read_chunk(exchange, blob, layout, index, resumed, sink)
                resumed = 0
        except BodyError as error:
            exchange.fail()
            raise UpstreamUnreachableError(
                f"The hub broke off {self._location.what} ({error}); going on from there."
            ) from error
        except BaseException:
            exchange.fail()
            raise
        exchange.finish()

    def read_range(self, start: int, length: int, total: int, *, may_skip: bool = False) -> bytes:
        """
        Fetch a few bytes: a file's head, or a probe.

        Args:
            start: Of the first byte.
            length: How many, thread_buffer() at most.
            total: The file's size.
            may_skip: Whether a hub without ranges may send what comes before as well.

        Raises:
            SourceError: The hub did not do its part.
        """
        content = thread_buffer()[:length]
        try:
            exchange = self._open(start, length, total, may_skip=may_skip)
        except BodyError as error:
            raise UpstreamUnreachableError(
                f"The hub does not answer for {self._location.what} ({error}); "
                "check the network, then ask again."
            ) from error
        try:
            exchange.read_into(content)
        except BodyError as error:
            exchange.fail()
            raise UpstreamUnreachableError(
                f"The hub broke off {self._location.what} ({error}); ask again."
            ) from error
        exchange.finish()
        return bytes(content)

    def _read_chunk(
        self,
        exchange: Exchange,
        blob: BlobDigest,
        layout: Layout,
        chunk_index: int,
        resumed: int,
        sink: ChunkSink,
    ) -> None:
        content = thread_buffer()[: layout.length_of(chunk_index)]
        arrived = written = resumed
        kept_s = self._clock.monotonic_s()
        while arrived < len(content):
            try:
                count = exchange.read_some(content[arrived : arrived + sink.piece_bytes_max])
            except BodyError:
                if arrived > written:
                    sink.keep_prefix(chunk_index, content[:arrived], written)
                raise
            arrived += count
            now_s = self._clock.monotonic_s()
            if arrived < len(content) and now_s - kept_s >= PREFIX_INTERVAL_S:
                sink.keep_prefix(chunk_index, content[:arrived], written)
                written, kept_s = arrived, now_s
            sink.note_progress(count)
        chunk = verify_chunk(
            blob, layout, chunk_index, content, expected=None, source_id=self.source_id
        )
        sink.deliver(chunk)

    def _open(self, start: int, length: int, total: int, *, may_skip: bool = False) -> Exchange:
        """Ask for bytes start..start+length-1; a signed address that expired is renewed once."""
        with self._signed.lock:
            signed_url = self._signed.url
        if signed_url is not None:
            exchange = self._try_signed(signed_url, start, length, total)
            if exchange is not None:
                return exchange
            with self._signed.lock:
                self._signed.url = None
        return self._open_at_hub(start, length, total, may_skip=may_skip)

    def _try_signed(self, signed_url: str, start: int, length: int, total: int) -> Exchange | None:
        """Use the address that worked before; None when it does not any more, for any reason."""
        try:
            exchange = self._line.request(signed_url, self._range(start, length, total))
            if exchange.response.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
                return self._check_head(exchange, start, length, total)
        except (*BodyError, UpstreamProtocolError):
            return None
        exchange.fail()
        return None

    def _open_at_hub(self, start: int, length: int, total: int, *, may_skip: bool) -> Exchange:
        location = self._location
        url = location.resolve_url
        may_send_token = origin_of(url) == origin_of(location.hub_url)
        for _ in range(REDIRECTS_MAX + 1):
            headers = self._range(start, length, total)
            if may_send_token:
                headers.update(location.headers)
            exchange = self._line.request(url, headers)
            status = exchange.response.status
            if may_send_token and self._on_answer is not None:
                self._on_answer(status, dict(exchange.response.headers.items()))
            if status in REDIRECT_STATUSES:
                target = exchange.response.headers.get("Location")
                exchange.skip_body()
                hop = follow_redirect(location.hub_url, url, target)
                url, may_send_token = hop.url, hop.may_send_token
                continue
            if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
                answer = dict(exchange.response.headers.items())
                exchange.fail()
                has_token = "Authorization" in location.headers
                raise error_of_answer(status, answer, location.what, has_token=has_token)
            if not may_send_token:
                with self._signed.lock:
                    self._signed.url = url
            return self._check_head(exchange, start, length, total, may_skip=may_skip)
        raise UpstreamProtocolError(f"The hub redirects {location.what} in a circle.")

    @staticmethod
    def _skip(exchange: Exchange, count: int) -> None:
        """Read past bytes that were not asked for, without a buffer that anybody else uses."""
        piece = memoryview(bytearray(min(count, PIECE_BYTES)))
        while count:
            count -= exchange.read_some(piece[: min(count, len(piece))])

    @staticmethod
    def _range(start: int, length: int, total: int) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}
        if (start, length) != (0, total):
            headers["Range"] = f"bytes={start}-{start + length - 1}"
        return headers

    def _check_head(
        self, exchange: Exchange, start: int, length: int, total: int, *, may_skip: bool = False
    ) -> Exchange:
        """Insist on exactly the range, or on the whole file, of which what comes before is read."""
        response = exchange.response
        is_whole = response.status == HTTPStatus.OK and response.length in (total, None)
        is_small = may_skip and response.length == total <= SKIPPED_BYTES_MAX
        try:
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise UpstreamProtocolError(f"The hub compressed {self._location.what}; refused.")
            if response.status == HTTPStatus.PARTIAL_CONTENT:
                got = parse_content_range(response.headers.get("Content-Range"))
                if (got.start, got.length, got.total) != (start, length, total):
                    raise UpstreamProtocolError(
                        f"The hub sent bytes {got.start}-{got.end}/{got.total} of "
                        f"{self._location.what} instead of {start}-{start + length - 1}/{total}."
                    )
            elif start != 0 and is_whole and is_small:
                self._skip(exchange, start)
            elif start != 0 or not is_whole:
                raise UpstreamProtocolError(
                    f"The hub sent {response.length} bytes of {self._location.what} from its "
                    f"start instead of {length} from {start}."
                )
        except (*BodyError, UpstreamProtocolError):
            exchange.fail()
            raise
        return exchange
