"""
Owns the tests of room with real daemons: quota, refusal, gc, readers, leases of the dead.

Knows nothing of how room is made.
Invariants: bytes are compared with the truth; what a refused command changed is nothing.
Source: docs/how-to/limit-disk.md; design.md §4.
"""

from __future__ import annotations

import http.client
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcache.client import SpaceClient
from tests.daemons import DaemonProcess, wait_until
from tests.hub import HubProcess
from tests.integration.conftest import MakeDaemon

# Large enough that a client cannot have all of it in its socket's buffers.
WEIGHTS_BYTES = 24 * 1024 * 1024
QUOTA_BYTES = 36 * 1024 * 1024
NAMES = ("org/first", "org/second", "org/third")
FIRST, SECOND, THIRD = NAMES
# Takes a lease as a loader does, says so, and waits to be killed.
LOADER = """
import sys, time
from pathlib import Path
from p2pcache.client import SpaceClient

lease = SpaceClient(sys.argv[1], Path(sys.argv[2])).lease(sys.argv[3], 3.0, "loader")
print(lease["path"], flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three models of 24 MiB that share their configuration."""
    root = tmp_path_factory.mktemp("small-models")
    for name in NAMES:
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "bert"}\n')
        (folder / "model.bin").write_bytes(random.Random(name).randbytes(WEIGHTS_BYTES))
    return root


@pytest.fixture
def small_hub(small_models: Path) -> Iterator[HubProcess]:
    """Run a hub that serves them."""
    with HubProcess(small_models) as running:
        yield running


@pytest.fixture
def daemon(make_daemon: MakeDaemon, small_hub: HubProcess) -> DaemonProcess:
    """Run a daemon with room for one and a half models."""
    quota = ("--quota", str(QUOTA_BYTES), "--free-floor", "1MiB")
    return make_daemon("a", upstream=small_hub.url, extra=quota).start()


def list_models(daemon: DaemonProcess) -> list[str]:
    """Return what is here as a whole."""
    models = daemon.client.models()["models"]
    return sorted(str(model["model"]) for model in models if model["state"] == "resident")


def list_files(store: Path) -> dict[str, tuple[int, int]]:
    """Return size and inode of every file of a store but for the index and the jobs' records."""
    return {
        str(path.relative_to(store)): (path.lstat().st_size, path.lstat().st_ino)
        for path in store.rglob("*")
        if (path.is_file() or path.is_symlink())
        and not path.name.startswith("index.sqlite")
        and path.parent.name != "jobs"
    }


def test_quota_makes_room_by_the_longest_unused_model_or_refuses_with_the_numbers(
    daemon: DaemonProcess, small_hub: HubProcess, small_models: Path
) -> None:
    """The second model takes the first one's place; a pinned one is not touched for a third."""
    assert daemon.pull(FIRST).returncode == 0
    pulled = daemon.pull(SECOND)
    assert pulled.returncode == 0, pulled.stderr
    assert list_models(daemon) == [SECOND]
    path = Path(pulled.stdout.splitlines()[-1])
    truth = (small_models / SECOND / "model.bin").read_bytes()
    assert (path / "model.bin").read_bytes() == truth
    assert daemon.run("pin", SECOND).returncode == 0
    before = list_files(daemon.store)
    small_hub.reset()
    refused = daemon.pull(THIRD)
    assert refused.returncode == 13
    for number in (f"{WEIGHTS_BYTES:,} more bytes", f"quota of {QUOTA_BYTES:,}", "pinned"):
        assert number in refused.stderr, number
    assert small_hub.stats()["body_bytes"] == 0
    assert list_files(daemon.store) == before
    assert list_models(daemon) == [SECOND]
    removed = daemon.run("rm", SECOND)
    assert (removed.returncode, "--force" in removed.stderr) == (2, True)
    assert daemon.run("rm", SECOND, "--force").returncode == 0
    assert daemon.pull(THIRD).returncode == 0
    assert list_models(daemon) == [THIRD]


def test_gc_of_a_killed_daemons_store_does_what_its_dry_run_said(
    daemon: DaemonProcess, small_hub: HubProcess
) -> None:
    """After a kill in the middle of a pull, with what else a store collects."""
    assert daemon.pull(FIRST).returncode == 0
    orphan = daemon.store / "blobs" / "sha256" / "77" / ("7" * 64)
    orphan.parent.mkdir()
    orphan.write_bytes(bytes(100_000))
    (daemon.store / "partial" / f"sha256-{'8' * 64}.have").write_bytes(b"torn")
    listing = daemon.store / "hub" / "models--org--gone" / "trees" / f"{'9' * 40}.json"
    listing.parent.mkdir(parents=True)
    listing.write_text("{}")
    dry = json.loads(daemon.run("gc", "--dry-run", "--json").stdout)
    assert [step["what"] for step in dry["steps"]] == ["file", "file", "blob"]
    assert orphan.exists()
    done = json.loads(daemon.run("gc", "--json").stdout)
    assert done["steps"] == dry["steps"]
    assert not orphan.exists()
    assert not listing.parent.parent.exists()
    assert json.loads(daemon.run("gc", "--json").stdout)["steps"] == []
    assert list_models(daemon) == [FIRST]
    storage = json.loads(daemon.run("storage", "--json").stdout)
    blobs = (daemon.store / "blobs").rglob("*")
    assert storage["own_bytes"] == sum(p.stat().st_blocks * 512 for p in blobs if p.is_file())
    assert storage["quota"] == QUOTA_BYTES


def test_open_reader_finishes_through_an_eviction(
    daemon: DaemonProcess, small_models: Path
) -> None:
    """A client in the middle of a file gets all of it, though its model has gone."""
    path = Path(daemon.pull(FIRST).stdout.splitlines()[-1])
    truth = (small_models / FIRST / "model.bin").read_bytes()
    host, _, port = daemon.local.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("GET", f"/{FIRST}/resolve/main/model.bin")
    response = connection.getresponse()
    begun = response.read(1000)
    with (path / "model.bin").open("rb") as loader:
        assert daemon.pull(SECOND).returncode == 0
        assert list_models(daemon) == [SECOND]
        assert not (path / "model.bin").exists()
        assert loader.read() == truth
    assert begun + response.read() == truth
    connection.close()


def test_lease_protects_while_its_loader_lives_and_ends_when_it_died(
    daemon: DaemonProcess,
) -> None:
    """Nobody ends the lease of a program that was killed; it ends by itself."""
    path = daemon.pull(FIRST).stdout.splitlines()[-1]
    loader = subprocess.Popen(
        [sys.executable, "-c", LOADER, daemon.local, str(daemon.store), FIRST],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert loader.stdout is not None
        assert loader.stdout.readline().strip() == path
        refused = daemon.pull(SECOND)
        assert (refused.returncode, "leased" in refused.stderr) == (13, True)
        assert daemon.run("rm", FIRST, "--force").returncode == 2
    finally:
        loader.kill()
        loader.communicate()
    client = SpaceClient(daemon.local, daemon.store)
    assert [lease["holder"] for lease in client.leases()["leases"]] == ["loader"]
    wait_until(lambda: client.leases()["leases"] == [], "the end of the lease")
    assert daemon.pull(SECOND).returncode == 0
    assert list_models(daemon) == [SECOND]


def test_pins_and_the_order_of_use_survive_restarts_and_the_loss_of_the_index(
    daemon: DaemonProcess,
) -> None:
    """A daemon that was killed, and one whose index is gone, still spare what is pinned."""
    assert daemon.pull(FIRST).returncode == 0
    assert daemon.run("pin", FIRST).returncode == 0
    daemon.kill()
    for path in daemon.store.glob("index.sqlite*"):
        path.unlink()
    daemon.start()
    assert [pin["model"] for pin in daemon.client.pins()["pins"]] == [FIRST]
    refused = daemon.pull(SECOND)
    assert (refused.returncode, "pinned" in refused.stderr) == (13, True)
    assert daemon.run("unpin", FIRST).returncode == 0
    assert daemon.pull(SECOND).returncode == 0
    assert list_models(daemon) == [SECOND]
