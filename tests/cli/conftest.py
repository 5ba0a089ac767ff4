"""
Owns what the tests of the command line share: a fake daemon, and a way to run a command.

Knows nothing of single commands.
Invariants: no P2PCACHE_* or HF_* variable of the developer's shell reaches a test; no test looks
at the developer's own store.
Source: none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import click.testing
import pytest

from p2pcache.cli.group import p2pcache
from tests.cli.fakedaemon import FakeDaemon, run_fake_daemon

RunCommand = Callable[..., click.testing.Result]
_VARIABLES = (
    "P2PCACHE_LOCAL", "P2PCACHE_STORE", "P2PCACHE_TOKEN", "HF_TOKEN", "NO_PROXY", "no_proxy",
)  # fmt: skip


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Forget the developer's settings; the default store is an empty folder of the test."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("p2pcache.client.waiting.time.sleep", lambda seconds: None)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """Run a fake daemon on a store of its own."""
    with run_fake_daemon(tmp_path / "store") as running:
        yield running


@pytest.fixture
def run(daemon: FakeDaemon) -> RunCommand:
    """Return a function that runs a command against the fake daemon."""

    def run_command(*arguments: str) -> click.testing.Result:
        runner = click.testing.CliRunner(env={"P2PCACHE_STORE": str(daemon.store)})
        return runner.invoke(p2pcache, arguments, prog_name="p2pcache")

    return run_command
