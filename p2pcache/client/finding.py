"""
Owns where the local daemon is: its endpoint and its store, from what was named or left behind.

Knows nothing of requests.
Invariants: an endpoint is a loopback address; an abandoned store names none.
Source: docs/reference/store-layout.md (daemon.json).
"""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path

from p2pcache.discovery.address import parse_host_port
from p2pcache.errors import ConfigError, DaemonUnreachableError, InputError

# What store.home and config say as well, and a test compares: importing them would cost every
# command more time than it takes to run.
LOCAL_DEFAULT = "127.0.0.1:7277"
ENDPOINT_NAME = "daemon.json"
LOCK_NAME = "lock"
TOKEN_NAME = "admin-token"  # noqa: S105
_SMALL_FILE_BYTES_MAX = 4_096


def default_store() -> Path:
    """Return the store of a user who named none; the same as config.default_store()."""
    import platformdirs

    return platformdirs.user_cache_path("p2pcache")


def find_named_store(store: Path | None = None) -> Path | None:
    """Return the store that was given, else P2PCACHE_STORE; None if neither was."""
    named = os.environ.get("P2PCACHE_STORE", "").strip()
    if store is None and not named:
        return None
    return Path(named if store is None else store).expanduser().absolute()


def find_endpoint(local: str | None = None, store: Path | None = None) -> tuple[str, int]:
    """
    Return the daemon's host and port: as given, else P2PCACHE_LOCAL, else what the daemon left in
    its store, else the default. Port 0, which means any to a daemon, names none here.

    Raises:
        ConfigError: An endpoint that was given and is no loopback address.
        DaemonUnreachableError: No daemon runs on the store that was named.
    """
    for text, origin in ((local, "--local"), (os.environ.get("P2PCACHE_LOCAL"), "P2PCACHE_LOCAL")):
        if text is not None and text.strip() and not text.rstrip("/").endswith(":0"):
            try:
                return _parse_local(text)
            except InputError as error:
                raise ConfigError(f"{origin}: {error}") from error
    named = find_named_store(store)
    folder = named or default_store()
    try:
        left = json.loads(try_read(folder / ENDPOINT_NAME))
        address = _parse_local(str(left["local"]))
    except (ValueError, TypeError, KeyError, RecursionError, InputError):
        # No daemon, or one that was killed while it wrote: nothing that a caller could mend.
        address = None
    if address is not None and not _is_abandoned(folder):
        return address
    if named is not None:
        raise DaemonUnreachableError(
            f"No daemon runs on the store {named}; start one with: p2pcache up --store {named}"
        )
    return _parse_local(LOCAL_DEFAULT)


def _is_abandoned(store: Path) -> bool:
    """
    Return whether no daemon holds the store, though one was there: it was killed.

    Whoever listens on its port now is somebody else, and must not be sent our tokens.
    """
    import fcntl

    try:
        fd = os.open(store / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(fd)


def _parse_local(text: str) -> tuple[str, int]:
    """
    Read HOST:PORT or http://HOST:PORT.

    Raises:
        InputError: Another form, or not a loopback address: the admin token would leave.
    """
    host, port = parse_host_port(text.strip().removeprefix("http://").rstrip("/"))
    if host.lower().rstrip(".") == "localhost":
        return "127.0.0.1", port
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise InputError(
            f"{host[:80]!r} is not a loopback address; a daemon answers on its own machine alone, "
            f"for example at {LOCAL_DEFAULT}."
        )
    return host, port


def try_read(path: Path) -> str:
    """Return the text of a small file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_SMALL_FILE_BYTES_MAX).decode("ascii", "replace")
    except OSError:
        return ""
