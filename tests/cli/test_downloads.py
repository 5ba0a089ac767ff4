"""
Owns the tests of pull, pin and unpin: output, exit codes, Ctrl-C.

Knows nothing of real daemons.
Invariants: standard output and standard error are looked at apart.
Source: design.md §8.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from p2pcache.cli.command import EXIT_CODES
from tests.cli.conftest import RunCommand
from tests.cli.fakedaemon import COMMIT, FakeDaemon, make_error, make_job

PATH = "/store/hub/models--org--name/snapshots/" + COMMIT


@pytest.fixture(autouse=True)
def download(daemon: FakeDaemon) -> None:
    """Let the daemon finish a download in three looks."""
    daemon.say("POST", "/downloads", {"id": "d1", "state": "queued"}, status=202)
    daemon.say(
        "GET",
        "/downloads/d1",
        make_job("resolving", bytes_total=0, bytes_done=0),
        make_job("downloading"),
        make_job("done", path=PATH),
    )
    daemon.say("DELETE", "/downloads/d1", make_job("cancelled"))


def test_pull_of_public_model_prints_path_last(run: RunCommand) -> None:
    """Standard output has the path alone; where the bytes came from is on standard error."""
    result = run("pull", "org/name")
    assert result.exit_code == 0
    assert result.stdout == PATH + "\n"
    assert result.stderr == (
        "org/name: done, 2.0 kB of 2.0 kB (100 %); peers 2.0 kB, upstream 0 B, disk 0 B\n"
    )


def test_pull_with_json_prints_final_job_alone(run: RunCommand) -> None:
    """One line, and nothing on standard error."""
    result = run("pull", "org/name", "--json")
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == make_job("done", path=PATH)
    assert result.stderr == ""


def test_pull_with_options_sends_them(run: RunCommand, daemon: FakeDaemon) -> None:
    """Globs and the revision reach the daemon, together with the proof that we may ask."""
    result = run(
        "pull", "org/name@v1", "--include", "*.json", "--include", "*.bin", "--exclude", "x*"
    )
    assert result.exit_code == 0
    post = daemon.requests[0]
    assert post.body == {
        "model": "org/name",
        "revision": "v1",
        "include": ["*.json", "*.bin"],
        "exclude": ["x*"],
    }
    assert post.headers["X-P2PCache"] == "1"


@pytest.mark.parametrize("variable", ["HF_TOKEN", "P2PCACHE_TOKEN"])
def test_pull_with_token_in_environment_sends_it_unseen(
    run: RunCommand, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """The token is in the body alone: no output, no header, no path has it."""
    monkeypatch.setenv(variable, "hf_secret")
    result = run("pull", "org/name")
    assert daemon.requests[0].body["token"] == "hf_secret"
    assert "hf_secret" not in result.output
    assert all("hf_secret" not in str(seen.headers) + seen.path for seen in daemon.requests)


@pytest.mark.parametrize(
    ("ref", "token"),
    [("ms:org/name", "ms_secret"), ("org/name", "hf_secret"), ("hf:org/name@v1", "hf_secret")],
)
def test_pull_takes_from_the_environment_what_is_meant_for_the_hub(
    run: RunCommand, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, ref: str, token: str
) -> None:
    """A token of one hub is not shown to another."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms_secret")
    run("pull", ref)
    assert daemon.requests[0].body["token"] == token
    monkeypatch.delenv("MODELSCOPE_API_TOKEN")
    run("pull", "ms:org/name")
    assert "token" not in [r for r in daemon.requests if r.method == "POST"][-1].body


def test_pull_with_bad_token_does_not_show_it(run: RunCommand, daemon: FakeDaemon) -> None:
    """A token that no header can carry is refused before anything is sent, and not repeated."""
    result = run("pull", "org/name", "--token", "hf_secret\n")
    assert result.exit_code == 2
    assert "hf_secret" not in result.output
    assert daemon.requests == []


@pytest.mark.parametrize("ref", ["../etc", "a/b/c", "org/name@", "org/name@..", "s3:a/b", ""])
def test_pull_of_malformed_reference_asks_nobody(
    run: RunCommand, daemon: FakeDaemon, ref: str
) -> None:
    """It is the caller's mistake, told without a daemon."""
    result = run("pull", ref)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert daemon.requests == []


def test_pull_detached_prints_id(run: RunCommand, daemon: FakeDaemon) -> None:
    """Nothing is waited for."""
    result = run("pull", "org/name", "--detach")
    assert (result.exit_code, result.stdout) == (0, "d1\n")
    assert result.stderr == "p2pcache jobs d1 shows how far it is.\n"
    assert daemon.paths("GET") == []
    result = run("pull", "org/name", "--detach", "--json")
    assert json.loads(result.stdout) == {"id": "d1", "state": "queued"}


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("RepositoryNotFound", 10),
        ("NoSource", 10),
        ("ChunkMismatch", 11),
        ("BlobCorrupt", 11),
        ("GatedRepository", 12),
        ("UpstreamUnreachable", 12),
        ("StoreFull", 13),
        ("SomethingNew", 1),
    ],
)
def test_pull_that_fails_exits_by_cause(
    run: RunCommand, daemon: FakeDaemon, code: str, exit_code: int
) -> None:
    """The class that the daemon named decides; with --json the job says why."""
    failed = make_job("failed", error=make_error(code))
    daemon.say("GET", "/downloads/d1", failed)
    result = run("pull", "org/name")
    assert result.exit_code == exit_code
    assert result.exit_code in EXIT_CODES
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == "error: It went wrong; try again."
    result = run("pull", "org/name", "--json")
    assert result.exit_code == exit_code
    answer = json.loads(result.stdout)
    assert answer["state"] == "failed"
    assert answer["error"]["message"] == "It went wrong; try again."
    assert result.stderr == "error: It went wrong; try again.\n"


def test_pull_whose_token_a_restart_lost_ends_with_what_to_do(
    run: RunCommand, daemon: FakeDaemon
) -> None:
    """Paused, with an error: it waits for somebody, so nobody waits for it."""
    lost = make_error("GatedRepository", "Your token was not kept; p2pcache jobs --resume d1.")
    daemon.say("GET", "/downloads/d1", make_job("paused", error=lost))
    result = run("pull", "org/name", "--json")
    assert result.exit_code == 12
    assert json.loads(result.stdout)["state"] == "paused"
    assert "p2pcache jobs --resume d1" in result.stderr


@pytest.mark.parametrize("command", [("pull", "org/name"), ("exec", "org/name", "--", "true")])
def test_pull_gives_its_token_again_to_a_daemon_that_a_restart_made_forget_it(
    run: RunCommand, daemon: FakeDaemon, command: tuple[str, ...]
) -> None:
    """It is kept in memory alone, there and here; who still has it need not ask a person."""
    lost = make_error("GatedRepository", "Your token was not kept; p2pcache jobs --resume d1.")
    paused = make_job("paused", error=lost)
    daemon.say("GET", "/downloads/d1", paused, make_job("queued"), paused, make_job("failed"))
    daemon.say("GET", "/status", {"store": str(daemon.store)})
    daemon.say("POST", "/downloads/d1/resume", make_job("queued"))
    result = run(command[0], "--token", "hf_secret", *command[1:])
    assert result.exit_code == 1
    assert "hf_secret" not in result.output
    resumed = [r for r in daemon.requests if r.path.endswith("/resume")]
    assert [r.body for r in resumed] == [{"token": "hf_secret"}] * 2


def test_pull_that_another_cancelled_fails(run: RunCommand, daemon: FakeDaemon) -> None:
    """There is no path to print, so it cannot be a success."""
    daemon.say("GET", "/downloads/d1", make_job("cancelled"))
    result = run("pull", "org/name")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "was cancelled; what was fetched is kept" in result.stderr


def test_pull_interrupted_cancels_and_keeps(
    run: RunCommand, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends the daemon's work as well, and says what became of it."""

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("p2pcache.client.waiting.time.sleep", interrupt)
    result = run("pull", "org/name")
    assert result.exit_code == 130
    assert daemon.paths("DELETE") == ["/downloads/d1"]
    assert result.stderr.splitlines()[-1] == (
        "Interrupted; the download is cancelled. What was fetched is kept; "
        "p2pcache pull org/name@main goes on from there."
    )
    result = run("pull", "org/name", "--json")
    assert result.exit_code == 130
    assert json.loads(result.stdout)["error"] == "Interrupted"


def test_pull_interrupted_without_daemon_says_so(
    run: RunCommand, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelling can fail; the exit code stays that of an interruption."""

    def interrupt(seconds: float) -> None:
        daemon.stop()
        raise KeyboardInterrupt

    monkeypatch.setattr("p2pcache.client.waiting.time.sleep", interrupt)
    result = run("pull", "org/name")
    assert result.exit_code == 130
    assert "cancelling failed (No daemon answers" in result.stderr


def test_pull_with_sigint_exits_130(daemon: FakeDaemon) -> None:
    """A real process, a real signal: cancelled, no traceback."""
    daemon.say("GET", "/downloads/d1", make_job("downloading"))
    with subprocess.Popen(
        [sys.executable, "-m", "p2pcache", "pull", "org/name"],
        env={**os.environ, "P2PCACHE_STORE": str(daemon.store)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline_s = time.monotonic() + 20
        while not daemon.paths("GET") and time.monotonic() < deadline_s:
            daemon.heard.wait(0.05)
            daemon.heard.clear()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stdout == ""
    assert "Traceback" not in stderr
    assert daemon.paths("DELETE") == ["/downloads/d1"]


def test_pull_of_vanished_daemon_exits_14_with_next_step(
    run: RunCommand, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits learns that the daemon is gone, that nothing is lost, and what to do."""
    monkeypatch.setattr("p2pcache.client.waiting.RESTART_PATIENCE_S", 0.3)
    monkeypatch.setattr("p2pcache.client.waiting.time.sleep", lambda seconds: daemon.stop())
    result = run("pull", "org/name")
    assert result.exit_code == 14
    assert "went away during the download" in result.stderr
    assert "p2pcache up" in result.stderr


@pytest.mark.parametrize("command", ["pull", "pin"])
def test_pull_goes_on_when_the_daemon_is_restarted_elsewhere(
    run: RunCommand, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """The daemon goes on with its downloads after a restart, and so does who watches one."""
    daemon.say("GET", "/downloads/d1", make_job("downloading"))
    daemon.say("POST", "/pins", {"model": "org/name", "revision": "main"})
    ports = [daemon.port]

    def restart(seconds: float) -> None:
        if len(ports) == 1:
            daemon.stop()
            daemon.say("GET", "/downloads/d1", make_job("done", path=PATH))
            daemon.start()
            ports.append(daemon.port)

    monkeypatch.setattr("p2pcache.client.waiting.time.sleep", restart)
    result = run(command, "org/name")
    assert (result.exit_code, result.stdout) == (0, PATH + "\n"), result.stderr
    assert len(set(ports)) == 2


def test_pull_without_daemon_exits_14(run: RunCommand, daemon: FakeDaemon) -> None:
    """Nobody listens; the sentence has the command that helps."""
    daemon.stop()
    result = run("pull", "org/name", "--json")
    assert result.exit_code == 14
    assert json.loads(result.stdout) == {
        "error": "DaemonUnreachable",
        "message": f"No daemon answers at {daemon.url}; start one with: p2pcache up",
    }


def test_pin_pulls_and_then_protects(run: RunCommand, daemon: FakeDaemon) -> None:
    """The pin is set when the model is here."""
    daemon.say("POST", "/pins", {"model": "org/name", "revision": "main"})
    result = run("pin", "org/name")
    assert (result.exit_code, result.stdout) == (0, PATH + "\n")
    assert result.stderr.splitlines()[-1] == "Pinned org/name@main."
    assert daemon.paths("POST") == ["/downloads", "/pins"]
    assert daemon.requests[-1].body == {"model": "org/name", "revision": "main"}


def test_pin_with_json_says_pinned(run: RunCommand, daemon: FakeDaemon) -> None:
    """The job, and that it is protected."""
    daemon.say("POST", "/pins", b"")
    result = run("pin", "org/name", "--json")
    assert json.loads(result.stdout) == make_job("done", path=PATH) | {"pinned": True}


def test_unpin_of_pinned_model_tells(run: RunCommand, daemon: FakeDaemon) -> None:
    """The body of the DELETE names it, since a reference may have slashes."""
    daemon.say("DELETE", "/pins", {})
    result = run("unpin", "datasets/org/name@v2")
    assert (result.exit_code, result.stdout) == (0, "Unpinned datasets/org/name@v2.\n")
    assert daemon.requests[-1].body == {"model": "datasets/org/name", "revision": "v2"}
    result = run("unpin", "org/name", "--json")
    assert json.loads(result.stdout) == {"model": "org/name", "revision": "main", "pinned": False}
