"""
Owns what every test of a failing source asks: a small model, and what must be true in the end.

Knows nothing of single failures.
Invariants: the model's bytes are the same every time; what the hub sent is counted at the hub.
Source: issue "the swarm", degrees of failure.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from p2pcache.client import FINAL_STATES
from tests.daemons import DaemonProcess, wait_until
from tests.hub import HubProcess

REPO = "org/trial"
WEIGHTS = "weights.bin"
CONFIG = b'{"architectures": ["Trial"]}'
CHUNK_BYTES = 4 * 1024 * 1024
# Ten chunks, the last one shorter: enough for owners, rarity and runs, and little to hash.
WEIGHTS_BYTES = 10 * CHUNK_BYTES - 1000
# Upstream bytes ÷ model, whatever a single peer does; beside it only what was lost with a peer.
AMPLIFICATION_MAX = 1.05
# Of one blob, by each daemon: core.views's upstream_requests_inflight_max.
REQUESTS_MAX = 4
# What a cut connection costs: what a socket holds that nobody reads any more, and a piece of
# what was read and not kept.
CUT_BYTES_MAX = 1024 * 1024
# A guard, no measure: patience with dead peers (seconds) on a machine that does much else.
FINISH_S = 50.0


@dataclass(frozen=True)
class Trial:
    """
    A model to pull.

    Attributes:
        folder: What a hub serves.
        content: Of the one large file.
    """

    folder: Path
    content: bytes

    @classmethod
    def make(cls, folder: Path, seed: int = 4) -> Trial:
        """Write the model."""
        content = random.Random(seed).randbytes(WEIGHTS_BYTES)
        repo = folder / REPO
        repo.mkdir(parents=True)
        (repo / WEIGHTS).write_bytes(content)
        (repo / "config.json").write_bytes(CONFIG)
        return cls(folder, content)

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all files."""
        return len(self.content) + len(CONFIG)

    def assert_upstream(self, hub: HubProcess, *, lost_bytes: int = 0, kept_bytes: int = 0) -> None:
        """
        Assert that the hub sent once what nobody else gave.

        Args:
            hub: Counts since its last reset.
            lost_bytes: What had been sent, and was lost with whoever died: it is sent again.
            kept_bytes: What came from a peer, and need not come from the hub.
        """
        sent = int(hub.stats()["body_bytes"])
        share = (sent + kept_bytes) / self.size_bytes
        bound = AMPLIFICATION_MAX + lost_bytes / self.size_bytes
        said = f"(upstream + kept) ÷ model = {share:.3f}, bound {bound:.3f}"
        print(said)
        assert share <= bound, said

    def assert_survived(self, daemon: DaemonProcess, job: dict[str, object]) -> None:
        """Assert that a pull ended with the right bytes, and its daemon is as good as before."""
        assert job["state"] == "done", job
        path = Path(str(job["path"])) / WEIGHTS
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        assert found == hashlib.sha256(self.content).hexdigest(), daemon.name
        wait_until(lambda: not list_partials(daemon), "no file is half filled")
        assert "Traceback" not in daemon.log_path.read_text()
        assert read_local(daemon, "/readyz")
        served = read_local(daemon, f"/{REPO}/resolve/{job['commit']}/config.json")
        assert served == CONFIG


def list_partials(daemon: DaemonProcess) -> list[str]:
    """Return the names of the files that are being filled, or were left behind."""
    return sorted(path.name for path in (daemon.store / "partial").iterdir())


def read_local(daemon: DaemonProcess, path: str) -> bytes:
    """GET something of a daemon's local endpoint."""
    with urllib.request.urlopen(daemon.local + path, timeout=20) as answer:
        content: bytes = answer.read()
    return content


def begin(daemon: DaemonProcess, revision: str | None = None) -> str:
    """Ask a daemon for the model; returns the download's id."""
    return str(daemon.client.pull(REPO, revision)["id"])


def finish(daemon: DaemonProcess, job_id: str, *, timeout_s: float = FINISH_S) -> dict[str, object]:
    """Wait for the end of a download, good or bad."""
    seen: list[dict[str, object]] = []

    def is_over() -> bool:
        seen[:] = [daemon.client.download(job_id)]
        return seen[0]["state"] in FINAL_STATES

    wait_until(is_over, f"the end of {daemon.name}'s pull", timeout_s=timeout_s)
    return seen[0]


def measure_held(daemon: DaemonProcess, job_id: str) -> int:
    """Return how many bytes of the model a daemon holds by now."""
    return int(daemon.client.download(job_id)["bytes_done"])


def list_blamed(daemon: DaemonProcess) -> set[tuple[str, str]]:
    """Return (name, reason) of all that a daemon holds against its sources."""
    return {(fault["name"], fault["reason"]) for fault in daemon.client.status()["faults"]}


def list_states(daemon: DaemonProcess) -> dict[str, str]:
    """Return the state of every peer by its name, as `p2pcache peers` shows it."""
    return {peer["name"]: peer["state"] for peer in daemon.client.peers()["peers"]}


def list_unreachable(daemon: DaemonProcess) -> set[str]:
    """Return the addresses where nobody answers, as `p2pcache peers` shows them."""
    return {entry["address"] for entry in daemon.client.peers()["unreachable"]}


def list_ports(daemon: DaemonProcess) -> set[int]:
    """Return the local ports of a process's TCP connections: how the hub tells it from others."""
    process = Path("/proc") / str(daemon.pid)
    inodes = set()
    for link in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(link.readlink().name.removeprefix("socket:").strip("[]"))
    rows = [row.split() for row in (process / "net" / "tcp").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[9] in inodes}


def measure_sent(hub: HubProcess, ports: set[int]) -> int:
    """Return the body bytes that the hub has sent to connections from these ports."""
    recorded = hub.stats()["recorded"]
    return sum(record["body_bytes"] for record in recorded if record["client_port"] in ports)


def measure_received(daemon: DaemonProcess, peer_name: str) -> int:
    """Return the bytes that a daemon has had from a peer."""
    peers = daemon.client.peers()["peers"]
    return sum(peer["received_bytes"] for peer in peers if peer["name"] == peer_name)
