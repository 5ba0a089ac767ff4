"""
Owns the tests of store.lock: one daemon per store, also where flock(2) does not work.

Knows nothing of what a store holds.
Invariants: a store is taken from nobody who may still run.
Source: store/lock.py.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from p2pcache.errors import StoreLockedError
from p2pcache.store import lock
from p2pcache.store.home import StoreHome
from p2pcache.store.lock import LOCK_NAME, MARKER_NAME, Owner, StoreLock, find_start

NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

# A process that takes the store without flock, says so, and waits to be ended.
HOLD = """
import errno, fcntl, os, sys
from pathlib import Path
from p2pcache.store.lock import StoreLock

def refuse(*_):
    raise OSError(errno.ENOLCK, "no locks")

fcntl.flock = refuse
held = StoreLock(Path(sys.argv[1]))
try:
    held.acquire()
except Exception as error:
    print(type(error).__name__, flush=True)
else:
    print("held", flush=True)
    sys.stdin.read()
    held.release()
"""


@pytest.fixture(params=NO_FLOCK, ids=lambda number: errno.errorcode[number])
def no_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file system have no locks."""

    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


class Holder:
    """Another process that has the store, or could not get it."""

    def __init__(self, root: Path) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self.child.stdout is not None
        self.said = self.child.stdout.readline().strip()

    def end(self, *, is_killed: bool = False) -> None:
        """End it: as it wants, or without a chance to tidy up."""
        if is_killed:
            self.child.send_signal(signal.SIGKILL)
        self.child.communicate()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    """A process that has the store."""
    other = Holder(tmp_path)
    yield other
    if other.child.poll() is None:
        other.end(is_killed=True)


def marker_of(root: Path) -> Owner:
    """Read who has a store."""
    owner = Owner.parse((root / MARKER_NAME).read_bytes())
    assert owner is not None
    return owner


@pytest.mark.usefixtures("no_flock")
def test_lock_without_flock_is_a_marker_that_goes_with_its_owner(tmp_path: Path) -> None:
    """The marker names this process while it has the store, and no longer."""
    first = StoreLock(tmp_path)
    first.acquire()
    assert marker_of(tmp_path) == Owner.current()
    second = StoreLock(tmp_path)
    with pytest.raises(StoreLockedError) as caught:
        second.acquire()
    assert str(tmp_path / MARKER_NAME) in str(caught.value)
    assert f"process {os.getpid()}" in str(caught.value)
    assert not second.is_held
    first.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_NAME]
    second.acquire()
    second.release()
    second.release()


def test_lock_of_another_process_holds_until_it_ends(
    tmp_path: Path, holder: Holder, no_flock: None
) -> None:
    """Two processes, one store; the one that ends lets the other in."""
    assert holder.said == "held"
    with pytest.raises(StoreLockedError):
        StoreLock(tmp_path).acquire()
    third = Holder(tmp_path)
    third.end()
    assert third.said == StoreLockedError.__name__
    holder.end()
    mine = StoreLock(tmp_path)
    mine.acquire()
    mine.release()


def test_lock_of_a_killed_process_is_taken_over(
    tmp_path: Path, holder: Holder, no_flock: None
) -> None:
    """A marker of this boot whose process is gone is stale, and replaced."""
    holder.end(is_killed=True)
    assert marker_of(tmp_path).pid == holder.child.pid
    mine = StoreLock(tmp_path)
    mine.acquire()
    assert marker_of(tmp_path) == Owner.current()
    mine.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_NAME]


OTHERS = {
    "another process had the number": ("started", "1", True),
    "the machine was started again": ("boot", "1-2-3", True),
    "another host": ("host", "elsewhere", False),
    "another machine of that name": ("machine", "ff" * 16, False),
    "a machine without an id": ("machine", "", False),
    "another container": ("pid_space", "pid:[1]", False),
    "a system that does not say its boot": ("boot", "", False),
    "a system that does not say its start": ("started", "", False),
}


@pytest.mark.parametrize("case", OTHERS)
def test_lock_owner_is_gone_only_if_that_is_certain(case: str) -> None:
    """Start time, boot, host, machine and pid namespace all have a say."""
    key, value, is_gone = OTHERS[case]
    here = Owner.current()
    if not here.machine:
        here = replace(here, machine="aa" * 16)
    assert not here.is_gone(here)
    fields = {**asdict(here), key: value}
    assert Owner(**fields).is_gone(here) == is_gone


def test_lock_owner_of_a_machine_that_does_not_say_who_it_is_is_never_gone() -> None:
    """Without /etc/machine-id, or without /proc, nobody is called dead."""
    here = Owner.current()
    dead = replace(here, started="1")
    assert not replace(dead, machine="").is_gone(replace(here, machine=""))
    assert not dead.is_gone(replace(here, started=""))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"pid": 1}',
        b'{"pid": true, "host": 1, "machine": "", "boot": "", "pid_space": "", "started": ""}',
    ],
)
def test_lock_marker_that_cannot_be_read_is_somebodys(
    tmp_path: Path, no_flock: None, content: bytes
) -> None:
    """Torn or foreign, it is not guessed at: the sentence says what to delete."""
    (tmp_path / MARKER_NAME).write_bytes(content)
    with pytest.raises(StoreLockedError) as caught:
        StoreLock(tmp_path).acquire()
    assert f"delete {tmp_path / MARKER_NAME}" in str(caught.value)
    assert (tmp_path / MARKER_NAME).read_bytes() == content


def test_lock_with_flock_still_respects_a_marker(tmp_path: Path, holder: Holder) -> None:
    """One machine may have locks on a shared folder where another has none."""
    with pytest.raises(StoreLockedError):
        StoreLock(tmp_path).acquire()
    holder.end(is_killed=True)
    mine = StoreLock(tmp_path)
    mine.acquire()
    assert not (tmp_path / MARKER_NAME).exists()
    mine.release()


def test_lock_without_hard_links_is_made_all_the_same(
    tmp_path: Path, no_flock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system with neither locks nor links is served by O_EXCL alone."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    mine = StoreLock(tmp_path)
    mine.acquire()
    with pytest.raises(StoreLockedError):
        StoreLock(tmp_path).acquire()
    mine.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_NAME]


def test_lock_without_links_or_locks_goes_to_who_is_first(
    tmp_path: Path, no_flock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two make the marker at the same moment: one of them is told that it is there."""

    def refuse(*_: object) -> None:
        (tmp_path / MARKER_NAME).write_bytes(b"the other one")
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreLockedError):
        StoreLock(tmp_path).acquire()
    assert (tmp_path / MARKER_NAME).read_bytes() == b"the other one"


def test_lock_made_by_another_meanwhile_is_respected(
    tmp_path: Path, no_flock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is taken between the look and the link."""

    def refuse(*_: object) -> None:
        (tmp_path / MARKER_NAME).write_bytes(b"the other one")
        raise FileExistsError

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreLockedError):
        StoreLock(tmp_path).acquire()


def test_lock_on_a_disk_that_fails_is_not_taken(
    tmp_path: Path, no_flock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure is a failure, and leaves no temporary name."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", refuse)
    held = StoreLock(tmp_path)
    with pytest.raises(OSError, match="Input/output"):
        held.acquire()
    assert not held.is_held
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_NAME]


def test_lock_whose_stale_marker_somebody_else_removed_is_taken(
    tmp_path: Path, no_flock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one was faster at tidying up, and slower at coming back."""
    marker = tmp_path / MARKER_NAME
    stale = replace(Owner.current(), machine="aa" * 16, boot="1-2-3").to_bytes()
    marker.write_bytes(stale)
    here = replace(Owner.current(), machine="aa" * 16)
    monkeypatch.setattr(Owner, "current", lambda: here)
    real = StoreLock._read_marker

    def read_and_lose(self: StoreLock) -> bytes | None:
        seen = real(self)
        if seen == stale:
            marker.unlink()
        return seen

    monkeypatch.setattr(StoreLock, "_read_marker", read_and_lose)
    mine = StoreLock(tmp_path)
    mine.acquire()
    assert marker_of(tmp_path) == here
    mine.release()


def test_lock_taken_over_by_two_at_once_goes_to_one(
    tmp_path: Path, no_flock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who finds another marker than the stale one it looked at puts that back, and leaves."""
    stale = replace(Owner.current(), boot="1-2-3").to_bytes()
    (tmp_path / MARKER_NAME).write_bytes(stale)
    fresh = replace(Owner.current(), pid=1).to_bytes()
    mine = StoreLock(tmp_path)
    real = StoreLock._read_marker

    def read_late(self: StoreLock) -> bytes | None:
        seen = real(self)
        (tmp_path / MARKER_NAME).write_bytes(fresh)  # the other one was faster
        return seen

    monkeypatch.setattr(StoreLock, "_read_marker", read_late)
    with pytest.raises(StoreLockedError):
        mine.acquire()
    assert (tmp_path / MARKER_NAME).read_bytes() == fresh


def test_lock_taken_over_by_three_at_once_goes_to_one(
    tmp_path: Path, no_flock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One looked at the stale marker, was overtaken, and must not let a third one in."""
    stale = replace(Owner.current(), machine="aa" * 16, boot="1-2-3").to_bytes()
    (tmp_path / MARKER_NAME).write_bytes(stale)
    here = replace(Owner.current(), machine="aa" * 16)
    monkeypatch.setattr(Owner, "current", lambda: here)
    first, second, third = (StoreLock(tmp_path) for _ in range(3))
    real_read, real_rename = StoreLock._read_marker, Path.rename

    def read_and_be_late(self: StoreLock) -> bytes | None:
        seen = real_read(self)
        if self is second and not first.is_held:
            first.acquire()
        return seen

    def rename_and_let_in(self: Path, target: Path) -> Path:
        moved = real_rename(self, target)
        if self.name == MARKER_NAME:
            third.acquire()
        return moved

    monkeypatch.setattr(StoreLock, "_read_marker", read_and_be_late)
    monkeypatch.setattr(Path, "rename", rename_and_let_in)
    with pytest.raises(StoreLockedError):
        second.acquire()
    with contextlib.suppress(StoreLockedError):
        third.acquire()
    assert [first.is_held, second.is_held, third.is_held] == [True, False, False]
    first.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_NAME]


@pytest.mark.parametrize("died_count", [1, 2])
def test_lock_whose_takeover_died_is_taken_over(
    tmp_path: Path, no_flock: None, monkeypatch: pytest.MonkeyPatch, died_count: int
) -> None:
    """Who was killed while it took over is replaced in turn; one that lives is waited for."""
    here = replace(Owner.current(), machine="aa" * 16)
    dead = [replace(here, started=str(number)).to_bytes() for number in range(1, 4)]
    (tmp_path / MARKER_NAME).write_bytes(dead[0])
    for number in range(died_count):
        monkeypatch.setattr(Owner, "current", lambda n=number: Owner.parse(dead[n + 1]))
        StoreLock(tmp_path)._claim(dead[0])
    monkeypatch.setattr(Owner, "current", lambda: here)
    claims = StoreLock(tmp_path)._claim(dead[0])
    with pytest.raises(StoreLockedError, match="just taking"):
        StoreLock(tmp_path).acquire()
    claims[-1].unlink()
    mine = StoreLock(tmp_path)
    mine.acquire()
    assert marker_of(tmp_path) == here
    mine.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_NAME]


def test_lock_whose_takeovers_all_died_is_for_somebody_to_look_at(
    tmp_path: Path, no_flock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain that never ends is no race; the sentence names the files."""
    here = replace(Owner.current(), machine="aa" * 16)
    seen = replace(here, started="1").to_bytes()
    (tmp_path / MARKER_NAME).write_bytes(seen)
    for number in range(2, 2 + lock._CLAIMS_MAX):
        dead = replace(here, started=str(number))
        monkeypatch.setattr(Owner, "current", lambda dead=dead: dead)
        StoreLock(tmp_path)._claim(seen)
    monkeypatch.setattr(Owner, "current", lambda: here)
    with pytest.raises(StoreLockedError, match=r"delete .*\.0\.new"):
        StoreLock(tmp_path).acquire()


def test_lock_of_a_home_is_given_back_when_it_cannot_be_opened(
    tmp_path: Path, no_flock: None
) -> None:
    """A store of a newer schema is refused, and left without a marker."""
    StoreHome(tmp_path).open().close()
    (tmp_path / "p2pcache-store.json").write_text('{"schema_version": 999}')
    with pytest.raises(Exception, match="999"):
        StoreHome(tmp_path).open()
    assert not (tmp_path / MARKER_NAME).exists()


def test_lock_start_of_a_process_is_told_until_it_ends() -> None:
    """A process that ended and was not asked about yet does not run any more."""
    child = subprocess.Popen(["sleep", "60"])
    assert find_start(child.pid) not in ("", find_start(1))
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert find_start(child.pid) == ""
    child.wait()
    assert find_start(child.pid) == ""


def test_lock_start_is_read_past_a_strange_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of a command may hold brackets and spaces."""
    monkeypatch.setattr(lock, "_try_read", lambda path: "7 (a) S (b c) R 1 " + "0 " * 17 + "4711 9")
    assert find_start(7) == "4711"
