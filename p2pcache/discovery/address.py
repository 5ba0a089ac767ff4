"""
Owns what an address is to discovery: HOST:PORT as typed, and which hearsay may be believed.

Knows nothing of who said it or of the network; no name is resolved here.
Invariants: pure; texts are bounded before they are parsed; hearsay stays in private ranges.
Source: RFC 1918, 3927, 4193, 4291; design.md §7; threats T11 and T14 of the threat model.
"""

from __future__ import annotations

import ipaddress
import re

from p2pcache.errors import InputError

HOST_LENGTH_MAX = 253  # characters of a DNS name in text form: RFC 1035, section 2.3.4
PORT_MAX = 65_535

# p2pcache needs no root (design.md §2), so no daemon listens below 1024; what announces such a
# port wants us to knock at somebody's ssh. An operator who does listen there says so by --peer.
HEARSAY_PORT_MIN = 1_024

_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?")

# Written out instead of `is_private`, which also holds documentation and benchmarking ranges
# and has changed between releases of Python.
_PRIVATE_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "fc00::/7",
    )
)

# Credentials live behind these: the instance metadata of EC2, GCE and Azure, the task roles of
# ECS and EKS, and EC2 over IPv6. All of them are inside the ranges above.
_METADATA_HOSTS = frozenset(
    ipaddress.ip_address(host)
    for host in ("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254")
)


def parse_host_port(text: str) -> tuple[str, int]:
    """
    Split HOST:PORT as an operator types it; an IPv6 address stands in brackets.

    Args:
        text: `lab-2:7278`, `10.0.0.7:7278` or `[fd00::7]:7278`; surrounding space is ignored.

    Returns:
        The host, without brackets, and the port.

    Raises:
        InputError: Text of another form, or a port outside 1 to 65535.
    """
    shown = text[:80]
    text = text.strip()
    host, colon, port_text = text.rpartition(":")
    if not colon or not host:
        raise InputError(f"{shown!r} is not HOST:PORT; write it like 10.0.0.7:7278.")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise InputError(f"{shown!r} has no IPv6 address in its brackets; use [fd00::7]:7278.")
    elif ":" in host:
        raise InputError(
            f"{shown!r} is ambiguous; put an IPv6 address in brackets: [fd00::7]:7278."
        )
    elif len(host) > HOST_LENGTH_MAX or not _HOST_NAME.fullmatch(host):
        raise InputError(f"{shown!r} has no valid host; use a name or an address before the colon.")
    # isascii: int() would also take digits of other scripts. The length bounds the conversion.
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5):
        raise InputError(f"{shown!r} has no valid port; use a number from 1 to {PORT_MAX}.")
    port = int(port_text)
    if not 1 <= port <= PORT_MAX:
        raise InputError(f"{shown!r} has port {port}; use a number from 1 to {PORT_MAX}.")
    return host, port


def is_hearsay_host(host: str, *, loopback: bool) -> bool:
    """
    Tell whether an address that anybody on the link could have announced may be probed.

    Args:
        host: An IP address in text form.
        loopback: Whether 127.0.0.0/8 and ::1 count. On a machine with a network they do not:
            a neighbour that announces 127.0.0.1 wants us to knock at our own services.

    Returns:
        True for unicast in the private and link-local ranges, and for loopback where asked.
        False for IPv6 link-local addresses, which name nothing without an interface.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if address in _METADATA_HOSTS:
        return False
    if address.is_loopback:
        return loopback
    return any(address in network for network in _PRIVATE_NETWORKS)


def is_hearsay_port(port: int) -> bool:
    """Tell whether a port that anybody on the link could have announced may be probed."""
    return HEARSAY_PORT_MIN <= port <= PORT_MAX


def _is_ipv6(host: str) -> bool:
    """Tell whether host is an IPv6 address, with a scope or without; an IPv4 one is not."""
    if len(host) > HOST_LENGTH_MAX:
        return False
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
