"""
Owns what the discovery tests share: a recorder of reports, and a network of their own.

Knows nothing of which kind of discovery is tested.
Invariants: every wait is for a condition, with a deadline; no test touches a real network.
Source: docs/explanation/architecture.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from p2pcache.discovery.base import Candidate
from tests.discovery.link import find_obstacle, private_network

DEADLINE_S = 20.0  # far above what any of these takes; a wait that ends there is a failure


class Recorder:
    """The two callbacks of one discovery, and what they were told."""

    def __init__(self) -> None:
        self.found: list[Candidate] = []
        self.lost: list[Candidate] = []

    @property
    def found_ports(self) -> set[int]:
        """Ports tell the peers of one test apart."""
        return {candidate.port for candidate in self.found}

    @property
    def lost_ports(self) -> set[int]:
        """Ports of what was lost."""
        return {candidate.port for candidate in self.lost}


async def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Give the loop time until the condition holds; fail at the deadline and say what for."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    while not condition():
        assert loop.time() < deadline, f"waited {DEADLINE_S} s in vain: {what}"
        await asyncio.sleep(0.01)


@pytest.fixture
def recorder() -> Recorder:
    """A recorder that has heard nothing."""
    return Recorder()


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skip where network namespaces cannot be made."""
    obstacle = find_obstacle()
    if obstacle:
        pytest.skip(obstacle)


@pytest.fixture
def own_network(namespaces: None) -> Iterator[None]:
    """Put the test into a network that has only loopback, so that nobody else is heard."""
    with private_network():
        yield
