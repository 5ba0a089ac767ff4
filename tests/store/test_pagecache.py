"""
Owns the tests of store.pagecache, where the system does not answer as hoped.

Knows nothing of checks; test_check.py shows that the page cache stays as it was.
Invariants: what cannot be told counts as cached, and stays.
Source: store/pagecache.py.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from p2pcache.store import pagecache
from p2pcache.store.pagecache import find_absent, read_gently

CONTENT = bytes(range(256)) * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of four pages."""
    made = tmp_path / "file"
    made.write_bytes(CONTENT)
    return made


def test_pagecache_of_what_cannot_be_mapped_is_left_alone(tmp_path: Path, path: Path) -> None:
    """A folder, or nothing at all, has no pages to drop."""
    fd = os.open(tmp_path, os.O_RDONLY)
    assert find_absent(fd, 0, 4096) == []
    os.close(fd)
    with path.open("rb") as file:
        assert find_absent(file.fileno(), 0, 0) == []


def test_pagecache_beyond_the_end_of_a_file_does_no_harm(path: Path) -> None:
    """A file that is shorter than it was is read as far as it goes."""
    view = memoryview(bytearray(3 * len(CONTENT)))
    with path.open("rb") as file:
        assert read_gently(file.fileno(), view, 100) == len(CONTENT) - 100
    assert view[: len(CONTENT) - 100] == CONTENT[100:]


def test_pagecache_that_nobody_may_look_at_is_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that refuses mincore has its pages left where they are."""
    libc = pagecache._Libc()
    libc.mincore = lambda *_: -1  # type: ignore[assignment]
    monkeypatch.setattr(pagecache, "_load_libc", lambda: libc)
    with path.open("rb") as file:
        assert find_absent(file.fileno(), 0, len(CONTENT)) == []


def test_pagecache_without_a_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python cannot call the system, files are read all the same."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert pagecache._load_libc.__wrapped__() is None
