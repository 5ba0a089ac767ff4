"""
Owns doing the same work with other programs: libtorrent with a web seed, and one `hf download`
on each machine.

Knows nothing of p2pcache; machines, links, hub and counts are the same.
Invariants: processes start before the clock where the daemons do; upstream bytes are counted at
the hub; files are compared afterwards.
Source: BEP 19; huggingface_hub's command line.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import wait as wait_for_all
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.certificate import Certificate, make_certificate
from bench.model import MODEL, BenchModel, find_wrong_files
from bench.netns import Network, open_network
from bench.outcome import Outcome, PeerOutcome, Sample
from bench.scenarios import Scenario, find_bound_s
from bench.swarmrun import HUB, ROOT, shape_links, start_hub

RIVAL_TIMEOUT_S = 900.0
LOOK_S = 0.2
LOOK_NEAR_END_S = 0.03
NEAR_END_SHARE = 0.95

Run = Callable[["Stage"], None]


@dataclass(slots=True)
class Stage:
    """What a rival finds: machines behind shaped links, a hub, a clock to start."""

    scenario: Scenario
    model: BenchModel
    scratch: Path
    network: Network
    cleanup: contextlib.ExitStack
    hub_url: str
    certificate: Certificate
    outcome: Outcome
    started_s: float = 0.0

    def start_clock(self) -> None:
        """Everything that is not judged has been done."""
        self.started_s = time.monotonic()

    def note(self, peer: PeerOutcome, bytes_done: int, from_upstream: int = 0) -> None:
        """Keep how far a machine is."""
        at_s = round(time.monotonic() - self.started_s, 3)
        peer.samples.append(Sample(at_s, bytes_done, from_upstream))

    def note_ready(self, peer: PeerOutcome) -> None:
        """A machine has all of it."""
        peer.finished_s = time.monotonic() - self.started_s


@dataclass(frozen=True, slots=True)
class Rival:
    """One program to compare with."""

    name: str
    needs: str
    run_on: Run

    def run(
        self, scenario: Scenario, model: BenchModel, scratch: Path, *, is_shaped: bool
    ) -> Outcome:
        """
        Do a scenario's work with it.

        Raises:
            ImportError: It is not installed.
        """
        if importlib.util.find_spec(self.needs) is None:
            raise ImportError(f"no module named {self.needs!r}")
        outcome = Outcome(scenario.name, scenario.title, self.name, model.size_bytes, peers=[])
        names = [*scenario.machine_names, HUB]
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(shutil.rmtree, scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            network = cleanup.enter_context(open_network(names, is_shaped=is_shaped))
            certificate = make_certificate(scratch, network.machines[HUB].address)
            hub = start_hub(network, model, scenario, certificate, cleanup)
            shape_links(network, scenario)
            outcome.peers = [PeerOutcome(name) for name in scenario.machine_names]
            stage = Stage(scenario, model, scratch, network, cleanup, hub.url, certificate, outcome)
            self.run_on(stage)
            outcome.upstream_bytes = network.machines[HUB].run(hub.stats)["body_bytes"]
            ends = [peer.finished_s for peer in outcome.peers]
            outcome.time_s = max((end for end in ends if end is not None), default=None)
            if is_shaped:
                outcome.bound_s = find_bound_s(scenario, model.size_bytes)
            for peer in outcome.peers:
                peer.link_sent_bytes = network.machines[peer.name].count_sent_bytes()
        return outcome


def end(process: subprocess.Popen[str]) -> None:
    """End a process that was started here."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


# --- libtorrent ---


def make_torrent(model: BenchModel, path: Path) -> None:
    """Write a torrent of the model's files; its name makes the web seed's URLs the hub's."""
    import libtorrent

    # Under another name than the repository's: URL + name + path is how a web seed is asked.
    named = path.parent / "main"
    named.symlink_to(model.folder)
    storage = libtorrent.file_storage()
    libtorrent.add_files(storage, str(named))
    torrent = libtorrent.create_torrent(storage, flags=libtorrent.create_torrent.v2_only)
    libtorrent.set_piece_hashes(torrent, str(path.parent))
    path.write_bytes(libtorrent.bencode(torrent.generate()))


def run_libtorrent(stage: Stage) -> None:
    """One process on each machine, every one connected to every other and to the web seed."""
    torrent = stage.scratch / "model.torrent"
    make_torrent(stage.model, torrent)
    machines, peers = stage.network.machines, stage.outcome.peers
    places = [(machines[p.name].address, stage.network.find_free_port(p.name)) for p in peers]
    folders = [stage.scratch / peer.name for peer in peers]
    processes = []
    for peer, place, folder in zip(peers, places, folders, strict=True):
        folder.mkdir()
        order = {
            "listen": f"{place[0]}:{place[1]}",
            "torrent": str(torrent),
            "folder": str(folder),
            "web_seed": f"{stage.hub_url}/{MODEL}/resolve/",
            "peers": [other for other in places if other != place],
        }
        processes.append(machines[peer.name].run(_start_torrent, stage, order))
    for process in processes:
        assert process.stdout is not None, "stdout is a pipe"
        process.stdout.readline()
    stage.start_clock()
    following = [
        machines[peer.name].submit(_follow_torrent, stage, peer, process)
        for peer, process in zip(peers, processes, strict=True)
    ]
    wait_for_all(following)
    for done in following:
        done.result()
    for peer, folder in zip(peers, folders, strict=True):
        peer.wrong_files = find_wrong_files(stage.model, folder / "main")


def _start_torrent(stage: Stage, order: dict[str, Any]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.torrentpeer", json.dumps(order)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    stage.cleanup.callback(end, process)
    return process


def _follow_torrent(stage: Stage, peer: PeerOutcome, process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None, "stdin is a pipe"
    assert process.stdout is not None, "stdout is a pipe"
    process.stdin.write("begin\n")
    process.stdin.flush()
    for text in process.stdout:
        line = json.loads(text)
        peer.received_bytes, peer.sent_bytes = line["received"], line["sent"]
        peer.bytes_from_peers = peer.bytes_from_upstream = None
        stage.note(peer, line["bytes_done"])
        if line["done"] and peer.finished_s is None:
            stage.note_ready(peer)
        if time.monotonic() - stage.started_s > RIVAL_TIMEOUT_S:
            return
        # It seeds until all have it.
        if all(other.finished_s is not None for other in stage.outcome.peers):
            return


# --- hf download ---


def run_hf(stage: Stage) -> None:
    """`hf download` on each machine, each for itself, as is usual today."""
    stage.start_clock()
    machines = stage.network.machines
    following = [machines[p.name].submit(_follow_hf, stage, p) for p in stage.outcome.peers]
    wait_for_all(following)
    for done in following:
        done.result()


def _follow_hf(stage: Stage, peer: PeerOutcome) -> None:
    home = stage.scratch / peer.name
    target = home / "model"
    environment = {
        **stage.certificate.environment,
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": stage.hub_url,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [str(Path(sys.executable).with_name("hf")), "download", MODEL]
    process = subprocess.Popen(
        [*command, "--local-dir", str(target)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    stage.cleanup.callback(end, process)
    while process.poll() is None and time.monotonic() - stage.started_s < RIVAL_TIMEOUT_S:
        size = _measure_folder(target)
        stage.note(peer, size, size)
        near_end = size >= NEAR_END_SHARE * stage.model.size_bytes
        time.sleep(LOOK_NEAR_END_S if near_end else LOOK_S)
    if process.poll() == 0:
        stage.note_ready(peer)
        peer.bytes_from_upstream = peer.received_bytes = stage.model.size_bytes
    else:
        peer.error = f"hf download ended with {process.poll()}"
    peer.wrong_files = find_wrong_files(stage.model, target)


def _measure_folder(folder: Path) -> int:
    """Return the bytes of the files below a folder that is being filled."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


RIVALS = (
    Rival("libtorrent", "libtorrent", run_libtorrent),
    Rival("hf download", "huggingface_hub", run_hf),
)
