"""
Owns the wire form of an announcement: the instance name and the TXT record, both ways.

Knows nothing of sockets or of zeroconf; bytes in, frozen values out.
Invariants: pure; whatever anybody on the link sends, the result is bounded or None, never a raise.
Source: RFC 6763, sections 4.1 (names) and 6 (TXT); docs/reference/peer-protocol.md.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from p2pcache.discovery.address import is_hearsay_host, is_hearsay_port

# Of the announcement, not of the peer protocol's messages: /v1/hello negotiates those.
TXT_VERSION = "1"

NAME_BYTES_MAX = 63  # of one DNS label: RFC 1035, section 2.3.4
PEER_ID_LENGTH_MAX = 128  # twice the hex form of a 32-byte key
TXT_BYTES_MAX = 400  # RFC 6763, section 6.2, has it fit one packet; ours takes below 150
TXT_ITEMS_MAX = 16  # we write two; room for later releases
HOSTS_MAX = 8  # addresses of one peer, see interface.ADDRESSES_MAX
_HOSTS_READ_MAX = 64  # addresses looked at, good or bad, before we stop reading

_PEER_ID = re.compile(r"[A-Za-z0-9_.:-]+")
_TAG_BYTES = 8  # 2**64 ids: two of a thousand peers clash once in 10**13 sites
_READABLE_LENGTH_MAX = NAME_BYTES_MAX - 2 * _TAG_BYTES - 1


@dataclass(frozen=True, slots=True)
class ServiceAnswer:
    """Who says to listen where, after every bound was applied."""

    peer_id: str
    hosts: tuple[str, ...]
    port: int


def peer_tag(peer_id: str) -> str:
    """
    Shorten a peer id to 16 lower-case hex digits.

    A digest and not a prefix: ids may begin alike, and DNS ignores the difference of case.
    """
    return hashlib.blake2s(peer_id.encode(), digest_size=_TAG_BYTES).hexdigest()


def service_label(name: str, peer_id: str) -> str:
    """
    Make the one DNS label under which a peer announces itself.

    Args:
        name: What people call the machine; anything, also empty.
        peer_id: Makes the label unique.

    Returns:
        At most NAME_BYTES_MAX ASCII letters, digits and hyphens; equal only for equal ids.
    """
    readable = re.sub(r"[^A-Za-z0-9]+", "-", name[:NAME_BYTES_MAX])[:_READABLE_LENGTH_MAX].strip(
        "-"
    )
    return f"{readable or 'p2pcache'}-{peer_tag(peer_id)}"


def txt_properties(peer_id: str) -> dict[bytes, bytes]:
    """Return all that we multicast besides name and address; nothing here names a model (T13)."""
    return {b"v": TXT_VERSION.encode(), b"id": peer_id.encode()}


def parse_answer(
    text: bytes, port: int | None, hosts: Iterable[str], *, loopback: bool
) -> ServiceAnswer | None:
    """
    Read the TXT, SRV and address records of one service name.

    Args:
        text: The TXT record's content, as received.
        port: The SRV record's port; None if there was none.
        hosts: Addresses in text form, as received; those not to be believed are left out.
        loopback: Whether loopback addresses may be believed, see is_hearsay_host.

    Returns:
        The answer, with 1 to HOSTS_MAX distinct hosts; None if any part is missing, malformed,
        of another version, or if no host is left.
    """
    properties = _parse_txt(text)
    if properties is None or properties.get(b"v") != TXT_VERSION.encode():
        return None
    peer_id = properties.get(b"id", b"").decode("ascii", "replace")
    if not is_peer_id(peer_id) or port is None or not is_hearsay_port(port):
        return None
    believed = dict.fromkeys(
        host for host in islice(hosts, _HOSTS_READ_MAX) if is_hearsay_host(host, loopback=loopback)
    )
    if not believed:
        return None
    return ServiceAnswer(peer_id, tuple(islice(believed, HOSTS_MAX)), port)


def is_peer_id(text: str) -> bool:
    """Tell whether text has the form that a peer id may have in an announcement."""
    return len(text) <= PEER_ID_LENGTH_MAX and _PEER_ID.fullmatch(text) is not None


def _parse_txt(text: bytes) -> dict[bytes, bytes] | None:
    """Split a TXT record into keys and values; the first of equal keys counts (RFC 6763, 6.4)."""
    if len(text) > TXT_BYTES_MAX:
        return None
    properties: dict[bytes, bytes] = {}
    position = 0
    for _ in range(TXT_ITEMS_MAX):
        if position >= len(text):
            return properties
        end = position + 1 + text[position]
        if end > len(text):
            return None
        key, _, value = text[position + 1 : end].partition(b"=")
        properties.setdefault(key.lower(), value)
        position = end
    return properties if position >= len(text) else None
