"""
Owns the measure of the data plane: one seeder → one peer, 1 GiB, verified and written; beside it
the raw ceiling, libtorrent v2 and nginx → curl, where they are installed.

Knows nothing of goals; prints both sides of every ratio from one run.
Invariants: real daemons on loopback, page cache warm, file compared afterwards; the raw ceiling
does the same work (sendfile thread → recv_into, BLAKE3, pwrite, fsync) without a protocol.
Source: docs/explanation/performance-model.md.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from blake3 import blake3

from bench.daemonstats import read_cpu_s
from bench.torrentpair import measure_torrent
from bench.webserver import measure_nginx, run_curl
from p2pcache.core.layout import CHUNK_SIZE_BYTES
from tests.daemons import DaemonProcess
from tests.hub import HubProcess

MODEL = "bench/one"
STREAMS = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: how long, and the CPU seconds of the sender and the receiver."""

    name: str
    seconds: float
    sender_cpu_s: float
    receiver_cpu_s: float | None = None


def make_model(root: Path, size_bytes: int) -> Path:
    """Write one file of random bytes as a repository."""
    path = root / MODEL / "model.safetensors"
    path.parent.mkdir(parents=True)
    chance = random.Random(1)
    with path.open("wb") as file:
        for _ in range(size_bytes // CHUNK_SIZE_BYTES):
            file.write(chance.randbytes(CHUNK_SIZE_BYTES))
    return path


def touch_memory(size_bytes: int) -> None:
    """
    Have the host back as much memory as the next measurement writes.

    In a virtual machine the first touch of a page may cost ten times what a copy does; what is
    touched and freed just before is not part of anybody's work.
    """
    code = "import sys; b = bytearray(int(sys.argv[1])); b[::4096] = bytes(len(b[::4096]))"
    subprocess.run([sys.executable, "-c", code, str(size_bytes)], check=True)


def measure_raw(source: Path, target: Path) -> Row:
    """Return what the bare work takes: STREAMS sockets, sendfile, recv_into, hash, write."""
    size = source.stat().st_size
    share = size // STREAMS // CHUNK_SIZE_BYTES * CHUNK_SIZE_BYTES
    starts = [n * share for n in range(STREAMS)]
    ends = [*starts[1:], size]
    source_fd, target_fd = os.open(source, os.O_RDONLY), os.open(target, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(target_fd, 0, size)

    def send(end: socket.socket, offset: int, stop: int) -> None:
        while offset < stop:
            offset += os.sendfile(end.fileno(), source_fd, offset, stop - offset)
        end.close()

    def receive(end: socket.socket, offset: int, stop: int) -> None:
        buffer = memoryview(bytearray(CHUNK_SIZE_BYTES))
        while offset < stop:
            view = buffer[: min(CHUNK_SIZE_BYTES, stop - offset)]
            done = 0
            while done < len(view):
                done += end.recv_into(view[done:])
            blake3(view).digest()
            os.pwrite(target_fd, view, offset)
            offset += len(view)
        end.close()

    before, started = os.times(), time.monotonic()
    threads = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for offset, stop in zip(starts, ends, strict=True):
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
            threads.append(threading.Thread(target=send, args=(far, offset, stop)))
            threads.append(threading.Thread(target=receive, args=(near, offset, stop)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.fsync(target_fd)
    elapsed, after = time.monotonic() - started, os.times()
    os.close(source_fd)
    os.close(target_fd)
    target.unlink()
    cpu_s = after.user - before.user + after.system - before.system
    return Row(f"raw ceiling, {STREAMS} streams, BLAKE3, written, synced", elapsed, cpu_s)


def measure_pull(daemon: DaemonProcess, sender_pid: int) -> tuple[Row, dict[str, object]]:
    """Return what it takes from the request to `done`, and the job."""
    before, started = (_cpu_of(sender_pid), _cpu_of(daemon.pid)), time.monotonic()
    job = daemon.client.wait(str(daemon.client.pull(MODEL)["id"]), poll_s=0.05)
    seconds = time.monotonic() - started
    after = _cpu_of(sender_pid), _cpu_of(daemon.pid)
    return Row("", seconds, after[0] - before[0], after[1] - before[1]), job


def measure_gateway(daemon: DaemonProcess, source: Path, target: Path) -> Row | None:
    """Return what curl needs for the same file from the gateway; None without curl."""
    if shutil.which("curl") is None:
        return None
    before = _cpu_of(daemon.pid)
    url = f"{daemon.local}/{MODEL}/resolve/main/{source.name}"
    seconds, curl_cpu_s = run_curl(url, target)
    return Row("gateway → curl, nothing checked", seconds, _cpu_of(daemon.pid) - before, curl_cpu_s)


def _cpu_of(pid: int) -> float:
    used_s = read_cpu_s(pid)
    if used_s is None:
        raise RuntimeError(f"process {pid} is gone; see its log")
    return used_s


def measure_daemons(source: Path, root: Path) -> list[Row]:
    """Return the rows of p2pcache: peer to peer, hub to daemon, gateway to curl."""
    size = source.stat().st_size
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    with HubProcess(root / "models") as hub:
        upstream = hub.url
        with DaemonProcess(root / "a", upstream=upstream) as seeder:
            touch_memory(2 * size)
            from_hub, _ = measure_pull(seeder, hub.pid)
            with DaemonProcess(root / "b", upstream=upstream, peers=[seeder.peer]) as peer:
                touch_memory(2 * size)
                from_peer, job = measure_pull(peer, seeder.pid)
                fetched = hub.stats()["body_bytes"]
            path = root / "b" / "blobs" / "sha256" / digest[:2] / digest
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, "wrong bytes"
            assert job["bytes_from_peers"] == size, job
            shutil.rmtree(root / "b")
            touch_memory(2 * size)
            gateway = measure_gateway(seeder, source, root / "curl")
    shutil.rmtree(root / "a")
    print(f"upstream bytes ÷ model bytes, two daemons: {fetched / size:.3f}")
    rows = [
        replace(from_peer, name="p2pcache peer → peer, BLAKE3, SHA-256, written, synced"),
        replace(from_hub, name="p2pcache hub → daemon, the same"),
    ]
    return rows + ([gateway] if gateway is not None else [])


def measure_others(source: Path, root: Path) -> list[Row]:
    """Return the rows of other programs, and say which are not there."""
    rows = []
    size = source.stat().st_size
    touch_memory(2 * size)
    torrent = measure_torrent(source, root / "torrent")
    if torrent is None:
        print("libtorrent: not installed (pip install libtorrent)")
    else:
        cpu = torrent.seeder_cpu_s, torrent.leecher_cpu_s
        rows.append(Row("libtorrent v2, SHA-256, written", torrent.seconds, *cpu))
    touch_memory(2 * size)
    web = measure_nginx(source, root / "web")
    if web is None:
        print("nginx → curl: not there (apt-get install nginx-light curl)")
    else:
        name = "nginx → curl to a file, nothing checked"
        rows.append(Row(name, web.seconds, web.server_cpu_s, web.client_cpu_s))
    return rows


def print_rows(rows: list[Row], size: int) -> None:
    """Print speed, ratios to the first row and to libtorrent, and CPU seconds for each GB."""
    gigabytes = size / 1e9
    torrent_s = next((row.seconds for row in rows if row.name.startswith("libtorrent")), None)
    print(f"{'':<56}{'GB/s':>6}{'× raw':>7}{'× lt':>6}   CPU s/GB (sender + receiver)")
    for row in rows:
        to_torrent = f"{torrent_s / row.seconds:6.1f}" if torrent_s else "     –"
        cpu = f"{row.sender_cpu_s / gigabytes:.2f}"
        if row.receiver_cpu_s is not None:
            both = (row.sender_cpu_s + row.receiver_cpu_s) / gigabytes
            cpu = f"{both:.2f} ({cpu} + {row.receiver_cpu_s / gigabytes:.2f})"
        speed, ratio = gigabytes / row.seconds, rows[0].seconds / row.seconds
        print(f"{row.name:<56}{speed:6.2f}{ratio:7.2f}{to_torrent}   {cpu}")
    print(f"({os.cpu_count()} cores, {size >> 20} MiB)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file (default 1024)")
    size = parser.parse_args().mib * 1024 * 1024
    with tempfile.TemporaryDirectory(prefix="p2pcache-bench-") as scratch:
        root = Path(scratch)
        source = make_model(root / "models", size)
        touch_memory(2 * size)
        rows = [measure_raw(source, root / "raw")]
        rows += measure_daemons(source, root)
        rows += measure_others(source, root)
    print_rows(rows, size)


if __name__ == "__main__":
    main()
