"""
Owns that a store works on a file system without links and modes: exFAT, as on a USB disk.

Knows nothing of single system calls (tests/store).
Invariants: the file system is a real one, on a loop device; where none can be mounted the tests
skip and say what is missing; everything that was mounted is unmounted.
Source: reliability.md D19.
"""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import DaemonProcess
from tests.hub import HubProcess
from tests.integration.conftest import MODEL, WEIGHTS_BYTES

DISK_BYTES = 256 * 1024 * 1024


def run(*command: str) -> str:
    """Run a tool of the system; returns what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{command[0]} does not work here: {done.stderr.strip()[:200]}")
    return done.stdout.strip()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a fresh exFAT file system."""
    for tool in ("mkfs.exfat", "mount.exfat-fuse", "losetup"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here (Debian: exfatprogs, exfat-fuse, mount)")
    image, mount_point = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    mount_point.mkdir()
    run("mkfs.exfat", str(image))
    device = run("losetup", "--find", "--show", str(image))
    try:
        run("mount.exfat-fuse", "-o", "umask=022", device, str(mount_point))
        try:
            yield mount_point
        finally:
            subprocess.run(["umount", "--lazy", str(mount_point)], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def read(daemon: DaemonProcess, name: str) -> bytes:
    """GET a file through the gateway."""
    url = f"{daemon.local}/{MODEL}/resolve/main/{name}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        content: bytes = answer.read()
        return content


def test_store_on_a_plain_file_system_opens_pulls_serves_and_heals(
    models: Path, hub: HubProcess, disk: Path, tmp_path: Path
) -> None:
    """Everything but the hub tree works, across a kill; the log says once that it is not there."""
    daemon = DaemonProcess(disk / "store", upstream=hub.url)
    daemon.log_path = tmp_path / "log"
    try:
        daemon.start()
        result = daemon.pull(MODEL)
        assert result.returncode == 0, result.stderr
        assert daemon.client.residency(MODEL)["state"] == "resident"
        expected = (models / MODEL / "model.safetensors").read_bytes()
        assert read(daemon, "model.safetensors") == expected
        daemon.kill()
        (weights,) = (
            path
            for path in (disk / "store" / "blobs").rglob("*")
            if path.is_file() and path.stat().st_size == WEIGHTS_BYTES
        )
        with weights.open("r+b") as file:
            file.seek(50_000_000)
            file.write(b"rotten")
        daemon.start()
        result = daemon.run("check", "--repair")
        assert result.returncode == 0, result.stdout + result.stderr
        assert "1 was damaged, 1 healed" in result.stdout
        assert read(daemon, "model.safetensors") == expected
        assert daemon.run("check", "--offline").returncode == 13, "the store is locked"
    finally:
        daemon.stop()
    log = daemon.log_path.read_text()
    assert "Traceback" not in log
    assert log.count("has no links") == 2, "once in each daemon's life"
