"""
Owns the tests of the commands about downloads that are under way, and about commits: jobs,
versions, and what pull says of other machines and of what it left out.

Knows nothing of a real daemon.
Invariants: --json is what the daemon said; a path is the last line of standard output.
Source: cli/jobs.py, cli/versions.py, cli/downloads.py.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.conftest import RunCommand
from tests.cli.fakedaemon import COMMIT, FakeDaemon

PATH = "/data/p2pcache/hub/models--org--name/snapshots/" + COMMIT
JOB: dict[str, Any] = {
    "id": "d1",
    "model": "org/name",
    "revision": "main",
    "commit": COMMIT,
    "state": "downloading",
    "bytes_total": 2_000_000,
    "bytes_done": 500_000,
    "bytes_from_peers": 300_000,
    "bytes_from_upstream": 200_000,
    "bytes_from_disk": 0,
    "rate_bps": 100_000,
    "eta_s": 15.0,
    "priority": 0,
    "added_at": 0,
}
WORKERS = [
    {"name": "gpu-1", "state": "done", "reachable": True, "bytes_done": 9, "bytes_total": 9},
    {
        "name": "gpu-2",
        "state": "failed",
        "reachable": False,
        "bytes_done": 3,
        "bytes_total": 9,
        "error": {"error": "StoreFull", "message": "No room; free some."},
    },
]


def test_jobs_lists_what_has_not_ended(run: RunCommand, daemon: FakeDaemon) -> None:
    """One row each; those that have ended with --all; nothing is said so."""
    done = {**JOB, "id": "d0", "state": "done", "bytes_done": 2_000_000, "eta_s": None}
    daemon.say("GET", "/downloads", {"downloads": [done, {**JOB, "workers": WORKERS}]})
    result = run("jobs")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "ID  MODEL          STATE        DONE  SIZE    RATE        LEFT  ON",
        "d1  org/name@main  downloading  25 %  2.0 MB  100.0 kB/s  15s   gpu-1, gpu-2",
    ]
    assert len(run("jobs", "--all").stdout.splitlines()) == 3
    assert len(json.loads(run("jobs", "--json").stdout)["downloads"]) == 2
    daemon.say("GET", "/downloads", {"downloads": [done]})
    result = run("jobs")
    assert (result.stdout, "p2pcache jobs --all" in result.stderr) == ("", True)


def test_jobs_shows_one_with_its_workers(run: RunCommand, daemon: FakeDaemon) -> None:
    """Where its bytes are from, what was left out, and how each machine does."""
    left_out = {"files": 2, "bytes": 1_000_000, "example": "pytorch_model.bin"}
    daemon.say("GET", "/downloads/d1", {**JOB, "workers": WORKERS, "left_out": left_out})
    lines = run("jobs", "d1").stdout.splitlines()
    assert "done          500.0 kB of 2.0 MB (25 %)" in lines
    assert "left out      2 files, 1.0 MB; get them with --include '*'" in lines
    assert lines[-2:] == [
        "  gpu-1: done, 100 %",
        "  gpu-2: failed, 33 %, does not answer: No room; free some.",
    ]


@pytest.mark.parametrize(
    ("option", "request_line"),
    [
        ("--pause", ("POST", "/downloads/d1/pause")),
        ("--resume", ("POST", "/downloads/d1/resume")),
        ("--cancel", ("DELETE", "/downloads/d1")),
    ],
)
def test_jobs_changes_one(
    run: RunCommand, daemon: FakeDaemon, option: str, request_line: tuple[str, str]
) -> None:
    """One verb of the API each; what the daemon answers is shown."""
    daemon.say(*request_line, {**JOB, "state": "paused"})
    result = run("jobs", option, "d1", "--json")
    assert (result.exit_code, json.loads(result.stdout)["state"]) == (0, "paused")
    assert daemon.paths(request_line[0]) == [request_line[1]]
    result = run("jobs", option, "d2")
    assert result.exit_code == 10
    assert run("jobs", "d1", option, "d1").exit_code == 2


def test_jobs_resumes_with_a_token_that_nobody_sees(run: RunCommand, daemon: FakeDaemon) -> None:
    """It goes into the body alone."""
    daemon.say("POST", "/downloads/d1/resume", JOB)
    result = run("jobs", "--resume", "d1", "--token", "hf_secret")
    assert daemon.requests[-1].body == {"token": "hf_secret"}
    assert "hf_secret" not in result.output


def test_pull_on_other_machines_says_where_it_is(run: RunCommand, daemon: FakeDaemon) -> None:
    """What was asked for is passed on; each machine's path is told."""
    daemon.say(
        "POST", "/downloads", {"id": "d1", "state": "queued", "workers": ["gpu-1"]}, status=202
    )
    worker = {"name": "gpu-1", "state": "done", "path": "/there"}
    daemon.say("GET", "/downloads/d1", {**JOB, "state": "done", "workers": [worker]})
    options = ("--on", "gpu-1", "--on", "zone=a", "--path", "models/x", "--priority", "5")
    result = run("pull", "org/name", *options)
    assert (result.exit_code, result.stdout) == (0, "gpu-1: /there\n")
    assert daemon.requests[0].body == {
        "model": "org/name",
        "revision": "main",
        "workers": ["gpu-1", "zone=a"],
        "path": "models/x",
        "priority": 5,
    }
    assert run("pull", "org/name", "--priority", "101").exit_code == 2


def test_pull_tells_what_it_left_out(run: RunCommand, daemon: FakeDaemon) -> None:
    """On standard error; the path stays the last line of the output."""
    left_out = {"files": 1, "bytes": 1_000_000, "example": "pytorch_model.bin"}
    daemon.say("POST", "/downloads", {"id": "d1", "state": "queued"}, status=202)
    daemon.say("GET", "/downloads/d1", {**JOB, "state": "done", "path": PATH, "left_out": left_out})
    result = run("pull", "org/name")
    assert result.stdout == PATH + "\n"
    assert "Left out 1 files of 1.0 MB, for example pytorch_model.bin" in result.stderr
    assert "--include '*'" in result.stderr


def test_versions_lists_compares_and_keeps(run: RunCommand, daemon: FakeDaemon) -> None:
    """A table of commits; a commit may be shortened; --keep says what went and what stays."""
    row = {"commit": COMMIT, "revisions": ["main"], "state": "resident", "bytes_total": 10}
    row |= {"bytes_local": 10, "pinned": True}
    listing = "/versions/org%2Fname%40main"
    daemon.say("GET", listing, {"model": "org/name", "versions": [row]})
    assert run("versions", "org/name").stdout.splitlines()[1].split() == [
        COMMIT[:12], "main", "resident", "10", "B", "100", "%", "yes",
    ]  # fmt: skip
    diff = {"bytes_shared": 5_000, "bytes_new": 6, "bytes_gone": 1, "changes": [
        {"path": "config.json", "bytes_from": 1, "bytes_to": 3}
    ]}  # fmt: skip
    daemon.say("GET", f"{listing}?from={COMMIT}&to=main", diff)
    result = run("versions", "org/name", "--diff", COMMIT[:6], "main")
    assert result.stdout.splitlines()[-1] == "5.0 kB shared, 6 B new, 1 B gone."
    kept = {"removed": [{"commit": "a", "bytes_freed": 9}], "kept": 1}
    kept["refused"] = [{"commit": "b", "reason": "It is leased; wait."}]
    daemon.say("POST", "/versions", kept)
    result = run("versions", "org/name", "--keep", "1")
    assert result.stdout == "a removed, 9 B freed\n1 kept.\n"
    assert result.stderr == "b stays: It is leased; wait.\n"
    assert daemon.requests[-1].body == {"model": "org/name", "keep": 1, "dry_run": False}
    assert run("versions", "org/name", "--keep", "1", "--diff", "a", "b").exit_code == 2
