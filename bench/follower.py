"""
Owns following one machine's download from its beginning to its end.

Knows nothing of scenarios.
Invariants: asks only its own daemon, on its machine's loopback; near the end it asks once a
second and is answered when the model is there, a tenth of a second later at most; what went wrong
is kept as text, for a peer may be meant to fail.
Source: docs/reference/http-api.md (downloads, residency).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.daemonstats import find_metric, read_metrics
from bench.model import MODEL, BenchModel, find_wrong_files
from bench.outcome import PeerOutcome, Sample
from p2pcache.errors import P2PCacheError
from tests.daemons import DaemonProcess

POLL_S = 0.2
POLL_WORKERS_S = 0.1
NEAR_END_SHARE = 0.9
# One question near the end; a download that fails meanwhile is noticed after it.
WAIT_S = 1.0
# The model is there a moment before its download says that it is done.
POLL_ENDING_S = 0.005
WORKER_TIMEOUT_S = 900.0

LOAD = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1]))
"""


@dataclass(slots=True)
class Follower:
    """
    One machine's way to the model.

    Attributes:
        bytes_done: What it had when it was last asked.
        has_begun: Whether its daemon has said that bytes are on their way.
        stop: Set to follow it no more.
    """

    daemon: DaemonProcess
    model: BenchModel
    outcome: PeerOutcome
    started_s: float
    bytes_done: int = 0
    has_begun: bool = False
    folder: Path | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def pull(self) -> None:
        """Ask the daemon for the model, and follow its job. Blocks; on the machine's thread."""
        client = self.daemon.client
        try:
            job_id = str(client.pull(MODEL)["id"])
            while not self.stop.is_set():
                job = client.download(job_id)
                self._note(int(job["bytes_from_peers"]), int(job["bytes_from_upstream"]))
                self.has_begun = self.has_begun or job["state"] != "resolving"
                if job["state"] == "done":
                    self.outcome.finished_s = time.monotonic() - self.started_s
                    self.folder = Path(job["path"])
                    return
                if job["state"] in ("failed", "cancelled"):
                    self.outcome.error = str(job.get("error"))[:200]
                    return
                if self.bytes_done < NEAR_END_SHARE * self.model.size_bytes:
                    self.stop.wait(POLL_S)
                elif client.residency(MODEL, wait_s=WAIT_S)["state"] == "resident":
                    self.stop.wait(POLL_ENDING_S)
        except (P2PCacheError, OSError) as error:
            if not self.stop.is_set():
                self.outcome.error = str(error)[:200]

    def load_with_workers(self, count: int, scratch: Path) -> None:
        """Have processes load the model with huggingface_hub through the gateway, and wait."""
        workers = [self._start_worker(scratch / f"{self.outcome.name}-w{n}") for n in range(count)]
        printed: list[str] = []
        try:
            while any(worker.poll() is None for worker in workers) and not self.stop.is_set():
                self._note_counts()
                self.stop.wait(POLL_WORKERS_S)
            for worker in workers:
                shown, errors = worker.communicate(timeout=WORKER_TIMEOUT_S)
                printed.append(shown.strip())
                if worker.returncode != 0:
                    self.outcome.error = errors.strip().rpartition("\n")[2][:200]
            self.outcome.finished_s = time.monotonic() - self.started_s
            self._note_counts()
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        for number, folder in enumerate(printed):
            wrong = find_wrong_files(self.model, Path(folder)) if folder else ["all"]
            self.outcome.wrong_files += [f"worker {number}: {name}" for name in wrong]

    def _start_worker(self, home: Path) -> subprocess.Popen[str]:
        kept = {"PATH": os.environ.get("PATH", ""), "HOME": str(home), "HF_HOME": str(home)}
        environment = {
            **kept,
            "HF_ENDPOINT": self.daemon.local,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",
        }
        return subprocess.Popen(
            [sys.executable, "-c", LOAD, MODEL],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def note_metrics(self) -> None:
        """Read what the daemon counted. On the machine's thread."""
        try:
            text = read_metrics(self.daemon.local)
        except OSError as error:
            self.outcome.error = self.outcome.error or f"no metrics: {error}"
            return
        received = [
            find_metric(text, "p2pcache_bytes_total", source=source, direction="in")
            for source in ("peer", "upstream")
        ]
        self.outcome.received_bytes = sum(count or 0 for count in received)
        self.outcome.sent_bytes = find_metric(
            text, "p2pcache_bytes_total", source="peer", direction="out"
        )
        self.outcome.exchanges = find_metric(text, "p2pcache_exchanges_total")

    def check_files(self) -> None:
        """Compare what was published with the model."""
        if self.folder is not None:
            self.outcome.wrong_files = find_wrong_files(self.model, self.folder)

    def _note_counts(self) -> None:
        text = read_metrics(self.daemon.local)
        counts = [
            find_metric(text, "p2pcache_bytes_total", source=source, direction="in") or 0
            for source in ("peer", "upstream")
        ]
        self._note(counts[0], counts[1])

    def _note(self, from_peers: int, from_upstream: int) -> None:
        self.bytes_done = from_peers + from_upstream
        self.outcome.bytes_from_peers = from_peers
        self.outcome.bytes_from_upstream = from_upstream
        at_s = round(time.monotonic() - self.started_s, 3)
        self.outcome.samples.append(Sample(at_s, self.bytes_done, from_upstream))
