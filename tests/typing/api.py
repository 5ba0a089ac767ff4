"""
Owns what programs may rely on of p2pcache.Client, as types: mypy checks it, nothing runs it.

Knows nothing of behaviour.
Invariants: a change here is a change for those who import the client.
Source: design.md §8; issue "two phases".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import p2pcache
from p2pcache.client import Client, Event, Lease
from p2pcache.client.residency import ResidencyAnswer
from p2pcache.errors import P2PCacheError, WaitTimeoutError


def check_construction() -> None:
    """The client is found under both names; nothing is needed to make one."""
    assert_type(p2pcache.Client(), Client)
    assert_type(Client(local="127.0.0.1:7277", store=Path("/store"), timeout_s=5.0), Client)


def check_residency(client: Client) -> None:
    """What a scheduler asks has names and types."""
    answer = client.residency("org/name@main")
    assert_type(answer, ResidencyAnswer)
    assert_type(answer["state"], str)
    assert_type(answer["bytes_missing"], int | None)


def check_downloads(client: Client) -> None:
    """Begin, follow, wait; with a time or without."""
    started = client.pull("org/name", include=["*.safetensors"], token="hf_x", pin=True)
    assert_type(started, dict[str, Any])
    assert_type(client.wait(str(started["id"]), lambda job: None, 0.5), dict[str, Any])
    assert_type(client.wait("org/name", timeout_s=60.0), dict[str, Any])


def check_lease(client: Client) -> None:
    """A context manager that says where the files are."""
    with client.lease("org/name", ttl_s=30.0, holder="loader") as lease:
        assert_type(lease, Lease)
        assert_type(lease.path, Path)
        assert_type(lease.is_held, bool)
        assert_type(lease.error, P2PCacheError | None)
    assert_type(client.lease("org/name").keep(), Lease)
    assert_type(lease.end(), None)


def check_events(client: Client) -> None:
    """An iterator of typed events."""
    events = client.events("d1")
    assert_type(events, Iterator[Event])
    for event in events:
        assert_type(event.kind, str)
        assert_type(event.body, dict[str, Any])


def check_errors(error: WaitTimeoutError) -> None:
    """Every error has an exit code and says whether asking again helps."""
    assert_type(error.exit_code, int)
    assert_type(error.retryable, bool)
