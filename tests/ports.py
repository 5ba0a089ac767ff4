"""
Owns the ports that tests give to daemons and hubs which others go on calling after their end.

Knows nothing of who listens.
Invariants: no two test processes of one run draw from the same range, and none draws what the
kernel hands out for port 0: a neighbour that asks for a dead daemon never meets a stranger's.
Source: a daemon of another test process once answered at a freed port, and was taken for a peer;
ip(7), ip_local_port_range.
"""

from __future__ import annotations

import itertools
import os
import random
import socket

# Below Linux's ports for outgoing connections (32768 and up), above most services'.
FIRST = 10_000
PORTS_PER_PROCESS = 2_500
PROCESSES_MAX = 9

# Of pytest-xdist: gw0, gw1, …; without it, the last range.
_process = int(os.environ.get("PYTEST_XDIST_WORKER", f"gw{PROCESSES_MAX - 1}").removeprefix("gw"))
_first = FIRST + PORTS_PER_PROCESS * (_process % PROCESSES_MAX)
# From another one each run: two beside each other, which may have numbers next to each other,
# seldom come to the same ones.
_drawn = itertools.count(random.SystemRandom().randrange(PORTS_PER_PROCESS))


def pick_port() -> int:
    """
    Return a TCP port that nobody listens on and that this process did not return lately.

    Raises:
        RuntimeError: None of this process's is free.
    """
    for number in itertools.islice(_drawn, PORTS_PER_PROCESS):
        port = _first + number % PORTS_PER_PROCESS
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no port from {_first} to {_first + PORTS_PER_PROCESS - 1} is free")
