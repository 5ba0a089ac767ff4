"""
Owns the tests of adopting one file: every way of placing it, what is refused, what a crash leaves.

Knows nothing of caches (test_hfcache.py) or of snapshots (tests/engine/test_adoption.py).
Invariants: a foreign file keeps its mode, its bytes and its times.
Source: store/adopt.py, store/blobs.py; docs/decisions/0011-adoption.md.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from p2pcache.core import layout
from p2pcache.core.digest import Algorithm, BlobDigest
from p2pcache.core.verify import digest_of
from p2pcache.errors import StoreError, StoreFullError
from p2pcache.store.adopt import (
    STAGING_NAME,
    Adoption,
    AdoptOrder,
    Placing,
    RefusedFile,
    StoppedAdoption,
    adopt_file,
    sweep_staging,
)
from p2pcache.store.blobs import ADOPTED_SUFFIX, FileBlobStore, stamp_of
from p2pcache.store.hfcache import FileIdentity
from tests.samples import PEER_ID, Sample, make_sample
from tests.tensorfiles import make_safetensors

SAMPLE = make_sample(50_000)
OTHER = make_sample(50_000, seed=1)
# The smallest that mkfs.xfs makes.
XFS_SIZE_BYTES = 300 * 1024 * 1024
NO_LINK_ERRNOS = (errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


@dataclass
class Watch:
    """What an adoption asks and tells, as a test wants it."""

    room_bytes: int = 1 << 40
    stops_after: int = 1 << 40
    here: set[BlobDigest] = field(default_factory=set)
    hashed_bytes: int = 0
    on_hashed: Callable[[], None] = lambda: None

    def note_hashed(self, size_bytes: int) -> None:
        """Count."""
        self.hashed_bytes += size_bytes
        self.on_hashed()

    def is_stopped(self) -> bool:
        """Return what the test decided."""
        return self.hashed_bytes >= self.stops_after

    def may_copy(self, size_bytes: int) -> bool:
        """Return what the test decided."""
        return size_bytes <= self.room_bytes

    def may_place(self, blob: BlobDigest) -> bool:
        """Return what the test decided."""
        return blob not in self.here


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Make a foreign file as a client leaves it."""
    path = tmp_path / "cache" / SAMPLE.blob.hex
    path.parent.mkdir()
    path.write_bytes(SAMPLE.content)
    path.chmod(0o644)
    return path


def git_name(content: bytes) -> BlobDigest:
    """Return git's name of some bytes."""
    head = b"blob %d\x00" % len(content)
    return BlobDigest("gitsha1", hashlib.sha1(head + content, usedforsecurity=False).hexdigest())


def make_order(
    path: Path,
    *names: BlobDigest,
    algorithms: tuple[Algorithm, ...] = (),
    is_public: bool = True,
) -> AdoptOrder:
    """Describe a file as it is now."""
    identity = FileIdentity.of(path.stat())
    return AdoptOrder(path, identity, frozenset(names), frozenset(algorithms), is_public)


def adopt(store: FileBlobStore, order: AdoptOrder, watch: Watch | None = None) -> Adoption:
    """Adopt with a buffer of a whole chunk."""
    buffer = memoryview(bytearray(layout.CHUNK_SIZE_BYTES))
    return adopt_file(store, order, buffer, watch or Watch())


def read(store: FileBlobStore, blob: BlobDigest) -> bytes:
    """Read a blob as those do who serve it."""
    found = store.find_blob(blob)
    assert found is not None
    try:
        return os.pread(found.fd, found.stamp.size_bytes + 1, 0)
    finally:
        os.close(found.fd)


def forbid_links(monkeypatch: pytest.MonkeyPatch, number: int = errno.EXDEV) -> None:
    """Make hard links fail, as on file systems without them and across disks."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)


def list_staging(store: FileBlobStore) -> list[Path]:
    """List what is under a temporary name."""
    folder = store.root / "blobs" / STAGING_NAME
    return list(folder.iterdir()) if folder.exists() else []


# --- the ways of placing ---


def test_adopt_same_disk_links_without_touching_the_file(
    store: FileBlobStore, source: Path, small_chunks: int
) -> None:
    """One inode, two names; mode and time are the owner's; the table is that of the content."""
    before = source.stat()
    watch = Watch()
    (blob,) = adopt(store, make_order(source, SAMPLE.blob), watch).blobs
    after = source.stat()
    assert blob.placing is Placing.LINKED
    assert store.path_of(SAMPLE.blob).samefile(source)
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert blob.stamp == stamp_of(after)
    assert dict(store.iter_blobs()) == {SAMPLE.blob: blob.stamp}
    assert watch.hashed_bytes == len(SAMPLE.content)
    expected = [digest_of(SAMPLE.bytes_of(n)) for n in range(SAMPLE.layout.chunk_count)]
    assert list(blob.table) == expected
    assert list_staging(store) == []


def test_adopt_linked_blob_is_foreign_and_never_public_by_its_mode(
    store: FileBlobStore, source: Path
) -> None:
    """A shared blob store makes files 0444, as ours are: the marker tells them apart."""
    source.chmod(0o444)
    adopt(store, make_order(source, SAMPLE.blob))
    assert store.is_foreign(SAMPLE.blob)
    assert not store.is_world_readable(SAMPLE.blob)
    source.unlink()
    assert store.is_foreign(SAMPLE.blob)
    assert not store.is_world_readable(SAMPLE.blob)


@pytest.mark.parametrize("mode", [0o644, 0o444, 0o600, 0o400])
def test_set_modes_leave_a_foreign_file_alone(
    store: FileBlobStore, source: Path, mode: int
) -> None:
    """The mode of a link is the mode of the owner's file."""
    source.chmod(mode)
    adopt(store, make_order(source, SAMPLE.blob))
    store.set_restricted(SAMPLE.blob)
    assert stat.S_IMODE(source.stat().st_mode) == mode
    store.set_public(SAMPLE.blob)
    assert stat.S_IMODE(source.stat().st_mode) == mode


@pytest.mark.parametrize("number", NO_LINK_ERRNOS)
@pytest.mark.parametrize(("is_public", "mode"), [(True, 0o444), (False, 0o400)])
def test_adopt_without_hard_links_copies(
    store: FileBlobStore,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    is_public: bool,
    mode: int,
) -> None:
    """A copy is a file of ours: its own inode, our modes, not foreign."""
    forbid_links(monkeypatch, number)
    (blob,) = adopt(store, make_order(source, SAMPLE.blob, is_public=is_public)).blobs
    path = store.path_of(SAMPLE.blob)
    assert blob.placing in (Placing.COPIED, Placing.REFLINKED)
    assert not path.samefile(source)
    assert path.read_bytes() == SAMPLE.content
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert blob.stamp == stamp_of(path.stat())
    assert not store.is_foreign(SAMPLE.blob)
    assert store.is_world_readable(SAMPLE.blob) is is_public
    assert list_staging(store) == []


def test_adopt_with_reflinks_shares_extents(
    store: FileBlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system clones, nothing is copied; a clone that copies stands in for it."""
    forbid_links(monkeypatch)
    asked: list[int] = []

    def clone(fd: int, request: int, source_fd: int) -> int:
        asked.append(request)
        os.pwrite(fd, os.pread(source_fd, 1 << 20, 0), 0)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", clone)
    monkeypatch.setattr(os, "copy_file_range", None)
    (blob,) = adopt(store, make_order(source, SAMPLE.blob)).blobs
    assert (blob.placing, asked) == (Placing.REFLINKED, [0x40049409])
    assert not store.is_foreign(SAMPLE.blob)
    assert read(store, SAMPLE.blob) == SAMPLE.content


@pytest.fixture
def xfs_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that clones; skips where none can be mounted."""
    image, mount_point = tmp_path / "xfs.image", tmp_path / "xfs"
    mount_point.mkdir()
    with image.open("wb") as file:
        file.truncate(XFS_SIZE_BYTES)
    for command in (
        ["mkfs.xfs", "-q", str(image)],
        ["mount", "-o", "loop", str(image), str(mount_point)],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip(f"there is no {command[0]}")
        if done.returncode != 0:
            pytest.skip(f"{command[0]} does not work here: {done.stderr.strip()}")
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", mount_point], check=True)


def test_adopt_on_a_disk_that_clones_takes_no_room(
    xfs_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For real: a clone of 8 MiB is another inode with our mode, and costs next to nothing."""
    sample = make_sample(8 << 20)
    source = xfs_disk / "blob"
    source.write_bytes(sample.content)
    store = FileBlobStore(xfs_disk / "store")
    os.sync()
    free_bytes = shutil.disk_usage(xfs_disk).free
    forbid_links(monkeypatch)
    (blob,) = adopt(store, make_order(source, sample.blob), Watch(room_bytes=0)).blobs
    assert blob.placing is Placing.REFLINKED
    assert not store.path_of(sample.blob).samefile(source)
    os.sync()
    assert free_bytes - shutil.disk_usage(xfs_disk).free < len(sample.content) // 100
    source.write_bytes(OTHER.content)
    assert read(store, sample.blob) == sample.content


def test_adopt_without_room_refers_to_the_file(
    store: FileBlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither link nor room: the blob is a link to where the file lies, and is read from there."""
    forbid_links(monkeypatch)
    (blob,) = adopt(store, make_order(source, SAMPLE.blob), Watch(room_bytes=0)).blobs
    path = store.path_of(SAMPLE.blob)
    assert blob.placing is Placing.REFERRED
    assert os.readlink(path) == str(source)
    assert read(store, SAMPLE.blob) == SAMPLE.content
    assert dict(store.iter_blobs()) == {SAMPLE.blob: stamp_of(source.stat())}
    assert store.is_foreign(SAMPLE.blob)
    assert not store.is_world_readable(SAMPLE.blob)
    store.set_public(SAMPLE.blob)
    assert stat.S_IMODE(source.stat().st_mode) == 0o644
    store.discard(SAMPLE.blob, partial_only=False)
    assert source.read_bytes() == SAMPLE.content
    assert not os.path.lexists(path)


def test_adopt_when_the_disk_is_full_after_all_refers(
    store: FileBlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else took the room meanwhile: no half copy stays."""
    forbid_links(monkeypatch)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    (blob,) = adopt(store, make_order(source, SAMPLE.blob)).blobs
    assert blob.placing is Placing.REFERRED
    assert list_staging(store) == []


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no second file system")  # noqa: S108
@pytest.mark.parametrize("room_bytes", [1 << 30, 0])
def test_adopt_across_disks_copies_or_refers(store: FileBlobStore, room_bytes: int) -> None:
    """For real: from memory to disk, where neither links nor clones are possible."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        source = Path(folder, "blob")
        source.write_bytes(SAMPLE.content)
        if source.stat().st_dev == store.root.stat().st_dev:
            pytest.skip("the test's folder is in memory too")
        order = make_order(source, SAMPLE.blob)
        (blob,) = adopt(store, order, Watch(room_bytes=room_bytes)).blobs
        assert blob.placing is (Placing.COPIED if room_bytes else Placing.REFERRED)
        assert read(store, SAMPLE.blob) == SAMPLE.content
    if room_bytes:
        assert read(store, SAMPLE.blob) == SAMPLE.content
    else:
        assert store.find_blob(SAMPLE.blob) is None
        assert list(store.iter_blobs()) == []


def test_adopt_by_both_kinds_of_name_hashes_once(store: FileBlobStore, source: Path) -> None:
    """A file that one repository keeps by LFS and another in git is two blobs and one inode."""
    watch = Watch()
    names = (SAMPLE.blob, git_name(SAMPLE.content))
    adopted = adopt(store, make_order(source, *names), watch)
    assert {blob.blob for blob in adopted.blobs} == set(names) == adopted.names
    assert all(store.path_of(name).samefile(source) for name in names)
    assert all(store.is_foreign(name) for name in names)
    assert watch.hashed_bytes == len(SAMPLE.content)


def test_adopt_by_both_kinds_of_name_copies_twice(
    store: FileBlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of ours are not links of each other: each is proven by its own bytes."""
    forbid_links(monkeypatch)
    names = (SAMPLE.blob, git_name(SAMPLE.content))
    adopted = adopt(store, make_order(source, *names))
    assert {blob.blob for blob in adopted.blobs} == set(names)
    assert [store.path_of(name).stat().st_nlink for name in names] == [1, 1]
    assert [read(store, name) for name in names] == [SAMPLE.content] * 2


def test_adopt_nameless_file_is_named_by_its_content(store: FileBlobStore, source: Path) -> None:
    """Without a name the algorithm decides; what is here already is not placed again."""
    order = make_order(source, algorithms=("gitsha1",))
    name = git_name(SAMPLE.content)
    adopted = adopt(store, order)
    assert [blob.blob for blob in adopted.blobs] == [name]
    again = adopt(store, order, Watch(here={name}))
    assert (again.names, again.blobs) == (frozenset({name}), ())


@pytest.mark.parametrize("size_bytes", [0, 1, 4096, 4097])
def test_adopt_small_files(
    store: FileBlobStore, tmp_path: Path, small_chunks: int, size_bytes: int
) -> None:
    """Empty files have no chunks, and sizes around a chunk's are right."""
    sample = make_sample(size_bytes)
    path = tmp_path / "file"
    path.write_bytes(sample.content)
    (blob,) = adopt(store, make_order(path, sample.blob)).blobs
    assert len(list(blob.table)) == sample.layout.chunk_count
    assert read(store, sample.blob) == sample.content


@pytest.mark.parametrize("may_have_tensors", [True, False])
def test_adopt_file_with_tensors_is_cut_as_who_fetches_it_cuts_it(
    store: FileBlobStore, tmp_path: Path, small_chunks: int, may_have_tensors: bool
) -> None:
    """By its name in the repository: a peer that looks at the name alone must agree."""
    tensors = {f"t{n}": ("U8", [9000], bytes([n]) * 9000) for n in range(3)}
    content = make_safetensors(tensors)
    path = tmp_path / "blob"
    path.write_bytes(content)
    name = BlobDigest("sha256", hashlib.sha256(content).hexdigest())
    order = replace(make_order(path, name), may_have_tensors=may_have_tensors)
    (blob,) = adopt(store, order).blobs
    assert blob.table.layout.name.startswith("tensor-" if may_have_tensors else "fixed-")
    for index, digest in enumerate(blob.table):
        offset, length = blob.table.layout.span_of(index, index)
        assert digest == digest_of(content[offset : offset + length])


# --- what is refused ---


def test_adopt_wrong_content_is_refused_for_good(store: FileBlobStore, source: Path) -> None:
    """The name is not the content's: nothing is placed, the file stays."""
    order = make_order(source, OTHER.blob)
    with pytest.raises(RefusedFile, match=str(SAMPLE.blob)) as caught:
        adopt(store, order)
    assert caught.value.is_final
    assert list(store.iter_blobs()) == []
    assert list_staging(store) == []
    assert source.stat().st_nlink == 1


@pytest.mark.parametrize("has_links", [True, False])
def test_adopt_file_that_changes_while_it_is_hashed_is_refused(
    store: FileBlobStore,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_chunks: int,
    has_links: bool,
) -> None:
    """What was hashed must be what gets the name; a copy is proven by its own bytes instead."""
    if not has_links:
        forbid_links(monkeypatch)
    watch = Watch(room_bytes=0)

    def touch() -> None:
        with source.open("r+b") as file:
            file.seek(0)
            file.write(b"?")

    watch.on_hashed = touch
    with pytest.raises(RefusedFile, match="changed while it was hashed"):
        adopt(store, make_order(source, SAMPLE.blob), watch)
    assert list(store.iter_blobs()) == []
    assert list_staging(store) == []


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("what", ["gone", "link", "fifo", "other", "longer"])
def test_adopt_something_else_than_was_seen_is_refused(
    store: FileBlobStore,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_links: bool,
    what: str,
) -> None:
    """Between the look at the folder and the hashing anything may take the name."""
    order = make_order(source, SAMPLE.blob)
    if not has_links:
        forbid_links(monkeypatch)
    if what == "longer":
        with source.open("ab") as file:
            file.write(b"x")
    else:
        source.unlink()
    if what == "link":
        source.symlink_to("/etc/passwd")
    elif what == "fifo":
        os.mkfifo(source)
    elif what == "other":
        source.write_bytes(SAMPLE.content)
    with pytest.raises(RefusedFile) as caught:
        adopt(store, order)
    assert not caught.value.is_final
    assert list(store.iter_blobs()) == []
    assert list_staging(store) == []


def test_adopt_stopped_leaves_nothing(
    store: FileBlobStore, source: Path, small_chunks: int
) -> None:
    """A cancelled job ends within a chunk."""
    watch = Watch(stops_after=3 * small_chunks)
    with pytest.raises(StoppedAdoption):
        adopt(store, make_order(source, SAMPLE.blob), watch)
    assert watch.hashed_bytes == 3 * small_chunks
    assert list_staging(store) == []
    assert source.stat().st_nlink == 1


def test_adopt_unreadable_file_is_refused(
    store: FileBlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's private file, or a sector that the disk lost: named, and left alone."""
    order = make_order(source, SAMPLE.blob)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(RefusedFile, match="cannot be read"):
        adopt(store, order)
    assert list_staging(store) == []


def test_adopt_without_descriptors_is_our_own_failure(
    store: FileBlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ran out of descriptors must not blame the file."""
    order = make_order(source, SAMPLE.blob)
    forbid_links(monkeypatch)

    def fail(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(StoreError):
        adopt(store, order)


@pytest.mark.parametrize("call", ["mkdir", "rename", "ioctl"])
def test_adopt_failing_disk_of_ours_is_a_store_error(
    store: FileBlobStore, source: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Every step that is ours to do; nothing has a name then, and the file is untouched."""
    order = make_order(source, SAMPLE.blob)
    if call == "ioctl":
        forbid_links(monkeypatch)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl if call == "ioctl" else os, call, fail)
        with pytest.raises(StoreError):
            adopt(store, order)
    assert list(store.iter_blobs()) == []
    assert list_staging(store) == []
    assert source.stat().st_nlink == 1


def test_adopt_copy_that_cannot_be_made_is_refused(
    store: FileBlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that fails while it is copied, or ends early, is named; nothing stays."""
    forbid_links(monkeypatch)
    outcome: list[object] = [OSError(errno.EIO, os.strerror(errno.EIO)), 0]

    def copy(*_: object) -> int:
        made = outcome.pop(0)
        if isinstance(made, OSError):
            raise made
        return 0

    monkeypatch.setattr(os, "copy_file_range", copy)
    for reason in ("cannot be copied", "shorter"):
        with pytest.raises(RefusedFile, match=reason):
            adopt(store, make_order(source, SAMPLE.blob))
        assert list_staging(store) == []


def test_adopt_stopped_while_it_is_copied_leaves_nothing(
    store: FileBlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first byte is hashed."""
    forbid_links(monkeypatch)
    with pytest.raises(StoppedAdoption):
        adopt(store, make_order(source, SAMPLE.blob), Watch(stops_after=0))
    assert list_staging(store) == []


def test_sweep_staging_on_a_failing_disk_is_a_store_error(
    store: FileBlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon says so at start."""
    store.path_of(OTHER.blob).parent.mkdir()
    store.mark_foreign(OTHER.blob)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "unlink", fail)
    with pytest.raises(StoreError):
        sweep_staging(store)


def test_claim_foreign_leaves_what_is_not_a_file_of_ours(
    store: FileBlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to somebody's file, and a disk that takes no modes, stay foreign."""
    adopt(store, make_order(source, SAMPLE.blob))
    with monkeypatch.context() as patch:
        for call in ("chmod", "fchmod"):
            patch.setattr(os, call, lambda *_: None)
        assert not store.claim_foreign(SAMPLE.blob, is_public=True)
    assert store.is_foreign(SAMPLE.blob)
    store.discard(SAMPLE.blob, partial_only=False)
    forbid_links(monkeypatch)
    adopt(store, make_order(source, SAMPLE.blob), Watch(room_bytes=0))
    assert not store.claim_foreign(SAMPLE.blob, is_public=True)
    assert stat.S_IMODE(source.stat().st_mode) == 0o644


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_adopt_no_room_for_a_name_is_store_full(
    store: FileBlobStore, source: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A disk without room for another name takes nothing at all."""
    forbid_links(monkeypatch, number)
    with pytest.raises(StoreFullError):
        adopt(store, make_order(source, SAMPLE.blob))


# --- exposure ---


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Make a folder that every user can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_adopt_restricted_file_from_a_closed_folder_is_not_linked_into_the_open(
    open_folder: Path,
) -> None:
    """Its mode is wide because a folder above it is closed: a link would let everybody in."""
    store = FileBlobStore(open_folder / "store")
    source = open_folder / "private" / "blob"
    source.parent.mkdir(mode=0o700)
    source.write_bytes(SAMPLE.content)
    source.chmod(0o644)
    (blob,) = adopt(store, make_order(source, SAMPLE.blob, is_public=False)).blobs
    path = store.path_of(SAMPLE.blob)
    assert not path.samefile(source)
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    store.discard(SAMPLE.blob, partial_only=False)
    (blob,) = adopt(store, make_order(source, SAMPLE.blob, is_public=True)).blobs
    assert blob.placing is Placing.LINKED


@pytest.mark.parametrize("closed", ["mode", "store", "nothing"])
def test_adopt_restricted_file_is_linked_where_that_shows_it_to_nobody_new(
    open_folder: Path, closed: str
) -> None:
    """A file of 0600, a store that nobody else reaches, a file that everybody reaches anyway."""
    store = FileBlobStore(open_folder / "home" / "store")
    (open_folder / "home").chmod(0o700 if closed == "store" else 0o755)
    source = open_folder / "cache" / "blob"
    source.parent.mkdir(mode=0o700 if closed != "nothing" else 0o755)
    source.write_bytes(SAMPLE.content)
    source.chmod(0o600 if closed == "mode" else 0o644)
    (blob,) = adopt(store, make_order(source, SAMPLE.blob, is_public=False)).blobs
    assert blob.placing is Placing.LINKED


# --- order and crashes ---


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the calls that change names or make them durable."""
    recorded: list[str] = []

    def name_of(target: Any) -> str:
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
        if STAGING_NAME in path:
            return "STAGED"
        name = Path(path).name.replace(SAMPLE.blob.hex, "HEX")
        return "AB" if name == SAMPLE.blob.hex[:2] else name

    def record(call: str, count: int) -> None:
        real, label = getattr(os, call), call.removeprefix("f") if "chmod" in call else call

        def recording(*arguments: Any, **options: Any) -> Any:
            is_marker = call != "open" or str(arguments[0]).endswith(ADOPTED_SUFFIX)
            if is_marker:
                recorded.append(" ".join([label, *map(name_of, arguments[:count])]))
            return real(*arguments, **options)

        monkeypatch.setattr(os, call, recording)

    for call, count in (
        ("link", 2),
        ("rename", 2),
        ("symlink", 1),
        ("fsync", 1),
        ("chmod", 1),
        ("fchmod", 1),
    ):
        record(call, count)
    record("open", 1)
    return recorded


def test_adopt_link_is_marked_before_it_has_its_name(
    store: FileBlobStore, source: Path, calls: list[str]
) -> None:
    """Link under a temporary name, sync, mark, rename, sync of the folders."""
    adopt(store, make_order(source, SAMPLE.blob))
    assert calls == [
        "link HEX STAGED",
        "fsync STAGED",
        f"open HEX{ADOPTED_SUFFIX}",
        "rename STAGED HEX",
        "fsync AB",
        "fsync sha256",
    ]


def test_adopt_copy_is_durable_before_it_has_its_name(
    store: FileBlobStore, source: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copy, mode, sync, rename, sync of the folders."""
    forbid_links(monkeypatch)
    adopt(store, make_order(source, SAMPLE.blob))
    assert calls == [
        "chmod STAGED",
        "fsync STAGED",
        "rename STAGED HEX",
        "fsync AB",
        "fsync sha256",
    ]


def test_adopt_again_after_the_marker_alone_survived_is_right(
    store: FileBlobStore, source: Path
) -> None:
    """A crash between marker and rename leaves a marker without a blob: no blob, no harm."""
    store.path_of(SAMPLE.blob).parent.mkdir()
    store.mark_foreign(SAMPLE.blob)
    assert list(store.iter_blobs()) == []
    assert not store.is_foreign(SAMPLE.blob)
    publish_own(store, SAMPLE)
    assert not store.is_foreign(SAMPLE.blob)
    assert store.is_world_readable(SAMPLE.blob)


def publish_own(store: FileBlobStore, sample: Sample) -> None:
    """Fetch a blob as ours."""
    partial = store.open_partial(sample.blob, sample.layout)
    for chunk in sample.chunks():
        partial.put(chunk, PEER_ID)
    store.publish(partial, sample.proof(), is_public=True)
    partial.close()


@pytest.mark.parametrize("placing", ["linked", "referred"])
def test_publish_over_a_foreign_blob_makes_it_ours(
    store: FileBlobStore, source: Path, monkeypatch: pytest.MonkeyPatch, placing: str
) -> None:
    """What is fetched again replaces the name, not the owner's file."""
    if placing == "referred":
        forbid_links(monkeypatch)
    adopt(store, make_order(source, SAMPLE.blob), Watch(room_bytes=0))
    before = source.stat()
    publish_own(store, SAMPLE)
    assert not store.is_foreign(SAMPLE.blob)
    assert not store.path_of(SAMPLE.blob).is_symlink()
    assert (source.stat().st_mode, source.stat().st_nlink) == (before.st_mode, 1)


def test_adopt_copy_over_a_link_makes_it_ours(
    store: FileBlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marker spoke of the link."""
    order = make_order(source, SAMPLE.blob)
    adopt(store, order)
    forbid_links(monkeypatch)
    adopt(store, order)
    assert not store.is_foreign(SAMPLE.blob)
    assert store.is_world_readable(SAMPLE.blob)
    assert source.stat().st_nlink == 1


def test_adopt_file_that_changes_after_it_was_hashed_shows_it(
    store: FileBlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stamp is that of the bytes that were hashed, so that the next reader hashes again."""
    real = os.rename

    def change_first(*paths: Any) -> None:
        os.utime(source, (1, 1))
        real(*paths)

    monkeypatch.setattr(os, "rename", change_first)
    hashed = stamp_of(source.stat())
    (blob,) = adopt(store, make_order(source, SAMPLE.blob)).blobs
    assert blob.stamp == hashed != stamp_of(source.stat())


def test_adopt_the_same_link_again_leaves_one(store: FileBlobStore, source: Path) -> None:
    """rename(2) does nothing between two names of one file; the temporary one goes all the same."""
    order = make_order(source, SAMPLE.blob)
    adopt(store, order)
    adopt(store, order)
    assert source.stat().st_nlink == 2
    assert list_staging(store) == []


def test_sweep_staging_removes_what_a_crash_left(store: FileBlobStore, source: Path) -> None:
    """A link that never got its name is ours to remove; the file is not."""
    sweep_staging(store)
    folder = store.root / "blobs" / STAGING_NAME
    folder.mkdir()
    os.link(source, folder / "left")
    store.path_of(OTHER.blob).parent.mkdir()
    store.mark_foreign(OTHER.blob)
    adopt(store, make_order(source, SAMPLE.blob))
    sweep_staging(store)
    assert list(folder.iterdir()) == []
    assert source.read_bytes() == SAMPLE.content
    markers = [path.name for path in store.root.rglob(f"*{ADOPTED_SUFFIX}")]
    assert markers == [SAMPLE.blob.hex + ADOPTED_SUFFIX]


def test_find_blob_referred_file_is_read_only_if_it_is_a_file(
    store: FileBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative link, a link to a link, a folder, a FIFO, nothing: none of them is a blob."""
    path = store.path_of(SAMPLE.blob)
    path.parent.mkdir()
    good = tmp_path / "good"
    good.write_bytes(SAMPLE.content)
    (tmp_path / "to-good").symlink_to(good)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.chdir(path.parent)
    relative = os.path.relpath(good, path.parent)
    names = ("to-good", "folder", "fifo", "gone")
    for target in (relative, *(str(tmp_path / name) for name in names)):
        path.symlink_to(target)
        assert store.find_blob(SAMPLE.blob) is None
        assert list(store.iter_blobs()) == []
        path.unlink()


def test_find_blob_referred_file_that_cannot_be_told_is_an_error(
    store: FileBlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails must not look like a file that is gone; one that closed itself does."""
    forbid_links(monkeypatch)
    adopt(store, make_order(source, SAMPLE.blob), Watch(room_bytes=0))
    real = os.open
    failure = errno.EIO

    def fail(path: Any, *arguments: Any) -> int:
        if str(path) == str(source):
            raise OSError(failure, os.strerror(failure))
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(StoreError):
        store.find_blob(SAMPLE.blob)
    failure = errno.EACCES
    assert store.find_blob(SAMPLE.blob) is None


def test_is_foreign_own_file_made_writable_is_left_alone(store: FileBlobStore) -> None:
    """Who changes a mode in the store by hand is not overruled; the content stays unshared."""
    publish_own(store, SAMPLE)
    path = store.path_of(SAMPLE.blob)
    path.chmod(0o644)
    assert store.is_foreign(SAMPLE.blob)
    assert not store.is_world_readable(SAMPLE.blob)
    store.set_restricted(SAMPLE.blob)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_adopt_disk_that_does_not_keep_a_foreign_file_refuses_it(
    store: FileBlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed sync of the owner's file: a power cut may lose it, so it is not believed."""
    real = os.fsync
    failure = errno.EIO

    def fail(fd: int) -> None:
        if STAGING_NAME in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(failure, os.strerror(failure))
        real(fd)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RefusedFile, match="does not keep"):
        adopt(store, make_order(source, SAMPLE.blob))
    failure = errno.EROFS
    assert adopt(store, make_order(source, SAMPLE.blob)).blobs
