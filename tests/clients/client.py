"""
Owns running a real client of some release in a process of its own, with a home of its own.

Knows nothing of which answers are right.
Invariants: a client that connects anywhere but to its endpoint, or looks up another name, fails
its test, whatever else it did; nothing of this process but PATH reaches it.
Source: the clients' public environment variables (HF_ENDPOINT, HF_HOME, HF_TOKEN, …); PEP 578.
"""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.clients.environments import NEWEST, open_environment
from tests.hub.client import EPILOGUE, PRELUDE

CLIENT_TIMEOUT_S = 50.0
WATCHING = Path(__file__).parent / "watching"


@dataclass(frozen=True)
class Outcome:
    """How a client ended. `result` is what a script left in its variable of that name."""

    exit_code: int
    result: Any
    stdout: str
    stderr: str


@dataclass(frozen=True)
class HubClient:
    """
    One client on one machine: a release, the endpoint it is pointed at, and its home.

    Attributes:
        environment: Key of `environments.ENVIRONMENTS`.
        variables: More of its environment; they win.
        prefix: A command that runs it, as `ip netns exec …`.
        timeout_s: How long it may take.
    """

    endpoint: str
    home: Path
    environment: str = NEWEST
    token: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    timeout_s: float = CLIENT_TIMEOUT_S

    @property
    def python(self) -> Path:
        """Return the interpreter of its environment."""
        return open_environment(self.environment)

    @property
    def cache(self) -> Path:
        """Return where it keeps what it downloaded."""
        return self.home / "hf" / "hub"

    def run(self, script: str) -> Any:
        """
        Run a script that assigns `result` (JSON-like) and return it.

        Raises:
            AssertionError: The script failed (the message is its stderr), or connected elsewhere.
        """
        outcome = self.run_script(script)
        assert outcome.exit_code == 0, outcome.stderr
        return outcome.result

    def run_script(self, script: str) -> Outcome:
        """Run a script to its end, however it ends."""
        text = PRELUDE + textwrap.dedent(script) + EPILOGUE
        return self.finish(self._start([str(self.python), "-c", text]))

    def run_command(self, name: str, *arguments: str) -> Outcome:
        """Run a command of its environment (`hf`, …) to its end."""
        path = self.python.with_name(name)
        return self.finish(self._start([str(path), *arguments]))

    @contextmanager
    def started(self, script: str) -> Iterator[RunningClient]:
        """Start a script; it is gone when the block ends."""
        text = PRELUDE + textwrap.dedent(script) + EPILOGUE
        child = self._start([str(self.python), "-c", text])
        try:
            yield RunningClient(self, child)
        finally:
            if child.returncode is None:
                child.kill()
                child.communicate()

    def list_connections(self) -> list[str]:
        """Return every address that it connected to so far, in order."""
        seen = [line.split(" ", 1) for line in self._read_log()]
        return [address for event, address in seen if event == "connect"]

    def assert_quiet(self) -> None:
        """Assert that it spoke to its endpoint only, and asked for no other name."""
        host = urlsplit(self.endpoint).netloc
        name = host.rpartition(":")[0]
        own_names = (f"look-up {name}:", "look-up None:")
        strange = [
            line
            for line in self._read_log()
            if line != f"connect {host}" and not line.startswith(own_names)
        ]
        assert strange == [], strange

    def _read_log(self) -> list[str]:
        """Return the lines of the watcher."""
        log = self._log
        return log.read_text().splitlines() if log.exists() else []

    @property
    def _log(self) -> Path:
        return self.home / "connections.log"

    def _start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command in the client's environment."""
        (self.home / "hf").mkdir(parents=True, exist_ok=True)
        # Once a day the command line asks a package registry for its own newest release.
        (self.home / "hf" / ".check_for_update_done").touch()
        return subprocess.Popen(
            [*self.prefix, *command],
            env=self._make_variables(),
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _make_variables(self) -> dict[str, str]:
        """Return the whole environment of the client's process."""
        chosen = {
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "HOME": str(self.home),
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home / "hf"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONPATH": str(WATCHING),
            "WATCH_LOG": str(self._log),
        }
        if self.token is not None:
            chosen["HF_TOKEN"] = self.token
        return {**chosen, **self.variables}

    def finish(self, child: subprocess.Popen[str]) -> Outcome:
        """Wait for a command, and look where it connected to."""
        try:
            stdout, stderr = child.communicate(timeout=self.timeout_s)
        except BaseException:
            child.kill()
            child.communicate()
            raise
        self.assert_quiet()
        marked = [line for line in stdout.splitlines() if line.startswith("RESULT ")]
        result = json.loads(marked[-1].removeprefix("RESULT ")) if marked else None
        return Outcome(child.returncode, result, stdout, stderr)


@dataclass(frozen=True)
class RunningClient:
    """A client that was started and not yet waited for."""

    client: HubClient
    child: subprocess.Popen[str]

    def finish(self) -> Outcome:
        """Wait for its end."""
        return self.client.finish(self.child)
