"""
Owns what tests of the examples share: a hub with one model, a daemon, a shell that finds both.

Knows nothing of single examples.
Invariants: programs of an example run in an environment of their own.
Source: none.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcache.client import SpaceClient
from p2pcache.errors import NotFoundError, ProtectedError
from tests.daemons import DaemonProcess, wait_until
from tests.hub import HubProcess

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODEL = "Qwen/Qwen3-8B"


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """Run a hub with the model that the examples name; 3 MB are enough here."""
    folder = tmp_path_factory.mktemp("models")
    (folder / MODEL).mkdir(parents=True)
    (folder / MODEL / "model.safetensors").write_bytes(random.Random(7).randbytes(3_000_000))
    with HubProcess(folder) as running:
        yield running


@pytest.fixture(scope="session")
def shared_daemon(
    hub: HubProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DaemonProcess]:
    """Run a daemon for all tests of the examples."""
    store = tmp_path_factory.mktemp("daemon") / "store"
    with DaemonProcess(store, upstream=hub.url) as running:
        yield running


@pytest.fixture
def daemon(shared_daemon: DaemonProcess) -> Iterator[DaemonProcess]:
    """Return a daemon whose store is empty."""
    yield shared_daemon
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
def environment(daemon: DaemonProcess, tmp_path: Path) -> dict[str, str]:
    """Return an environment whose PATH has p2pcache, beside a folder for stand-ins, `bin`."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "p2pcache"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m p2pcache "$@"\n')
    program.chmod(0o755)
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(EXAMPLES.parent),
        "P2PCACHE_STORE": str(daemon.store),
    }
