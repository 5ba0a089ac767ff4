"""
Owns the record of every address that a Python client looks up or connects to.

Knows nothing of which of them are right.
Invariants: imported by each interpreter whose PYTHONPATH names this folder, before any other code;
one line for each event in the file that WATCH_LOG names; the client itself is not changed.
Source: PEP 578, the audit events `socket.connect` and `socket.getaddrinfo`.
"""

from __future__ import annotations

import os
import sys

_LOG = os.environ.get("WATCH_LOG", "")


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    """Note a look-up or a connection over the network."""
    if event == "socket.connect":
        address = arguments[1]
        if not isinstance(address, tuple):
            return  # a socket of the file system
        line = f"connect {address[0]}:{address[1]}\n"
    elif event == "socket.getaddrinfo":
        line = f"look-up {arguments[0]!s}:{arguments[1]!s}\n"
    else:
        return
    descriptor = os.open(_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)


if _LOG:
    sys.addaudithook(_watch)
