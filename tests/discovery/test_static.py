"""
Owns the tests of the static list: checking, resolving, retrying.

Knows nothing of the system's resolver but for names that need none.
Invariants: resolvers are scripted; no packet leaves the machine.
Source: p2pcache/discovery/static.py.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import pytest

from p2pcache.discovery.base import Announcement, Candidate
from p2pcache.discovery.static import PEERS_MAX, StaticDiscovery, resolve_host
from p2pcache.errors import ConfigError, InputError
from tests.discovery.conftest import Recorder, wait_until

US = Announcement("us", "us", 7278)


class ScriptedResolver:
    """Fails a number of times, then gives addresses."""

    def __init__(self, addresses: Sequence[str], *, failures: Sequence[Exception] = ()) -> None:
        self._addresses = addresses
        self._failures = list(failures)
        self.calls = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Answer one look-up."""
        self.calls += 1
        if self._failures:
            raise self._failures.pop(0)
        return self._addresses


async def test_static_name_that_fails_is_retried_until_it_resolves(recorder: Recorder) -> None:
    """Neither a missing name nor one that the codec refuses ends the watch."""
    resolver = ScriptedResolver(
        ["10.0.0.7", "10.0.0.7", "fd00::7"],
        failures=[socket.gaierror("no such name"), UnicodeError("label too long")],
    )
    discovery = StaticDiscovery(["lab-2:7278"], retry_interval_s=0.001, resolve=resolver)
    await discovery.start(US, recorder.found.append, recorder.lost.append)
    await wait_until(lambda: len(recorder.found) == 2, "both addresses")
    await discovery.stop()
    assert recorder.found == [
        Candidate("10.0.0.7", 7278, "static"),
        Candidate("fd00::7", 7278, "static"),
    ]
    assert resolver.calls == 3
    assert recorder.lost == []


async def test_static_one_bad_name_does_not_hold_up_the_others(recorder: Recorder) -> None:
    """Each entry is on its own."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        if host == "bad":
            raise socket.gaierror("no such name")
        return ["10.0.0.7"]

    discovery = StaticDiscovery(["bad:1024", "good:1024"], retry_interval_s=60, resolve=resolve)
    await discovery.start(US, recorder.found.append, recorder.lost.append)
    await wait_until(lambda: bool(recorder.found), "the good one")
    await discovery.stop()


async def test_static_slow_resolver_does_not_hold_up_start_or_stop(recorder: Recorder) -> None:
    """A resolver that never answers is left behind."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    discovery = StaticDiscovery(["slow:1024"], resolve=resolve)
    async with asyncio.timeout(5):
        await discovery.start(US, recorder.found.append, recorder.lost.append)
        await discovery.stop()
    assert recorder.found == []


async def test_static_names_for_one_address_are_reported_once(recorder: Recorder) -> None:
    """Repeated entries, and several names of one machine, are one candidate."""
    resolver = ScriptedResolver(["10.0.0.7"])
    discovery = StaticDiscovery(["a:1024", "a:1024", "b:1024"], resolve=resolver)
    await discovery.start(US, recorder.found.append, recorder.lost.append)
    await wait_until(lambda: resolver.calls == 2, "both look-ups")
    await wait_until(lambda: bool(recorder.found), "the candidate")
    await discovery.stop()
    assert recorder.found == [Candidate("10.0.0.7", 1024, "static")]


def test_static_malformed_entry_is_refused_at_once() -> None:
    """A typing error shows at start-up, not in a log."""
    with pytest.raises(InputError, match="lab-2"):
        StaticDiscovery(["10.0.0.7:7278", "lab-2"])


def test_static_list_is_bounded() -> None:
    """A list that no operator wrote by hand is refused with advice."""
    with pytest.raises(ConfigError, match="--discover dns"):
        StaticDiscovery([f"a{i}:1024" for i in range(PEERS_MAX + 1)])


async def test_resolve_host_literal_needs_no_resolver() -> None:
    """An address resolves to itself, of either family."""
    assert await resolve_host("127.0.0.1", 7278) == ["127.0.0.1"]
    assert await resolve_host("::1", 7278) == ["::1"]
