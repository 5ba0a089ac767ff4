"""
Owns the tests of addresses: what an operator may type and what hearsay may say.

Knows nothing of sockets.
Invariants: no name is resolved.
Source: p2pcache/discovery/address.py; threats T11 and T14 of the threat model.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.discovery.address import is_hearsay_host, is_hearsay_port, parse_host_port
from p2pcache.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.7:7278", ("10.0.0.7", 7278)),
        (" lab-2.example.org.:1 ", ("lab-2.example.org.", 1)),
        ("localhost:65535", ("localhost", 65535)),
        ("[fd00::7]:7278", ("fd00::7", 7278)),
        ("[fe80::1%eth0]:7278", ("fe80::1%eth0", 7278)),
    ],
)
def test_parse_host_port_valid_text_is_split(text: str, expected: tuple[str, int]) -> None:
    """Names, IPv4 and bracketed IPv6 are understood."""
    assert parse_host_port(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "lab-2",
        "lab-2:",
        ":7278",
        "lab-2:0",
        "lab-2:65536",
        "lab-2:-1",
        "lab-2:+1",
        "lab-2:7_2",
        "lab-2:٧٢٧٨",
        "lab-2:999999999999999999999",
        "fd00::7:7278",
        "[fd00::7]",
        "[]:7278",
        "[10.0.0.7]:7278",
        "[lab-2]:7278",
        "http://lab-2:7278",
        "user@lab-2:7278",
        "lab 2:7278",
        "lab-2\n:7278",
        "-lab:7278",
        "a" * 254 + ":7278",
        "[" + "f" * 100_000 + "]:7278",
    ],
)
def test_parse_host_port_invalid_text_is_refused_with_advice(text: str) -> None:
    """The message is one short sentence that says what to write instead."""
    with pytest.raises(InputError, match=r"(write|use|put) ") as caught:
        parse_host_port(text)
    assert len(str(caught.value)) < 600


@given(st.text(max_size=60))
def test_parse_host_port_any_text_parses_or_is_refused(text: str) -> None:
    """No text raises anything but InputError, and what passes is in range."""
    try:
        host, port = parse_host_port(text)
    except InputError:
        return
    assert host
    assert 1 <= port <= 65_535


@pytest.mark.parametrize(
    "host",
    ["10.0.0.7", "172.16.0.1", "172.31.255.254", "192.168.1.1", "169.254.7.7", "fd00::7"],
)
def test_hearsay_private_unicast_is_believed(host: str) -> None:
    """What a LAN uses may be probed."""
    assert is_hearsay_host(host, loopback=False)


@pytest.mark.parametrize(
    "host",
    [
        "8.8.8.8",
        "172.32.0.1",
        "100.64.0.1",
        "192.0.2.1",
        "224.0.0.251",
        "239.1.1.1",
        "255.255.255.255",
        "0.0.0.0",
        "169.254.169.254",
        "169.254.170.2",
        "fd00:ec2::254",
        "2001:db8::1",
        "2606:4700::1",
        "ff02::fb",
        "fe80::1",
        "fe80::1%eth0",
        "::",
        "::ffff:8.8.8.8",
        "::ffff:169.254.169.254",
        "::ffff:10.0.0.7",
        "::ffff:127.0.0.1",
        "lab-2",
        "10.0.0.7:22",
        "010.0.0.7",
        "",
    ],
)
@pytest.mark.parametrize("loopback", [True, False])
def test_hearsay_other_address_is_refused(host: str, *, loopback: bool) -> None:
    """Public, multicast, unspecified and metadata addresses are never probed."""
    assert not is_hearsay_host(host, loopback=loopback)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1"])
def test_hearsay_loopback_counts_only_where_asked(host: str) -> None:
    """A neighbour cannot make us knock at our own services."""
    assert is_hearsay_host(host, loopback=True)
    assert not is_hearsay_host(host, loopback=False)


def test_hearsay_port_of_system_services_is_refused() -> None:
    """Nobody can make us knock at port 22."""
    assert [port for port in (0, 22, 1023, 1024, 7278, 65535, 65536) if is_hearsay_port(port)] == [
        1024,
        7278,
        65535,
    ]
