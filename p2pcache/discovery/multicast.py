"""
Owns the two places where zeroconf needs a shape of its own: the sockets, and hearing packets.

Knows nothing of candidates or peers; names and records go on as they came.
Invariants: an open that fails leaves no socket behind; every call is on the event loop.
Source: RFC 6762 and 6763; zeroconf 0.154, _handlers/record_manager.py.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

# The record classes are exported on purpose ("import needed for backwards compat"), yet not
# listed for type checkers.
from zeroconf import (  # type: ignore[attr-defined]
    DNSPointer,
    DNSService,
    DNSText,
    EventLoopBlocked,
    IPVersion,
    NotRunningException,
    RecordUpdate,
    RecordUpdateListener,
    Zeroconf,
)
from zeroconf.asyncio import AsyncZeroconf

from p2pcache.errors import ConfigError

_GROUP = "224.0.0.251"  # RFC 6762, section 3
_PORT = 5353

_NEXT_STEP = "use --peer HOST:PORT or --discover none."

Hear = Callable[[Zeroconf, float, list[RecordUpdate], list[str]], None]


class AnswerListener(RecordUpdateListener):
    """Picks, from every packet, the names of one service type that it speaks of."""

    def __init__(self, service_type: str, hear: Hear) -> None:
        """
        Make a listener for Zeroconf.async_add_listener.

        Args:
            service_type: In lower case, with its final dot.
            hear: Called with zeroconf, its time in ms, all records of the packet, and the names.
        """
        super().__init__()
        self._service_type = service_type
        self._hear = hear

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Called by zeroconf, on the event loop, with the records of one packet."""
        names: dict[str, None] = {}
        suffix = f".{self._service_type}"
        for update in records:
            record = update.new
            if record.is_expired(now):
                continue
            if isinstance(record, DNSPointer) and record.name.lower() == self._service_type:
                names[record.alias] = None
            elif isinstance(record, DNSService | DNSText) and record.key.endswith(suffix):
                names[record.name] = None
        if names:
            self._hear(zc, now, records, list(names))


async def open_multicast(addresses: list[str]) -> AsyncZeroconf:
    """
    Open the multicast sockets on these addresses.

    Raises:
        ConfigError: None of them can multicast.
    """
    if not addresses:
        raise ConfigError(f"mDNS finds no network interface here; {_NEXT_STEP}")
    obstacles = {address: _find_obstacle(address) for address in addresses}
    usable = [address for address, obstacle in obstacles.items() if obstacle is None]
    if not usable:
        reasons = "; ".join(f"{address}: {obstacle}" for address, obstacle in obstacles.items())
        raise ConfigError(f"mDNS cannot use UDP port {_PORT} ({reasons}); {_NEXT_STEP}")
    try:
        mdns = AsyncZeroconf(interfaces=usable, ip_version=IPVersion.V4Only)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"mDNS cannot use UDP port {_PORT} ({error}); {_NEXT_STEP}") from error
    try:
        await mdns.zeroconf.async_wait_for_start()
        if not mdns.zeroconf.engine.senders:
            raise ConfigError(f"mDNS cannot send on any of {usable}; {_NEXT_STEP}")
    except (OSError, EventLoopBlocked, NotRunningException) as error:
        await mdns.async_close()
        raise ConfigError(f"mDNS does not start ({error!r}); {_NEXT_STEP}") from error
    except BaseException:
        await mdns.async_close()
        raise
    return mdns


def _find_obstacle(address: str) -> OSError | None:
    """
    Return why the mDNS group cannot be joined on this address, or None if it can.

    zeroconf joins too, but gives up on all interfaces when one has gone meanwhile, and then
    leaves the sockets open that it had.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        membership = socket.inet_aton(_GROUP) + socket.inet_aton(address)
        try:
            # The options of zeroconf, avahi and systemd-resolved, which share the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind((address, _PORT))
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        except OSError as error:
            return error
    return None
