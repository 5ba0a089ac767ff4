"""
Owns one run of a scenario with p2pcache: machines, hub, daemons, what befalls them, what is left.

Knows nothing of goals and of how an outcome is shown.
Invariants: the clock starts when every daemon sees every other and ends when the last healthy
peer has all; whatever was started is ended, also after Ctrl-C; files are compared after the
clock has stopped.
Source: issue "The swarm", item 5.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_all
from functools import partial
from pathlib import Path

from bench.certificate import Certificate, make_certificate
from bench.daemonstats import read_cpu_s, read_cpu_ticks, share_cpu
from bench.follower import Follower
from bench.memory import is_memory, keep_ready
from bench.model import MODEL, BenchModel
from bench.netns import LinkRate, Machine, Network, open_network
from bench.outcome import Outcome, PeerOutcome
from bench.scenarios import SLOW_MBIT_S, Scenario, find_bound_s
from tests.daemons import DaemonProcess, wait_until
from tests.hub import HubProcess

HUB = "hub"
LOOK_S = 0.05
HUB_SAMPLE_S = 0.25
MEET_TIMEOUT_S = 60.0
# A run is given up after so many times its bound and this much besides: it will not be a result.
PATIENCE_BOUNDS = 10
PATIENCE_S = 120.0
ROOT = Path(__file__).resolve().parents[1]


def run_scenario(
    scenario: Scenario,
    model: BenchModel,
    scratch: Path,
    *,
    is_shaped: bool,
    logs: Path | None = None,
) -> Outcome:
    """Run a scenario once; with `logs`, the daemons' logs are kept there."""
    names = [*scenario.machine_names, HUB]
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, scratch, ignore_errors=True)
        if logs is not None:
            cleanup.callback(keep_logs, scratch, logs / scenario.name)
        scratch.mkdir(parents=True)
        network = cleanup.enter_context(open_network(names, is_shaped=is_shaped))
        run = _Run(scenario, model, scratch, network, cleanup)
        return run.measure()


class _Run:
    """The parts of one run."""

    def __init__(
        self,
        scenario: Scenario,
        model: BenchModel,
        scratch: Path,
        network: Network,
        cleanup: contextlib.ExitStack,
    ) -> None:
        self._scenario = scenario
        self._model = model
        self._scratch = scratch
        self._network = network
        self._cleanup = cleanup
        self._daemons: dict[str, DaemonProcess] = {}
        self._followers: dict[str, Follower] = {}
        self._waiting: list[Future[None]] = []
        self._started_s = 0.0
        self._started_cpu_s: dict[str, float] = {}
        self._hub_started_bytes = 0
        self._outcome = Outcome(
            scenario.name, scenario.title, "p2pcache", model.size_bytes, peers=[]
        )

    def measure(self) -> Outcome:
        """Do all of it."""
        self._certificate = make_certificate(self._scratch, self._machine(HUB).address)
        self._hub = start_hub(
            self._network, self._model, self._scenario, self._certificate, self._cleanup
        )
        self._start_daemons()
        self._seed()
        shape_links(self._network, self._scenario)
        hub = self._machine(HUB)
        if self._scenario.upstream_mbit_s:
            hub.run(self._hub.reset)
        self._hub_started_bytes = hub.count_sent_bytes() or 0
        if self._network.is_shaped:
            # Stores in memory take all of a file's room when its fetch begins.
            first = len(self._scenario.first_names())
            reserved = first * self._model.size_bytes if is_memory(self._scratch) else 0
            self._cleanup.enter_context(keep_ready(reserved))
        for name, daemon in self._daemons.items():
            self._started_cpu_s[name] = read_cpu_s(daemon.pid) or 0.0
        ticks, cpu_s = read_cpu_ticks(), self._sum_cpu_s()
        self._started_s = time.monotonic()
        for name in self._scenario.first_names():
            self._begin(name)
        try:
            self._follow_all()
        finally:
            for follower in self._followers.values():
                follower.stop.set()
        self._outcome.cpu_shares = share_cpu(ticks, read_cpu_ticks(), self._sum_cpu_s() - cpu_s)
        self._collect()
        return self._outcome

    # --- before the clock ---

    def _start_daemons(self) -> None:
        scenario, network = self._scenario, self._network
        names = scenario.machine_names
        places = {n: f"{self._machine(n).address}:{network.find_free_port(n)}" for n in names}
        for name in names:
            is_liar = scenario.part_of(name) == "liar"
            daemon = DaemonProcess(
                self._scratch / name,
                upstream=self._hub.url,
                peers=[place for other, place in places.items() if other != name],
                listen=places[name],
                trust_peers=scenario.seeders > 0,
                prefix=[sys.executable, "-m", "bench.liar", scenario.lie or ""] if is_liar else [],
                environment=self._certificate.environment | {"PYTHONPATH": str(ROOT)},
            )
            self._daemons[name] = daemon
            self._cleanup.callback(daemon.kill)
        starting = [self._machine(n).submit(self._daemons[n].start) for n in names]
        for started in starting:
            started.result()
        for name in names:
            daemon = self._daemons[name]
            self._machine(name).run(
                wait_until,
                partial(_sees_peers, daemon, len(names) - 1),
                f"{name} sees all others",
                timeout_s=MEET_TIMEOUT_S,
            )

    def _seed(self) -> None:
        """Give the seeders all of the model, then stop the hub."""
        seeders = [n for n in self._scenario.machine_names if self._scenario.part_of(n) == "seeder"]
        for name in seeders:
            self._machine(name).run(_pull_all, self._daemons[name])
        if not self._scenario.upstream_mbit_s:
            self._hub.stop()

    # --- while the clock runs ---

    def _begin(self, name: str) -> None:
        """Have a machine ask for the model, from now on."""
        joined_s = time.monotonic() - self._started_s
        peer = PeerOutcome(name, self._scenario.part_of(name), joined_s)
        follower = Follower(self._daemons[name], self._model, peer, self._started_s)
        self._followers[name] = follower
        self._outcome.peers.append(peer)
        machine, workers = self._machine(name), self._scenario.workers
        if workers:
            waiting = machine.submit(follower.load_with_workers, workers, self._scratch)
        else:
            waiting = machine.submit(follower.pull)
        self._waiting.append(waiting)

    def _follow_all(self) -> None:
        """Wait until the healthy have all; meanwhile do to the others what is meant for them."""
        scenario = self._scenario
        bound_s = find_bound_s(scenario, self._model.size_bytes)
        deadline_s = self._started_s + PATIENCE_BOUNDS * bound_s + PATIENCE_S
        joiners = list(zip(scenario.joiner_names(), scenario.joins, strict=True))
        has_killed, frozen, sampled_s = False, False, 0.0
        while joiners or not self._is_over():
            now_s = time.monotonic()
            if now_s > deadline_s:
                break
            progress = self._progress()
            while joiners and progress >= joiners[0][1]:
                self._begin(joiners.pop(0)[0])
            if scenario.kill_at is not None and not has_killed and progress >= scenario.kill_at:
                has_killed = True
                self._kill_first_owner()
            if not frozen:
                frozen = self._freeze()
            if now_s - sampled_s >= HUB_SAMPLE_S:
                sampled_s = now_s
                sent = self._machine(HUB).count_sent_bytes()
                if sent is not None:
                    sample = (round(now_s - self._started_s, 3), sent - self._hub_started_bytes)
                    self._outcome.hub_samples.append(sample)
            time.sleep(LOOK_S)

    def _is_over(self) -> bool:
        needed = [f for f in self._followers.values() if f.outcome.part == "healthy"]
        return all(f.outcome.finished_s is not None or f.outcome.error for f in needed)

    def _progress(self) -> float:
        """Return how much of the model those that began first have, on average."""
        first = [
            self._followers[name]
            for name in self._scenario.first_names()
            if self._followers[name].outcome.part == "healthy"
        ]
        total = sum(follower.bytes_done for follower in first)
        return total / (len(first) * self._model.size_bytes)

    def _kill_first_owner(self) -> None:
        """Kill the peer that fetched most from upstream."""
        victim = max(self._followers.values(), key=lambda f: f.outcome.bytes_from_upstream or 0)
        victim.outcome.part = "killed"
        victim.stop.set()
        at_s = time.monotonic() - self._started_s
        self._daemons[victim.outcome.name].kill()
        victim.outcome.error = f"killed at {at_s:.2f} s"

    def _freeze(self) -> bool:
        """Stop the frozen one once its download is under way; returns whether that is done."""
        for follower in self._followers.values():
            if follower.outcome.part == "frozen":
                if not follower.has_begun:
                    return False
                os.kill(self._daemons[follower.outcome.name].pid, signal.SIGSTOP)
                at_s = time.monotonic() - self._started_s
                follower.outcome.error = f"frozen at {at_s:.2f} s"
        return True

    # --- after the clock ---

    def _collect(self) -> None:
        outcome, scenario = self._outcome, self._scenario
        ends = [peer.finished_s for peer in outcome.needed]
        outcome.time_s = max((end for end in ends if end is not None), default=None)
        if self._network.is_shaped and not scenario.workers:
            joined = tuple(
                peer.joined_s for peer in outcome.peers if peer.name in scenario.joiner_names()
            )
            outcome.bound_s = find_bound_s(scenario, self._model.size_bytes, joined)
        if scenario.upstream_mbit_s:
            outcome.upstream_bytes = self._machine(HUB).run(self._hub.stats)["body_bytes"]
        for name, follower in self._followers.items():
            peer = follower.outcome
            peer.link_sent_bytes = self._machine(name).count_sent_bytes()
            if peer.part in ("frozen", "killed"):
                continue
            self._note_work(follower)
        for name in scenario.machine_names[scenario.peers :]:
            seeder = Follower(self._daemons[name], self._model, PeerOutcome(name, "seeder"), 0.0)
            self._note_work(seeder)
            outcome.peers.append(seeder.outcome)
        for daemon in self._daemons.values():
            daemon.kill()
        wait_for_all(self._waiting)
        for waiting in self._waiting:
            waiting.result()
        for follower in self._followers.values():
            follower.check_files()

    def _note_work(self, follower: Follower) -> None:
        """Read what a daemon counted and what it cost."""
        name = follower.outcome.name
        cpu_s = read_cpu_s(self._daemons[name].pid)
        if cpu_s is not None:
            follower.outcome.cpu_s = cpu_s - self._started_cpu_s[name]
        self._machine(name).run(follower.note_metrics)

    def _sum_cpu_s(self) -> float:
        """Return the processor time of the hub, the daemons and this process."""
        pids = [daemon.pid for daemon in self._daemons.values() if daemon.is_running]
        pids += [self._hub.pid] if self._scenario.upstream_mbit_s else []
        return sum(read_cpu_s(pid) or 0.0 for pid in pids) + time.process_time()

    def _machine(self, name: str) -> Machine:
        return self._network.machines[name]


def _sees_peers(daemon: DaemonProcess, count: int) -> bool:
    return len(daemon.client.peers()["peers"]) == count


def _pull_all(daemon: DaemonProcess) -> None:
    client = daemon.client
    client.wait(str(client.pull(MODEL)["id"]))


def keep_logs(scratch: Path, folder: Path) -> None:
    """Copy what the daemons wrote to standard error."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in scratch.glob("*.log"):
        shutil.copy(path, folder)


def start_hub(
    network: Network,
    model: BenchModel,
    scenario: Scenario,
    certificate: Certificate,
    cleanup: contextlib.ExitStack,
) -> HubProcess:
    """Run the hub on its machine; where links have no rate it keeps the upstream's itself."""
    machine = network.machines[HUB]
    rate = None if network.is_shaped else round(scenario.upstream_mbit_s * 1e6 / 8) or None
    hub = HubProcess(
        model.root, host=machine.address, rate_bytes_per_s=rate, tls=certificate.server_file
    )
    machine.run(hub.start)
    cleanup.callback(hub.stop)
    return hub


def shape_links(network: Network, scenario: Scenario) -> None:
    """Give every link its rate."""
    network.shape(HUB, LinkRate(up_mbit_s=scenario.upstream_mbit_s or None))
    for name in scenario.machine_names:
        is_slow = scenario.part_of(name) == "slow"
        mbit_s = SLOW_MBIT_S if is_slow else scenario.link_mbit_s
        network.shape(name, LinkRate(mbit_s, mbit_s))
