"""
Owns faults in the syncs of SQLite, which no replaceable call of it makes: strace fails them.

Knows nothing of operations.
Invariants: only calls on the index's files are touched; the tracer ends with the traced.
Source: strace(1), "Tampering"; reliability.md §3.1.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from pathlib import Path

SYNCS = "fsync,fdatasync"
_INDEX_NAMES = ("index.sqlite", "index.sqlite-wal", "index.sqlite-journal")
_ATTACH_S_MAX = 10.0
_END_S_MAX = 10.0


class Tracer:
    """Fails the n-th sync of an index's files in a process."""

    def __init__(self, store: Path, error: str, number: int, log: Path) -> None:
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None
        paths = [option for name in _INDEX_NAMES for option in ("-P", str(store / name))]
        inject = f"inject={SYNCS}:error={error}:when={number}"
        self._command = ["strace", "-f", *paths, "-e", f"trace={SYNCS}", "-e", inject]

    def attach(self, pid: int) -> None:
        """
        Begin; returns when the process is traced.

        Raises:
            OSError: It cannot be.
        """
        command = [*self._command, "-o", str(self._log), "-p", str(pid)]
        self._child = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert self._child.stderr is not None
        said, deadline_s = b"", time.monotonic() + _ATTACH_S_MAX
        while b"attached" not in said:
            left_s = max(0.0, deadline_s - time.monotonic())
            ready = select.select([self._child.stderr], [], [], left_s)[0]
            piece = os.read(self._child.stderr.fileno(), 4096) if ready else b""
            if not piece:
                raise OSError(f"strace did not attach: {said.decode(errors='replace')}")
            said += piece

    def finish(self) -> str:
        """Wait for the end; returns the call that was failed, empty if there was none."""
        if self._child is None:
            return ""
        try:
            self._child.wait(_END_S_MAX)
        finally:
            if self._child.poll() is None:
                self._child.kill()
                self._child.wait()
            assert self._child.stderr is not None
            self._child.stderr.close()
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        hits = [line for line in lines if "(INJECTED)" in line]
        return f"sqlite.{hits[0].split(None, 1)[1].split('(')[0]} index" if hits else ""
