"""
Owns the process that keeps a lease while another process lives: it renews it, and ends it when the
other one has ended, however that was.

Knows nothing of what the other process does; it is no relative of it, has no terminal, and holds
none of its files open.
Invariants: the watched process is alive, and is the one that was meant, when start_keeper()
returns; the lease has ended, or expires within its time, soon after the watched process has.
Source: pidfd_open(2), daemon(7); decision 0024.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from p2pcache.client.leasing import RENEWALS_PER_TTL, Lease
from p2pcache.client.wire import Wire
from p2pcache.errors import DaemonError, DaemonUnreachableError

# Where the kernel has no pidfd; a lease that ends half a second late harms nobody.
LOOK_S = 0.5
START_TIMEOUT_S = 60.0
# It needs none of them, and an environment can be read by others of this user.
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "P2PCACHE_TOKEN", "MODELSCOPE_API_TOKEN")
# What a terminal or a service manager sends to all around the watched process.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)


def start_keeper(lease: Lease, local: str | None, store: Path | None) -> None:
    """
    Keep a lease for this process, across exec, until it ends.

    Args:
        lease: Held, and not renewed by a thread.
        local: The daemon's endpoint, as it was named.
        store: The daemon's store, as it was named.

    Raises:
        DaemonError: The process could not be started.
    """
    order = {
        "pid": os.getpid(),
        "local": local,
        "store": None if store is None else str(Path(store).absolute()),
        "ttl_s": lease.ttl_s,
        "holder": lease.holder,
        "lease": {
            "id": lease.id,
            "model": lease.model,
            "commit": lease.commit,
            "path": str(lease.path),
        },
    }
    package = str(Path(__file__).parents[2])
    before = os.environ.get("PYTHONPATH", "")
    environment = {k: v for k, v in os.environ.items() if k not in _SECRETS}
    environment["PYTHONPATH"] = f"{package}{os.pathsep}{before}" if before else package
    # -P: a json.py in the working folder is not ours.
    command = [sys.executable, "-P", "-m", "p2pcache.client.keeper", json.dumps(order)]
    try:
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment,
            timeout=START_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise DaemonError(
            f"Nothing could be started to keep the lease of {lease.model} ({error}); free some "
            "processes or memory and try again, or pin the model and run the command by itself."
        ) from error


class ProcessWatch:
    """Waits for the end of a process that is nobody's child here."""

    def __init__(self, pid: int) -> None:
        """
        Raises:
            ProcessLookupError: There is none.
        """
        self._pid = pid
        self._pidfd: int | None = None
        self._started = _read_start(pid)
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise
        except OSError as error:  # a kernel or a sandbox without it
            if not self._started:
                raise ProcessLookupError(pid) from error

    def wait(self, timeout_s: float) -> bool:
        """Return True when it has ended, False when the time is over."""
        if self._pidfd is not None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            return bool(poll.poll(timeout_s * 1000))
        end_s = time.monotonic() + timeout_s
        while _read_start(self._pid) == self._started:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return False
            time.sleep(min(LOOK_S, left_s))
        return True


def keep(order: dict[str, Any], watch: ProcessWatch) -> None:
    """Renew a lease until a process has ended, then end it."""
    store = order["store"]
    ways = _Ways(order["local"], None if store is None else Path(store))
    lease = Lease(ways, order["lease"], order["ttl_s"], order["holder"])
    due_s = lease.ttl_s / RENEWALS_PER_TTL
    while not watch.wait(due_s):
        due_s = lease.renew()
    lease.end()


def main() -> None:
    """Start watching, then go on in the background; the caller waits for the first part only."""
    order = json.loads(sys.argv[1])
    pid = int(order["pid"])
    try:
        if os.getppid() != pid:
            raise ProcessLookupError(pid)
        watch = ProcessWatch(pid)
    except ProcessLookupError:
        sys.exit(1)  # it was killed meanwhile; the lease expires
    if os.fork():
        os._exit(0)
    os.setsid()
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    keep(order, watch)


class _Ways(Wire):
    """Where the daemon was named to be; it may be down just now."""

    def __init__(self, local: str | None, store: Path | None) -> None:
        self._named = (local, store)
        try:
            super().__init__(local, store)
        except DaemonUnreachableError:
            return


def _read_start(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; empty if it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


if __name__ == "__main__":
    main()
