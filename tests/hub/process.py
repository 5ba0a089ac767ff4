"""
Owns the hub as a child process, for tests that must not share an event loop with it.

Knows nothing of the hub's inside; it speaks the control routes.
Invariants: the child is gone after stop(), whatever happened before.
Source: none.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.ports import pick_port

ROOT = Path(__file__).resolve().parents[2]
STOP_TIMEOUT_S = 10.0
CONTROL_TIMEOUT_S = 30.0
POLL_S = 0.02


class HubProcess:
    """`with HubProcess(directory) as hub: hub.url`; the directory is as `--dir` wants it."""

    def __init__(
        self,
        directory: Path,
        *,
        rate_bytes_per_s: int | None = None,
        port: int = 0,
        cdn_port: int = 0,
        page_size: int | None = None,
        private: Iterable[str] = (),
        gated: Iterable[str] = (),
        tokens: Iterable[str] = (),
        tls: Path | None = None,
        prefix: Iterable[str] = (),
        host: str | None = None,
        quota_requests: int | None = None,
        lfs_threshold_bytes: int | None = None,
    ) -> None:
        self._command = [*prefix, sys.executable, "-m", "tests.hub", "--dir", str(directory)]
        self._command += ["--port", str(port or pick_port())]
        self._command += ["--cdn-port", str(cdn_port or pick_port())]
        if host is not None:
            self._command += ["--host", host]
        if rate_bytes_per_s is not None:
            self._command += ["--rate", str(rate_bytes_per_s)]
        if page_size is not None:
            self._command += ["--page-size", str(page_size)]
        if quota_requests is not None:
            self._command += ["--quota", str(quota_requests)]
        if lfs_threshold_bytes is not None:
            self._command += ["--lfs-threshold", str(lfs_threshold_bytes)]
        if tls is not None:
            self._command += ["--tls", str(tls)]
        for option, values in (("--private", private), ("--gated", gated), ("--token", tokens)):
            for value in values:
                self._command += [option, value]
        self._child: subprocess.Popen[str] | None = None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.url = ""
        self.cdn_url = ""
        self.control_url = ""

    @property
    def pid(self) -> int:
        """Return the process id."""
        assert self._child is not None, "start() comes first"
        return self._child.pid

    def start(self) -> None:
        """
        Start the child and wait until it listens.

        Raises:
            RuntimeError: It ended instead.
        """
        self._child = subprocess.Popen(
            self._command, cwd=ROOT, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError("the hub ended before it was ready; its stderr says why")
        ready = json.loads(line)
        self.url, self.cdn_url = ready["hub"], ready["cdn"]
        self.control_url = ready["control"]

    def stop(self) -> int:
        """End the child (SIGTERM, then SIGKILL) and return its exit code; 0 if none runs."""
        child, self._child = self._child, None
        if child is None:
            return 0
        child.terminate()
        try:
            return child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()
        finally:
            assert child.stdout is not None
            child.stdout.close()

    def stats(self) -> dict[str, Any]:
        """Return the counts; see Stats.as_json for the fields."""
        answer: dict[str, Any] = self._ask("stats", None)
        return answer

    def reset(self) -> None:
        """Forget the counts."""
        self._ask("reset", {})

    def faults(self, **changes: object) -> None:
        """Replace all switches by those it was started with plus these."""
        self._ask("faults", changes)

    def commit(self, repo_id: str, files: Mapping[str, bytes], **options: object) -> str:
        """Commit files (options: kind, branch, base, remove, title) and return the sha."""
        encoded = {path: {"base64": base64.b64encode(raw).decode()} for path, raw in files.items()}
        return str(self._ask("commits", {"repo_id": repo_id, "files": encoded, **options})["sha"])

    def set_ref(self, repo_id: str, ref: str, revision: str, **options: object) -> str:
        """Move a branch or full ref to a revision and return the sha (option: kind)."""
        body = {"repo_id": repo_id, "ref": ref, "revision": revision, **options}
        return str(self._ask("refs", body)["sha"])

    def rename(self, repo_id: str, new_id: str, **options: object) -> None:
        """Give a repository another id; the old one redirects (option: kind)."""
        self._ask("renames", {"repo_id": repo_id, "new_id": new_id, **options})

    def delete(self, repo_id: str, **options: object) -> None:
        """Forget a repository (option: kind)."""
        self._ask("deletions", {"repo_id": repo_id, **options})

    def set_rights(self, repo_id: str, **options: object) -> None:
        """Say who may read a repository (options: kind, private, gated, tokens)."""
        self._ask("rights", {"repo_id": repo_id, **options})

    def set_tokens(self, tokens: Iterable[str]) -> None:
        """Say which tokens are somebody's, all of them; what they may read is set_rights()'s."""
        self._ask("tokens", {"tokens": list(tokens)})

    def set_listening(self, *, hub: bool = True, cdn: bool = True) -> None:
        """Open or close the listeners; closing cuts their connections too."""
        self._ask("listen", {"hub": hub, "cdn": cdn})

    def wait_for(
        self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = STOP_TIMEOUT_S
    ) -> dict[str, Any]:
        """
        Wait until the counts meet a condition and return them.

        Raises:
            TimeoutError: They did not.
        """
        end_s = time.monotonic() + timeout_s
        while not condition(stats := self.stats()):
            if time.monotonic() > end_s:
                raise TimeoutError(f"after {timeout_s} s the hub's counts are {stats['requests']}")
            time.sleep(POLL_S)
        return stats

    def __enter__(self) -> HubProcess:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    def _ask(self, name: str, body: Mapping[str, object] | None) -> Any:
        """Send one control request."""
        encoded = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.control_url}/_hub/{name}", data=encoded)
        try:
            with self._opener.open(request, timeout=CONTROL_TIMEOUT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(error.read().decode()) from error
