"""
Owns the points of SQLite's own system calls, which C makes: its VFS lets each be replaced.

Knows nothing of plans; what happens at a point is the seam's.
Invariants: each call ends as the real one or with the planned errno; fsync and fdatasync cannot
be replaced here (strace.py fails those).
Source: SQLite, sqlite3_vfs.xSetSystemCall; os_unix.c, aSyscall.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
from collections.abc import Callable
from typing import Any

from tests.faults.seam import Group, Seam

_POINTER = ctypes.c_void_p
_VERSION_WITH_SYSTEM_CALLS = 3


_METHODS = (
    *("xOpen", "xDelete", "xAccess", "xFullPathname", "xDlOpen", "xDlError", "xDlSym", "xDlClose"),
    *("xRandomness", "xSleep", "xCurrentTime", "xGetLastError", "xCurrentTimeInt64"),
    *("xSetSystemCall", "xGetSystemCall", "xNextSystemCall"),
)


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", _POINTER),
        ("zName", ctypes.c_char_p),
        ("pAppData", _POINTER),
        *((name, _POINTER) for name in _METHODS),
    )


_SSIZE, _INT, _SIZE, _OFFSET = ctypes.c_ssize_t, ctypes.c_int, ctypes.c_size_t, ctypes.c_int64
_PATH = ctypes.c_char_p
# name → (result, arguments, what it does, whether argument 0 is a path)
_CALLS: dict[str, tuple[Any, tuple[Any, ...], Group, bool]] = {
    "open": (_INT, (_PATH, _INT, _INT), Group.OPEN, True),
    "unlink": (_INT, (_PATH,), Group.CHANGE, True),
    "write": (_SSIZE, (_INT, _POINTER, _SIZE), Group.WRITE, False),
    "pwrite": (_SSIZE, (_INT, _POINTER, _SIZE, _OFFSET), Group.WRITE, False),
    "pwrite64": (_SSIZE, (_INT, _POINTER, _SIZE, _OFFSET), Group.WRITE, False),
    "ftruncate": (_INT, (_INT, _OFFSET), Group.CHANGE, False),
    "read": (_SSIZE, (_INT, _POINTER, _SIZE), Group.READ, False),
    "pread": (_SSIZE, (_INT, _POINTER, _SIZE, _OFFSET), Group.READ, False),
    "pread64": (_SSIZE, (_INT, _POINTER, _SIZE, _OFFSET), Group.READ, False),
}
# Callbacks live as long as the process: SQLite keeps their addresses.
_kept: list[object] = []


def find_vfs() -> _Vfs | None:
    """Return SQLite's file layer; None when this Python hides it, or it is too old."""
    try:
        find = ctypes.CDLL(_sqlite3.__file__).sqlite3_vfs_find
    except (OSError, AttributeError):
        return None
    find.restype, find.argtypes = _POINTER, (ctypes.c_char_p,)
    address = find(None)
    vfs = _Vfs.from_address(address) if address else None
    return vfs if vfs is not None and vfs.iVersion >= _VERSION_WITH_SYSTEM_CALLS else None


def install(seam: Seam) -> None:
    """Put the seam around SQLite's calls in this process. For good."""
    vfs = find_vfs()
    assert vfs is not None, "find_vfs() says whether it can be done"
    get = ctypes.CFUNCTYPE(_POINTER, _POINTER, _PATH)(vfs.xGetSystemCall)
    put = ctypes.CFUNCTYPE(_INT, _POINTER, _PATH, _POINTER)(vfs.xSetSystemCall)
    for name, (result, arguments, group, has_path) in _CALLS.items():
        address = get(ctypes.addressof(vfs), name.encode())
        if address:
            kind = ctypes.CFUNCTYPE(result, *arguments, use_errno=True)
            callback = kind(_wrap(seam, name, kind(address), group, has_path))
            _kept.append(callback)
            put(ctypes.addressof(vfs), name.encode(), ctypes.cast(callback, _POINTER))


def _wrap(
    seam: Seam, name: str, real: Callable[..., int], group: Group, has_path: bool
) -> Callable[..., int]:
    def call(*args: Any) -> int:
        if not seam.is_armed:
            return real(*args)
        path = os.fsdecode(args[0]) if has_path else seam.path_of_fd(args[0])
        kind = seam.find_kind(path)
        if kind is None:
            return real(*args)
        does = group
        if name == "open" and args[1] & (os.O_CREAT | os.O_TRUNC):
            does = Group.CHANGE
        torn = None
        if group is Group.WRITE:

            def torn() -> int:
                return real(args[0], args[1], max(1, args[2] // 2), *args[3:])

        try:
            return int(seam.cross(f"sqlite.{name}", kind, does, lambda: real(*args), torn))
        except OSError as error:
            ctypes.set_errno(error.errno or 0)
            return -1

    return call
