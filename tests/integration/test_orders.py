"""
Owns downloads that one daemon orders from another: the seed's API, over real daemons.

Knows nothing of how orders travel.
Invariants: real processes and the real hub of the tests; a worker that is killed goes on by itself.
Source: issue 6; docs/reference/http-api.md ("Downloads"); docs/reference/peer-protocol.md.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pcache.client.events import Event
from p2pcache.engine.replicas import AWAY_S_MAX
from p2pcache.errors import ForbiddenError, PeerNotFoundError
from tests.daemons import DaemonProcess, wait_until
from tests.hub import HubProcess
from tests.integration.conftest import MODEL, MakeDaemon, assert_same_files

slow = pytest.mark.skipif(not os.environ.get("P2PCACHE_SLOW"), reason="long; set P2PCACHE_SLOW=1")
ALIAS = "/api/v1/models/download"
RATE_BYTES_PER_S = 12_000_000
LOST_BYTES_MAX = 64 * 1024 * 1024
# What a job may be in when its order is answered: it does not wait for that.
BEGINNING = ("queued", "resolving", "downloading")


@pytest.fixture
def slow_hub(models: Path) -> Iterator[HubProcess]:
    """Run a hub that needs some seconds for the model."""
    with HubProcess(models, rate_bytes_per_s=RATE_BYTES_PER_S) as running:
        yield running


@pytest.fixture
def pair(make_daemon: MakeDaemon, slow_hub: HubProcess) -> tuple[DaemonProcess, DaemonProcess]:
    """Run a daemon that orders, and a worker that has been met."""
    boss = make_daemon("boss", upstream=slow_hub.url).start()
    worker = make_daemon(
        "gpu-1",
        upstream=slow_hub.url,
        peers=[boss.peer],
        extra=["--allow-path", str(boss.store.parent / "handed"), "--label", "kind=h100"],
    )
    (boss.store.parent / "handed").mkdir()
    worker.start()
    wait_until(lambda: names_of_peers(boss) == ["gpu-1"], "the worker is met")
    return boss, worker


def names_of_peers(daemon: DaemonProcess) -> list[str]:
    """Return the names of the peers that are up."""
    return sorted(peer["name"] for peer in daemon.client.peers()["peers"] if peer["state"] == "up")


def post(daemon: DaemonProcess, path: str, body: object) -> tuple[int, Any]:
    """Send a change as any program would."""
    host, _, port = daemon.local.removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    token = (daemon.store / "admin-token").read_text().strip()
    headers = {
        "Authorization": f"Bearer {token}",
        "X-P2PCache": "1",
        "Content-Type": "application/json",
    }
    try:
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def listen(daemon: DaemonProcess, job_id: str, heard: list[Event]) -> threading.Thread:
    """Read a download's events in a thread, to their end."""
    thread = threading.Thread(target=lambda: heard.extend(daemon.client.events(job_id)))
    thread.start()
    return thread


@pytest.mark.timeout(90)
def test_order_for_a_worker_survives_its_death(
    pair: tuple[DaemonProcess, DaemonProcess],
    slow_hub: HubProcess,
    models: Path,
    model_bytes: int,
) -> None:
    """202, progress by events to 100 %, files there, resumed after SIGKILL of the worker midway."""
    boss, worker = pair
    folder = boss.store.parent / "handed" / "minilm"
    body = {"model_id": MODEL, "target_worker": "gpu-1", "download_path": str(folder)}
    status, answer = post(boss, ALIAS, body)
    assert (status, answer["state"] in BEGINNING) == (202, True), answer
    heard: list[Event] = []
    thread = listen(boss, answer["id"], heard)
    wait_until(lambda: slow_hub.stats()["body_bytes"] > model_bytes // 3, "a third has moved")
    worker.kill()
    wait_until(
        lambda: boss.client.download(answer["id"])["workers"][0]["reachable"] is False,
        "the boss notices",
    )
    assert boss.client.download(answer["id"])["state"] == "downloading"
    worker.start()
    thread.join(60)
    assert not thread.is_alive()
    last = heard[-1].body
    assert (last["state"], last["bytes_done"], last["bytes_total"]) == (
        "done",
        model_bytes,
        model_bytes,
    )
    done = [event.body["bytes_done"] for event in heard]
    assert done == sorted(done)
    assert len(set(done)) > 3
    assert [(w["name"], w["state"]) for w in last["workers"]] == [("gpu-1", "done")]
    assert slow_hub.stats()["body_bytes"] <= model_bytes + LOST_BYTES_MAX
    (folder / ".p2pcache.json").unlink()
    assert_same_files(folder, models)
    assert worker.client.residency(MODEL)["state"] == "resident"
    assert boss.client.residency(MODEL)["bytes_local"] == 0


@slow
@pytest.mark.timeout(60)
def test_order_survives_the_death_of_who_ordered(
    pair: tuple[DaemonProcess, DaemonProcess], slow_hub: HubProcess, model_bytes: int
) -> None:
    """The worker goes on; the daemon that ordered follows it again when it is back."""
    boss, worker = pair
    job_id = boss.client.pull(MODEL, workers=["kind=h100"])["id"]
    wait_until(lambda: slow_hub.stats()["body_bytes"] > model_bytes // 4, "a quarter has moved")
    boss.kill()
    boss.start()
    job = boss.client.wait(job_id)
    assert (job["state"], job["bytes_done"]) == ("done", model_bytes)
    assert worker.client.residency(MODEL)["state"] == "resident"


@pytest.mark.timeout(60)
def test_everybody_shares_one_copy(
    pair: tuple[DaemonProcess, DaemonProcess], slow_hub: HubProcess, model_bytes: int
) -> None:
    """`--on '*'` is this machine and every other, from one copy of the hub's."""
    boss, worker = pair
    result = boss.run("pull", MODEL, "--on", "*", "--json")
    assert result.returncode == 0, result.stderr
    job = json.loads(result.stdout.splitlines()[-1])
    assert sorted(w["name"] for w in job["workers"]) == ["boss", "gpu-1"]
    assert {w["bytes_done"] for w in job["workers"]} == {model_bytes}
    for daemon in (boss, worker):
        assert daemon.client.residency(MODEL)["state"] == "resident"
    assert slow_hub.stats()["body_bytes"] <= 1.1 * model_bytes


@slow
@pytest.mark.timeout(240)
def test_copies_are_kept_and_mended(
    make_daemon: MakeDaemon, hub: HubProcess, model_bytes: int
) -> None:
    """Two of three hold a model; one that leaves is replaced until it is back."""
    boss = make_daemon("boss", upstream=hub.url).start()
    second = make_daemon("b", upstream=hub.url, peers=[boss.peer]).start()
    # All know all: nobody is told of third parties, and strangers fetch a copy each.
    third = make_daemon("c", upstream=hub.url, peers=[boss.peer, second.peer]).start()
    daemons = {daemon.name: daemon for daemon in (boss, second, third)}
    wait_until(lambda: all(len(names_of_peers(d)) == 2 for d in daemons.values()), "they have met")
    result = boss.run("pin", MODEL, "--replicas", "4")
    assert (result.returncode, "3 daemons" in result.stderr) == (2, True)
    result = boss.run("pin", MODEL, "--replicas", "2", "--json")
    assert result.returncode == 0, result.stderr
    kept = json.loads(result.stdout)
    names = [holder["name"] for holder in kept["holders"]]
    assert (kept["copies"], len(set(names))) == (2, 2)
    for name in names:
        assert len(daemons[name].client.pins()["pins"]) == 1
        assert daemons[name].client.residency(MODEL)["state"] == "resident"
    leaver = next(name for name in names if name != "boss")
    daemons[leaver].kill()
    stayed = [daemon for name, daemon in daemons.items() if name != leaver]

    def has_copy(daemon: DaemonProcess) -> bool:
        is_here = daemon.client.residency(MODEL)["state"] == "resident"
        return is_here and bool(daemon.client.pins()["pins"])

    # A minute's wait is no reason to ask fifty times a second.
    wait_until(
        lambda: all(map(has_copy, stayed)), "another copy", timeout_s=AWAY_S_MAX + 60, poll_s=0.5
    )
    daemons[leaver].start()
    # Back with its copy it is first in rank again, and whoever stood in for it lets go.
    wait_until(
        lambda: [name for name in sorted(daemons) if has_copy(daemons[name])] == sorted(names),
        "one copy too many is let go",
        poll_s=0.5,
    )
    assert hub.stats()["body_bytes"] <= 1.1 * model_bytes
    boss.client.unpin(MODEL)
    wait_until(
        lambda: not any(daemon.client.pins()["pins"] for daemon in daemons.values()),
        "every pin is gone",
    )
    assert boss.client.pins() == {"pins": []}


@pytest.mark.timeout(60)
def test_order_that_cannot_be_carried_out_is_refused_at_once(
    pair: tuple[DaemonProcess, DaemonProcess], slow_hub: HubProcess
) -> None:
    """An unknown worker, one that is gone, a folder outside of its own: told, and nothing begun."""
    boss, worker = pair
    with pytest.raises(PeerNotFoundError, match="gpu-1"):
        boss.client.pull(MODEL, workers=["gpu-2"])
    status, answer = post(boss, ALIAS, {"model_id": MODEL, "target_worker": "gpu-2"})
    assert (status, answer["error"]) == (404, "PeerNotFound")
    with pytest.raises(ForbiddenError, match="--allow-path"):
        boss.client.pull(MODEL, path="/etc/p2pcache")
    with pytest.raises(ForbiddenError, match="gpu-1 puts no files"):
        boss.client.pull(MODEL, workers=["gpu-1"], path="/etc/p2pcache")
    assert not Path("/etc/p2pcache").exists()
    worker.kill()
    with pytest.raises(Exception, match="gpu-1") as caught:
        boss.client.pull(MODEL, workers=["gpu-1"])
    assert caught.value.code in ("PeerUnreachable", "PeerNotFound")  # type: ignore[attr-defined]
    assert slow_hub.stats()["body_bytes"] == 0
