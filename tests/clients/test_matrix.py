"""
Owns the matrix: each client × cold and warm × main, tag, pull request and sha × hub up and down.

Knows nothing of single requests.
Invariants: every cell is a test of its own name; the four cells of a client and a state come from
one process; a warm cell asks the hub nothing, and no cell leaves for anywhere but the daemon.
Source: issue "every client works"; PEP 578; proc_net(5), the counters of TCP, UDP and IP.
"""

from __future__ import annotations

import hashlib
import itertools
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.clients.client import HubClient
from tests.clients.conftest import ALL_HUBS, LONG, QUICK_HUBS
from tests.clients.environments import NEWEST, find_curl
from tests.clients.samples import PULL_REQUEST, TAG, Sample, put_sample
from tests.daemons import DaemonProcess
from tests.discovery.link import find_obstacle, private_network
from tests.hub import HubProcess

REVISIONS = ("main", TAG, PULL_REQUEST, "sha")
STATES = ("cold-up", "warm-up", "warm-down", "cold-down")
CLIENTS = (*ALL_HUBS, "transformers", "curl")
OBSTACLE = find_obstacle()
MATRIX_SEEDS = itertools.count(9_000)
# What a client may say of what it cannot have; never that it does not exist.
UNREACHABLE = {"LocalEntryNotFoundError", "HfHubHTTPError", "OSError", "504"}

Cell = Mapping[str, Any]
States = Mapping[str, Mapping[str, Any]]


def name_revision(sample: Sample, revision: str) -> str:
    """Return what a caller types for a revision of the matrix."""
    return sample.commit if revision == "sha" else revision


def make_script(sample: Sample, environment: str) -> str:
    """Return a script that downloads every revision, and says what it got or raised."""
    wanted = {revision: name_revision(sample, revision) for revision in REVISIONS}
    if environment == "transformers":
        load = "AutoConfig.from_pretrained(repo, revision=revision).to_dict().get('seed', -1)"
        first = "from transformers import AutoConfig"
    else:
        load, first = "digests(snapshot_download(repo, revision=revision))", "import time"
    return f"""
        {first}
        import time
        time.sleep = lambda seconds: None  # their patience is not what is tested here
        repo, result = {sample.repo!r}, {{}}
        for name, revision in {wanted!r}.items():
            try:
                result[name] = {load}
            except Exception as error:
                result[name] = type(error).__name__
    """


def make_truth(sample: Sample, environment: str) -> Mapping[str, Any]:
    """Return what the script must return."""
    tree = {r: "main" if r == "sha" else r for r in REVISIONS}
    if environment == "transformers":
        return {r: -1 if tree[r] == TAG else int(sample.repo.rpartition("-")[2]) for r in tree}
    return {revision: sample.truth(name) for revision, name in tree.items()}


def run_curl(daemon: DaemonProcess, sample: Sample) -> dict[str, Any]:
    """Download every revision with curl, one file after the other."""
    found: dict[str, Any] = {}
    for revision in REVISIONS:
        tree = sample.trees["main" if revision == "sha" else revision]
        base = f"{daemon.local}/{sample.repo}/resolve"
        name = quote(name_revision(sample, revision), safe="")
        digests = {}
        for path in tree:
            done = subprocess.run(
                [find_curl(), "-s", "-f", "--noproxy", "*", f"{base}/{name}/{quote(path)}"],
                capture_output=True,
                check=False,
            )
            # 22 is curl's word for a status of 400 and above.
            digests[path] = hashlib.sha256(done.stdout).hexdigest() if not done.returncode else ""
        found[revision] = digests if all(digests.values()) else "504"
    return found


def run_client(daemon: DaemonProcess, sample: Sample, environment: str, home: Path) -> Any:
    """Run a client that knows nothing yet over all revisions."""
    if environment == "curl":
        return run_curl(daemon, sample)
    client = HubClient(daemon.local, home, environment, timeout_s=100.0)
    return client.run(make_script(sample, environment))


def play(environment: str, folder: Path) -> States:
    """Play all states of a client with a hub and a daemon of their own; return what it got."""
    (folder / "hub").mkdir()
    with HubProcess(folder / "hub") as hub:
        sample, other = (
            put_sample(hub, f"org/sample-{seed}", seed)
            for seed in (next(MATRIX_SEEDS), next(MATRIX_SEEDS))
        )
        with DaemonProcess(folder / "daemon", upstream=hub.url) as daemon:
            states: dict[str, dict[str, Any]] = {}
            for state in STATES:
                hub.set_listening(hub="up" in state, cdn="up" in state)
                hub.reset()
                of = other if state == "cold-down" else sample
                got = run_client(daemon, of, environment, folder / state)
                requests = hub.stats()["requests"]
                states[state] = {"got": got, "requests": requests}
            return {**states, "truth": make_truth(sample, environment)}


@pytest.fixture(scope="session")
def play_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], States]:
    """Return a function that plays a client's states the first time it is asked for them."""
    played: dict[str, States] = {}

    def get(environment: str) -> States:
        if environment not in played:
            played[environment] = play(environment, tmp_path_factory.mktemp(environment))
        return played[environment]

    return get


@pytest.mark.timeout(300)
@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    "client",
    [pytest.param(c, marks=[] if c in QUICK_HUBS else [LONG]) for c in CLIENTS],
)
def test_matrix(play_once: Callable[[str], States], client: str, state: str, revision: str) -> None:
    """What is cached is exact, hub or no hub; what is not is out of reach, and never missing."""
    states = play_once(client)
    got = states[state]["got"][revision]
    if state == "cold-down":
        assert got in UNREACHABLE
    else:
        assert got == states["truth"][revision]
    assert not any("xet-read-token" in kind for kind in states[state]["requests"])
    if state == "warm-up":
        assert states[state]["requests"] == {}


def read_counters() -> dict[str, int]:
    """Return what this network namespace has sent: TCP, UDP, and what had no route."""
    counters: dict[str, int] = {}
    lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    for names, values in itertools.pairwise(lines):
        kind = names.partition(":")[0]
        if values.startswith(f"{kind}:") and not values.split()[1].isalpha():
            for name, value in zip(names.split()[1:], values.split()[1:], strict=True):
                counters[f"{kind}.{name}"] = int(value)
    for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines():
        name, value = line.split()
        counters[name] = int(value)
    return counters


@pytest.mark.netns
@pytest.mark.skipif(OBSTACLE is not None, reason=OBSTACLE or "")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "environment",
    [pytest.param(c, marks=[] if c == NEWEST else [LONG]) for c in (*ALL_HUBS, "transformers")],
)
def test_warm_run_opens_no_socket_but_to_the_daemon(tmp_path: Path, environment: str) -> None:
    """
    The kernel counts as many connections as the client made to the daemon, and no datagram.

    Whatever opens a socket past Python, as hf_xet does, is in the kernel's count alone.
    """
    with private_network():
        (tmp_path / "hub").mkdir()
        with HubProcess(tmp_path / "hub") as hub:
            sample = put_sample(hub, "org/sample-1", 1)
            with DaemonProcess(tmp_path / "daemon", upstream=hub.url) as daemon:
                script = make_script(sample, environment)
                truth = make_truth(sample, environment)
                cold = HubClient(daemon.local, tmp_path / "cold", environment)
                assert cold.run(script) == truth
                hub.reset()
                warm = HubClient(daemon.local, tmp_path / "warm", environment)
                before = read_counters()
                assert warm.run(script) == truth
                after = read_counters()
                assert hub.stats()["requests_total"] == 0
    grown = {name: after[name] - before[name] for name in after}
    assert warm.list_connections(), "it did ask the daemon"
    assert grown["Tcp.ActiveOpens"] == len(warm.list_connections())
    for name in ("Udp.OutDatagrams", "Ip.OutNoRoutes", "Udp6OutDatagrams", "Ip6OutNoRoutes"):
        assert grown[name] == 0, name
