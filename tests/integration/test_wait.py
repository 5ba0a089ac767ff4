"""
Owns tests of waiting with real daemons: the command, the client's events and leases.

Knows nothing of how residency is measured.
Invariants: nothing is judged by how long it took.
Source: design.md §8 (wait, events); issue "two phases".
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcache.client import Client, SpaceClient
from p2pcache.errors import NotFoundError, ProtectedError
from tests.daemons import DaemonProcess, wait_until
from tests.hub import HubProcess

MODEL = "org/name"
SIZE_BYTES = 9_000_000
END_S = 40.0


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """Run a hub with one model of 9 MB."""
    folder = tmp_path_factory.mktemp("models")
    (folder / MODEL).mkdir(parents=True)
    (folder / MODEL / "config.json").write_text("{}")
    (folder / MODEL / "model.bin").write_bytes(random.Random(24).randbytes(SIZE_BYTES))
    with HubProcess(folder) as running:
        yield running


@pytest.fixture(scope="module")
def shared_daemon(
    hub: HubProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DaemonProcess]:
    """Run a daemon for the tests that leave it alive."""
    store = tmp_path_factory.mktemp("daemon") / "store"
    with DaemonProcess(store, upstream=hub.url) as running:
        yield running


@pytest.fixture
def daemon(hub: HubProcess, shared_daemon: DaemonProcess) -> Iterator[DaemonProcess]:
    """Return a daemon that has nothing of the model."""
    hub.faults()
    yield shared_daemon
    hub.faults()
    space = SpaceClient(shared_daemon.local, shared_daemon.store)
    wait_until(lambda: is_gone(space), "the end of all leases and downloads")


def is_gone(space: SpaceClient) -> bool:
    """Remove the model, if nobody needs it any more."""
    try:
        space.remove(MODEL)
    except ProtectedError:
        return False
    except NotFoundError:
        return True
    return True


@pytest.fixture
def mortal(hub: HubProcess, tmp_path: Path) -> Iterator[DaemonProcess]:
    """Run a daemon that a test may end."""
    hub.faults()
    hub.reset()
    with DaemonProcess(tmp_path / "store", upstream=hub.url) as running:
        yield running


@contextlib.contextmanager
def run_beside(daemon: DaemonProcess, verb: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command for the model, which finds the daemon by its store."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("P2PCACHE_", "HF_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "p2pcache", verb, MODEL, "--store", str(daemon.store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=END_S)


@contextlib.contextmanager
def run_waiter(daemon: DaemonProcess) -> Iterator[subprocess.Popen[str]]:
    """Run `p2pcache wait` for the model, which nobody fetches yet."""
    asked = count_asked(daemon)
    with run_beside(daemon, "wait") as process:
        wait_until(lambda: count_asked(daemon) > asked, "the first question")
        yield process


def count_asked(daemon: DaemonProcess) -> float:
    """Return how many answers of residency the daemon gave."""
    with urllib.request.urlopen(f"{daemon.local}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    [count] = [line for line in lines if line.startswith("p2pcache_residency_seconds_count")]
    return float(count.split()[-1])


def test_wait_ends_when_somebody_has_pulled(daemon: DaemonProcess) -> None:
    """Begun before anything was known of the model; ends with its path."""
    with run_waiter(daemon) as waiter:
        assert waiter.poll() is None
        assert daemon.pull(MODEL).returncode == 0
        printed, said = waiter.communicate(timeout=END_S)
    assert waiter.returncode == 0, said
    assert Path(printed.strip()) == Path(daemon.client.residency(MODEL)["path"])


def test_wait_goes_on_through_a_restart_of_the_daemon(
    hub: HubProcess, mortal: DaemonProcess
) -> None:
    """Killed in the middle of the download, and started again elsewhere."""
    hub.faults(rate_bytes_per_s=5_000_000)
    with run_waiter(mortal) as waiter:
        mortal.client.pull(MODEL)
        wait_until(lambda: hub.stats()["body_bytes"] > SIZE_BYTES / 3, "a third of it")
        mortal.kill()
        mortal.start()
        hub.faults()
        printed, said = waiter.communicate(timeout=END_S)
    assert waiter.returncode == 0, said
    assert printed.strip()


def test_pull_goes_on_through_a_restart_of_the_daemon(
    hub: HubProcess, mortal: DaemonProcess
) -> None:
    """Stopped in the middle of the download, as for an upgrade, and started again elsewhere."""
    hub.faults(rate_bytes_per_s=5_000_000)
    with run_beside(mortal, "pull") as puller:
        wait_until(lambda: hub.stats()["body_bytes"] > SIZE_BYTES / 3, "a third of it")
        assert mortal.stop() == 0
        mortal.start()
        hub.faults()
        printed, said = puller.communicate(timeout=END_S)
    assert puller.returncode == 0, said
    assert (Path(printed.strip()) / "config.json").read_text() == "{}"
    [job] = mortal.client.downloads()["downloads"]
    assert (job["state"], job["bytes_done"]) == ("done", SIZE_BYTES + 2)


@pytest.mark.skipif(
    not os.environ.get("P2PCACHE_SLOW"), reason="waits for ten seconds; tests/test_waiting.py, too"
)
def test_wait_ends_when_the_daemon_does_not_return(mortal: DaemonProcess) -> None:
    """With the code of a daemon that is gone, and the next step."""
    with run_waiter(mortal) as waiter:
        mortal.stop()
        _, said = waiter.communicate(timeout=END_S)
    assert waiter.returncode == 14
    assert "p2pcache up" in said


def test_wait_for_a_failed_download_has_its_code(daemon: DaemonProcess) -> None:
    """By the model and by the id alike."""
    job = daemon.client.pull("org/missing")
    by_id = daemon.run("wait", str(job["id"]))
    by_name = daemon.run("wait", "org/missing", "--json")
    assert (by_id.returncode, by_name.returncode) == (10, 10)
    assert "The hub knows no org/missing" in by_id.stderr
    assert json.loads(by_name.stdout)["error"] == "RepositoryNotFound"


def test_wait_by_id_is_for_the_files_that_were_asked_for(daemon: DaemonProcess) -> None:
    """By its name the model is not resident, and the wait says so instead of going on for ever."""
    started = daemon.pull(MODEL, "--include", "*.json", "--detach")
    by_id = daemon.run("wait", started.stdout.strip())
    assert by_id.returncode == 0, by_id.stderr
    assert (Path(by_id.stdout.strip()) / "config.json").read_text() == "{}"
    by_name = daemon.run("wait", MODEL)
    assert by_name.returncode == 10
    assert "9,000,000 bytes of it are not here" in by_name.stderr


def test_wait_for_what_nobody_fetches_ends_with_its_time(daemon: DaemonProcess) -> None:
    """And says that nobody does."""
    result = daemon.run("wait", MODEL, "--timeout", "0.3")
    assert result.returncode == 124
    assert f"p2pcache pull {MODEL}@main" in result.stderr
    assert daemon.run("wait", "not/a/name").returncode == 2


def test_events_of_a_download_lead_to_its_end(hub: HubProcess, daemon: DaemonProcess) -> None:
    """The client's iterator, in order, to 100 %."""
    hub.faults(rate_bytes_per_s=12_000_000)
    client = daemon.client
    job = client.pull(MODEL)
    bodies = [event.body for event in client.events(str(job["id"]))]
    states = [body["state"] for body in bodies]
    assert states[-1] == "done"
    assert "downloading" in states
    done = [body["bytes_done"] for body in bodies]
    assert done == sorted(done)
    assert done[-1] == bodies[-1]["bytes_total"] == SIZE_BYTES + 2


def test_lease_of_the_client_keeps_a_model(daemon: DaemonProcess) -> None:
    """Inside the block it cannot be removed, after it can."""
    assert daemon.pull(MODEL).returncode == 0
    client = Client(daemon.local, daemon.store)
    with client.lease(f"{MODEL}@main", holder="a loader") as lease:
        assert lease.state == "resident"
        assert (lease.path / "config.json").read_text() == "{}"
        refused = daemon.run("rm", MODEL)
        assert ProtectedError.exit_code == refused.returncode
    assert daemon.run("rm", MODEL).returncode == 0
