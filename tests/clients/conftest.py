"""
Owns what the tests of clients share: one hub, one daemon before it, repositories of their own.

Knows nothing of single cases.
Invariants: every test has a repository that no daemon has seen; a test that takes the hub away
has a daemon of its own, since a daemon remembers for seconds that nobody answered.
Source: none.
"""

from __future__ import annotations

import http.client
import itertools
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from tests.clients.client import HubClient
from tests.clients.environments import NEWEST
from tests.clients.samples import Sample, put_sample
from tests.daemons import DaemonProcess
from tests.hub import HubProcess

TOKEN = "hf_allowed"
GATED = "org/gated"
PRIVATE = "org/private"
IS_WHOLE = bool(os.environ.get("P2PCACHE_SLOW"))
LONG = pytest.mark.skipif(not IS_WHOLE, reason="P2PCACHE_SLOW=1, as in make clients")
ALL_HUBS = ("hub-0.24", "hub-0.36", "hub-1.10", NEWEST)
# What `make test` runs: the newest, and the last of the old family, which most pins still name.
QUICK_HUBS = (NEWEST, "hub-0.36")
# The first test that wants an environment makes it, and others wait for that.
TIMEOUT_S = 240
_SEEDS = itertools.count(1)

MakeDaemon = Callable[..., DaemonProcess]
MakeClient = Callable[..., HubClient]
MakeSample = Callable[..., Sample]
Answer = tuple[int, http.client.HTTPMessage, bytes]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a test take as long as the making of an environment, if it does not say otherwise."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


def over_hubs(*names: str, quick: Collection[str] = QUICK_HUBS) -> pytest.MarkDecorator:
    """Run a test with these releases of huggingface_hub, the short run with fewer of them."""
    chosen = [
        pytest.param(name, marks=[] if name in quick else [LONG]) for name in names or ALL_HUBS
    ]
    return pytest.mark.parametrize("environment", chosen)


def ask(daemon: DaemonProcess, path: str, method: str = "GET", **headers: str) -> Answer:
    """Send one plain request."""
    connection = http.client.HTTPConnection(daemon.local.removeprefix("http://"), timeout=60)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=sent)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.headers, body


@pytest.fixture(scope="session")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """Run one hub for all tests, with a gated and a private repository."""
    folder = tmp_path_factory.mktemp("hub")
    for repo in (GATED, PRIVATE):
        (folder / repo).mkdir(parents=True)
        (folder / repo / "config.json").write_bytes(b'{"model_type": "bert"}')
        (folder / repo / "weights.bin").write_bytes(repo.encode() * 50_000)
    with HubProcess(folder, gated=[GATED], private=[PRIVATE], tokens=[TOKEN]) as running:
        yield running


@pytest.fixture
def hub(shared_hub: HubProcess) -> Iterator[HubProcess]:
    """Return the hub, well behaved and with nothing counted."""
    shared_hub.reset()
    yield shared_hub
    shared_hub.faults()
    shared_hub.set_listening()


@pytest.fixture(scope="session")
def daemon(
    shared_hub: HubProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DaemonProcess]:
    """Run one daemon for all tests that leave the hub alone."""
    store = tmp_path_factory.mktemp("daemon") / "shared"
    with DaemonProcess(store, upstream=shared_hub.url) as running:
        yield running


@pytest.fixture
def make_daemon(tmp_path: Path, hub: HubProcess) -> Iterator[MakeDaemon]:
    """Return a function that starts a daemon of the test's own; ends them all."""
    made: list[DaemonProcess] = []

    def make(name: str, **options: object) -> DaemonProcess:
        chosen = {"upstream": hub.url, **options}
        daemon = DaemonProcess(tmp_path / name, **chosen)  # type: ignore[arg-type]
        made.append(daemon)
        return daemon.start()

    yield make
    for daemon in made:
        daemon.stop()


@pytest.fixture
def make_sample(hub: HubProcess) -> MakeSample:
    """Return a function that puts a repository on the hub that nobody has seen."""

    def make(**options: object) -> Sample:
        seed = next(_SEEDS)
        sample = put_sample(hub, f"org/sample-{seed}", seed, **options)  # type: ignore[arg-type]
        hub.reset()
        return sample

    return make


@pytest.fixture
def sample(make_sample: MakeSample) -> Sample:
    """Return a model that nobody has seen."""
    return make_sample()


@pytest.fixture
def make_client(tmp_path: Path) -> MakeClient:
    """Return a function that makes a client of a release, with a home of its own."""
    numbers = itertools.count(1)

    def make(daemon: DaemonProcess, environment: str = NEWEST, **options: object) -> HubClient:
        home = tmp_path / f"home-{next(numbers)}"
        return HubClient(daemon.local, home, environment, **options)  # type: ignore[arg-type]

    return make
