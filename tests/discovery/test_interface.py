"""
Owns the tests of the choice of addresses, on interfaces made for the purpose.

Knows nothing of mDNS.
Invariants: interfaces are made in a namespace of the test's own.
Source: p2pcache/discovery/interface.py.
"""

from __future__ import annotations

import pytest

from p2pcache.discovery.interface import ADDRESSES_MAX, find_addresses
from tests.discovery.conftest import wait_until
from tests.discovery.link import is_link_up, run_ip

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("own_network")]


async def add_link(name: str, address: str, *, state: str = "up") -> None:
    """Add a cable with one end here that has this address; the other end is up."""
    run_ip("link", "add", name, "type", "veth", "peer", f"{name}-far")
    run_ip("link", "set", f"{name}-far", "up")
    run_ip("addr", "add", address, "dev", name)
    run_ip("link", "set", name, state)
    if state == "up":
        await wait_until(lambda: is_link_up(name), f"{name} up")


def test_interfaces_loopback_is_used_when_there_is_nothing_else() -> None:
    """The daemons of a machine without network find each other."""
    assert find_addresses() == ["127.0.0.1"]


async def test_interfaces_network_is_preferred_to_loopback() -> None:
    """All private networks are announced, and loopback is not."""
    await add_link("a0", "10.1.2.3/24")
    await add_link("b0", "192.168.7.7/16")
    assert sorted(find_addresses()) == ["10.1.2.3", "192.168.7.7"]


async def test_interfaces_public_address_is_never_announced() -> None:
    """A machine with a public address only keeps to itself."""
    await add_link("a0", "192.0.2.1/24")
    assert find_addresses() == ["127.0.0.1"]


async def test_interfaces_down_or_unplugged_are_left_out() -> None:
    """An interface that is down, or whose cable ends nowhere, reaches no peer."""
    await add_link("a0", "10.1.2.3/24", state="down")
    await add_link("b0", "172.17.0.1/16")
    run_ip("link", "set", "b0-far", "down")
    # The kernel takes up to a second to notice.
    await wait_until(lambda: find_addresses() == ["127.0.0.1"], "loopback only")


def test_interfaces_without_loopback_there_is_none() -> None:
    """At worst the answer is empty."""
    run_ip("link", "set", "lo", "down")
    assert find_addresses() == []


async def test_interfaces_many_are_bounded() -> None:
    """A host of containers does not announce hundreds of addresses."""
    for i in range(ADDRESSES_MAX + 2):
        await add_link(f"a{i}", f"10.1.{i}.1/24")
    assert len(find_addresses()) == ADDRESSES_MAX
