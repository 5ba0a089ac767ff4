"""
Owns the tests of `p2pcache import` against a fake daemon: what is asked, shown and returned.

Knows nothing of caches.
Invariants: standard output has the outcome, standard error everything else.
Source: cli/imports.py, client/imports.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pcache.client import ImportClient
from p2pcache.errors import DaemonUnreachableError, InputError, NotFoundError, P2PCacheError
from tests.cli.conftest import RunCommand
from tests.cli.fakedaemon import COMMIT, FakeDaemon, make_error

REPORT = {
    "model": "org/name",
    "commit": COMMIT,
    "revisions": ["main", "v1"],
    "files": 4,
    "files_here": 3,
    "confirmed": False,
    "public": False,
    "notes": ["file list not confirmed by the hub: it is made from the folder"],
}


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again at once."""
    monkeypatch.setattr("p2pcache.client.imports.time.sleep", lambda seconds: None)


def make_import(state: str, **fields: object) -> dict[str, object]:
    """Return an import of three files, half of their bytes looked at unless done."""
    return {
        "id": "i1",
        "path": "/hub",
        "watch": False,
        "public": False,
        "state": state,
        "files_total": 4,
        "files_done": 4 if state == "done" else 1,
        "bytes_total": 4_000_000,
        "bytes_done": 4_000_000 if state == "done" else 2_000_000,
        "linked": 2,
        "reflinked": 0,
        "copied": 0,
        "referred": 0,
        "present": 1,
        "skipped_total": 1,
        "skipped": [{"path": "models--org--name/blobs/abc", "reason": "its content is another"}],
        "snapshots": [REPORT],
        **fields,
    }


@pytest.fixture
def importing(daemon: FakeDaemon) -> FakeDaemon:
    """Make the daemon import whatever it is asked to."""
    daemon.say("POST", "/imports", {"id": "i1", "state": "scanning"}, status=202)
    states = [make_import("scanning"), make_import("hashing"), make_import("done")]
    daemon.say("GET", "/imports/i1", *states)
    daemon.say("DELETE", "/imports/i1", make_import("cancelled"))
    return daemon


def test_import_shows_progress_and_outcome(importing: FakeDaemon, run: RunCommand) -> None:
    """The outcome on standard output; what was skipped is named on the other."""
    result = run("import", "/hub")
    assert result.exit_code == 0
    assert importing.requests[0].body == {"path": "/hub"}
    assert result.stdout == (
        f"org/name@{COMMIT} (main, v1): 3 of 4 files, not shared with peers\n"
        "  file list not confirmed by the hub: it is made from the folder\n"
        "Imported 4 files, 4.0 MB: 2 linked, 1 present; 1 skipped.\n"
    )
    assert result.stderr == "skipped models--org--name/blobs/abc: its content is another\n"


def test_import_json_is_the_import(importing: FakeDaemon, run: RunCommand) -> None:
    """One line, unchanged."""
    result = run("import", "/hub", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == make_import("done")
    assert result.stderr == ""


def test_import_sends_an_absolute_path(
    importing: FakeDaemon, run: RunCommand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The daemon has another working folder; `~` is the caller's home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for given, sent in (("hub", f"{tmp_path}/hub"), ("~/hf", "/home/me/hf")):
        importing.say("GET", "/imports/i1", make_import("done"))
        run("import", given)
        assert importing.requests[-2].body == {"path": sent}


def test_import_watch_and_public_are_passed_on(importing: FakeDaemon, run: RunCommand) -> None:
    """And the caller is told how to end the watch."""
    result = run("import", "/hub", "--watch", "--public")
    assert importing.requests[0].body == {"path": "/hub", "watch": True, "public": True}
    assert "p2pcache import /hub --no-watch" in result.stderr


def test_import_no_watch_ends_the_watch_of_that_folder(
    importing: FakeDaemon, run: RunCommand
) -> None:
    """Found by its path; nothing is imported."""
    jobs = [
        make_import("done", id="j"),
        make_import("done", id="other", path="/other", watch=True),
        make_import("done", watch=True),
    ]
    importing.say("GET", "/imports", {"imports": jobs})
    result = run("import", "/hub", "--no-watch")
    assert result.exit_code == 0
    assert importing.paths("DELETE") == ["/imports/i1"]
    assert importing.paths("POST") == []
    assert "not watched any more" in result.stdout
    result = run("import", "/hub", "--no-watch", "--json")
    assert json.loads(result.stdout)["state"] == "cancelled"


def test_import_no_watch_of_another_folder_is_not_found(
    importing: FakeDaemon, run: RunCommand
) -> None:
    """The sentence names what is watched."""
    watch = make_import("done", path="/other", watch=True)
    importing.say("GET", "/imports", {"imports": [watch]})
    result = run("import", "/hub", "--no-watch")
    assert result.exit_code == 10
    assert "/other" in result.stderr
    assert importing.paths("DELETE") == []


def test_import_that_failed_exits_by_cause(importing: FakeDaemon, run: RunCommand) -> None:
    """A full disk is exit code 13, a folder that went 2."""
    for code, exit_code in (("StoreFull", 13), ("Input", 2)):
        failed = make_import("failed", error=make_error(code, "It is full; free some space."))
        importing.say("GET", "/imports/i1", failed)
        result = run("import", "/hub")
        assert result.exit_code == exit_code
        assert "It is full; free some space." in result.stderr
        assert result.stdout == ""


def test_import_that_somebody_else_ended_is_no_success(
    importing: FakeDaemon, run: RunCommand
) -> None:
    """Another terminal cancelled it."""
    importing.say("GET", "/imports/i1", make_import("cancelled"))
    result = run("import", "/hub")
    assert result.exit_code == 1
    assert "what was imported is kept" in result.stderr


def test_import_ctrl_c_cancels_and_says_what_is_kept(
    importing: FakeDaemon, run: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 130, one DELETE."""

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("p2pcache.client.imports.time.sleep", interrupt)
    result = run("import", "/hub")
    assert result.exit_code == 130
    assert importing.paths("DELETE") == ["/imports/i1"]
    assert "What was imported is kept" in result.stderr
    importing.say("DELETE", "/imports/i1", make_error("JobNotFound"), status=404)
    assert "cancelling failed" in run("import", "/hub").stderr


def test_import_many_skipped_files_are_cut_on_a_screen(
    importing: FakeDaemon, run: RunCommand
) -> None:
    """Twenty lines and a count."""
    skipped = [{"path": f"blob {n}\x1b[31m", "reason": "odd"} for n in range(30)]
    importing.say("GET", "/imports/i1", make_import("done", skipped=skipped, skipped_total=1030))
    result = run("import", "/hub")
    assert result.stderr.count("skipped blob") == 20
    assert "and 1010 more" in result.stderr
    assert "\x1b" not in result.stderr


def test_import_refused_folder_is_told(importing: FakeDaemon, run: RunCommand) -> None:
    """The daemon's sentence, exit code 2."""
    importing.say("POST", "/imports", make_error("Input", "It is our own."), status=400)
    result = run("import", "/hub")
    assert result.exit_code == 2
    assert "It is our own." in result.stderr


def test_client_wait_tells_a_daemon_that_went_away(importing: FakeDaemon) -> None:
    """What was imported is kept, and how to go on."""
    client = ImportClient(importing.url, importing.store)
    assert client.start(Path("/hub")) == {"id": "i1", "state": "scanning"}
    importing.stop()
    with pytest.raises(DaemonUnreachableError, match="import again"):
        client.wait("i1")


def test_client_wait_calls_for_every_state(importing: FakeDaemon) -> None:
    """The final one included; errors are those of the daemon."""
    client = ImportClient(importing.url, importing.store)
    seen: list[object] = []
    job = client.wait("i1", lambda job: seen.append(job["state"]), poll_s=0.0)
    assert (job["state"], seen) == ("done", ["scanning", "hashing", "done"])
    importing.say("GET", "/imports/i1", make_import("failed"))
    with pytest.raises(P2PCacheError, match="failed"):
        client.wait("i1")
    importing.say("GET", "/imports/i1", make_import("failed", error=make_error("Input")))
    with pytest.raises(InputError):
        client.wait("i1")
    with pytest.raises(NotFoundError):
        client.get("other/../i1")
