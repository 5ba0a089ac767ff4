"""
Owns a daemon that lies: `python -m bench.liar open|hidden … up …` is `p2pcache up` that sends
other bytes in every second chunk.

Knows nothing of who asks.
Invariants: what it stores and what it says it has is true; only what it sends is not.
Source: threats T1 and T4 of docs/explanation/trust-and-threats.md.
"""

from __future__ import annotations

import os
import sys

from p2pcache.__main__ import main
from p2pcache.core.digest import BlobDigest
from p2pcache.core.verify import digest_of
from p2pcache.engine.cache import Cache
from p2pcache.engine.shelf import ChunkRun

_open_run = Cache.open_run


async def open_false_run(
    cache: Cache, blob: BlobDigest, first: int, last: int, layout: str | None
) -> ChunkRun:
    """Return the run with one bit of every second chunk inverted."""
    run = await _open_run(cache, blob, first, last, layout)
    own = (await cache.get_table(blob)).layout
    content, digests, offset = bytearray(), list(run.digests), run.offset
    for place, index in enumerate(range(first, last + 1)):
        _, length = own.span_of(index, index)
        chunk = bytearray(os.pread(run.fd, length, offset))
        offset += length
        if index % 2:
            chunk[length // 2] ^= 1
            if HIDDEN:
                digests[place] = digest_of(bytes(chunk))
        content += chunk
    os.close(run.fd)
    copy = os.memfd_create("lie")
    with os.fdopen(os.dup(copy), "wb") as file:
        file.write(content)
    return ChunkRun(copy, 0, len(content), tuple(digests))


if __name__ == "__main__":
    HIDDEN = sys.argv[1] == "hidden"
    setattr(Cache, "open_run", open_false_run)  # noqa: B010 (mypy: a method is not assigned)
    # What stands between is the command that a truthful daemon is started with.
    sys.argv = ["p2pcache", *sys.argv[sys.argv.index("up") :]]
    main()
