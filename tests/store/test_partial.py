"""
Owns the tests of store.partial: what is believed after a crash, and what happens on a bad disk.

Knows nothing of sources. A crash is played by keeping a part of the record, or by changing bytes
that no commit covers, before the partial is opened again.
Invariants: a record that is false never survives an open; what a commit covers is kept.
Source: store/partial.py; docs/reference/store-layout.md.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pcache.core.layout import Layout
from p2pcache.core.verify import VerifiedChunk, digest_of, verify_chunk
from p2pcache.errors import StoreError, StoreFullError
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.disk import CopyPlace
from p2pcache.store.havelog import RECORD_SIZE_BYTES, Kind, header_to_bytes, iter_records
from p2pcache.store.partial import LIKENESS_SOURCE, FilePartial
from tests.samples import PEER_ID, Sample, make_sample

HEADER_SIZE_BYTES = len(header_to_bytes(Layout(0)))
pytestmark = pytest.mark.usefixtures("small_chunks")

SAMPLE = make_sample(6 * 4096 - 100)
Opener = Callable[[], FilePartial]


@pytest.fixture
def open_partial(tmp_path: Path) -> Iterator[Opener]:
    """Open the sample's partial, as often as needed; all are closed at the end."""
    opened: list[FilePartial] = []

    def open_one() -> FilePartial:
        opened.append(
            FilePartial(tmp_path / "data", tmp_path / "data.have", SAMPLE.blob, SAMPLE.layout)
        )
        return opened[-1]

    yield open_one
    for partial in opened:
        partial.close()


def held(partial: FilePartial) -> list[int]:
    """List the chunks that a partial says it holds."""
    return list(partial.snapshot().have)


def assert_true_to_disk(partial: FilePartial, sample: Sample = SAMPLE) -> None:
    """Every chunk that is reported has the digest that is reported for it."""
    state = partial.snapshot()
    for index in state.have:
        view = memoryview(bytearray(sample.layout.length_of(index)))
        partial.read_into(sample.layout.offset_of(index), view)
        assert digest_of(view) == state.table.find(index), index


def cut_record(partial: FilePartial, record_count: int, extra_bytes: int = 0) -> None:
    """Lose the end of the record, as a power cut may."""
    size = HEADER_SIZE_BYTES + record_count * RECORD_SIZE_BYTES + extra_bytes
    os.truncate(partial.record_path, size)


def damage(partial: FilePartial, chunk_index: int) -> None:
    """Change bytes of a chunk behind the partial's back, as a lost write does."""
    with partial.path.open("r+b") as file:
        file.seek(SAMPLE.layout.offset_of(chunk_index))
        file.write(b"\0" * 50)


# --- recovery ---


def test_partial_committed_chunks_are_believed(open_partial: Opener) -> None:
    """What a flush covered is held after a crash, with digest and source."""
    partial = open_partial()
    partial.put(SAMPLE.chunk(0), "upstream")
    partial.put(SAMPLE.chunk(5), PEER_ID)
    partial.flush()
    again = open_partial()
    assert held(again) == [0, 5]
    assert again.snapshot().sources == {0: "upstream", 5: PEER_ID}
    assert_true_to_disk(again)


def test_partial_uncommitted_chunk_is_hashed_again(open_partial: Opener) -> None:
    """A record without a commit is believed only if the bytes are really there."""
    partial = open_partial()
    partial.put(SAMPLE.chunk(0), PEER_ID)
    partial.flush()
    partial.put(SAMPLE.chunk(1), PEER_ID)
    partial.put(SAMPLE.chunk(2), PEER_ID)
    damage(partial, 2)
    again = open_partial()
    assert held(again) == [0, 1]
    assert_true_to_disk(again)


def test_partial_committed_chunk_is_not_hashed_again(
    open_partial: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large partial opens fast: what is durable is not read."""
    partial = open_partial()
    for chunk in SAMPLE.chunks():
        partial.put(chunk, PEER_ID)
    partial.flush()

    def refuse(_: object) -> None:
        pytest.fail("a committed chunk was hashed")

    monkeypatch.setattr("p2pcache.store.partial.digest_of", refuse)
    assert len(held(open_partial())) == 6


@pytest.mark.parametrize("record_count", range(8))
@pytest.mark.parametrize("extra_bytes", [0, 1, RECORD_SIZE_BYTES - 1])
def test_partial_record_cut_anywhere_reports_nothing_false(
    open_partial: Opener, record_count: int, extra_bytes: int
) -> None:
    """The log may end after any byte; bytes that no surviving commit covers may be lost."""
    partial = open_partial()
    for index in (0, 1):
        partial.put(SAMPLE.chunk(index), PEER_ID)
    partial.flush()
    for index in (2, 3, 4):
        partial.put(SAMPLE.chunk(index), PEER_ID)
    partial.flush()
    cut_record(partial, record_count, extra_bytes)
    lost = 3 if record_count < 7 else None
    if lost is not None:
        damage(partial, lost)
    again = open_partial()
    assert held(again) == [i for i in range(min(record_count, 7)) if i < 2] + [
        i for i in (2, 3, 4) if i < record_count - 1 and i != lost
    ]
    assert_true_to_disk(again)
    assert held(open_partial()) == held(again)


def test_partial_open_again_starts_the_record_anew(open_partial: Opener) -> None:
    """The log does not grow from start to start."""
    partial = open_partial()
    for _ in range(20):
        partial.put(SAMPLE.chunk(0), PEER_ID)
        partial.flush()
        partial.forget([0])
    partial.put(SAMPLE.chunk(1), PEER_ID)
    again = open_partial()
    kinds = [r.kind for r in iter_records(again.record_path.read_bytes(), SAMPLE.layout)]
    assert kinds == [Kind.CHUNK, Kind.COMMIT]
    assert held(open_partial()) == [1]


def test_partial_forgotten_chunk_stays_forgotten_after_a_crash(open_partial: Opener) -> None:
    """A wrong chunk does not come back, although an old commit covers its record."""
    partial = open_partial()
    partial.put(SAMPLE.wrong_chunk(0), PEER_ID)
    partial.flush()
    partial.forget([0])
    assert held(open_partial()) == []


def test_partial_forget_is_durable_before_other_bytes_are_written(
    open_partial: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a crash could leave the old digest standing for the new bytes."""
    partial = open_partial()
    partial.put(SAMPLE.wrong_chunk(0), PEER_ID)
    partial.flush()
    synced: list[str] = []
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    partial.forget([0])
    assert synced == [str(partial.record_path)]


def test_partial_foreign_record_is_started_anew(open_partial: Opener) -> None:
    """A log of another blob's size says nothing."""
    partial = open_partial()
    partial.put(SAMPLE.chunk(0), PEER_ID)
    partial.flush()
    content = bytearray(partial.record_path.read_bytes())
    content[9] ^= 1
    partial.record_path.write_bytes(bytes(content))
    again = open_partial()
    assert held(again) == []
    again.put(SAMPLE.chunk(3), PEER_ID)
    again.flush()
    assert held(open_partial()) == [3]


@pytest.mark.parametrize("size_bytes", [None, 0, 100])
def test_partial_record_that_outlived_its_file_is_not_believed(
    open_partial: Opener, size_bytes: int | None
) -> None:
    """A record whose file is gone, or was made again, speaks of bytes that are not there."""
    partial = open_partial()
    partial.put(SAMPLE.chunk(0), PEER_ID)
    partial.flush()
    if size_bytes is None:
        partial.path.unlink()
    else:
        os.truncate(partial.path, size_bytes)
    again = open_partial()
    assert held(again) == []
    assert again.path.stat().st_size == len(SAMPLE.content)


def test_partial_left_read_only_by_a_crash_is_opened_again(
    open_partial: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between the mode and the rename must not block the download for ever."""
    partial = open_partial()
    partial.put(SAMPLE.chunk(0), PEER_ID)
    partial.seal(0o444)
    real = os.open

    def open_as_a_user(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        is_writing = flags & (os.O_RDWR | os.O_WRONLY)
        if is_writing and Path(path).exists() and not Path(path).stat().st_mode & 0o200:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, flags, mode, **more)

    monkeypatch.setattr(os, "open", open_as_a_user)
    assert held(open_partial()) == [0]


def test_partial_of_an_empty_blob_cuts_what_is_there(tmp_path: Path) -> None:
    """A file that an earlier, wrong size left behind gets the right one, zero included."""
    empty = make_sample(0)
    (tmp_path / "data").write_bytes(b"junk")
    partial = FilePartial(tmp_path / "data", tmp_path / "data.have", empty.blob, empty.layout)
    assert partial.path.stat().st_size == 0
    assert partial.snapshot().have.is_full()
    partial.close()


def test_partial_symbolic_link_in_its_place_is_refused(
    open_partial: Opener, tmp_path: Path
) -> None:
    """A link is not followed: what it points to is not ours to write."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "data").symlink_to(victim)
    with pytest.raises(StoreError):
        open_partial()
    assert victim.read_bytes() == b"precious"


# --- the start of a chunk ---


def test_partial_prefix_is_kept_over_a_crash(open_partial: Opener) -> None:
    """The start of a chunk that was arriving is found again and its bytes are there."""
    partial = open_partial()
    content = memoryview(SAMPLE.bytes_of(2))
    partial.put_prefix(2, content[:1000], 0)
    partial.put_prefix(2, content[:3000], 1000)
    assert partial.count_prefix_bytes() == 3000
    again = open_partial()
    assert again.find_prefix_bytes(2) == 3000
    assert held(again) == []
    view = memoryview(bytearray(3000))
    again.read_into(SAMPLE.layout.offset_of(2), view)
    assert view == content[:3000]
    assert open_partial().find_prefix_bytes(2) == 3000


def test_partial_prefix_beside_chunks_is_kept_when_the_record_is_rewritten(
    open_partial: Opener,
) -> None:
    """Held chunks and a start survive several opens together."""
    partial = open_partial()
    partial.put(SAMPLE.chunk(0), PEER_ID)
    partial.put_prefix(2, memoryview(SAMPLE.bytes_of(2))[:10], 0)
    for _ in range(3):
        again = open_partial()
        assert (held(again), again.find_prefix_bytes(2)) == ([0], 10)


def test_partial_damaged_prefix_is_dropped(open_partial: Opener) -> None:
    """A start whose bytes did not reach the disk is not resumed from."""
    partial = open_partial()
    partial.put_prefix(2, memoryview(SAMPLE.bytes_of(2))[:1000], 0)
    damage(partial, 2)
    assert open_partial().find_prefix_bytes(2) == 0


def test_partial_whole_chunk_ends_its_prefix(open_partial: Opener) -> None:
    """A chunk that is held has no start to resume; a late one changes nothing."""
    partial = open_partial()
    partial.put_prefix(2, memoryview(SAMPLE.bytes_of(2))[:1000], 0)
    partial.put(SAMPLE.chunk(2), PEER_ID)
    assert partial.find_prefix_bytes(2) == 0
    partial.put_prefix(2, memoryview(bytes(1000)), 0)
    assert_true_to_disk(partial)
    again = open_partial()
    assert (held(again), again.find_prefix_bytes(2)) == ([2], 0)


def test_partial_forgotten_chunk_takes_its_prefix_along(open_partial: Opener) -> None:
    """After forget() a chunk starts from nothing at the next open."""
    partial = open_partial()
    partial.put_prefix(2, memoryview(SAMPLE.bytes_of(2))[:1000], 0)
    partial.put(SAMPLE.chunk(2), PEER_ID)
    partial.forget([2])
    assert open_partial().find_prefix_bytes(2) == 0


# --- threads ---


def test_partial_second_writer_of_a_chunk_waits_and_writes_nothing(
    open_partial: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sources that send the same chunk at once do not mix their bytes."""
    partial = open_partial()
    is_writing, may_go_on = threading.Event(), threading.Event()
    writes: list[int] = []
    real = os.pwrite

    def pwrite(fd: int, content: Any, offset: int) -> int:
        if fd == partial.fd:
            writes.append(offset)
            is_writing.set()
            assert may_go_on.wait(10)
        return real(fd, content, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    first = threading.Thread(target=partial.put, args=(SAMPLE.chunk(1), PEER_ID))
    second = threading.Thread(target=partial.put, args=(SAMPLE.wrong_chunk(1), "upstream"))
    first.start()
    assert is_writing.wait(10)
    second.start()
    may_go_on.set()
    first.join(10)
    second.join(10)
    assert len(writes) == 1
    assert partial.snapshot().sources == {1: PEER_ID}
    assert_true_to_disk(partial)


# --- layouts of its own ---

CUT = Layout.of_starts(len(SAMPLE.content), [0, 100, 4196, 4200, 8296, 12392, 16488, 20584])


@pytest.fixture
def open_cut(tmp_path: Path) -> Iterator[Callable[[Layout], FilePartial]]:
    """Open the sample's partial in any layout, as often as needed; all are closed at the end."""
    opened: list[FilePartial] = []

    def open_one(layout: Layout) -> FilePartial:
        names = tmp_path / "data", tmp_path / "data.have"
        opened.append(FilePartial(*names, SAMPLE.blob, layout))
        return opened[-1]

    yield open_one
    for partial in opened:
        partial.close()


def chunk_of(layout: Layout, chunk_index: int) -> VerifiedChunk:
    """Return one of the sample's chunks in a layout."""
    offset, length = layout.span_of(chunk_index, chunk_index)
    view = memoryview(SAMPLE.content)[offset : offset + length]
    return verify_chunk(SAMPLE.blob, layout, chunk_index, view, expected=None, source_id="test")


def test_partial_cut_at_tensors_is_recovered(open_cut: Callable[[Layout], FilePartial]) -> None:
    """Chunks of any length, with their digests and sources; and a start of one."""
    partial = open_cut(CUT)
    for index in (0, 2, 4):
        partial.put(chunk_of(CUT, index), PEER_ID)
    partial.flush()
    partial.put(chunk_of(CUT, 7), LIKENESS_SOURCE)
    partial.put_prefix(1, memoryview(SAMPLE.content)[100:200], 0)
    again = open_cut(CUT)
    state = again.snapshot()
    assert list(state.have) == [0, 2, 4, 7]
    assert state.sources == {0: PEER_ID, 2: PEER_ID, 4: PEER_ID, 7: LIKENESS_SOURCE}
    assert again.find_prefix_bytes(1) == 100
    for index in state.have:
        assert state.table.find(index) == chunk_of(CUT, index).digest


@pytest.mark.parametrize("layouts", [(CUT, SAMPLE.layout), (SAMPLE.layout, CUT)])
def test_partial_opened_in_another_layout_starts_anew(
    open_cut: Callable[[Layout], FilePartial], layouts: tuple[Layout, Layout]
) -> None:
    """Chunk 3 of one layout is not chunk 3 of the other."""
    before, after = layouts
    partial = open_cut(before)
    partial.put(chunk_of(before, 3), PEER_ID)
    partial.flush()
    again = open_cut(after)
    assert held(again) == []
    again.put(chunk_of(after, 1), PEER_ID)
    again.flush()
    assert held(open_cut(after)) == [1]
    assert held(open_cut(before)) == []


def test_store_says_how_an_idle_partial_is_cut(tmp_path: Path) -> None:
    """And how many bytes it holds, whatever its layout; nothing of one that is not there."""
    store = FileBlobStore(tmp_path)
    assert store.find_layout(SAMPLE.blob) is None
    partial = store.open_partial(SAMPLE.blob, CUT)
    assert store.find_layout(SAMPLE.blob) == CUT
    assert store.count_held_bytes(SAMPLE.blob) == 0
    for index in (0, 1, 3):
        partial.put(chunk_of(CUT, index), PEER_ID)
    partial.forget([3])
    partial.flush()
    partial.close()
    assert store.count_held_bytes(SAMPLE.blob) == 100 + 4096
    store.partial_paths_of(SAMPLE.blob)[1].write_bytes(b"junk")
    assert store.find_layout(SAMPLE.blob) is None
    assert store.count_held_bytes(SAMPLE.blob) == 0


# --- copies of chunks that other files have ---


@pytest.fixture
def donor(tmp_path: Path) -> Iterator[int]:
    """A file with the sample's bytes, 77 bytes further on."""
    path = tmp_path / "donor"
    path.write_bytes(bytes(77) + SAMPLE.content)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def place_of(donor: int, chunk_index: int) -> CopyPlace:
    """Return where the donor has a chunk."""
    return CopyPlace(donor, 77 + SAMPLE.layout.offset_of(chunk_index))


@pytest.mark.parametrize("is_promised", [True, False])
@pytest.mark.parametrize("is_inside", [True, False], ids=["inside", "through memory"])
def test_partial_copied_chunk_is_held_like_any_other(
    open_partial: Opener,
    donor: int,
    monkeypatch: pytest.MonkeyPatch,
    is_promised: bool,
    is_inside: bool,
) -> None:
    """With its true digest and its source, over a crash; the last, short chunk too."""
    if not is_inside:
        monkeypatch.setattr(os, "copy_file_range", fail_with(errno.EXDEV))
    partial = open_partial()
    source = PEER_ID if is_promised else LIKENESS_SOURCE
    for index in (1, 5):
        expected = SAMPLE.digest_of(index) if is_promised else None
        assert partial.copy_chunk(index, place_of(donor, index), expected, source)
    partial.flush()
    for one in (partial, open_partial()):
        assert held(one) == [1, 5]
        assert one.snapshot().sources == {1: source, 5: source}
        assert one.snapshot().table.find(5) == SAMPLE.digest_of(5)
        assert_true_to_disk(one)


def test_partial_copy_from_another_file_system_is_held(
    open_partial: Opener, tiny_disk: Path
) -> None:
    """Stores may refer to files on other disks."""
    (tiny_disk / "donor").write_bytes(SAMPLE.content)
    fd = os.open(tiny_disk / "donor", os.O_RDONLY)
    partial = open_partial()
    place = CopyPlace(fd, SAMPLE.layout.offset_of(2))
    assert partial.copy_chunk(2, place, SAMPLE.digest_of(2), PEER_ID)
    os.close(fd)
    assert held(partial) == [2]
    assert_true_to_disk(partial)


def test_partial_copy_of_other_bytes_than_promised_leaves_nothing(
    open_partial: Opener, donor: int
) -> None:
    """Nothing is held or recorded, and the chunk can be put as if nothing had happened."""
    partial = open_partial()
    before = partial.record_path.read_bytes()
    assert not partial.copy_chunk(1, place_of(donor, 2), SAMPLE.digest_of(1), PEER_ID)
    assert partial.record_path.read_bytes() == before
    assert held(partial) == []
    partial.put(SAMPLE.chunk(1), PEER_ID)
    partial.flush()
    assert held(open_partial()) == [1]
    assert_true_to_disk(partial)


@pytest.mark.parametrize("kept_bytes", [0, 77, 77 + 4096 + 10])
def test_partial_copy_from_a_file_that_is_too_short_leaves_nothing(
    open_partial: Opener, tmp_path: Path, kept_bytes: int
) -> None:
    """A donor that was cut meanwhile, on likeness too: zeros are not its bytes."""
    path = tmp_path / "short"
    path.write_bytes((bytes(77) + SAMPLE.content)[:kept_bytes])
    fd = os.open(path, os.O_RDONLY)
    partial = open_partial()
    for expected in (None, SAMPLE.digest_of(1)):
        assert not partial.copy_chunk(1, place_of(fd, 1), expected, LIKENESS_SOURCE)
    os.close(fd)
    assert held(partial) == []


def test_partial_copy_of_a_held_chunk_changes_nothing(open_partial: Opener, donor: int) -> None:
    """Its record already speaks for the bytes that are there."""
    partial = open_partial()
    partial.put(SAMPLE.chunk(1), PEER_ID)
    before = partial.record_path.read_bytes()
    assert partial.copy_chunk(1, place_of(donor, 2), None, LIKENESS_SOURCE)
    assert partial.record_path.read_bytes() == before
    assert partial.snapshot().sources == {1: PEER_ID}
    assert_true_to_disk(partial)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EPERM, errno.ESTALE])
def test_partial_copy_that_fails_is_no_reason_to_fail(
    open_partial: Opener, donor: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The other file's disk may be the broken one; if it is ours, the next write says so."""
    partial = open_partial()
    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", fail_with(number))
        assert not partial.copy_chunk(1, place_of(donor, 1), SAMPLE.digest_of(1), PEER_ID)
    assert held(partial) == []
    partial.put(SAMPLE.chunk(1), PEER_ID)
    assert_true_to_disk(partial)


def test_partial_copy_that_cannot_be_read_back_or_recorded_is_a_store_error(
    open_partial: Opener, donor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These are our own files."""
    partial = open_partial()
    for call in ("preadv", "pwrite"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail_with(errno.EIO))
            with pytest.raises(StoreError):
                partial.copy_chunk(1, place_of(donor, 1), None, LIKENESS_SOURCE)
        assert held(partial) == []


def test_partial_copies_nothing_once_it_is_poisoned(
    open_partial: Opener, donor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be made durable is not written."""
    partial = open_partial()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail_with(errno.EIO))
        with pytest.raises(StoreError):
            partial.flush()
    with pytest.raises(StoreError):
        partial.copy_chunk(1, place_of(donor, 1), None, LIKENESS_SOURCE)
    assert partial.path.read_bytes() == bytes(len(SAMPLE.content))


def test_partial_what_is_hashed_is_what_was_written(
    open_partial: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A donor that changes under the copy cannot get a digest that its bytes do not have."""
    path = tmp_path / "changing"
    path.write_bytes(SAMPLE.content)
    fd = os.open(path, os.O_RDONLY)
    real = os.copy_file_range

    def copy(*arguments: int) -> int:
        count = real(*arguments)
        path.write_bytes(bytes(len(SAMPLE.content)))
        return count

    monkeypatch.setattr(os, "copy_file_range", copy)
    partial = open_partial()
    place = CopyPlace(fd, SAMPLE.layout.offset_of(1))
    assert partial.copy_chunk(1, place, None, LIKENESS_SOURCE)
    os.close(fd)
    assert partial.snapshot().table.find(1) == SAMPLE.digest_of(1)
    assert_true_to_disk(partial)


def test_partial_copy_over_a_start_ends_the_start(open_partial: Opener, donor: int) -> None:
    """A start that a wrong copy overwrote is not resumed from, now or after a crash."""
    partial = open_partial()
    content = memoryview(SAMPLE.bytes_of(1))
    partial.put_prefix(1, content[:1000], 0)
    assert not partial.copy_chunk(1, place_of(donor, 2), SAMPLE.digest_of(1), PEER_ID)
    assert partial.find_prefix_bytes(1) == 0
    assert open_partial().find_prefix_bytes(1) == 0


def test_partial_start_that_goes_on_after_a_wrong_copy_is_written_whole(
    open_partial: Opener, donor: int
) -> None:
    """Who sends it knows nothing of the copy, and goes on where it was."""
    partial = open_partial()
    content = memoryview(SAMPLE.bytes_of(1))
    partial.put_prefix(1, content[:1000], 0)
    partial.copy_chunk(1, place_of(donor, 2), SAMPLE.digest_of(1), PEER_ID)
    partial.put_prefix(1, content[:2000], 1000)
    for one in (partial, open_partial()):
        assert one.find_prefix_bytes(1) == 2000
        view = memoryview(bytearray(2000))
        one.read_into(SAMPLE.layout.offset_of(1), view)
        assert view == content[:2000]


@pytest.mark.parametrize("is_copy_first", [True, False])
def test_partial_copy_and_put_of_one_chunk_do_not_mix(
    open_partial: Opener, donor: int, monkeypatch: pytest.MonkeyPatch, is_copy_first: bool
) -> None:
    """Whichever comes second waits, finds the chunk there, and writes nothing."""
    partial = open_partial()
    is_writing, may_go_on = threading.Event(), threading.Event()
    writes: list[str] = []
    real = {name: getattr(os, name) for name in ("pwrite", "copy_file_range")}

    def hold(name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            if name == "copy_file_range" or arguments[0] == partial.fd:
                writes.append(name)
                is_writing.set()
                assert may_go_on.wait(10)
            return int(real[name](*arguments))

        return call

    for name in real:
        monkeypatch.setattr(os, name, hold(name))
    copy = threading.Thread(
        target=partial.copy_chunk, args=(1, place_of(donor, 1), None, LIKENESS_SOURCE)
    )
    put = threading.Thread(target=partial.put, args=(SAMPLE.wrong_chunk(1), PEER_ID))
    first, second = (copy, put) if is_copy_first else (put, copy)
    first.start()
    assert is_writing.wait(10)
    second.start()
    may_go_on.set()
    first.join(10)
    second.join(10)
    assert writes == ["copy_file_range" if is_copy_first else "pwrite"]
    assert partial.snapshot().sources == {1: LIKENESS_SOURCE if is_copy_first else PEER_ID}
    assert_true_to_disk(partial)


# --- a bad disk ---


def fail_with(number: int) -> Callable[..., int]:
    """Make a system call that fails."""

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def test_partial_after_a_failed_sync_nothing_is_believed(
    open_partial: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports a lost write once; no later sync and no later open may forget that."""
    partial = open_partial()
    partial.put(SAMPLE.chunk(0), PEER_ID)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail_with(errno.EIO))
        with pytest.raises(StoreError):
            partial.flush()
    with pytest.raises(StoreError):
        partial.flush()
    with pytest.raises(StoreError):
        partial.put(SAMPLE.chunk(1), PEER_ID)
    assert held(open_partial()) == []


@pytest.mark.parametrize("call", ["fsync", "fchmod"])
def test_partial_failed_seal_poisons_too(
    open_partial: Opener, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The last sync before the rename counts like every other."""
    partial = open_partial()
    partial.put(SAMPLE.chunk(0), PEER_ID)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail_with(errno.EIO))
        with pytest.raises(StoreError):
            partial.seal(0o444)
    with pytest.raises(StoreError):
        partial.seal(0o444)
    assert held(open_partial()) == []


def test_partial_failed_sync_of_a_forget_poisons(
    open_partial: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it cannot be recorded that a chunk is wrong, the whole record goes."""
    partial = open_partial()
    partial.put(SAMPLE.wrong_chunk(0), PEER_ID)
    partial.flush()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail_with(errno.EIO))
        with pytest.raises(StoreError):
            partial.forget([0])
    assert held(open_partial()) == []


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, StoreFullError), (errno.EDQUOT, StoreFullError), (errno.EIO, StoreError)],
)
def test_partial_failed_write_is_a_store_error_and_holds_nothing(
    open_partial: Opener, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StoreError]
) -> None:
    """A full disk and a broken one are told apart; the chunk is not held; it can be put later."""
    partial = open_partial()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail_with(number))
        with pytest.raises(StoreError) as caught:
            partial.put(SAMPLE.chunk(0), PEER_ID)
    assert type(caught.value) is kind
    assert held(partial) == []
    partial.put(SAMPLE.chunk(0), PEER_ID)
    assert held(partial) == [0]


def test_partial_record_written_in_part_is_taken_back(
    open_partial: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torn record in the middle would hide all later ones; it is cut and the disk is full."""
    partial = open_partial()
    partial.put(SAMPLE.chunk(0), PEER_ID)
    real = os.pwrite

    def pwrite(fd: int, content: Any, offset: int) -> int:
        return real(fd, content if fd == partial.fd else content[:10], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(StoreFullError):
            partial.put(SAMPLE.chunk(1), PEER_ID)
    partial.put(SAMPLE.chunk(2), PEER_ID)
    partial.flush()
    assert held(open_partial()) == [0, 2]


@pytest.mark.parametrize("call", ["pread", "preadv"])
def test_partial_failed_read_is_a_store_error(
    open_partial: Opener, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A disk that cannot be read is this machine's fault, at open and later."""
    partial = open_partial()
    partial.put(SAMPLE.chunk(0), PEER_ID)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail_with(errno.EIO))
        read = (
            open_partial
            if call == "pread"
            else lambda: partial.read_into(0, memoryview(bytearray(10)))
        )
        with pytest.raises(StoreError):
            read()


def test_partial_file_cut_behind_our_back_is_a_store_error(open_partial: Opener) -> None:
    """Reading never hangs or returns less than was asked for."""
    partial = open_partial()
    partial.put(SAMPLE.chunk(0), PEER_ID)
    os.truncate(partial.path, 10)
    with pytest.raises(StoreError):
        partial.read_into(0, memoryview(bytearray(20)))


@pytest.mark.parametrize("call", ["rename", "fdatasync", "write"])
def test_partial_record_that_cannot_be_rewritten_stays(
    open_partial: Opener, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """If the new record cannot be written, the old one is still there for the next time."""
    partial = open_partial()
    partial.put(SAMPLE.chunk(0), PEER_ID)
    partial.flush()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail_with(errno.ENOSPC))
        with pytest.raises(StoreFullError):
            open_partial()
    assert sorted(path.name for path in partial.path.parent.iterdir()) == ["data", "data.have"]
    assert held(open_partial()) == [0]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_partial_disk_without_reservation_still_works(
    open_partial: Opener, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """File systems that cannot reserve room get a sparse file."""
    monkeypatch.setattr(os, "posix_fallocate", fail_with(number))
    partial = open_partial()
    assert partial.path.stat().st_size == len(SAMPLE.content)
    partial.put(SAMPLE.chunk(5), PEER_ID)
    assert_true_to_disk(partial)


def test_partial_close_is_repeatable(open_partial: Opener) -> None:
    """Closing twice closes nobody else's descriptor."""
    partial = open_partial()
    partial.close()
    partial.close()
    assert partial.fd == -1


# --- a full disk ---


def test_partial_without_room_leaves_nothing_behind(tiny_disk: Path) -> None:
    """Room is reserved before the first byte, and a blob that cannot fit leaves no file."""
    store = FileBlobStore(tiny_disk)
    with pytest.raises(StoreFullError):
        store.open_partial(SAMPLE.blob, Layout(64 * 1024 * 1024))
    assert list((tiny_disk / "partial").iterdir()) == []
    store.open_partial(SAMPLE.blob, SAMPLE.layout).close()


def test_partial_reserved_room_is_there_when_the_disk_is_full(tiny_disk: Path) -> None:
    """A blob that was begun can be filled although others took the rest of the disk."""
    store = FileBlobStore(tiny_disk)
    sample = make_sample(4 * 1024 * 1024)
    partial = store.open_partial(sample.blob, sample.layout)
    fill_disk(tiny_disk)
    for chunk in sample.chunks():
        partial._write(chunk.view, chunk.offset)
        written = bytearray(len(chunk.view))
        partial.read_into(chunk.offset, memoryview(written))
        assert written == chunk.view
    partial.close()


def test_partial_full_disk_keeps_what_was_fetched(tiny_disk: Path) -> None:
    """When the record finds no room, the chunk is refused; with room again, it goes on."""
    store = FileBlobStore(tiny_disk)
    sample = make_sample(4 * 1024 * 1024)
    partial = store.open_partial(sample.blob, sample.layout)
    filler = fill_disk(tiny_disk)

    def put_all() -> None:
        for chunk in sample.chunks():
            partial.put(chunk, PEER_ID)

    with pytest.raises(StoreFullError):
        put_all()
    filler.unlink()
    assert not partial.snapshot().have.is_full()
    assert_true_to_disk(partial, sample)
    put_all()
    partial.flush()
    partial.close()
    again = store.open_partial(sample.blob, sample.layout)
    assert again.snapshot().have.is_full()
    assert_true_to_disk(again, sample)
    again.close()


def fill_disk(folder: Path) -> Path:
    """Take all the room that is left; returns the file that takes it."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017
    return path
