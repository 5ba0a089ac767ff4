"""
Owns the acceptance cases of bodies: sources that die, lie, expire, crawl or are too large.

Knows nothing of names and lists.
Invariants: the client is a real one and judges by its own time-outs; the bytes are always right.
Source: acceptance cases 14-16, 26, 27 and 29 of the hub protocols.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import itertools
import os
import random
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.client import HubClient
from tests.clients.conftest import LONG, TOKEN, MakeClient, MakeDaemon, over_hubs
from tests.clients.environments import NEWEST
from tests.daemons import DaemonProcess, wait_until
from tests.hostile import FlippingWire
from tests.hub import Hub, HubFile, HubProcess, Repository
from tests.integration.wire import SlowWire

FILE = "weights.bin"
FILE_BYTES = 40_000_000
CUT_AT_BYTES = 25_000_000
# How far the newest client's own pieces reach that it keeps when a body breaks.
CLIENT_PIECE_BYTES = 10 << 20
WIRE_BYTES_PER_S = 20_000_000
# One chunk of 4 MiB in 8 s, which is two seconds less than a client waits for the next byte.
CRAWL_BYTES_PER_S = 512 * 1024
CRAWL_FILE_BYTES = 9_000_000
SILENCE_S = 15.0
# A guard, no measure: this machine may do much else.
PATIENCE_S = 120.0
HUGE_BYTES = 50_000_000_001
HUGE_DISK_BYTES = 120_000_000_000
_NUMBERS = itertools.count(1)


def put_file(hub: HubProcess, size_bytes: int) -> tuple[str, bytes]:
    """Put a repository of one large file on the hub; return its name and the content."""
    number = next(_NUMBERS)
    repo, content = f"org/body-{number}", random.Random(1000 + number).randbytes(size_bytes)
    hub.commit(repo, {FILE: content})
    hub.reset()
    return repo, content


def download(repo: str) -> str:
    """Return a script that downloads the file and returns its digest."""
    return f"""
        path = hf_hub_download({repo!r}, {FILE!r})
        result = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    """


def read_metric(daemon: DaemonProcess, name: str) -> float:
    """Return one sample of the daemon's metrics."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{daemon.local}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def measure_partial(client: HubClient) -> int:
    """Return the bytes that the client has of what it has not finished."""
    return sum(path.stat().st_size for path in client.cache.rglob("*.incomplete"))


def wait_for_partial(client: HubClient) -> None:
    """Wait until the client has two of its pieces, of four."""
    wait_until(
        lambda: measure_partial(client) >= 2 * CLIENT_PIECE_BYTES,
        "the client has 20 MiB",
        timeout_s=PATIENCE_S,
    )


def measure_sent(daemon: DaemonProcess) -> float:
    """Return the bytes of files that the daemon has sent to clients."""
    return read_metric(daemon, 'p2pcache_bytes_total{source="disk",direction="out"}')


@over_hubs(quick=["hub-0.36"])
@pytest.mark.timeout(300)
def test_case_14_body_survives_the_death_of_its_source(
    hub: HubProcess, make_daemon: MakeDaemon, make_client: MakeClient, environment: str
) -> None:
    """The serving peer dies at 25 of 40 MB; the client, which forgives nothing, notices nothing."""
    repo, content = put_file(hub, FILE_BYTES)
    first = make_daemon("a")
    assert first.pull(repo).returncode == 0
    with SlowWire(first.peer, WIRE_BYTES_PER_S) as wire:
        # Where the first cannot visit it: else they would meet past the wire.
        second = make_daemon("b", peers=[wire.address], trust_peers=True, listen="127.0.0.2:0")
        wait_until(lambda: second.client.peers()["peers"], "the second node knows the first")
        hub.reset()
        with make_client(second, environment).started(download(repo)) as running:
            wait_until(
                lambda: wire.relayed_bytes >= CUT_AT_BYTES,
                "the peer gave 25 MB",
                timeout_s=PATIENCE_S,
            )
            first.kill()
            outcome = running.finish()
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.result == hashlib.sha256(content).hexdigest()
    assert 0 < hub.stats()["body_bytes"] < FILE_BYTES, "the rest came from the hub"
    assert read_metric(second, "p2pcache_gateway_requests_total") <= 3.0, "one HEAD and one GET"


@LONG
def test_case_14_one_response_is_finished_from_another_source(
    hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """The same, seen on the one connection that a client has."""
    repo, content = put_file(hub, FILE_BYTES)
    first = make_daemon("a")
    assert first.pull(repo).returncode == 0
    with SlowWire(first.peer, WIRE_BYTES_PER_S) as wire:
        second = make_daemon("b", peers=[wire.address], trust_peers=True, listen="127.0.0.2:0")
        wait_until(lambda: second.client.peers()["peers"], "the second node knows the first")

        def kill_midway() -> None:
            wait_until(
                lambda: wire.relayed_bytes >= CUT_AT_BYTES,
                "the peer gave 25 MB",
                timeout_s=PATIENCE_S,
            )
            first.kill()

        killer = threading.Thread(target=kill_midway)
        killer.start()
        connection = http.client.HTTPConnection(second.local.removeprefix("http://"), timeout=30)
        connection.request("GET", f"/{repo}/resolve/main/{FILE}")
        response = connection.getresponse()
        body = response.read()
        connection.close()
        killer.join()
    assert (response.status, body == content) == (200, True)


@over_hubs("hub-0.24", "hub-0.36", "hub-1.10", quick=[])
@pytest.mark.timeout(300)
def test_case_15_second_run_resumes_after_the_daemon_died(
    hub: HubProcess, make_daemon: MakeDaemon, make_client: MakeClient, environment: str
) -> None:
    """The daemon itself dies mid-body; the client gets the rest alone, and the file is right."""
    repo, content = put_file(hub, FILE_BYTES)
    digest = hashlib.sha256(content).hexdigest()
    hub.faults(rate_bytes_per_s=WIRE_BYTES_PER_S)
    daemon = make_daemon("a")
    port = daemon.local.rpartition(":")[2]
    client = make_client(daemon, environment)
    with client.started(download(repo)) as running:
        wait_for_partial(client)
        daemon.kill()
        hub.faults()
        again = make_daemon("a", extra=["--local", f"127.0.0.1:{port}"])
        outcome = running.finish()
    if outcome.exit_code != 0:
        assert client.run(download(repo)) == digest
    else:
        assert outcome.result == digest
    assert 0 < measure_sent(again) <= FILE_BYTES - CLIENT_PIECE_BYTES, "the rest, by a range"


@over_hubs(NEWEST, quick=[])
@pytest.mark.timeout(300)
def test_case_15_client_resumes_when_the_hub_is_back(
    hub: HubProcess, make_daemon: MakeDaemon, make_client: MakeClient, environment: str
) -> None:
    """The only source dies mid-body; the newest asks for the rest by itself, in the same call."""
    repo, content = put_file(hub, FILE_BYTES)
    hub.faults(rate_bytes_per_s=WIRE_BYTES_PER_S)
    daemon = make_daemon("a")
    client = make_client(daemon, environment, timeout_s=PATIENCE_S)
    with client.started(download(repo)) as running:
        wait_for_partial(client)
        hub.set_listening(hub=False, cdn=False)
        hub.faults()
        before = len(client.list_connections())
        wait_until(
            lambda: len(client.list_connections()) > before or running.child.poll() is not None,
            "the client asks again",
            timeout_s=PATIENCE_S,
        )
        hub.set_listening()
        outcome = running.finish()
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.result == hashlib.sha256(content).hexdigest()
    # It may throw away what it has beyond its last piece, and what it had not read yet.
    assert FILE_BYTES <= measure_sent(daemon) < FILE_BYTES + 2 * CLIENT_PIECE_BYTES


@over_hubs(NEWEST, "hub-0.36", quick=[])
def test_case_16_wrong_chunk_of_a_peer_never_reaches_the_client(
    hub: HubProcess, make_daemon: MakeDaemon, make_client: MakeClient, environment: str
) -> None:
    """A chunk that arrives changed is refused, fetched elsewhere, and held against the peer."""
    repo, content = put_file(hub, FILE_BYTES)
    first = make_daemon("a")
    assert first.pull(repo).returncode == 0
    with FlippingWire(first.peer) as wire:
        second = make_daemon("b", peers=[wire.address], listen="127.0.0.2:0")
        wait_until(lambda: second.client.peers()["peers"], "the second node knows the first")
        got = make_client(second, environment).run(download(repo))
        assert wire.flipped > 0
    assert got == hashlib.sha256(content).hexdigest()
    faults = second.client.status()["faults"]
    assert {(fault["name"], fault["reason"]) for fault in faults} == {("a", "wrong bytes")}


@over_hubs(NEWEST, "hub-0.36", quick=[])
def test_case_26_expired_address_is_renewed_once_for_all(
    hub: HubProcess, daemon: DaemonProcess, make_client: MakeClient, environment: str
) -> None:
    """A signed address that expires on the way is asked for anew, and no refusal is asked twice."""
    repo, content = put_file(hub, FILE_BYTES)
    hub.faults(signed_url_ttl_s=1, rate_bytes_per_s=WIRE_BYTES_PER_S)
    got = make_client(daemon, environment).run(download(repo))
    assert got == hashlib.sha256(content).hexdigest()
    statuses = hub.stats()["statuses"]
    assert statuses.get("cdn 403", 0) <= 2 * statuses["resolve 302"]
    refused = [r["path"] for r in hub.stats()["recorded"] if r["status"] == 403]
    assert len(refused) == len(set(refused)), "an address that was refused is not asked again"


@LONG
@pytest.mark.parametrize("environment", ["hub-0.24", "hub-0.36", "hub-1.10", NEWEST])
@pytest.mark.timeout(300)
def test_case_27_slow_hub_does_not_time_a_client_out(
    hub: HubProcess, daemon: DaemonProcess, make_client: MakeClient, environment: str
) -> None:
    """One chunk in eight seconds, over all connections together, and no client gives up."""
    repo, content = put_file(hub, CRAWL_FILE_BYTES)
    hub.faults(rate_bytes_per_s=CRAWL_BYTES_PER_S)
    client = make_client(daemon, environment, timeout_s=200.0)
    assert client.run(download(repo)) == hashlib.sha256(content).hexdigest()


@LONG
@pytest.mark.parametrize("environment", ["hub-0.24", "hub-0.36", "hub-1.10", NEWEST])
@pytest.mark.parametrize("times", [1, None], ids=["one-source", "every-source"])
@pytest.mark.timeout(300)
def test_case_27_silent_hub_is_left_or_sat_out(
    hub: HubProcess,
    daemon: DaemonProcess,
    make_client: MakeClient,
    environment: str,
    times: int | None,
) -> None:
    """A hub that says nothing for 15 s: another connection is tried, and the client is held."""
    repo, content = put_file(hub, CRAWL_FILE_BYTES)
    hub.faults(hang_after_bytes=0, hang_times=times)
    release = threading.Timer(SILENCE_S, hub.faults)
    if times is None:
        release.start()
    try:
        got = make_client(daemon, environment, timeout_s=100.0).run(download(repo))
    finally:
        release.cancel()
    assert got == hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def huge_disk(folder: Path) -> Iterator[Path]:
    """Mount a disk that is large by its own account; it takes what is written to it."""
    image, mount_point = folder / "image", folder / "disk"
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("a large file system in a file needs root and mkfs.ext4")
    with image.open("wb") as file:
        file.truncate(HUGE_DISK_BYTES)
    mount_point.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", str(image)], check=True)
    mounted = subprocess.run(
        ["mount", "-o", "loop", str(image), str(mount_point)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("loop devices cannot be mounted here")
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", "-l", str(mount_point)], check=True)
        image.unlink()


def make_huge(folder: Path) -> Repository:
    """Return a repository with a file above 50 GB, all zeros; nobody can check its digest."""
    sparse = folder / "huge"
    with sparse.open("wb") as file:
        file.truncate(HUGE_BYTES)
    lie = HubFile(sparse, HUGE_BYTES, "1" * 40, hashlib.sha256(b"huge").hexdigest())
    return Repository("org/huge", {FILE: lie}, tokens=[TOKEN])


def ask_head(daemon: DaemonProcess, agent: str) -> tuple[int, http.client.HTTPMessage, str]:
    """Ask for the headers of the huge file as a release would."""
    connection = http.client.HTTPConnection(daemon.local.removeprefix("http://"), timeout=30)
    headers = {"User-Agent": agent, "Accept-Encoding": "identity"}
    connection.request("HEAD", f"/org/huge/resolve/main/{FILE}", headers=headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, answer.headers, str(answer.headers["X-Error-Message"])


async def test_case_29_head_of_a_huge_file_is_by_the_clients_release(tmp_path: Path) -> None:
    """Unsized where a release can take it, sized where none minds, else a sentence with a way."""
    async with Hub([make_huge(tmp_path)]) as hub:
        up = DaemonProcess(tmp_path / "a", upstream=hub.url)
        await asyncio.to_thread(up.start)
        try:
            for agent in ("hf_hub/2.4.0", "unknown/None; hf_hub/1.31.0; python/3.11.7"):
                status, headers, _ = await asyncio.to_thread(ask_head, up, agent)
                assert (status, headers["X-Linked-Size"]) == (200, None), agent
                assert headers["Content-Length"] is None, agent
                assert len(headers["X-Repo-Commit"]) == 40
            for agent in ("hf_hub/0.24.7", "curl/8.5.0", ""):
                status, headers, _ = await asyncio.to_thread(ask_head, up, agent)
                assert (status, headers["Content-Length"]) == (200, str(HUGE_BYTES)), agent
            status, _, message = await asyncio.to_thread(ask_head, up, "x; hf_hub/1.10.2; y")
            assert status >= 400
            assert "HF_HUB_CACHE" in message
        finally:
            await asyncio.to_thread(up.stop)


@LONG
@pytest.mark.timeout(300)
async def test_case_29_newest_client_begins_a_huge_file(
    tmp_path: Path, make_client: MakeClient
) -> None:
    """The newest release starts a file above 50 GB; the one before it says what to do instead."""
    with huge_disk(tmp_path) as disk:
        async with Hub([make_huge(tmp_path)]) as hub:
            daemon = DaemonProcess(disk / "a", upstream=hub.url)
            await asyncio.to_thread(daemon.start)
            try:
                await asyncio.to_thread(begin_huge, make_client(daemon))
                refused = make_client(daemon, "hub-1.10")
                outcome = await asyncio.to_thread(refused.run_script, download("org/huge"))
                assert outcome.exit_code != 0
                assert "HF_HUB_CACHE" in outcome.stderr, outcome.stderr
            finally:
                await asyncio.to_thread(daemon.stop)


def begin_huge(client: HubClient) -> None:
    """Start the download of the huge file, and stop it when some of it has come."""
    with client.started(download("org/huge")) as running:

        def has_begun() -> bool:
            assert running.child.poll() is None, running.finish().stderr
            return measure_partial(client) >= 3 * CLIENT_PIECE_BYTES

        wait_until(has_begun, "30 MiB of the huge file are here", timeout_s=PATIENCE_S)
