"""
Owns a small run of the measure of a warm start.

Knows nothing of speeds: what came from the disk is counted by the kernel.
Invariants: skipped where the file system keeps its pages.
Source: bench/warm.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.model import make_model
from bench.warm import LOADERS, compare
from p2pcache.store.warming import list_snapshot_files

SIZE_BYTES = 12_000_000


@pytest.mark.parametrize("loader", LOADERS)
def test_warm_load_takes_nothing_from_the_disk(tmp_path: Path, loader: str) -> None:
    """All of it does, cold; warming reads it once."""
    files = list_snapshot_files(make_model(tmp_path, SIZE_BYTES).folder)
    found = compare(loader, files)
    if found.cold.disk_bytes == 0:
        pytest.skip("this file system keeps its pages, or does not count")
    assert found.cold.disk_bytes >= SIZE_BYTES * 0.9
    assert found.warming.bytes_read == SIZE_BYTES
    assert found.warm.disk_bytes == 0
