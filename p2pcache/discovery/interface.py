"""
Owns the question which IPv4 addresses of this machine neighbours may reach.

Knows nothing of mDNS or of peers; asks the kernel and announces nothing.
Invariants: only private or link-local addresses are ever named; never raises, at worst empty.
Source: netdevice(7).
"""

from __future__ import annotations

import fcntl
import socket
import struct

from p2pcache.discovery.address import is_hearsay_host

ADDRESSES_MAX = 8  # a machine with more links than that is a router; bounds what we announce

_SIOCGIFFLAGS = 0x8913
_SIOCGIFADDR = 0x8915
_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_IFF_RUNNING = 0x40
_IFF_MULTICAST = 0x1000
_IFF_USABLE = _IFF_UP | _IFF_RUNNING | _IFF_MULTICAST

_REQUEST_BYTES = 40  # sizeof(struct ifreq) on 64-bit Linux: 16 of name, 24 of union
_NAME_BYTES = 16


def find_addresses() -> list[str]:
    """
    Find the addresses to announce and to multicast on, in the kernel's order of interfaces.

    Loopback is the answer only where there is nothing else: a machine without a private network
    (a laptop off line, a server with a public address only) still joins its own daemons, and
    announces nothing that a neighbour could misuse. A network that has a carrier but no private
    address counts as nothing: between peers without a key only private ranges talk.

    Returns:
        At most ADDRESSES_MAX addresses; [] where even loopback is down, or off Linux.
    """
    network: list[str] = []
    loopback: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for _, name in socket.if_nameindex():
            flags = _find_flags(asker, name)
            address = _find_address(asker, name)
            if address is None or not flags & _IFF_UP:
                continue
            if flags & _IFF_LOOPBACK:
                loopback.append(address)
            # RUNNING leaves out cables that end nowhere, and docker0 after its last container.
            elif flags & _IFF_USABLE == _IFF_USABLE and is_hearsay_host(address, loopback=False):
                network.append(address)
    return (network or loopback)[:ADDRESSES_MAX]


def _find_flags(asker: socket.socket, name: str) -> int:
    """Return the flags of an interface; 0 if it has gone."""
    answer = _try_ioctl(asker, _SIOCGIFFLAGS, name)
    return struct.unpack_from("=H", answer, _NAME_BYTES)[0] if answer else 0


def _find_address(asker: socket.socket, name: str) -> str | None:
    """Return the primary IPv4 address of an interface, or None without one."""
    answer = _try_ioctl(asker, _SIOCGIFADDR, name)
    # The union holds a sockaddr_in: family and port, two bytes each, then the address.
    return socket.inet_ntoa(answer[_NAME_BYTES + 4 : _NAME_BYTES + 8]) if answer else None


def _try_ioctl(asker: socket.socket, request: int, name: str) -> bytes | None:
    """Ask the kernel about one interface; None if it has no answer."""
    try:
        return fcntl.ioctl(asker, request, name.encode()[:15].ljust(_REQUEST_BYTES, b"\0"))
    except OSError:
        return None
