"""
Owns tests of waiting: for a model, for a download, through a restart, until the time is over.

Knows nothing of the real daemon; a fake one says what each test needs.
Invariants: no test depends on how long something takes, only on what is asked in which order.
Source: docs/reference/http-api.md (residency, downloads); decision 0024.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcache.client import Client, waiting
from p2pcache.errors import (
    DaemonUnreachableError,
    GatedRepositoryError,
    InputError,
    InvalidNameError,
    NotResidentError,
    P2PCacheError,
    RepositoryNotFoundError,
    WaitTimeoutError,
)
from tests.cli.fakedaemon import COMMIT, FakeDaemon, make_error, make_job, run_fake_daemon

MODEL = "org/name"
ASK = "/residency/org%2Fname%40main"
# What a slice of a wait asks; the clip to the end of the time makes the number vary.
WAIT = f"{ASK}?wait=resident&timeout=5.000"
HERE = {"model": MODEL, "commit": COMMIT, "state": "resident", "bytes_local": 9, "path": "/p"}
PART = {"model": MODEL, "commit": COMMIT, "state": "partial", "bytes_local": 1, "bytes_missing": 8}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """Run a fake daemon."""
    with run_fake_daemon(tmp_path / "store") as running:
        running.say("GET", "/downloads", {"downloads": []})
        yield running


@pytest.fixture
def client(daemon: FakeDaemon) -> Client:
    """Return a client that found it by its store."""
    return Client(store=daemon.store)


def say_jobs(daemon: FakeDaemon, *jobs: dict[str, object]) -> None:
    """Let the daemon list downloads of the model."""
    daemon.say("GET", "/downloads", {"downloads": [{"revision": "main", **job} for job in jobs]})


def test_model_that_is_here_is_not_waited_for(client: Client, daemon: FakeDaemon) -> None:
    """One question, answered from the index."""
    daemon.say("GET", ASK, HERE)
    seen: list[dict[str, object]] = []
    assert client.wait(MODEL, seen.append) == HERE
    assert daemon.paths("GET") == [ASK]
    assert [(job["state"], job["bytes_done"]) for job in seen] == [("resident", 9)]


def test_model_is_waited_for_by_long_polls(client: Client, daemon: FakeDaemon) -> None:
    """After the first look every question waits in the daemon, not here."""
    daemon.say("GET", ASK, PART)
    daemon.say("GET", WAIT, PART, HERE)
    job = make_job("downloading", revision="main")
    say_jobs(daemon, job)
    seen: list[dict[str, object]] = []
    assert client.wait(MODEL, seen.append) == HERE
    asked = [path for path in daemon.paths("GET") if path != "/downloads"]
    assert asked == [ASK, WAIT, WAIT]
    assert seen[0] == job


def test_wait_without_time_looks_once(client: Client, daemon: FakeDaemon) -> None:
    """A probe: not here is an answer, with what is missing and what to do."""
    daemon.say("GET", ASK, PART)
    with pytest.raises(WaitTimeoutError, match=r"8 bytes are missing.*p2pcache pull org/name@main"):
        client.wait(MODEL, timeout_s=0)
    assert daemon.paths("GET") == [ASK, "/downloads"]
    assert WaitTimeoutError.exit_code == 124


def test_wait_whose_time_is_over_says_that_the_download_goes_on(
    client: Client, daemon: FakeDaemon
) -> None:
    """And cancels nothing."""
    daemon.say("GET", ASK, PART)
    say_jobs(daemon, make_job("downloading"))
    with pytest.raises(WaitTimeoutError, match="the download goes on"):
        client.wait(MODEL, timeout_s=0)
    daemon.say("GET", "/downloads/d1", make_job("downloading"))
    with pytest.raises(WaitTimeoutError, match=r"1,500 bytes are missing.*goes on"):
        client.wait("d1", timeout_s=0)
    say_jobs(daemon, make_job("paused"))
    with pytest.raises(WaitTimeoutError, match=r"is paused: p2pcache jobs --resume d1"):
        client.wait(MODEL, timeout_s=0)
    assert daemon.paths("DELETE") == []


def test_failed_download_ends_the_wait_with_its_cause(client: Client, daemon: FakeDaemon) -> None:
    """Also one that failed just before; what failed last week is no news."""
    daemon.say("GET", ASK, PART)
    failed = make_job("failed", error=make_error("RepositoryNotFound", "No; check."))
    say_jobs(daemon, {**failed, "ended_at": time.time() - 5})
    with pytest.raises(RepositoryNotFoundError, match="No; check"):
        client.wait(MODEL, timeout_s=0)
    say_jobs(daemon, {**failed, "ended_at": time.time() - 7 * 86_400})
    with pytest.raises(WaitTimeoutError):
        client.wait(MODEL, timeout_s=0)


def test_download_that_is_paused_for_a_reason_ends_the_wait(
    client: Client, daemon: FakeDaemon
) -> None:
    """One that a person paused is waited for; one that lost its token waits for a person."""
    daemon.say("GET", ASK, PART)
    daemon.say("GET", WAIT, PART, HERE)
    say_jobs(daemon, make_job("paused"))
    assert client.wait(MODEL) == HERE
    lost = make_job("paused", error=make_error("GatedRepository", "No token; resume it."))
    say_jobs(daemon, lost)
    with pytest.raises(GatedRepositoryError, match="resume it"):
        client.wait(MODEL)
    daemon.say("GET", "/downloads/d1", lost)
    with pytest.raises(GatedRepositoryError, match="resume it"):
        client.wait("d1")


def test_failed_download_is_forgotten_while_another_one_runs(
    client: Client, daemon: FakeDaemon
) -> None:
    """The newest decides, and one that runs is newer than any that ended."""
    daemon.say("GET", ASK, PART)
    daemon.say("GET", WAIT, HERE)
    failed = make_job("failed", error=make_error("RepositoryNotFound"))
    say_jobs(daemon, make_job("downloading", id="d2"), failed)
    assert client.wait(MODEL) == HERE


@pytest.mark.parametrize("other", [{"model": "org/other"}, {"revision": "v2", "commit": "f" * 40}])
def test_downloads_of_other_models_and_commits_are_none_of_ours(
    client: Client, daemon: FakeDaemon, other: dict[str, str]
) -> None:
    """Their failure ends nothing."""
    daemon.say("GET", ASK, PART)
    daemon.say("GET", WAIT, HERE)
    say_jobs(daemon, make_job("failed", **{"error": make_error("StoreFull"), **other}))
    assert client.wait(MODEL) == HERE


def test_cancelled_download_ends_the_wait(client: Client, daemon: FakeDaemon) -> None:
    """Nobody brings it any more."""
    daemon.say("GET", ASK, PART)
    say_jobs(daemon, make_job("cancelled"))
    with pytest.raises(P2PCacheError, match="was cancelled"):
        client.wait(MODEL)


def test_download_of_some_files_ends_the_wait_when_seen_twice(
    client: Client, daemon: FakeDaemon
) -> None:
    """Once may be the moment between two questions; twice is a pull with patterns."""
    daemon.say("GET", ASK, PART)
    daemon.say("GET", WAIT.replace("5.000", "0.500"), PART)
    say_jobs(daemon, make_job("done"))
    with pytest.raises(NotResidentError, match=r"8 bytes of it are not here.*by its id"):
        client.wait(MODEL)
    assert daemon.paths("GET").count("/downloads") == 2


@pytest.mark.parametrize(
    ("target", "timeout_s", "error"),
    [
        ("org/name@", None, InvalidNameError),
        ("org/na me", 1.0, InvalidNameError),
        (MODEL, -1.0, InputError),
        (MODEL, float("nan"), InputError),
    ],
)
def test_nonsense_is_refused_before_anything_is_asked(
    client: Client, daemon: FakeDaemon, target: str, timeout_s: float | None, error: type[Exception]
) -> None:
    """Names and times that none can be."""
    with pytest.raises(error):
        client.wait(target, timeout_s=timeout_s)
    assert daemon.requests == []


def test_model_that_was_removed_after_its_download_is_waited_for(
    client: Client, daemon: FakeDaemon
) -> None:
    """Somebody may pull it again."""
    daemon.say("GET", ASK, {**PART, "state": "absent"})
    daemon.say("GET", WAIT, {**PART, "state": "absent"}, HERE)
    say_jobs(daemon, make_job("done"))
    assert client.wait(MODEL) == HERE


def test_daemon_that_is_not_there_is_told_at_once(client: Client, daemon: FakeDaemon) -> None:
    """Patience is for one that was there."""
    daemon.stop()
    with pytest.raises(DaemonUnreachableError, match="p2pcache up"):
        client.wait(MODEL)


def test_daemon_that_leaves_and_does_not_return_ends_the_wait(
    client: Client, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the patience, with the next step."""
    monkeypatch.setattr(waiting, "RESTART_PATIENCE_S", 0.3)
    daemon.say("GET", ASK, PART)
    say_jobs(daemon, make_job("downloading"))
    with pytest.raises(DaemonUnreachableError, match="p2pcache up"):
        client.wait(MODEL, lambda job: daemon.stop())


def test_daemon_that_is_restarted_elsewhere_is_found_again(
    client: Client, daemon: FakeDaemon, tmp_path: Path
) -> None:
    """Its store says where it is; the wait goes on."""
    daemon.say("GET", ASK, PART)
    say_jobs(daemon, make_job("downloading"))

    def restart(job: dict[str, object]) -> None:
        if job["state"] == "downloading":
            daemon.stop()
            daemon.say("GET", WAIT, HERE)
            threading.Timer(0.2, daemon.start).start()

    assert client.wait(MODEL, restart) == HERE
