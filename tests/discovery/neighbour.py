"""
Owns a process that announces itself by mDNS and prints what it finds, for the namespace tests.

Knows nothing of the test that starts it.
Invariants: one JSON object per line, first {"event": "ready"}; SIGTERM withdraws and exits 0.
Source: tests/discovery/test_mdns_link.py.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from functools import partial

from p2pcache.discovery.base import Announcement, Candidate
from p2pcache.discovery.mdns import MdnsDiscovery


def _print_event(event: str, candidate: Candidate | None = None) -> None:
    """Write one line, at once."""
    where = {"host": candidate.host, "port": candidate.port} if candidate else {}
    print(json.dumps({"event": event, **where}), flush=True)


async def _run(peer_id: str, port: int) -> None:
    """Announce until SIGTERM."""
    asked_to_end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked_to_end.set)
    discovery = MdnsDiscovery(interfaces_interval_s=0.2)
    await discovery.start(
        Announcement(peer_id, peer_id, port),
        partial(_print_event, "found"),
        partial(_print_event, "lost"),
    )
    _print_event("ready")
    await asked_to_end.wait()
    await discovery.stop()


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], int(sys.argv[2])))
