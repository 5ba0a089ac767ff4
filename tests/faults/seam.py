"""
Owns the seam between our Python code and the system: each call that touches a store is a point.

Knows nothing of what the calls are for. SQLite's calls, which C makes, come in from vfs.py.
Invariants: points are counted in the order in which they happen, over all threads; nothing but
the planned call is changed; used in a forked child only, which it never leaves.
Source: SQLite's "fail at the n-th call, for all n"; libtorrent's test_error_handling.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import functools
import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Any

from tests.faults.pages import Pages

_PACKAGE_MARK = f"{os.sep}p2pcache{os.sep}"
# Names that differ from run to run: digests, their folders, process and thread numbers.
_NAMES = (
    (re.compile(r"[0-9a-f]{32,}"), "#"),
    (re.compile(r"(?<=/)[0-9a-f]{2}(?=/|$)"), "##"),
    (re.compile(r"(?<=\.)\d+(?=\.|$)"), "N"),
)


class Group(StrEnum):
    """What a call does to the disk."""

    CHANGE = "change"
    WRITE = "write"
    OPEN = "open"
    READ = "read"
    # Listing a folder, and looking where a link leads.
    LOOK = "look"


# Which points a plan counts. A kill before a read is a kill before the next change.
CHANGES = frozenset({Group.CHANGE, Group.WRITE})
CALLS = CHANGES | {Group.OPEN}
WRITES = frozenset({Group.WRITE})
READS = frozenset({Group.READ})
LOOKS = frozenset({Group.LOOK})
EVERYTHING = CALLS | READS | LOOKS


class Action(StrEnum):
    """What happens at the planned point."""

    COUNT = "count"
    KILL_BEFORE = "before"
    KILL_AFTER = "after"
    KILL_TORN = "torn"
    CUT = "cut"
    ERROR = "error"
    # This call and every later one.
    ERRORS = "errors"
    SHORT = "short"
    # The n-th sync of the index fails: strace.py does it.
    SYNC = "sync"
    # A disk with so many free pages of 4 KiB: fill.py does it.
    FILL = "fill"


ENDINGS = frozenset({Action.KILL_BEFORE, Action.KILL_AFTER, Action.KILL_TORN, Action.CUT})
AT_POINTS = ENDINGS | {Action.ERROR, Action.ERRORS, Action.SHORT}


@dataclass(frozen=True, slots=True)
class Plan:
    """
    Do something at the n-th point, counted from 1, of those whose group is in `scope`.

    `number` is the errno; for a kill, the point of the next start at which it is killed again.
    """

    action: Action = Action.COUNT
    at: int = 0
    number: int = 0
    scope: frozenset[Group] = CHANGES


@dataclass(frozen=True, slots=True)
class _Shape:
    """How to find the file that a call is about: positions of paths, of descriptors."""

    group: Group
    paths: tuple[int, ...] = ()
    fds: tuple[int, ...] = ()


_ONE_PATH = ("mkdir", "rmdir", "unlink", "remove", "chmod", "truncate", "utime", "setxattr")
_ONE_FD = ("fsync", "fdatasync", "ftruncate", "posix_fallocate", "fchmod")
_SHAPES: dict[str, _Shape] = {
    **dict.fromkeys(_ONE_PATH, _Shape(Group.CHANGE, paths=(0,))),
    **dict.fromkeys(("rename", "replace", "link"), _Shape(Group.CHANGE, paths=(0, 1))),
    "symlink": _Shape(Group.CHANGE, paths=(1,)),
    **dict.fromkeys(_ONE_FD, _Shape(Group.CHANGE, fds=(0,))),
    **dict.fromkeys(("write", "pwrite", "writev", "pwritev"), _Shape(Group.WRITE, fds=(0,))),
    "copy_file_range": _Shape(Group.WRITE, fds=(1,)),
    **dict.fromkeys(("read", "pread", "readv", "preadv"), _Shape(Group.READ, fds=(0,))),
    **dict.fromkeys(("scandir", "listdir", "readlink"), _Shape(Group.LOOK, paths=(0,))),
}
_SYNCS = ("fsync", "fdatasync")


class Seam:
    """The points of one store in this process. install() once, then arm()."""

    def __init__(self, root: Path, plan: Plan, tell: Callable[[int, str], None]) -> None:
        """
        Args:
            root: The store; calls elsewhere are no points.
            plan: What to do, and where.
            tell: Called with (number of the point, site) before the planned action.
        """
        self.plan = plan
        self.pages = Pages()
        self.is_armed = False
        self.count = 0
        # (what the call does, site) of every point that was counted or planned.
        self.sites: list[tuple[Group, str]] = []
        # What a power cut does; set by who has a disk to cut from.
        self.cut: Callable[[], None] = lambda: None
        # What the file system cannot do: these calls say so, and are no points.
        self.lacking: frozenset[str] = frozenset()
        # Mutations leave calls out: (name, kind of file) → whether.
        self.is_left_out: Callable[[str, str], bool] = lambda name, kind: False
        self._root = str(root)
        self._tell = tell
        self._lock = threading.Lock()
        self._real: dict[str, Callable[..., Any]] = {}

    @property
    def was_reached(self) -> bool:
        """Return whether the planned point came."""
        return self.plan.action in AT_POINTS and self.count >= self.plan.at

    def install(self) -> None:
        """Put the seam around the functions of `os`, `io` and `fcntl`. For good."""
        for name, shape in _SHAPES.items():
            if hasattr(os, name):
                self._real[name] = getattr(os, name)
                setattr(os, name, self._wrap(name, shape))
        self._real["open"] = os.open
        setattr(os, "open", self._wrap_open())  # noqa: B010
        file_open = self._wrap_file_open(io.open)
        for module in (io, builtins):
            setattr(module, "open", file_open)  # noqa: B010
        for name in ("ioctl", "flock"):
            self._real[name] = getattr(fcntl, name)
            setattr(fcntl, name, self._wrap(name, _Shape(Group.CHANGE, fds=(0,))))

    def lose_pages(self) -> int:
        """Show what failed syncs did not write; returns how many bytes. Disarmed only."""
        return self.pages.lose([self._root], self._real["pwrite"])

    # --- which calls are points ---

    def find_kind(self, path: str) -> str | None:
        """Return what kind of file of the store a path is; None when it is none."""
        if path != self._root and not path.startswith(self._root + "/"):
            return None
        kind = path[len(self._root) :]
        for pattern, replacement in _NAMES:
            kind = pattern.sub(replacement, kind)
        return kind or "/"

    def path_of_fd(self, fd: int) -> str:
        """Return the path of an open file; empty for what has none."""
        try:
            return os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")
        except OSError:
            return ""

    def _path_of(self, path: Any, dir_fd: int | None) -> str:
        if isinstance(path, int):
            return self.path_of_fd(path)
        text = os.fsdecode(os.fspath(path))
        if text.startswith("/"):
            return text
        return f"{os.getcwd() if dir_fd is None else self.path_of_fd(dir_fd)}/{text}"

    def _find(self, shape: _Shape, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        dir_fds = [kwargs.get("src_dir_fd"), kwargs.get("dst_dir_fd")]
        for place in shape.paths:
            dir_fd = kwargs.get("dir_fd", dir_fds[place])
            kind = self.find_kind(self._path_of(args[place], dir_fd)) if len(args) > place else None
            if kind is not None:
                return kind
        for place in shape.fds:
            fd = args[place] if isinstance(args[place], int) else args[place].fileno()
            if (kind := self.find_kind(self.path_of_fd(fd))) is not None:
                return kind
        return None

    def _wrap(self, name: str, shape: _Shape) -> Callable[..., Any]:
        real = self._real[name]
        is_write = shape.group is Group.WRITE

        @functools.wraps(real)
        def call(*args: Any, **kwargs: Any) -> Any:
            kind = self._find(shape, args, kwargs)
            if kind is None:
                return real(*args, **kwargs)
            if name in self.lacking:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            if self.is_left_out(name, kind):
                return None
            torn = functools.partial(_write_half, name, real, args) if is_write else None
            try:
                result = self.cross(name, kind, shape.group, lambda: real(*args, **kwargs), torn)
            except OSError:
                if name in _SYNCS:
                    self.pages.note_failed(args[0])
                raise
            if name in _SYNCS:
                self.pages.note_synced(args[0])
            elif name == "pwrite":
                self.pages.note_written(args[0], args[2], result)
            return result

        return call

    def _wrap_open(self) -> Callable[..., int]:
        real = self._real["open"]

        @functools.wraps(real)
        def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            kind = self.find_kind(self._path_of(path, dir_fd)) if self.is_armed else None
            if kind is None:
                return int(real(path, flags, mode, dir_fd=dir_fd))
            group = Group.CHANGE if flags & (os.O_CREAT | os.O_TRUNC) else Group.OPEN
            result = self.cross("open", kind, group, lambda: real(path, flags, mode, dir_fd=dir_fd))
            return int(result)

        return call

    def _wrap_file_open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """A file object writes from C; for the store it gets a raw file that goes through `os`."""

        def open_raw(path: str, flags: int) -> int:
            return os.open(path, flags | os.O_CLOEXEC, 0o666)

        @functools.wraps(real)
        def call(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            is_ours = not isinstance(file, int) and self.is_armed
            if not is_ours or self.find_kind(self._path_of(file, None)) is None:
                return real(file, mode, *args, **kwargs)
            if "b" not in mode or mode.strip("bt") == "r":
                kwargs.setdefault("opener", open_raw)
                return real(file, mode, *args, **kwargs)
            raw = _SeamFile(file, mode.replace("b", ""), opener=open_raw)
            if "buffering" in kwargs and kwargs["buffering"] == 0:
                return raw
            return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

        return call

    # --- what happens at a point ---

    def cross(
        self,
        name: str,
        kind: str,
        group: Group,
        real: Callable[[], Any],
        torn: Callable[[], Any] | None = None,
    ) -> Any:
        """
        Pass one point: count it, and do what the plan says if it is the one.

        Args:
            name: Of the call.
            kind: Of the file.
            group: What the call does.
            real: Makes the call.
            torn: Makes half of it, for those that write.

        Raises:
            OSError: The plan says so, or the real call did.
        """
        if (
            not self.is_armed
            or group not in self.plan.scope
            or not self._is_planned(name, kind, group)
        ):
            return real()
        action = self.plan.action
        if action is Action.SHORT:
            return real() if torn is None else torn()
        if action in (Action.ERROR, Action.ERRORS):
            raise OSError(self.plan.number, os.strerror(self.plan.number))
        if action is Action.CUT:
            self.cut()
        elif action is Action.KILL_TORN and torn is not None:
            torn()
        elif action is not Action.KILL_BEFORE:
            with contextlib.suppress(OSError):  # a call that fails by itself is over, too
                real()
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
        raise AssertionError("a killed process goes on")

    def _is_planned(self, name: str, kind: str, group: Group) -> bool:
        plan = self.plan
        with self._lock:
            if not self.is_armed:
                return False
            self.count += 1
            number = self.count
        is_first = number == plan.at and plan.action in AT_POINTS
        if plan.action is Action.COUNT or is_first:
            site = f"{name} {kind} by {find_caller()}"
            self.sites.append((group, site))
            if is_first:
                self._tell(number, site)
        if plan.action is Action.ERRORS:
            return number >= plan.at
        return is_first


class _SeamFile(io.FileIO):
    """A raw file whose changes go through `os`, where the seam is."""

    def write(self, content: Any, /) -> int:
        """Write some of it."""
        return os.write(self.fileno(), content)

    def truncate(self, size: int | None = None, /) -> int:
        """Cut or extend."""
        length = self.tell() if size is None else size
        os.ftruncate(self.fileno(), length)
        return length


def _write_half(name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Make a write that writes less than it was asked to; at least one byte."""
    if name == "copy_file_range":
        return real(args[0], args[1], max(1, args[2] // 2), *args[3:])
    if name in ("writev", "pwritev"):
        return real(args[0], args[1][:1], *args[2:])
    view = memoryview(args[1])
    return real(args[0], view[: max(1, len(view) // 2)], *args[2:])


def find_caller() -> str:
    """Return which function of ours makes the call: `partial.flush`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _PACKAGE_MARK in frame.f_code.co_filename:
            return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "-"
