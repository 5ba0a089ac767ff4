"""
Owns the child process of the kill test: fills a partial until somebody kills it.

Knows nothing of the parent but its pipe: one line for every chunk that was put.
Invariants: equal seeds put the same chunks in the same order.
Source: test_kill.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from random import Random

from p2pcache.core import layout
from p2pcache.store.blobs import FileBlobStore
from tests.samples import PEER_ID, Sample, make_sample

CHUNK_SIZE_BYTES = 64 * 1024
CHUNK_COUNT = 60


def kill_sample() -> Sample:
    """Return the blob that parent and child know."""
    return make_sample(CHUNK_COUNT * CHUNK_SIZE_BYTES - 777)


def main(root: str, seed: str) -> None:
    """Put chunks, starts of chunks, wrong chunks that are forgotten again; flush now and then."""
    layout.CHUNK_SIZE_BYTES = CHUNK_SIZE_BYTES
    random = Random(int(seed))
    sample = kill_sample()
    store = FileBlobStore(Path(root))
    partial = store.open_partial(sample.blob, sample.layout)
    missing = [i for i in range(CHUNK_COUNT) if i not in partial.snapshot().have]
    while True:
        for index in random.sample(missing, len(missing)):
            if random.random() < 0.2:
                partial.put(sample.wrong_chunk(index), PEER_ID)
                partial.forget([index])
            if random.random() < 0.3:
                partial.put_prefix(index, memoryview(sample.bytes_of(index))[:5000], 0)
            partial.put(sample.chunk(index), "upstream")
            if random.random() < 0.2:
                partial.flush()
            os.write(1, b"+\n")
        partial.forget(missing)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
