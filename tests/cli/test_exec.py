"""
Owns tests of `p2pcache exec` against a daemon that a test steers: what a signal ends, and when.

Knows nothing of models.
Invariants: a real process and real signals; the daemon decides the moment.
Source: design.md §8 (exec); tests/integration/test_exec.py for real daemons.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.fakedaemon import API, COMMIT, FakeDaemon, SeenRequest, make_job, run_fake_daemon

END_S = 30.0


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """Run a fake daemon that has the model and grants a lease."""
    with run_fake_daemon(tmp_path / "store") as running:
        path = tmp_path / "snapshot"
        path.mkdir()
        held = {"id": "l1", "model": "org/name", "commit": COMMIT, "path": str(path)}
        running.say("GET", "/status", {"store": str(running.store)})
        running.say("POST", "/downloads", make_job("downloading"))
        running.say("GET", "/downloads/d1", make_job("done", path=str(path)))
        running.say("DELETE", "/downloads/d1", make_job("cancelled"))
        running.say("POST", "/leases", {**held, "state": "resident"})
        running.say("DELETE", "/leases/l1", held)
        yield running


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("route", "ended"), [("/leases", ["/leases/l1"]), ("/downloads", [])], ids=["lease", "download"]
)
def test_signal_while_the_daemon_answers_leaves_nothing_without_a_name(
    daemon: FakeDaemon, number: signal.Signals, route: str, ended: list[str]
) -> None:
    """What was granted in that moment is known, and ended: a lease; a download by Ctrl-C only."""
    processes: queue.Queue[subprocess.Popen[str]] = queue.Queue()

    def interrupt(seen: SeenRequest) -> None:
        if (seen.method, seen.path) == ("POST", API + route):
            processes.get(timeout=END_S).send_signal(number)

    daemon.on_request = interrupt
    process = subprocess.Popen(
        [sys.executable, "-m", "p2pcache", "exec", "org/name", "--", "sleep", "60"],
        env={**os.environ, "P2PCACHE_STORE": str(daemon.store)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    processes.put(process)
    _, stderr = process.communicate(timeout=END_S)
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr
    if route == "/downloads" and number == signal.SIGINT:
        ended = ["/downloads/d1"]
    assert daemon.paths("DELETE") == ended
