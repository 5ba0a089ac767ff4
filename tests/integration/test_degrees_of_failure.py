"""
Owns the degrees of failure: what happens to a real daemon, its wire, its disk or its hub midway.

Knows nothing of how sources are chosen.
Invariants: every degree of DEGREES has a test with real daemons; assertions are on bytes and
names, and times are guards; who is only slow, frozen, gone or full is blamed by nobody.
Source: issue "the swarm", degrees of failure.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import DaemonProcess, wait_until
from tests.discovery.link import run_ip
from tests.hub import HubProcess
from tests.integration.cable import OBSTACLE, cabled_host
from tests.integration.conftest import MakeDaemon, mount_small_disk
from tests.integration.trial import (
    CHUNK_BYTES,
    CUT_BYTES_MAX,
    REQUESTS_MAX,
    Trial,
    begin,
    finish,
    list_blamed,
    list_ports,
    list_states,
    list_unreachable,
    measure_held,
    measure_received,
    measure_sent,
    read_local,
)
from tests.integration.wire import SlowWire

# Their time-outs and leases make them long; the simulator plays the same, in its own time, in CI.
LONG = pytest.mark.skipif(
    not os.environ.get("P2PCACHE_SLOW"), reason="long: P2PCACHE_SLOW=1, as in make degrees"
)

HERE = Path(__file__).parent
# Where each degree of the issue is tested: module, degree, test.
DEGREES = {
    "test_degrees_of_failure": {
        "peer killed": "test_giver_that_stops_midway_is_replaced[killed]",
        "owner killed": "test_owner_that_stops_midway_is_replaced[killed]",
        "peer frozen": "test_giver_that_stops_midway_is_replaced[frozen]",
        "owner frozen": "test_owner_that_stops_midway_is_replaced[frozen]",
        "clock that jumps": "test_owner_that_stops_midway_is_replaced[frozen]",
        "half-open": "test_giver_whose_cable_is_pulled_is_replaced",
        "slow, alone": "test_slow_peer_does_not_hold_a_chunk",
        "slow, beside a fast one": "test_slow_peer_beside_a_fast_one_gives_little",
        "slow owner": "test_slow_owner_does_not_hold_its_chunks",
        "one name twice": "test_two_daemons_with_one_name_harm_nobody",
        "hub down after the first copy": "test_hub_that_goes_after_the_first_copy_is_not_missed",
        "full disk": "test_peer_whose_disk_fills_up_midway_harms_only_itself",
    },
    "test_bad_peers": {
        "endless body": "test_peer_that_sends_what_it_must_not_is_named[endless-body]",
        "short body": "test_peer_of_little_use_is_left_and_not_banned[short-body]",
        "wrong bytes": "test_peer_that_sends_what_it_must_not_is_named[wrong-bytes]",
        "chunk of another index": "test_peer_that_sends_what_it_must_not_is_named[other-index]",
        "have lies": "test_peer_of_little_use_is_left_and_not_banned[have-lies-404]",
        "other layout": "test_peer_of_little_use_is_left_and_not_banned[other-layout]",
        "intent lies": "test_peer_that_promises_everything_for_ever_is_not_waited_for",
        "nonsense": "test_peer_that_talks_nonsense_harms_nobody",
    },
    "test_wrong_bytes": {
        "wrong bytes on the wire": "test_bit_flipped_on_the_wire_is_refused_and_named",
        "wrong bytes on a disk": "test_bit_flipped_on_a_peers_disk_is_refused_and_named",
    },
    "test_bad_hub": {
        "hub away for a while": "test_hub_that_is_away_for_a_while_is_sat_out",
        "hub that changes the ETag": "test_etag_that_changes_midway_changes_no_byte",
        "hub whose branch moves": "test_branch_that_moves_midway_does_not_mix_two_commits",
        "signed URL that expires": "test_signed_address_that_expires_midway_is_renewed",
    },
}


def test_every_degree_has_its_test() -> None:
    """The table names tests that exist."""
    for module, tests in DEGREES.items():
        source = (HERE / f"{module}.py").read_text()
        for degree, name in tests.items():
            function, _, case = name.rstrip("]").partition("[")
            assert f"\ndef {function}(" in source, degree
            assert f'"{case}"' in source or not case, degree


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Return the model."""
    return Trial.make(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def shared_hub(trial: Trial) -> Iterator[HubProcess]:
    """Run one hub for all tests of this module."""
    with HubProcess(trial.folder) as hub:
        yield hub


@pytest.fixture
def hub(shared_hub: HubProcess) -> Iterator[HubProcess]:
    """Return the hub, with its counts at zero and no fault."""
    shared_hub.reset()
    yield shared_hub
    shared_hub.set_listening(hub=True, cdn=True)
    shared_hub.faults()


class Stops:
    """Ways to stop a daemon; at the end of a test all go on, so that they can be ended."""

    def __init__(self) -> None:
        self._frozen: list[DaemonProcess] = []

    def kill(self, daemon: DaemonProcess) -> None:
        """End a daemon without a word; what listens there is gone."""
        daemon.kill()

    def freeze(self, daemon: DaemonProcess) -> None:
        """Stop a daemon in the middle of what it does; its sockets stay open."""
        os.kill(daemon.pid, signal.SIGSTOP)
        self._frozen.append(daemon)

    def thaw(self) -> None:
        """Let all frozen daemons go on: for them, the clock has jumped."""
        while self._frozen:
            os.kill(self._frozen.pop().pid, signal.SIGCONT)


@pytest.fixture
def stops(make_daemon: MakeDaemon) -> Iterator[Stops]:
    """Return ways to stop daemons, and let none stay frozen."""
    stops = Stops()
    yield stops
    stops.thaw()


# Of a giver's wire: slow enough to stop it midway.
PACE_BYTES_PER_S = 16_000_000


def make_full(make_daemon: MakeDaemon, hub: HubProcess, name: str = "full") -> DaemonProcess:
    """Run a daemon that has the model; the hub's counts are at zero afterwards."""
    daemon = make_daemon(name, upstream=hub.url).start()
    assert finish(daemon, begin(daemon))["state"] == "done"
    hub.reset()
    return daemon


@LONG
@pytest.mark.parametrize("is_frozen", [False, True], ids=["killed", "frozen"])
def test_giver_that_stops_midway_is_replaced(
    trial: Trial, hub: HubProcess, make_daemon: MakeDaemon, stops: Stops, is_frozen: bool
) -> None:
    """What a peer gave before it stopped is kept, the hub gives the rest, nobody is blamed."""
    giver = make_full(make_daemon, hub)
    with SlowWire(giver.peer, PACE_BYTES_PER_S) as wire:
        # Where the giver cannot visit it: else they would meet past the wire.
        taker = make_daemon(
            "taker", upstream=hub.url, peers=[wire.address], listen="127.0.0.2:0"
        ).start()
        job_id = begin(taker)
        wait_until(lambda: wire.relayed_bytes > 0.4 * trial.size_bytes, "40 % of the model")
        (stops.freeze if is_frozen else stops.kill)(giver)
        job = finish(taker, job_id)
        trial.assert_survived(taker, job)
        assert job["bytes_from_peers"]
        # Two runs were under way, each in the middle of a chunk.
        trial.assert_upstream(
            hub, lost_bytes=2 * CHUNK_BYTES, kept_bytes=int(str(job["bytes_from_peers"]))
        )
        assert list_blamed(taker) == set()
        if is_frozen:
            stops.thaw()
            wait_until(lambda: list_states(taker) == {"full": "up"}, "the giver is back")
            assert read_local(giver, "/readyz")


@LONG
@pytest.mark.parametrize("is_frozen", [False, True], ids=["killed", "frozen"])
def test_owner_that_stops_midway_is_replaced(
    trial: Trial, hub: HubProcess, make_daemon: MakeDaemon, stops: Stops, is_frozen: bool
) -> None:
    """
    The chunks of an owner that stops are fetched by the others, once; back again, it asks the hub
    for none of what they took over.
    """
    hub.faults(rate_bytes_per_s=10_000_000)
    daemons: list[DaemonProcess] = []
    for name in ("a", "b", "c"):
        known = [daemon.peer for daemon in daemons]
        daemons.append(make_daemon(name, upstream=hub.url, peers=known).start())
    first, owner, last = daemons
    jobs = {daemon.name: begin(daemon) for daemon in daemons}
    wait_until(lambda: hub.stats()["body_bytes"] > 0.4 * trial.size_bytes, "40 % of the model")
    ports = list_ports(owner)
    (stops.freeze if is_frozen else stops.kill)(owner)
    given = max(measure_received(daemon, "b") for daemon in (first, last))
    done = [finish(daemon, jobs[daemon.name]) for daemon in (first, last)]
    # Counted now: what the kernel took for a process that does not read was sent, too.
    trial.assert_upstream(hub, lost_bytes=measure_sent(hub, ports) - given)
    sent = int(hub.stats()["body_bytes"])
    if is_frozen:
        stops.thaw()
        done.append(finish(owner, jobs["b"]))
    else:
        owner.start()
        done.append(finish(owner, begin(owner)))
    again = int(hub.stats()["body_bytes"]) - sent
    # What its sockets held is read before it hears that the others have the rest.
    bound = REQUESTS_MAX * CUT_BYTES_MAX
    said = f"after its return the owner took {again} bytes more, bound {bound}"
    print(said)
    for daemon, job in zip([first, last, owner], done, strict=True):
        trial.assert_survived(daemon, job)
        assert list_blamed(daemon) == set()
    assert again <= bound, said


@LONG
@pytest.mark.netns
@pytest.mark.skipif(OBSTACLE is not None, reason=OBSTACLE or "")
def test_giver_whose_cable_is_pulled_is_replaced(trial: Trial, tmp_path: Path) -> None:
    """A connection that nobody closes and nothing comes through is given up, and blames nobody."""
    with cabled_host() as far, contextlib.ExitStack() as daemons:
        hub = daemons.enter_context(HubProcess(trial.folder))
        with DaemonProcess(tmp_path / "far", upstream=hub.url) as daemon:
            assert finish(daemon, begin(daemon))["state"] == "done"
        hub.reset()
        shape = ["dev", "eth0", "root", "tbf", "rate", "128mbit", "burst", "64k", "latency", "50ms"]
        subprocess.run([*far, "tc", "qdisc", "add", *shape], check=True)
        giver = daemons.enter_context(
            DaemonProcess(tmp_path / "far", upstream=hub.url, prefix=far, listen="10.78.0.2:0")
        )
        taker = daemons.enter_context(
            DaemonProcess(
                tmp_path / "near", upstream=hub.url, peers=[giver.peer], listen="10.78.0.1:0"
            )
        )
        job_id = begin(taker)
        wait_until(lambda: measure_held(taker, job_id) > 0.3 * trial.size_bytes, "30 %")
        run_ip("link", "set", "cable", "down")
        job = finish(taker, job_id)
        trial.assert_survived(taker, job)
        trial.assert_upstream(
            hub, lost_bytes=2 * CHUNK_BYTES, kept_bytes=int(str(job["bytes_from_peers"]))
        )
        assert list_blamed(taker) == set()
        wait_until(lambda: list_unreachable(taker) == {giver.peer}, "the giver is not there")
        run_ip("link", "set", "cable", "up")
        wait_until(lambda: list_states(taker) == {"far": "up"}, "the giver is back")


# 1 Mb/s: above what counts as dead, below what anybody wants to wait for.
SLOW_BYTES_PER_S = 125_000


@LONG
def test_slow_peer_does_not_hold_a_chunk(
    trial: Trial, hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """A peer at 1 Mb/s that alone has the model is passed over for the hub, and not blamed."""
    giver = make_full(make_daemon, hub)
    with SlowWire(giver.peer, SLOW_BYTES_PER_S) as wire:
        taker = make_daemon(
            "taker", upstream=hub.url, peers=[wire.address], listen="127.0.0.2:0"
        ).start()
        trial.assert_survived(taker, finish(taker, begin(taker)))
        said = f"the slow peer gave {wire.relayed_bytes} bytes, bound {CHUNK_BYTES // 2}"
        print(said)
        assert 0 < wire.relayed_bytes <= CHUNK_BYTES // 2, said
        trial.assert_upstream(hub)
        assert list_blamed(taker) == set()
        assert list_states(taker) == {"full": "up"}


@LONG
def test_slow_peer_beside_a_fast_one_gives_little(
    trial: Trial, hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """Without a hub a peer at 1 Mb/s holds up nobody while another one is fast."""
    slow = make_full(make_daemon, hub, "slow")
    fast = make_full(make_daemon, hub, "fast")
    with SlowWire(slow.peer, SLOW_BYTES_PER_S) as wire:
        peers = [wire.address, fast.peer]
        taker = make_daemon(
            "taker", upstream=hub.url, peers=peers, listen="127.0.0.2:0", trust_peers=True
        ).start()
        wait_until(lambda: len(list_states(taker)) == 2, "both peers are known")
        hub.set_listening(hub=False, cdn=False)
        job = finish(taker, begin(taker))
        trial.assert_survived(taker, job)
        assert job["bytes_from_peers"] == trial.size_bytes
        assert hub.stats()["body_bytes"] == 0
        assert list_blamed(taker) == set()
        # Two runs, a chunk of each at the most.
        said = f"the slow peer gave {wire.relayed_bytes} bytes, bound {2 * CHUNK_BYTES}"
        assert wire.relayed_bytes <= 2 * CHUNK_BYTES, said


@LONG
def test_slow_owner_does_not_hold_its_chunks(
    trial: Trial, hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """What a peer fetches from the hub at 1 Mb/s the others rescue, once; it ends with them."""
    first = make_daemon("a", upstream=hub.url).start()
    slow = make_daemon(
        "slow", upstream=hub.url, peers=[first.peer], extra=["--upstream-limit", "1Mbit"]
    ).start()
    last = make_daemon("c", upstream=hub.url, peers=[first.peer, slow.peer]).start()
    jobs = [(daemon, begin(daemon)) for daemon in (slow, first, last)]
    hub.wait_for(lambda stats: stats["body_bytes"] > 0)
    ports: set[int] = set()
    for daemon, job_id in reversed(jobs):
        ports |= list_ports(slow)
        trial.assert_survived(daemon, finish(daemon, job_id))
        assert list_blamed(daemon) == set()
    given = max(measure_received(daemon, "slow") for daemon in (first, last))
    trial.assert_upstream(hub, lost_bytes=max(0, measure_sent(hub, ports) - given))


def test_hub_that_goes_after_the_first_copy_is_not_missed(
    trial: Trial, hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """When one daemon has all, the others, halfway, come to their end without the hub."""
    full = make_full(make_daemon, hub)
    with SlowWire(full.peer, PACE_BYTES_PER_S) as wire:
        shared = {"upstream": hub.url, "listen": "127.0.0.2:0"}
        second = make_daemon("b", peers=[wire.address], **shared).start()
        third = make_daemon("c", peers=[wire.address, second.peer], **shared).start()
        jobs = [(daemon, begin(daemon)) for daemon in (second, third)]
        wait_until(lambda: wire.relayed_bytes > 0.2 * trial.size_bytes, "a fifth of the model")
        hub.set_listening(hub=False, cdn=False)
        for daemon, job_id in jobs:
            trial.assert_survived(daemon, finish(daemon, job_id))
            assert list_blamed(daemon) == set()
        assert hub.stats()["body_bytes"] == 0


def test_two_daemons_with_one_name_harm_nobody(
    trial: Trial, hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """A store that was copied, id and all, is as good a source as the first; nobody loops."""
    first = make_full(make_daemon, hub)
    first.stop()
    shutil.copytree(first.store, first.store.with_name("twin"))
    first.start()
    twin = make_daemon("twin", upstream=hub.url, peers=[first.peer]).start()
    taker = make_daemon("taker", upstream=hub.url, peers=[first.peer, twin.peer]).start()
    assert len({daemon.client.status()["id"] for daemon in (first, twin)}) == 1
    job = finish(taker, begin(taker))
    trial.assert_survived(taker, job)
    assert job["bytes_from_peers"] == trial.size_bytes
    assert hub.stats()["body_bytes"] == 0
    for daemon in (first, twin, taker):
        assert list_blamed(daemon) == set()
        assert read_local(daemon, "/readyz")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a real file system of 128 MiB: three times the model."""
    with mount_small_disk(tmp_path / "disk", 128) as folder:
        yield folder


def fill(disk: Path) -> Path:
    """Take every free byte of a file system; returns the file that holds them."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024 * 1024))
    return filler


@LONG
def test_peer_whose_disk_fills_up_midway_harms_only_itself(
    trial: Trial, hub: HubProcess, make_daemon: MakeDaemon, small_disk: Path, tmp_path: Path
) -> None:
    """The others take over what it meant to fetch; with room again, it takes the rest from them."""
    hub.faults(rate_bytes_per_s=10_000_000)
    first = make_daemon("a", upstream=hub.url).start()
    full = DaemonProcess(small_disk / "full", upstream=hub.url, peers=[first.peer])
    full.log_path = tmp_path / "full.log"
    with full:
        last = make_daemon("c", upstream=hub.url, peers=[first.peer, full.peer]).start()
        jobs = {daemon.name: begin(daemon) for daemon in (first, full, last)}
        wait_until(lambda: measure_held(full, jobs["full"]) > 0.2 * trial.size_bytes, "a fifth")
        filler = fill(small_disk)
        ports, given = list_ports(full), measure_received(first, "full")
        for daemon in (first, last):
            trial.assert_survived(daemon, finish(daemon, jobs[daemon.name]))
            assert list_blamed(daemon) == set()
        trial.assert_upstream(hub, lost_bytes=measure_sent(hub, ports) - given)
        ended = finish(full, jobs["full"])
        print("the full one:", ended["state"], ended.get("error"))
        if ended["state"] != "done":
            assert "disk" in str(ended["error"]).lower() or "room" in str(ended["error"]).lower()
        sent = int(hub.stats()["body_bytes"])
        filler.unlink()
        trial.assert_survived(full, finish(full, begin(full)))
        assert int(hub.stats()["body_bytes"]) - sent <= 0.05 * trial.size_bytes
