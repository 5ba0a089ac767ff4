"""
Owns real daemons as child processes, for integration tests, the demo and benchmarks.

Knows nothing of what is tested.
Invariants: every child is gone after stop(), whatever happened before; only processes started
here are ended.
Source: none.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from p2pcache.client import Client
from tests.ports import pick_port

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.02


def wait_until(
    condition: Callable[[], object],
    what: str,
    *,
    timeout_s: float = 30.0,
    poll_s: float = POLL_S,
) -> None:
    """
    Wait until a condition holds.

    Raises:
        TimeoutError: It did not, in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(poll_s)


def run_p2pcache(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    timeout_s: float = 120.0,
) -> subprocess.CompletedProcess[str]:
    """Run the command line; returns what it printed and its exit code."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("P2PCACHE_", "HF_"))}
    return subprocess.run(
        [*prefix, sys.executable, "-m", "p2pcache", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**clean, **(environment or {})},
        check=False,
    )


class DaemonProcess:
    """`p2pcache up` on free ports (tests/ports.py). start() waits for the ready line."""

    def __init__(
        self,
        store: Path,
        *,
        upstream: str,
        name: str = "",
        peers: Sequence[str] = (),
        discover: str = "none",
        trust_peers: bool = False,
        extra: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        listen: str = "",
    ) -> None:
        self.store = store
        self.name = name or store.name
        self.local = ""
        self.peer = ""
        self._arguments = ["--store", str(store), "--name", self.name]
        self._arguments += ["--hf-upstream", upstream, "--discover", discover]
        for peer in peers:
            self._arguments += ["--peer", peer]
        self._arguments += ["--trust-peers"] if trust_peers else []
        self._arguments += list(extra)
        self._listen = listen
        self._prefix = list(prefix)
        self._environment = dict(environment or {})
        self._child: subprocess.Popen[str] | None = None
        self.log_path = store.with_name(f"{store.name}.log")

    @property
    def pid(self) -> int:
        """Return the process id."""
        assert self._child is not None, "start() comes first"
        return self._child.pid

    @property
    def is_running(self) -> bool:
        """Return whether it was started and not ended from here."""
        return self._child is not None

    def start(self) -> DaemonProcess:
        """Start, and wait until it is ready."""
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("P2PCACHE_", "HF_"))
        }
        listen = self._listen or f"127.0.0.1:{pick_port()}"
        where = ["--local", f"127.0.0.1:{pick_port()}", "--listen", listen]
        command = [sys.executable, "-m", "p2pcache", "up", "--json", *where, *self._arguments]
        with self.log_path.open("a") as log:
            self._child = subprocess.Popen(
                [*self._prefix, *command],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**environment, **self._environment},
            )
        assert self._child.stdout is not None, "stdout is a pipe"
        line = self._child.stdout.readline()
        if not line:
            code = self._child.wait(STOP_TIMEOUT_S)
            raise RuntimeError(f"the daemon ended with {code}: {self.log_path.read_text()}")
        ready = json.loads(line)
        self.local, self.peer = ready["local"], ready["peer"]
        return self

    def stop(self) -> int:
        """Stop it as an operator would; returns the exit code."""
        if self._child is None:
            return 0
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
        try:
            return self._child.wait(STOP_TIMEOUT_S)
        finally:
            self._reap()

    def kill(self) -> None:
        """End it as a power cut of the process would: SIGKILL."""
        if self._child is not None:
            self._child.kill()
            self._child.wait(STOP_TIMEOUT_S)
            self._reap()

    def _reap(self) -> None:
        if self._child is not None:
            if self._child.poll() is None:
                self._child.kill()
                self._child.wait(STOP_TIMEOUT_S)
            if self._child.stdout is not None:
                self._child.stdout.close()
            self._child = None

    @property
    def client(self) -> Client:
        """Return a client of this daemon."""
        return Client(local=self.local, store=self.store)

    def pull(self, model: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `p2pcache pull` against this daemon."""
        return self.run("pull", model, *arguments)

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of `p2pcache` against this daemon, on its network."""
        return run_p2pcache(command, *arguments, *self.where, prefix=self._prefix)

    @property
    def where(self) -> list[str]:
        """Return the options that make a command talk to this daemon."""
        return ["--store", str(self.store), "--local", self.local.removeprefix("http://")]

    def __enter__(self) -> DaemonProcess:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
