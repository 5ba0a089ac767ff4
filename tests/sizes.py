"""
Owns the blob sizes that tests of layouts, stores and sources are run with.

Knows nothing of who uses them.
Invariants: every size has a reason; the list stays small enough to run all of it.
Source: core.layout.CHUNK_SIZE_BYTES.
"""

from __future__ import annotations

from p2pcache.core.layout import CHUNK_SIZE_BYTES

_REASONS = {
    0: "an empty file has no chunk at all, and is still a file",
    1: "the least that needs a chunk",
    511: "below a disk sector",
    4096: "exactly a page",
    CHUNK_SIZE_BYTES - 1: "one chunk, one byte short",
    CHUNK_SIZE_BYTES: "exactly one chunk: no empty second one",
    CHUNK_SIZE_BYTES + 1: "a last chunk of one byte",
    2 * CHUNK_SIZE_BYTES: "two whole chunks",
    3 * CHUNK_SIZE_BYTES - 7: "a last chunk that is neither whole nor tiny",
}

INTERESTING_SIZES_BYTES = tuple(_REASONS)
