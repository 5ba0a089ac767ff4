"""
Owns the snapshot tests of the commands about room: storage, gc, rm; and of the client's leases.

Knows nothing of real daemons.
Invariants: text is compared as a whole; JSON is what the daemon said.
Source: design.md §8.
"""

from __future__ import annotations

import json

import pytest

from p2pcache.client import SpaceClient
from p2pcache.errors import InvalidNameError, ProtectedError
from tests.cli.conftest import RunCommand
from tests.cli.fakedaemon import COMMIT, FakeDaemon, make_error

STORAGE = {
    "store": "/data/p2pcache",
    "blobs": 42,
    "blobs_bytes": 123_456_789,
    "partial_bytes": 0,
    "disk_total": 2_000_000_000_000,
    "disk_free": 999_960_000_000,
    "quota": 500_000_000_000,
    "free_floor": 67_108_864,
    "own_bytes": 123_500_000,
    "logical_bytes": 200_000_000,
    "physical_bytes": 123_456_789,
    "saved_bytes": 76_543_211,
    "adopted_bytes": 0,
    "pinned_bytes": 90_000_000,
    "evictable_bytes": 33_500_000,
}
PLAN = {
    "dry_run": True,
    "steps": [
        {
            "what": "blob",
            "name": "sha256:" + "7" * 64,
            "bytes": 12_288,
            "reason": "no snapshot lists it",
        },
        {
            "what": "snapshot",
            "name": f"org/\x1b[31mname@{COMMIT}",
            "bytes": 90_900_000,
            "reason": "unused for longest",
        },
    ],
    "bytes_freed": 90_912_288,
    "own_bytes": 500_100_000_000,
    "quota": 500_000_000_000,
    "disk_free": 1_500_000_000,
}
REMOVED = {
    "model": "org/name",
    "revision": "main",
    "commit": COMMIT,
    "blobs": 7,
    "bytes_freed": 90_900_000,
}


def test_storage_prints_what_is_taken_and_what_may_be(run: RunCommand, daemon: FakeDaemon) -> None:
    """A number that would round to 1000 goes to the next unit."""
    daemon.say("GET", "/storage", STORAGE)
    assert run("storage").stdout == (
        "store       /data/p2pcache\n"
        "files       42, 123.5 MB\n"
        "partial     0 B\n"
        "taken       123.5 MB\n"
        "quota       500.0 GB\n"
        "models      200.0 MB\n"
        "saved       76.5 MB\n"
        "adopted     0 B\n"
        "pinned      90.0 MB\n"
        "evictable   33.5 MB\n"
        "reserved    -\n"
        "disk free   1.0 TB\n"
        "stays free  67.1 MB\n"
        "disk total  2.0 TB\n"
    )


def test_storage_without_quota_says_none(run: RunCommand, daemon: FakeDaemon) -> None:
    """None is a word, and what an older daemon leaves out is a dash."""
    daemon.say("GET", "/storage", {"quota": None})
    lines = run("storage").stdout.splitlines()
    assert lines[4] == "quota       none"
    assert lines[3] == "taken       -"


def test_gc_dry_run_prints_the_plan(run: RunCommand, daemon: FakeDaemon) -> None:
    """What would go and why; no control character of a name reaches the terminal."""
    daemon.say("POST", "/gc", PLAN)
    result = run("gc", "--dry-run")
    digest = "sha256:" + "7" * 64
    name = f"org/?[31mname@{COMMIT}"
    assert result.stdout == (
        f"WHAT      {'NAME':71}  SIZE     WHY\n"
        f"blob      {digest}  12.3 kB  no snapshot lists it\n"
        f"snapshot  {name:71}  90.9 MB  unused for longest\n"
        "90.9 MB would be freed. The store takes 500.1 GB and has a quota of 500.0 GB; its disk "
        "has 1.5 GB free.\n"
    )
    assert daemon.requests[-1].body == {"dry_run": True}


def test_gc_with_nothing_to_do_says_so(run: RunCommand, daemon: FakeDaemon) -> None:
    """One line, no empty table."""
    answer = {**PLAN, "dry_run": False, "steps": [], "bytes_freed": 0, "quota": None}
    daemon.say("POST", "/gc", answer)
    assert run("gc").stdout == (
        "0 B freed. The store takes 500.1 GB and has no quota; its disk has 1.5 GB free.\n"
    )
    assert daemon.requests[-1].body == {"dry_run": False}


def test_rm_says_what_that_gave(run: RunCommand, daemon: FakeDaemon) -> None:
    """The reference is sent as it was meant; force only when it was asked for."""
    daemon.say("DELETE", "/models", REMOVED)
    assert run("rm", "org/name").stdout == "Removed org/name@main: 90.9 MB freed.\n"
    assert daemon.requests[-1].body == {"model": "org/name", "revision": "main"}
    run("rm", "datasets/org/name@v1", "--force")
    assert daemon.requests[-1].body == {
        "model": "datasets/org/name",
        "revision": "v1",
        "force": True,
    }


@pytest.mark.parametrize(
    ("arguments", "method", "path", "answer"),
    [
        (["gc", "--dry-run"], "POST", "/gc", PLAN),
        (["rm", "org/name"], "DELETE", "/models", REMOVED),
        (["storage"], "GET", "/storage", STORAGE),
    ],
)
def test_command_about_room_with_json_prints_what_daemon_said(
    run: RunCommand,
    daemon: FakeDaemon,
    arguments: list[str],
    method: str,
    path: str,
    answer: dict[str, object],
) -> None:
    """One line of JSON, nothing left out."""
    daemon.say(method, path, answer)
    result = run(*arguments, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == answer
    assert result.stdout.count("\n") == 1


def test_rm_of_what_is_protected_exits_2_with_the_reason(
    run: RunCommand, daemon: FakeDaemon
) -> None:
    """The daemon's sentence, and the code for what is not allowed."""
    message = "org/name is pinned; unpin it first, or remove it with --force."
    daemon.say("DELETE", "/models", make_error("Protected", message), status=409)
    result = run("rm", "org/name")
    assert (result.exit_code, result.stderr) == (2, f"error: {message}\n")
    with pytest.raises(ProtectedError):
        SpaceClient(daemon.url, daemon.store).remove("org/name")


def test_rm_of_a_bad_reference_asks_nobody(run: RunCommand, daemon: FakeDaemon) -> None:
    """Nothing is removed by a name that nothing has."""
    assert run("rm", "../etc").exit_code == 2
    assert daemon.requests == []


def test_client_takes_renews_and_ends_leases(daemon: FakeDaemon) -> None:
    """What is not given is not sent: the daemon knows its defaults."""
    lease = {"id": "a1", "model": "org/name", "ttl_s": 60.0}
    daemon.say("POST", "/leases", lease)
    daemon.say("POST", "/leases/a1", lease)
    daemon.say("DELETE", "/leases/a1", lease)
    daemon.say("GET", "/leases", {"leases": [lease]})
    client = SpaceClient(daemon.url, daemon.store)
    assert client.lease("org/name@v1") == lease
    assert daemon.requests[-1].body == {"model": "org/name", "revision": "v1"}
    client.lease("org/name", 5.0, "loader")
    assert daemon.requests[-1].body == {
        "model": "org/name", "revision": "main", "ttl_s": 5.0, "holder": "loader",
    }  # fmt: skip
    assert client.renew_lease("a1") == lease
    assert daemon.requests[-1].body == {}
    client.renew_lease("a1", 30.0)
    assert daemon.requests[-1].body == {"ttl_s": 30.0}
    assert client.leases() == {"leases": [lease]}
    assert client.end_lease("a1") == lease
    with pytest.raises(InvalidNameError):
        client.lease("not a name")
