"""
Owns the tests of store.disk: writing everything, copying inside the kernel and around it, errors.

Knows nothing of blobs.
Invariants: bytes arrive whole or the failure is told; a missing ability of a file system is worked
around.
Source: store/disk.py; copy_file_range(2), posix_fallocate(3).
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from p2pcache.core.layout import CHUNK_SIZE_BYTES
from p2pcache.errors import StoreError, StoreFullError
from p2pcache.store.disk import (
    copy_range,
    open_writable,
    reserve,
    store_error,
    sync_directory,
    try_set_mode,
    write_all,
)

CONTENT = Random(3).randbytes(3 * 4096 + 100)
OpenFile = Callable[..., int]


@pytest.fixture
def open_file() -> Iterator[OpenFile]:
    """Open files for reading and writing; all are closed at the end."""
    opened: list[int] = []

    def open_one(path: Path, content: bytes = b"") -> int:
        path.write_bytes(content)
        opened.append(os.open(path, os.O_RDWR))
        return opened[-1]

    yield open_one
    for fd in opened:
        os.close(fd)


def fail_with(number: int) -> Callable[..., int]:
    """Make a system call that fails."""

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


# --- copying ---


@pytest.mark.parametrize(
    ("source_offset", "offset", "length"),
    [(0, 0, len(CONTENT)), (5, 4096, 7), (4096, 0, 4096), (1, 3, 9000), (0, 0, 0)],
)
@pytest.mark.parametrize("is_inside", [True, False], ids=["inside", "through memory"])
def test_copy_moves_exactly_the_bytes(
    open_file: OpenFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source_offset: int,
    offset: int,
    length: int,
    is_inside: bool,
) -> None:
    """Any place to any other; what lies around it stays, and so do both files' positions."""
    if not is_inside:
        monkeypatch.setattr(os, "copy_file_range", fail_with(errno.EXDEV))
    source, target = open_file(tmp_path / "a", CONTENT), open_file(tmp_path / "b", bytes(20_000))
    assert copy_range(source, source_offset, target, offset, length)
    expected = bytearray(20_000)
    expected[offset : offset + length] = CONTENT[source_offset : source_offset + length]
    assert (tmp_path / "b").read_bytes() == expected
    assert os.lseek(source, 0, os.SEEK_CUR) == os.lseek(target, 0, os.SEEK_CUR) == 0


@pytest.mark.parametrize("is_inside", [True, False], ids=["inside", "through memory"])
@pytest.mark.parametrize("source_offset", [len(CONTENT) - 10, len(CONTENT), len(CONTENT) + 10])
def test_copy_from_a_file_that_ends_early_says_so(
    open_file: OpenFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source_offset: int,
    is_inside: bool,
) -> None:
    """It does not wait for more, nor take zeros for bytes."""
    if not is_inside:
        monkeypatch.setattr(os, "copy_file_range", fail_with(errno.EINVAL))
    source, target = open_file(tmp_path / "a", CONTENT), open_file(tmp_path / "b")
    assert not copy_range(source, source_offset, target, 0, 20)


@pytest.mark.parametrize(
    "number", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF]
)
def test_copy_where_the_kernel_cannot_goes_through_memory(
    open_file: OpenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Other file systems, old kernels: a copy all the same, in bounded pieces."""
    pieces: list[int] = []
    real = os.pread

    def pread(fd: int, length: int, offset: int) -> bytes:
        pieces.append(length)
        return real(fd, length, offset)

    monkeypatch.setattr(os, "copy_file_range", fail_with(number))
    monkeypatch.setattr(os, "pread", pread)
    content = Random(5).randbytes(2 * CHUNK_SIZE_BYTES + 5)
    source, target = open_file(tmp_path / "a", content), open_file(tmp_path / "b")
    assert copy_range(source, 0, target, 0, len(content))
    assert (tmp_path / "b").read_bytes() == content
    assert max(pieces) <= CHUNK_SIZE_BYTES


def test_copy_between_two_file_systems(
    open_file: OpenFile, tmp_path: Path, tiny_disk: Path
) -> None:
    """With a real second one."""
    source, target = open_file(tmp_path / "a", CONTENT), open_file(tiny_disk / "b")
    assert copy_range(source, 100, target, 50, 9000)
    assert (tiny_disk / "b").read_bytes() == bytes(50) + CONTENT[100:9100]


def test_copy_in_pieces_goes_on(
    open_file: OpenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may copy or write less than was asked for, and change its mind in the middle."""
    real, calls = os.copy_file_range, 0

    def copy(source: int, target: int, length: int, *offsets: int) -> int:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            raise OSError(errno.EXDEV, "not this time")
        return real(source, target, min(length, 1000), *offsets)

    real_pwrite = os.pwrite
    monkeypatch.setattr(os, "copy_file_range", copy)
    monkeypatch.setattr(os, "pwrite", lambda fd, view, at: real_pwrite(fd, view[:300], at))
    monkeypatch.setattr("p2pcache.store.disk.CHUNK_SIZE_BYTES", 700)
    source, target = open_file(tmp_path / "a", CONTENT), open_file(tmp_path / "b")
    assert copy_range(source, 0, target, 0, len(CONTENT))
    assert (tmp_path / "b").read_bytes() == CONTENT


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EPERM])
def test_copy_on_a_disk_that_fails_is_an_error(
    open_file: OpenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A failure is not taken for a missing ability, and not tried again by another way."""
    monkeypatch.setattr(os, "copy_file_range", fail_with(number))
    source, target = open_file(tmp_path / "a", CONTENT), open_file(tmp_path / "b")
    with pytest.raises(OSError, match=os.strerror(number)):
        copy_range(source, 0, target, 0, 100)
    assert (tmp_path / "b").read_bytes() == b""


def test_copy_through_memory_to_a_full_disk_is_an_error(
    open_file: OpenFile, tmp_path: Path, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written in part is written on, until the disk says no."""
    monkeypatch.setattr(os, "copy_file_range", fail_with(errno.EXDEV))
    content = Random(6).randbytes(16 << 20)
    source, target = open_file(tmp_path / "a", content), open_file(tiny_disk / "b")
    with pytest.raises(OSError, match="No space"):
        copy_range(source, 0, target, 0, len(content))


# --- the rest ---


def test_write_all_goes_on_after_a_part(
    open_file: OpenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write may take less than it was given."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, view: real(fd, bytes(view[:1000])))
    fd = open_file(tmp_path / "a")
    write_all(fd, CONTENT)
    write_all(fd, b"")
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("number", "kind", "advice"),
    [
        (errno.ENOSPC, StoreFullError, "free some space"),
        (errno.EDQUOT, StoreFullError, "free some space"),
        (errno.EMFILE, StoreError, "ulimit -n"),
        (errno.ENFILE, StoreError, "ulimit -n"),
        (errno.EROFS, StoreError, "read-only"),
        (errno.EIO, StoreError, "system's log"),
    ],
)
def test_store_error_says_what_to_do(number: int, kind: type[StoreError], advice: str) -> None:
    """Full, too many open files, read-only and broken are told apart."""
    error = store_error(OSError(number, os.strerror(number)), Path("/store/x"))
    assert type(error) is kind
    assert advice in str(error)
    assert "/store/x" in str(error)


def test_reserved_room_counts_at_once(open_file: OpenFile, tmp_path: Path) -> None:
    """A file of the right size with its blocks; one that has the size already is left alone."""
    fd = open_file(tmp_path / "a")
    reserve(fd, 100_000)
    status = os.fstat(fd)
    assert status.st_size == 100_000
    assert status.st_blocks * 512 >= 100_000
    reserve(fd, 50)
    assert os.fstat(fd).st_size == 50
    reserve(fd, 0)
    assert os.fstat(fd).st_size == 0


def test_room_that_is_there_is_not_reserved_again(
    open_file: OpenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full now must not stop a file that has its room."""
    monkeypatch.setattr(os, "posix_fallocate", fail_with(errno.ENOSPC))
    fd = open_file(tmp_path / "a", bytes(100))
    reserve(fd, 100)
    assert os.fstat(fd).st_size == 100


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_room_that_cannot_be_reserved_is_an_error(
    open_file: OpenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Before the first byte is fetched."""
    monkeypatch.setattr(os, "posix_fallocate", fail_with(number))
    fd = open_file(tmp_path / "a")
    with pytest.raises(OSError, match=os.strerror(number)):
        reserve(fd, 100)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_mode_that_a_file_system_cannot_keep_is_passed_over(
    open_file: OpenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """FAT and some network shares have one mode for all files."""
    fd = open_file(tmp_path / "a")
    for file in (tmp_path / "a", fd):
        for call in ("chmod", "fchmod"):
            monkeypatch.setattr(os, call, fail_with(number))
        try_set_mode(file, 0o400)
        for call in ("chmod", "fchmod"):
            monkeypatch.setattr(os, call, fail_with(errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            try_set_mode(file, 0o400)


def test_mode_is_set_by_path_and_by_descriptor(open_file: OpenFile, tmp_path: Path) -> None:
    """Both mean the file itself."""
    fd = open_file(tmp_path / "a")
    try_set_mode(fd, 0o400)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o400
    try_set_mode(tmp_path / "a", 0o644)
    assert os.fstat(fd).st_mode & 0o777 == 0o644


def test_file_that_a_crash_left_read_only_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mode is ours to change, just before the rename that did not happen."""
    path = tmp_path / "a"
    path.write_bytes(b"x")
    path.chmod(0o444)
    real = os.open

    def open_as_a_user(target: Any, flags: int, mode: int = 0o777) -> int:
        if Path(target).exists() and not Path(target).stat().st_mode & 0o200:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
        return real(target, flags, mode)

    monkeypatch.setattr(os, "open", open_as_a_user)
    os.close(open_writable(path, os.O_RDWR))
    os.close(open_writable(tmp_path / "new", os.O_RDWR | os.O_CREAT))
    assert path.stat().st_mode & 0o777 == 0o600


def test_names_in_a_folder_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a descriptor of the folder, which is closed whatever happens."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    sync_directory(tmp_path)
    assert synced == [str(tmp_path)]
    monkeypatch.setattr(os, "fsync", fail_with(errno.EIO))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Input/output"):
        sync_directory(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def sharing_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system whose files can share blocks (XFS, then btrfs); skips where there is none."""
    image, mount_point = tmp_path / "image", tmp_path / "sharing"
    mount_point.mkdir()
    for make in (["mkfs.xfs", "-q", "-m", "reflink=1"], ["mkfs.btrfs", "-q"]):
        image.write_bytes(b"")
        os.truncate(image, 400 << 20)
        try:
            for command in (
                [*make, str(image)],
                ["mount", "-o", "loop", str(image), str(mount_point)],
            ):
                subprocess.run(command, check=True, capture_output=True)
            break
        except (OSError, subprocess.CalledProcessError):
            image.unlink()
    else:
        pytest.skip("no file system that shares blocks can be made and mounted here")
    yield mount_point
    subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


def test_copy_where_blocks_can_be_shared_takes_no_room(
    open_file: OpenFile, sharing_disk: Path
) -> None:
    """At offsets of whole blocks the kernel shares them; the bytes are the same."""
    content = Random(7).randbytes(64 << 20)
    source = open_file(sharing_disk / "a", content)
    os.fsync(source)
    before = os.statvfs(sharing_disk).f_bfree
    target = open_file(sharing_disk / "b")
    assert copy_range(source, 0, target, 0, len(content))
    os.fsync(target)
    taken = (before - os.statvfs(sharing_disk).f_bfree) * os.statvfs(sharing_disk).f_bsize
    assert (sharing_disk / "b").read_bytes() == content
    assert taken < len(content) // 8
