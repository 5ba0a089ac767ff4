"""
Owns the measure of the data plane: one seeder → one peer, 1 GiB, verified and written.

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
from pathlib import Path

from blake3 import blake3

from p2pcache.core.layout import CHUNK_SIZE_BYTES
from tests.daemons import DaemonProcess
from tests.hub import HubProcess

MODEL = "bench/one"
STREAMS = 4


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


def measure_raw(source: Path, target: Path) -> float:
    """Return the seconds of the bare work: STREAMS sockets, sendfile, recv_into, hash, write."""
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

    started = time.monotonic()
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
    elapsed = time.monotonic() - started
    os.close(source_fd)
    os.close(target_fd)
    target.unlink()
    return elapsed


def measure_pull(daemon: DaemonProcess) -> tuple[float, dict[str, object]]:
    """Return the seconds from the request to `done`, and the job."""
    started = time.monotonic()
    job = daemon.client.wait(str(daemon.client.pull(MODEL)["id"]), poll_s=0.02)
    return time.monotonic() - started, job


def measure_curl(daemon: DaemonProcess, source: Path, target: Path) -> float | None:
    """Return the seconds that curl needs for the same file from the gateway; None without curl."""
    if shutil.which("curl") is None:
        return None
    url = f"{daemon.local}/{MODEL}/resolve/main/{source.name}"
    started = time.monotonic()
    subprocess.run(["curl", "--silent", "--fail", "--output", str(target), url], check=True)
    elapsed = time.monotonic() - started
    target.unlink()
    return elapsed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file (default 1024)")
    size = parser.parse_args().mib * 1024 * 1024
    with tempfile.TemporaryDirectory(prefix="p2pcache-bench-") as scratch:
        root = Path(scratch)
        source = make_model(root / "models", size)
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        touch_memory(3 * size)
        raw_s = measure_raw(source, root / "raw")
        with HubProcess(root / "models") as hub:
            upstream = hub.url
            with DaemonProcess(root / "a", upstream=upstream) as seeder:
                touch_memory(3 * size)
                hub_s, _ = measure_pull(seeder)
                with DaemonProcess(root / "b", upstream=upstream, peers=[seeder.peer]) as peer:
                    touch_memory(3 * size)
                    peer_s, job = measure_pull(peer)
                    fetched = hub.stats()["body_bytes"]
                    touch_memory(3 * size)
                    curl_s = measure_curl(seeder, source, root / "curl")
        path = root / "b" / "blobs" / "sha256" / digest[:2] / digest
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, "wrong bytes"
    assert job["bytes_from_peers"] == size, job
    print(f"upstream bytes ÷ model bytes, two daemons: {fetched / size:.3f}")
    rows = [("raw ceiling, 4 streams, BLAKE3, written, synced", raw_s)]
    rows += [("p2pcache peer → peer, BLAKE3, SHA-256, written, synced", peer_s)]
    rows += [("p2pcache hub → daemon, the same", hub_s)]
    rows += [("gateway → curl to a file, nothing checked", curl_s)] if curl_s else []
    for name, seconds in rows:
        print(f"{name:<58}{size / seconds / 1e9:6.2f} GB/s {raw_s / seconds:6.2f} × raw")
    print(f"({os.cpu_count()} cores, {size >> 20} MiB)")


if __name__ == "__main__":
    main()
