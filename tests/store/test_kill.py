"""
Owns the test that kills a writing process and looks at what it left.

Knows nothing of power cuts: the page cache survives a kill (test_partial.py plays those).
Invariants: whatever is reported as held has the right bytes.
Source: design.md §4.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from p2pcache.core import layout
from p2pcache.store.blobs import FileBlobStore
from tests.store.filler import CHUNK_COUNT, CHUNK_SIZE_BYTES, kill_sample

ROUNDS = 20


def run_and_kill(root: Path, seed: int, after_lines: int) -> None:
    """Start a child, wait until it put so many chunks, kill it at once."""
    command = [sys.executable, "-m", "tests.store.filler", str(root), str(seed)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        assert child.stdout is not None
        for _ in range(after_lines):
            assert child.stdout.readline() == b"+\n"
    finally:
        child.kill()
        child.communicate()


def test_partial_of_a_killed_process_reports_right_chunks_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty times killed at a random moment, every chunk that is held is right."""
    monkeypatch.setattr(layout, "CHUNK_SIZE_BYTES", CHUNK_SIZE_BYTES)
    random = Random(20240601)
    sample = kill_sample()
    store = FileBlobStore(tmp_path)
    held_counts = []
    for seed in range(ROUNDS):
        run_and_kill(tmp_path, seed, random.randrange(CHUNK_COUNT))
        partial = store.open_partial(sample.blob, sample.layout)
        state = partial.snapshot()
        for index in state.have:
            view = memoryview(bytearray(sample.layout.length_of(index)))
            partial.read_into(sample.layout.offset_of(index), view)
            is_forgettable = state.sources[index] != "upstream"
            expected = sample.wrong_chunk(index) if is_forgettable else sample.chunk(index)
            assert view == expected.view
            assert state.table.find(index) == expected.digest
        held_counts.append(len(state.have))
        partial.forget([i for i in state.have if random.random() < 0.5])
        partial.close()
    assert max(held_counts) > 0
