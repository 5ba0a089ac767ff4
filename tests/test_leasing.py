"""
Owns tests of leases that are renewed: by a thread, by a process of their own.

Knows nothing of eviction.
Invariants: a real daemon's leases where time matters little, a fake daemon's where it does.
Source: docs/reference/http-api.md (leases); decision 0024.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcache.client import Client, Lease, keeper
from p2pcache.client.keeper import ProcessWatch, start_keeper
from p2pcache.errors import (
    DaemonBusyError,
    DaemonError,
    DaemonUnreachableError,
    InputError,
    NotFoundError,
)
from tests.cli.fakedaemon import COMMIT, FakeDaemon, make_error, run_fake_daemon
from tests.daemons import wait_until

PINNED = {"model": "org/name", "commit": COMMIT, "path": "/store/hub/x", "state": "resident"}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """Run a fake daemon that grants leases l1, then l2, and renews and ends both."""
    with run_fake_daemon(tmp_path / "store") as running:
        running.say("POST", "/leases", {"id": "l1", **PINNED}, {"id": "l2", **PINNED})
        for name in ("l1", "l2"):
            running.say("POST", f"/leases/{name}", {"id": name, **PINNED})
            running.say("DELETE", f"/leases/{name}", {"id": name, **PINNED})
        yield running


@pytest.fixture
def client(daemon: FakeDaemon) -> Client:
    """Return a client that found it by its store."""
    return Client(store=daemon.store)


def test_lease_is_renewed_while_the_block_runs_and_ended_after(
    client: Client, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thrice in its time; not once after the end."""
    monkeypatch.setattr("p2pcache.client.leasing.RENEWALS_PER_TTL", 60)
    with client.lease("org/name@main", ttl_s=3, holder="a test") as lease:
        assert (lease.model, lease.commit, lease.state) == ("org/name", COMMIT, "resident")
        assert lease.path == Path("/store/hub/x")
        wait_until(lambda: daemon.paths("POST").count("/leases/l1") >= 3, "three renewals")
        assert lease.is_held
    assert not lease.is_held
    assert daemon.paths("DELETE") == ["/leases/l1"]
    renewed = len(daemon.requests)
    lease.end()
    assert lease.renew() > 0
    assert len(daemon.requests) == renewed
    asked = daemon.requests[0].body
    assert asked == {"model": "org/name", "revision": "main", "ttl_s": 3, "holder": "a test"}


def test_lease_that_the_daemon_forgot_is_taken_again_for_the_same_commit(
    client: Client, daemon: FakeDaemon
) -> None:
    """After a crash of the daemon that outlasted the lease."""
    lease = client.lease("org/name")
    daemon.say("POST", "/leases/l1", make_error("NotFound"), status=404)
    assert lease.renew() == pytest.approx(20)
    assert (lease.id, lease.is_held, lease.error) == ("l2", True, None)
    again = [seen for seen in daemon.requests if seen.path.endswith("/leases")][-1]
    assert again.body["revision"] == COMMIT


def test_lease_that_cannot_be_kept_says_why_and_stops_nobody(
    client: Client, daemon: FakeDaemon
) -> None:
    """The model is gone: the next try comes soon, and may succeed."""
    lease = client.lease("org/name")
    daemon.say("POST", "/leases/l1", make_error("NotFound"), status=404)
    daemon.say("POST", "/leases", make_error("NotFound", "Not here; pull it."), status=404)
    assert lease.renew() <= 1
    assert isinstance(lease.error, NotFoundError)
    daemon.stop()
    assert lease.renew() <= 1
    assert isinstance(lease.error, DaemonUnreachableError)
    lease.end()  # a daemon that is gone lets it expire


def test_lease_outlives_a_daemon_that_moves(client: Client, daemon: FakeDaemon) -> None:
    """The store says where it is now."""
    lease = client.lease("org/name")
    before = daemon.url
    daemon.stop()
    daemon.start()
    assert daemon.url != before
    lease.renew()
    assert (lease.id, lease.error) == ("l1", None)


@pytest.mark.parametrize("ttl_s", [0, -1, 2.9, float("nan")])
def test_time_that_cannot_be_renewed_in_is_refused(
    client: Client, daemon: FakeDaemon, ttl_s: float
) -> None:
    """Before anything is sent."""
    with pytest.raises(InputError, match="at least 3 s"):
        client.lease("org/name", ttl_s=ttl_s)
    assert daemon.requests == []


def test_refused_lease_raises_the_daemons_reason(client: Client, daemon: FakeDaemon) -> None:
    """Nothing is held then."""
    daemon.say("POST", "/leases", make_error("DaemonBusy", "Too many; end some."), status=503)
    with pytest.raises(DaemonBusyError, match="end some"):
        client.lease("org/name")


def test_leases_of_threads_do_not_disturb_each_other(client: Client, daemon: FakeDaemon) -> None:
    """One client, many loaders."""
    held: list[Lease] = []
    threads = [
        threading.Thread(target=lambda: held.append(client.lease("org/name"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 8
    assert all(lease.is_held for lease in held)


# --- kept by a process ---


def make_order(daemon: FakeDaemon, pid: int, ttl_s: float) -> str:
    """Return what a keeper is told."""
    lease = {"id": "l1", **PINNED}
    store = str(daemon.store)
    order = {"pid": pid, "local": None, "store": store, "ttl_s": ttl_s, "holder": "h"}
    return json.dumps({**order, "lease": lease})


def test_keeper_renews_while_a_process_lives_and_ends_the_lease_with_it(
    client: Client, daemon: FakeDaemon
) -> None:
    """Also when the process is killed and can do nothing more; the keeper is gone then, too."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from p2pcache.client import Client\n"
        "from p2pcache.client.keeper import start_keeper\n"
        "lease = Client(store=Path(sys.argv[1])).lease('org/name', ttl_s=3)\n"
        "start_keeper(lease, None, Path(sys.argv[1]))\n"
        "os.execvp('sleep', ['sleep', '60'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(daemon.store)])
    try:
        wait_until(lambda: daemon.paths("POST").count("/leases/l1") >= 2, "two renewals")
        assert process.poll() is None
        assert daemon.paths("DELETE") == []
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: daemon.paths("DELETE") == ["/leases/l1"], "the end of the lease")


def test_keeper_without_pidfd_notices_the_end_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older kernels and sandboxes; a zombie has ended."""

    def refuse(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    monkeypatch.setattr(keeper, "LOOK_S", 0.01)
    process = subprocess.Popen(["sleep", "60"])
    try:
        watch = ProcessWatch(process.pid)
        assert not watch.wait(0.05)
        process.kill()
        assert watch.wait(30)
    finally:
        process.kill()
        process.wait()
    with pytest.raises(ProcessLookupError):
        ProcessWatch(process.pid)


def test_keeper_that_cannot_be_started_is_an_error(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing runs without its lease."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(DaemonError, match="free some processes"):
        start_keeper(client.lease("org/name"), None, None)


def test_keeper_of_somebody_elses_process_refuses(daemon: FakeDaemon) -> None:
    """Its parent was killed before it looked: there is nothing to keep a lease for."""
    command = [sys.executable, "-m", "p2pcache.client.keeper", make_order(daemon, 1, 3)]
    assert subprocess.run(command, check=False).returncode == 1
    assert daemon.requests == []
