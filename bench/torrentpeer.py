"""
Owns one libtorrent peer as a process: `python -m bench.torrentpeer ORDER`, ORDER being JSON.

Knows nothing of what it is compared with.
Invariants: one line of JSON when it listens; after a line on standard input, when it begins, one
for every look, with `done` true from the last byte on; it goes on seeding until it is ended.
Source: libtorrent's Python binding; BEP 19 (web seeds).
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

LOOK_S = 0.2
LOOK_NEAR_END_S = 0.03
NEAR_END_SHARE = 0.95
# No discovery: everybody is told of everybody, as the daemons are.
SETTINGS: dict[str, object] = {
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "allow_multiple_connections_per_ip": True,
    "alert_mask": 0,
    # It is told of no authority; the others verify, which costs nothing that is measured.
    "validate_https_trackers": False,
    # Who was not there at the first try is asked again at once, not after a minute.
    "min_reconnect_time": 1,
}


def follow(libtorrent: Any, order: dict[str, Any]) -> None:
    """Fetch the torrent, saying how far it is, and seed it for ever."""
    session = libtorrent.session({**SETTINGS, "listen_interfaces": order["listen"]})
    print(json.dumps({"ready": True}), flush=True)
    sys.stdin.readline()
    wanted = libtorrent.add_torrent_params()
    wanted.ti = libtorrent.torrent_info(order["torrent"])
    wanted.save_path = order["folder"]
    handle = session.add_torrent(wanted)
    handle.add_url_seed(order["web_seed"])
    for host, port in order["peers"]:
        handle.connect_peer((host, port))
    is_done = False
    while True:
        status = handle.status()
        is_done = is_done or status.is_seeding
        share = status.progress
        line = {
            "done": is_done,
            "bytes_done": status.total_wanted_done,
            "received": status.total_payload_download,
            "sent": status.total_payload_upload,
            "redundant": status.total_redundant_bytes,
            "failed": status.total_failed_bytes,
        }
        print(json.dumps(line), flush=True)
        time.sleep(LOOK_NEAR_END_S if NEAR_END_SHARE < share < 1 else LOOK_S)


if __name__ == "__main__":
    import libtorrent

    follow(libtorrent, json.loads(sys.argv[1]))
