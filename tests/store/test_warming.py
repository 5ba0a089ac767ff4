"""
Owns tests of warming: what is planned, what is read, what the budget is.

Knows nothing of models.
Invariants: whether a page is cached is asked of the kernel, not of the clock.
Source: store/warming.py.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from p2pcache.store import warming
from p2pcache.store.pagecache import find_absent
from p2pcache.store.warming import (
    SPAN_BYTES,
    WarmSpan,
    find_budget,
    list_snapshot_files,
    plan_spans,
    warm_files,
)

A, B = Path("/a"), Path("/b")


@pytest.mark.parametrize(
    ("sizes", "budget_bytes", "spans"),
    [
        ([], 100, []),
        ([0, 5], 100, [WarmSpan(B, 0, 5)]),
        ([5, 5], 0, []),
        ([5, 5], 7, [WarmSpan(A, 0, 5), WarmSpan(B, 0, 2)]),
        ([SPAN_BYTES + 1, 5], SPAN_BYTES, [WarmSpan(A, 0, SPAN_BYTES)]),
        ([SPAN_BYTES + 1], 10**9, [WarmSpan(A, 0, SPAN_BYTES), WarmSpan(A, SPAN_BYTES, 1)]),
    ],
    ids=["nothing", "empty", "no-room", "part", "span", "two-spans"],
)
def test_plan_is_the_first_bytes_in_reading_order(
    sizes: list[int], budget_bytes: int, spans: list[WarmSpan]
) -> None:
    """Exactly the budget, or all."""
    assert plan_spans(list(zip((A, B), sizes, strict=False)), budget_bytes) == spans


@pytest.fixture
def cold(tmp_path: Path) -> tuple[Path, int]:
    """Return a file of 9 MB that is not in the page cache, and an open descriptor."""
    path = tmp_path / "cold.bin"
    path.write_bytes(random.Random(1).randbytes(9_000_000))
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if sum(length for _, length in find_absent(fd, 0, 9_000_000)) < 9_000_000:
        os.close(fd)
        pytest.skip("this file system keeps its pages")
    return path, fd


def count_absent(fd: int) -> int:
    """Return how many bytes of the file are not in the page cache."""
    return sum(length for _, length in find_absent(fd, 0, 9_000_000))


def test_cold_file_is_in_memory_afterwards_and_read_once(cold: tuple[Path, int]) -> None:
    """The second time there is nothing to read."""
    path, fd = cold
    warmth = warm_files([(path, 9_000_000)], 10**9)
    assert (warmth.bytes_warm, warmth.bytes_read) == (9_000_000, 9_000_000)
    assert count_absent(fd) == 0
    again = warm_files([(path, 9_000_000)], 10**9)
    assert (again.bytes_warm, again.bytes_read) == (9_000_000, 0)
    os.close(fd)


def test_warming_keeps_within_the_budget(cold: tuple[Path, int]) -> None:
    """What comes after it stays on the disk, but for what the kernel reads ahead."""
    path, fd = cold
    warmth = warm_files([(path, 9_000_000)], SPAN_BYTES)
    assert (warmth.bytes_warm, warmth.bytes_total) == (SPAN_BYTES, 9_000_000)
    assert not find_absent(fd, 0, SPAN_BYTES)
    assert count_absent(fd) > 9_000_000 - 2 * SPAN_BYTES
    os.close(fd)


def test_what_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    """A favour is never a failure."""
    here = tmp_path / "here"
    here.write_bytes(b"12345")
    warmth = warm_files([(tmp_path / "gone", 7), (here, 5)], 100)
    assert (warmth.bytes_warm, warmth.bytes_total) == (5, 12)


def test_files_of_a_snapshot_are_listed_as_loaders_read_them(tmp_path: Path) -> None:
    """Small ones, then the weights by name; links are followed, broken ones are not there."""
    blob = tmp_path / "blob"
    blob.write_bytes(bytes(SPAN_BYTES + 1))
    folder = tmp_path / "snapshot"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.safetensors", "a.safetensors", "sub/c.safetensors"):
        (folder / name).symlink_to(blob)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "gone").symlink_to(tmp_path / "nothing")
    listed = [path.relative_to(folder).as_posix() for path, _ in list_snapshot_files(folder)]
    assert listed == ["tokenizer.json", "a.safetensors", "b.safetensors", "sub/c.safetensors"]


def test_files_that_a_pull_does_not_bring_are_not_warmed(tmp_path: Path) -> None:
    """They are here since somebody else pulled them: another quantization, a second format."""
    for name in ("q4.gguf", "q8.gguf", "model.safetensors", "pytorch_model.bin", "config.json"):
        (tmp_path / name).write_bytes(bytes(1000))

    def names(*patterns: tuple[str, ...]) -> list[str]:
        return [path.name for path, _ in list_snapshot_files(tmp_path, *patterns)]

    assert names() == ["config.json", "model.safetensors"]
    assert names(("*q4*",)) == ["q4.gguf"]
    assert "pytorch_model.bin" in names(("*",), ("*.gguf",))


def test_budget_is_a_share_of_what_the_tightest_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MemAvailable, or a container's limit less what it uses and cannot give back."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 99 kB\nMemAvailable:    1000 kB\n")
    monkeypatch.setattr(warming, "_MEMINFO", meminfo)
    names = warming._CGROUP_V2
    monkeypatch.setattr(warming, "_iter_cgroups", lambda: [(tmp_path, names)])
    assert find_budget(0.5) == 512_000
    (tmp_path / "memory.max").write_text("max\n")
    assert find_budget(0.5) == 512_000
    (tmp_path / "memory.max").write_text("300000\n")
    (tmp_path / "memory.current").write_text("250000\n")
    (tmp_path / "memory.stat").write_text("anon 100000\nfile 150000\n")
    assert find_budget(0.5) == 100_000
    meminfo.write_text("nothing\n")
    assert find_budget(0.5) == 0
