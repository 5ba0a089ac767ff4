"""
Owns the same work done by libtorrent: one seeder, one leecher, a v2 torrent, TCP on loopback.

Knows nothing of p2pcache.
Invariants: the torrent is made and the seeder's file checked before the clock starts; the leecher
has verified every block when it ends; each side's CPU seconds are those of its own process.
Source: libtorrent's Python binding; BEP 52.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.daemonstats import read_cpu_s

POLL_S = 0.01
TIMEOUT_S = 300.0
# Nothing that looks for others: each is told where the other is. One transport for both, TCP.
SETTINGS: dict[str, object] = {
    "listen_interfaces": "127.0.0.1:0",
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "allow_multiple_connections_per_ip": True,
}


@dataclass(frozen=True, slots=True)
class TorrentTimes:
    """What one transfer took."""

    seconds: float
    seeder_cpu_s: float
    leecher_cpu_s: float


def measure_torrent(source: Path, scratch: Path) -> TorrentTimes | None:
    """Return what libtorrent needs for a file; None when it is not installed."""
    if importlib.util.find_spec("libtorrent") is None:
        return None
    scratch.mkdir()
    torrent = scratch / "one.torrent"
    _make_torrent(source, torrent)
    seeder = _start(torrent, source.parent)
    try:
        port = int(_read(seeder))
        leecher = _start(torrent, scratch)
        try:
            _read(leecher)
            before = _cpu_of(seeder), _cpu_of(leecher)
            started = time.monotonic()
            assert leecher.stdin is not None, "stdin is a pipe"
            leecher.stdin.write(f"{port}\n")
            leecher.stdin.flush()
            _read(leecher)
            seconds = time.monotonic() - started
            after = _cpu_of(seeder), _cpu_of(leecher)
        finally:
            _end(leecher)
    finally:
        _end(seeder)
    (scratch / source.name).unlink()
    return TorrentTimes(seconds, after[0] - before[0], after[1] - before[1])


def _cpu_of(process: subprocess.Popen[str]) -> float:
    return read_cpu_s(process.pid) or 0.0  # gone: what was read next says so


def _make_torrent(source: Path, torrent: Path) -> None:
    import libtorrent

    storage = libtorrent.file_storage()
    libtorrent.add_files(storage, str(source))
    making = libtorrent.create_torrent(storage, flags=libtorrent.create_torrent.v2_only)
    libtorrent.set_piece_hashes(making, str(source.parent))
    torrent.write_bytes(libtorrent.bencode(making.generate()))


def _start(torrent: Path, folder: Path) -> subprocess.Popen[str]:
    order = json.dumps({"torrent": str(torrent), "folder": str(folder)})
    return subprocess.Popen(
        [sys.executable, "-m", "bench.torrentpair", order],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def _read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None, "stdout is a pipe"
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"libtorrent's process ended with {process.wait()}")
    return line


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def follow(libtorrent: Any, order: dict[str, str]) -> None:
    """Say the port once what is here was checked; then fetch from the port that is told."""
    session = libtorrent.session(SETTINGS)
    wanted = libtorrent.add_torrent_params()
    wanted.ti = libtorrent.torrent_info(order["torrent"])
    wanted.save_path = order["folder"]
    handle = session.add_torrent(wanted)
    checking = (
        libtorrent.torrent_status.states.checking_files,
        libtorrent.torrent_status.states.checking_resume_data,
    )
    while handle.status().state in checking or not session.listen_port():
        time.sleep(POLL_S)
    print(session.listen_port(), flush=True)
    line = sys.stdin.readline()
    if line:
        handle.connect_peer(("127.0.0.1", int(line)))
        until_s = time.monotonic() + TIMEOUT_S
        while not handle.status().is_seeding and time.monotonic() < until_s:
            time.sleep(POLL_S)
        print("done" if handle.status().is_seeding else "", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    import libtorrent

    follow(libtorrent, json.loads(sys.argv[1]))
