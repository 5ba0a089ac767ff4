"""
Owns the tests of store.filelayout: the layout and the chunk table of files as they lie on a disk.

Knows nothing of the formats' rules (tests/core/test_tensors.py).
Invariants: no more than a head is read to find a layout; no content makes it raise.
Source: store/filelayout.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from p2pcache.core import tensors
from p2pcache.core.layout import FIXED_LAYOUT, Layout
from p2pcache.core.tensors import FIRST_HEAD_BYTES
from p2pcache.core.verify import digest_of
from p2pcache.store.filelayout import (
    find_file_layout,
    find_tensors,
    hash_file,
    read_bytes,
    read_into,
)
from tests.samples import Sample
from tests.tensorfiles import make_gguf, make_safetensors

pytestmark = pytest.mark.usefixtures("small_chunks", "small_parts")

SIZES = [9000, 300, 40, 40, 5000]
CONTENTS = {f"t{n}": Random(n).randbytes(4 * size) for n, size in enumerate(SIZES)}
SAFETENSORS = make_safetensors({n: ("F32", [len(c) // 4], c) for n, c in CONTENTS.items()})
GGUF = make_gguf(CONTENTS, ["word"] * 4000)
OpenFile = Callable[[bytes], int]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call a tensor of a KiB large."""
    monkeypatch.setattr(tensors, "LARGE_TENSOR_BYTES_MIN", 1024)


@pytest.fixture
def open_file(tmp_path: Path) -> Iterator[OpenFile]:
    """Write a file and open it, as often as needed; all are closed at the end."""
    opened: list[int] = []

    def open_one(content: bytes) -> int:
        path = tmp_path / f"file-{len(opened)}"
        path.write_bytes(content)
        opened.append(os.open(path, os.O_RDONLY))
        return opened[-1]

    yield open_one
    for fd in opened:
        os.close(fd)


def fail(*_: object) -> int:
    """Fail as a disk does."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("raw", [SAFETENSORS, GGUF], ids=["safetensors", "gguf"])
def test_file_with_tensors_is_cut_at_them(open_file: OpenFile, raw: bytes) -> None:
    """Every large tensor begins a chunk; the head is read in steps when it is long."""
    fd = open_file(raw)
    found = find_tensors(fd, len(raw))
    assert found is not None
    assert [tensor.name for tensor in found.tensors] == list(CONTENTS)
    for tensor in found.tensors:
        assert raw[tensor.start :].startswith(CONTENTS[tensor.name])
    layout = find_file_layout(fd, len(raw))
    assert layout == found.layout()
    assert layout.name != FIXED_LAYOUT
    starts = {layout.offset_of(index) for index in range(layout.chunk_count)}
    large = {tensor.start for tensor in found.tensors if tensor.length >= 1024}
    assert starts >= large


def test_only_the_head_is_read(open_file: OpenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout costs a few reads, however large the file is."""
    read: list[int] = []
    real = os.preadv

    def preadv(fd: int, views: list[memoryview], offset: int) -> int:
        read.append(offset + len(views[0]))
        return real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    raw = make_safetensors({"a": ("U8", [10 << 20], bytes(10 << 20))})
    assert find_tensors(open_file(raw), len(raw)) is not None
    assert read == [FIRST_HEAD_BYTES]
    read.clear()
    assert len(GGUF) - sum(map(len, CONTENTS.values())) > FIRST_HEAD_BYTES
    assert find_tensors(open_file(GGUF), len(GGUF)) is not None
    assert read == [FIRST_HEAD_BYTES, 4 * FIRST_HEAD_BYTES]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        bytes(4096),
        bytes(20_000),
        Random(1).randbytes(20_000),
        b"GGUF" + b"\xff" * 20_000,
        SAFETENSORS[:-1],
        SAFETENSORS + b"x",
        SAFETENSORS[:200],
    ],
)
def test_any_other_file_is_cut_every_step(open_file: OpenFile, content: bytes) -> None:
    """Empty, short, random, damaged: no error, the plain layout."""
    assert find_file_layout(open_file(content), len(content)) == Layout(len(content))


@pytest.mark.parametrize("kept_bytes", [0, 7, 100, FIRST_HEAD_BYTES - 1, FIRST_HEAD_BYTES + 1])
def test_file_that_is_shorter_than_it_should_be_ends_the_search(
    open_file: OpenFile, kept_bytes: int
) -> None:
    """A file that was cut behind our back is no reason to ask for ever."""
    fd = open_file(GGUF[:kept_bytes])
    assert find_tensors(fd, len(GGUF)) is None
    assert find_file_layout(fd, len(GGUF)) == Layout(len(GGUF))


@pytest.mark.parametrize("raw", [SAFETENSORS, GGUF, b"", bytes(5000)])
def test_hash_gives_the_digest_of_every_chunk_and_a_right_proof(
    open_file: OpenFile, raw: bytes
) -> None:
    """The table is that of the layout, and complete."""
    fd, blob = open_file(raw), Sample(raw).blob
    layout = find_file_layout(fd, len(raw))
    table, proof = hash_file(fd, blob, layout)
    assert proof.is_right()
    assert table.layout == layout
    for index in range(layout.chunk_count):
        start, length = layout.span_of(index, index)
        assert table.find(index) == digest_of(raw[start : start + length])


def test_hash_of_a_file_that_is_too_short_has_a_wrong_proof(open_file: OpenFile) -> None:
    """What cannot be read is not known."""
    layout = Layout(len(SAFETENSORS))
    table, proof = hash_file(open_file(SAFETENSORS[:-1]), Sample(SAFETENSORS).blob, layout)
    assert not proof.is_right()
    known = [digest is not None for digest in table]
    assert known == [True] * (layout.chunk_count - 1) + [False]


def test_hash_of_a_file_that_is_too_long_is_that_of_its_start(open_file: OpenFile) -> None:
    """More bytes are another's business: the size is compared by whoever knows it."""
    layout = Layout(len(SAFETENSORS))
    table, proof = hash_file(open_file(SAFETENSORS + b"x"), Sample(SAFETENSORS).blob, layout)
    assert proof.is_right()
    assert table.is_complete()


def test_hash_on_a_disk_that_fails_ends_there(
    open_file: OpenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that cannot read a chunk has damaged it; that is no exception."""
    fd, real = open_file(SAFETENSORS), os.preadv

    def preadv(fd: int, views: list[memoryview], offset: int) -> int:
        return fail() if offset >= 8192 else real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    blob, layout = Sample(SAFETENSORS).blob, Layout(len(SAFETENSORS))
    table, proof = hash_file(fd, blob, layout)
    assert not proof.is_right()
    assert [digest is not None for digest in table][:3] == [True, True, False]


def test_search_on_a_disk_that_fails_says_so(
    open_file: OpenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks for a layout is told that the disk failed; that is not a plain file."""
    fd = open_file(SAFETENSORS)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="Input/output"):
        find_file_layout(fd, len(SAFETENSORS))


def test_reads_in_pieces_are_put_together(
    open_file: OpenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel may return less than was asked for; only the end of the file ends a read."""
    fd, real = open_file(b"0123456789"), os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:3]], at))
    assert read_bytes(fd, 7, 2) == b"2345678"
    assert read_bytes(fd, 7, 5) == b"56789"
    assert read_bytes(fd, 7, 10) == b""
    buffer = bytearray(4)
    assert read_into(fd, memoryview(buffer), 8) == 2
    assert buffer == b"89\0\0"
