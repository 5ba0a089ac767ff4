"""
Owns the heads of weight files that were read at the hub: the bytes for a while, what they say for
good.

Knows nothing of who asks: the layout of a fetch, or the facts about a model.
Invariants: a head is read once while two want it at the same time; kept heads are bounded; what is
recorded follows from bytes of the hub or from a proven file.
Source: core/tensors.py; design.md §8 (weights).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import CHUNK_SIZE_BYTES
from p2pcache.core.tensors import (
    FIRST_HEAD_BYTES,
    MoreHead,
    TensorList,
    TensorMap,
    list_tensors,
    map_tensors,
)
from p2pcache.core.weights import FileWeights, measure_weights
from p2pcache.engine.single import SingleFlight

if TYPE_CHECKING:
    from p2pcache.engine.context import Context

# Heads wait here for the fetch of their file: those of a large model's files, or one of GGUF's,
# which have some ten MB. The oldest go, and are read again if their fetch comes after all.
KEPT_BYTES_MAX = 32 * 1024 * 1024

# Reads some bytes of a file at an offset.
ReadRange = Callable[[int, int], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Head:
    """A file's first bytes, as many as its format wanted, and where its tensors lie."""

    content: bytes
    tensors: TensorMap | None


class Heads:
    """All heads of this daemon. Event loop only."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._flights = SingleFlight()
        self._kept: OrderedDict[BlobDigest, Head] = OrderedDict()
        self._kept_bytes = 0

    def find(self, blob: BlobDigest) -> Head | None:
        """Return a head that was read lately."""
        return self._kept.get(blob)

    def forget(self, blob: BlobDigest) -> None:
        """Let go of a head that nobody waits for any more."""
        head = self._kept.pop(blob, None)
        self._kept_bytes -= 0 if head is None else len(head.content)

    async def read(self, blob: BlobDigest, size_bytes: int, read_range: ReadRange) -> Head:
        """
        Return a file's head, reading as little of it as its format allows. Raises as read_range.

        Args:
            blob: Which file.
            size_bytes: How many bytes it has.
            read_range: Gives (offset, length); asked for a chunk at most.
        """
        kept = self._kept.get(blob)
        if kept is not None:
            return kept
        return await self._flights.run(blob, lambda: self._read(blob, size_bytes, read_range))

    async def close(self) -> None:
        """Stop reading."""
        await self._flights.close()

    async def _read(self, blob: BlobDigest, size_bytes: int, read_range: ReadRange) -> Head:
        content, wanted = bytearray(), min(FIRST_HEAD_BYTES, size_bytes)
        while True:
            while len(content) < wanted:
                length = min(wanted - len(content), CHUNK_SIZE_BYTES)
                content += await read_range(len(content), length)
            found, weights = await self._context.in_bulk(_parse, content, size_bytes)
            if not isinstance(found, MoreHead):
                break
            wanted = found.head_bytes
        await self._context.index.call(lambda index: index.weights.put(blob, weights))
        head = Head(bytes(content), found)
        self._keep(blob, head)
        return head

    def _keep(self, blob: BlobDigest, head: Head) -> None:
        if len(head.content) > KEPT_BYTES_MAX:
            return
        self.forget(blob)
        self._kept[blob] = head
        self._kept_bytes += len(head.content)
        while self._kept_bytes > KEPT_BYTES_MAX:
            self.forget(next(iter(self._kept)))


def _parse(
    content: bytearray, size_bytes: int
) -> tuple[TensorMap | MoreHead | None, FileWeights | None]:
    """Return where the tensors are and what they sum up to, parsed once; in a bulk thread."""
    listed = list_tensors(content, size_bytes)
    if not isinstance(listed, TensorList):
        return listed, None
    return map_tensors(listed), measure_weights(listed)
