"""
Owns the command line of the test hub: `python -m tests.hub --dir DIR`.

Knows nothing of answers.
Invariants: exactly one line on stdout, when all listeners are open; SIGTERM ends it with 0.
Source: none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import ssl
from pathlib import Path

from tests.hub.catalog import load_directory
from tests.hub.content import LFS_THRESHOLD_BYTES
from tests.hub.faults import Faults
from tests.hub.listener import HOST
from tests.hub.quota import QUOTA_REQUESTS
from tests.hub.server import Hub
from tests.hub.state import PAGE_SIZE

LAYOUT = "DIR/org/name/** are files of model org/name; DIR/datasets/org/name/** of a dataset"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description=LAYOUT)
    parser.add_argument("--dir", type=Path, required=True, help=LAYOUT)
    parser.add_argument("--port", type=int, default=0, help="hub port, 0 for any")
    parser.add_argument("--cdn-port", type=int, default=0, help="storage port, 0 for any")
    parser.add_argument("--host", default=HOST, help="address of both, loopback by default")
    parser.add_argument("--rate", type=int, help="bytes per second over all connections")
    parser.add_argument("--page-size", type=int, default=PAGE_SIZE, help="entries per page")
    parser.add_argument("--lfs-threshold", type=int, default=LFS_THRESHOLD_BYTES)
    parser.add_argument("--private", action="append", default=[], metavar="ID")
    parser.add_argument("--gated", action="append", default=[], metavar="ID")
    parser.add_argument(
        "--token", action="append", default=[], help="valid token, allowed to read everything"
    )
    parser.add_argument("--faults", type=json.loads, default={}, help="JSON object of switches")
    parser.add_argument("--quota", type=int, default=QUOTA_REQUESTS, help="requests in 5 minutes")
    parser.add_argument("--tls", type=Path, help="PEM file of a key and its certificates")
    return parser.parse_args()


async def serve(arguments: argparse.Namespace) -> None:
    """Run the hub until a signal asks it to end."""
    repositories = load_directory(
        arguments.dir,
        private=arguments.private,
        gated=arguments.gated,
        tokens=arguments.token,
        lfs_threshold_bytes=arguments.lfs_threshold,
    )
    tls = None
    if arguments.tls is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(arguments.tls)
    hub = Hub(
        repositories,
        tokens=arguments.token,
        faults=Faults(rate_bytes_per_s=arguments.rate),
        page_size=arguments.page_size,
        port=arguments.port,
        cdn_port=arguments.cdn_port,
        tls=tls,
        host=arguments.host,
        quota_requests=arguments.quota,
    )
    hub.set_faults(**arguments.faults)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with hub:
        ready = {"event": "ready", "hub": hub.url, "cdn": hub.cdn_url, "control": hub.control_url}
        print(json.dumps(ready), flush=True)
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(serve(parse_arguments()))
