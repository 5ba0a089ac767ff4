"""
Owns small real file systems: images on loop devices, and tmpfs.

Knows nothing of stores.
Invariants: what was mounted is unmounted and its loop device freed when the block ends, also when
the file system was shut down; only what was made here is touched.
Source: mount(2), loop(4); EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN, which share a number.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path
from types import TracebackType

SHUTDOWN_REQUEST = 0x8004587D
# Neither the log nor anything else is written any more: what a power cut does.
NO_LOG_FLUSH = struct.pack("I", 2)
MEBIBYTE = 1024 * 1024
_MNT_DETACH = 2
_BUSY_S_MAX = 5.0
_BUSY_PAUSE_S = 0.01
_HELD_S_MAX = 120.0
_HELD_PAUSE_S = 0.5

_libc = ctypes.CDLL(None, use_errno=True)


class Disk:
    """A file system of its own on an image, or a tmpfs. Use as a context manager."""

    def __init__(self, folder: Path, kind: str, size_bytes: int, options: str = "") -> None:
        """
        Args:
            folder: Where the image and the mount point go; on a fast disk.
            kind: "ext4", "xfs", "btrfs" or "tmpfs".
            size_bytes: Of the whole.
            options: For mount(2), beyond the defaults.
        """
        self.kind = kind
        self.mount_point = folder / f"{kind}-mount"
        self._image = folder / f"{kind}.image"
        self._size_bytes = size_bytes
        self._options = options
        self._device = "tmpfs"

    def __enter__(self) -> Disk:
        """Make it and mount it."""
        self.mount_point.mkdir(parents=True)
        try:
            if self.kind != "tmpfs":
                self._make_image()
            self.mount()
        except BaseException:
            self._free()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Unmount it and leave nothing behind."""
        self.unmount(is_lazy=True)
        self._free()

    def mount(self) -> None:
        """Mount it, as after a boot."""
        options = self._options
        if self.kind == "tmpfs":
            options = f"size={self._size_bytes},{options}".rstrip(",")
        point = os.fsencode(self.mount_point)
        if _libc.mount(self._device.encode(), point, self.kind.encode(), 0, options.encode()):
            number = ctypes.get_errno()
            raise OSError(number, f"mount {self.kind}: {os.strerror(number)}")

    def unmount(self, *, is_lazy: bool = False) -> None:
        """Unmount it; waits for descriptors of a process that was just killed."""
        deadline_s = time.monotonic() + _BUSY_S_MAX
        while _libc.umount2(os.fsencode(self.mount_point), _MNT_DETACH if is_lazy else 0):
            number = ctypes.get_errno()
            if is_lazy:
                return
            if time.monotonic() > deadline_s:
                raise OSError(number, f"umount {self.mount_point}: {os.strerror(number)}")
            time.sleep(_BUSY_PAUSE_S)

    def cut_power(self) -> None:
        """Shut the file system down: nothing that is not on the disk will ever be."""
        fd = os.open(self.mount_point, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.ioctl(fd, SHUTDOWN_REQUEST, NO_LOG_FLUSH)
        os.close(fd)

    def restore_power(self) -> None:
        """
        Mount again what was shut down, so that its journal is replayed.

        Another process that makes a mount namespace takes every mount along, and keeps a dead file
        system alive until it ends: mounting it again gives the dead one.
        """
        deadline_s = time.monotonic() + _HELD_S_MAX
        while True:
            self.unmount()
            self.mount()
            if self._is_alive():
                return
            if time.monotonic() > deadline_s:
                raise OSError(errno.EIO, f"{self.mount_point} is held by another mount namespace")
            time.sleep(_HELD_PAUSE_S)

    def _is_alive(self) -> bool:
        try:
            fd = os.open(self.mount_point, os.O_RDONLY | os.O_DIRECTORY)
            try:
                # What is in memory can be listed on a dead one, too.
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        return True

    def sync(self) -> None:
        """Make everything that was written so far durable."""
        fd = os.open(self.mount_point, os.O_RDONLY | os.O_DIRECTORY)
        failed = _libc.syncfs(fd)
        os.close(fd)
        assert not failed, "syncfs"

    def free_bytes(self) -> int:
        """Return what an ordinary writer may still take."""
        status = os.statvfs(self.mount_point)
        return status.f_bavail * status.f_frsize

    def _make_image(self) -> None:
        with self._image.open("wb") as file:
            file.truncate(self._size_bytes)
        commands = {
            "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096"],
            "xfs": ["mkfs.xfs", "-q", "-f", "--unsupported"],
            "btrfs": ["mkfs.btrfs", "-q", "-f", "--mixed"],
        }
        run([*commands[self.kind], str(self._image)])
        self._device = run(["losetup", "--find", "--show", str(self._image)]).strip()

    def _free(self) -> None:
        if self._device.startswith("/dev/loop"):
            subprocess.run(["losetup", "--detach", self._device], check=False, capture_output=True)
        self._image.unlink(missing_ok=True)
        if self.mount_point.exists():
            self.mount_point.rmdir()


def run(command: list[str]) -> str:
    """
    Run a command and return what it printed.

    Raises:
        OSError: It failed; with what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout
