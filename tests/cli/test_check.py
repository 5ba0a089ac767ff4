"""
Owns the tests of `p2pcache check`.

Knows nothing of real daemons; with --offline there is none.
Invariants: text is compared as a whole; the exit code is 11 while a file is damaged.
Source: cli/check.py; design.md §8.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pcache.cli import check as check_module
from p2pcache.core.chunktable import ChunkTable, Standing
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.store.bloblist import BlobRow
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.home import StoreHome
from p2pcache.store.index import Index
from tests.cli.conftest import RunCommand
from tests.cli.fakedaemon import COMMIT, FakeDaemon, make_error
from tests.samples import PEER_ID, Sample, make_chunks_sample

RUNNING = {
    "state": "running",
    "started_at": 1.0,
    "blobs_total": 3,
    "blobs_done": 1,
    "bytes_total": 90_900_000,
    "bytes_done": 40_000_000,
    "rate_bps": 1_000_000,
    "damaged": [],
}
DONE = {**RUNNING, "state": "done", "blobs_done": 3, "bytes_done": 90_900_000}
DAMAGED = {
    "blob": "sha256:" + "ab" * 32,
    "chunks": [3, 18],
    "files": [f"org/name@{COMMIT}: model.safetensors", "b", "c"],
    "state": "quarantined",
    "detail": "The hub\x1b does not answer.",
}
HEALED = {**DAMAGED, "state": "healed", "detail": "", "chunks": list(range(20)), "files": []}


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again at once."""
    monkeypatch.setattr(check_module, "POLL_S", 0.0)


def test_check_without_damage_says_how_much_it_looked_at(
    run: RunCommand, daemon: FakeDaemon
) -> None:
    """Started, followed to its end, exit 0."""
    daemon.say("POST", "/check", RUNNING, status=202)
    daemon.say("GET", "/check", RUNNING, DONE)
    result = run("check")
    assert (result.exit_code, result.stdout) == (
        0,
        "Checked 3 of 3 files, 90.9 MB: none is damaged.\n",
    )
    assert result.stderr == ""
    (started,) = (seen for seen in daemon.requests if seen.method == "POST")
    assert started.body == {"repair": False, "anew": False}
    assert daemon.paths("GET")[-2:] == ["/check", "/check"]


def test_check_with_damage_lists_it_and_exits_11(run: RunCommand, daemon: FakeDaemon) -> None:
    """One line for each file, whatever is in the daemon's texts."""
    daemon.say("POST", "/check", RUNNING, status=202)
    daemon.say("GET", "/check", {**DONE, "damaged": [DAMAGED, HEALED]})
    result = run("check", "--repair", "--rate", "50MB/s", "--time", "3600", "--anew")
    assert result.exit_code == 11
    place = f"org/name@{COMMIT}: model.safetensors and 2 more"
    assert result.stdout.splitlines() == [
        "Checked 3 of 3 files, 90.9 MB: 2 were damaged, 1 healed.",
        "",
        f"STATE        CHUNKS                        {'FILE'.ljust(len(place))}  DETAIL",
        f"quarantined  3, 18                         {place}  The hub? does not answer.",
        f"healed       0, 1, 2, 3, 4, 5 and 14 more  {str(HEALED['blob']).ljust(len(place))}  -",
    ]
    (started,) = (seen for seen in daemon.requests if seen.method == "POST")
    assert started.body == {
        "repair": True,
        "anew": True,
        "rate_bps": 50_000_000,
        "budget_s": 3600.0,
    }


def test_check_whose_damage_is_healed_exits_0(run: RunCommand, daemon: FakeDaemon) -> None:
    """What is here again is no damage any more."""
    daemon.say("POST", "/check", RUNNING, status=202)
    daemon.say("GET", "/check", {**DONE, "damaged": [HEALED]})
    result = run("check", "--repair")
    assert result.exit_code == 0
    assert "1 was damaged, 1 healed" in result.stdout


def test_check_that_ran_out_of_time_says_how_to_go_on(run: RunCommand, daemon: FakeDaemon) -> None:
    """A part is a part."""
    daemon.say("POST", "/check", RUNNING, status=202)
    daemon.say("GET", "/check", {**RUNNING, "state": "stopped"})
    result = run("check", "--time", "1")
    assert (result.exit_code, result.stdout) == (
        0,
        "Stopped after 1 of 3 files, 40.0 MB; the next check goes on from there.\n",
    )


def test_check_json_is_what_the_daemon_said(run: RunCommand, daemon: FakeDaemon) -> None:
    """One value, nothing beside it; the exit code is the same."""
    answer = {**DONE, "damaged": [DAMAGED]}
    daemon.say("POST", "/check", RUNNING, status=202)
    daemon.say("GET", "/check", answer)
    result = run("check", "--json")
    assert json.loads(result.stdout) == answer
    assert result.exit_code == 11
    assert result.stderr == ""


def test_check_interrupted_is_stopped(
    run: RunCommand, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends the check in the daemon, too."""
    daemon.say("POST", "/check", RUNNING, status=202)
    daemon.say("GET", "/check", RUNNING)
    daemon.say("DELETE", "/check", {**RUNNING, "state": "stopped"})

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("p2pcache.cli.check.time.sleep", interrupt)
    result = run("check")
    assert result.exit_code == 130
    assert daemon.paths("DELETE") == ["/check"]
    assert "goes on from there" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--rate", "fast"),
        ("--rate", "0"),
        ("--rate", "50MB/min"),
        ("--time", "0"),
        ("--time", "-1"),
        ("--offline", "--repair"),
    ],
    ids=" ".join,
)
def test_check_asked_wrongly_asks_nobody(
    run: RunCommand, daemon: FakeDaemon, arguments: tuple[str, ...]
) -> None:
    """Exit 2, and no request."""
    assert run("check", *arguments).exit_code == 2
    assert daemon.requests == []


def test_check_that_the_daemon_refuses_fails_as_the_daemon_says(
    run: RunCommand, daemon: FakeDaemon
) -> None:
    """An error keeps its class, and so its exit code."""
    daemon.say("POST", "/check", make_error("StoreFull", "The disk is full."), status=507)
    result = run("check")
    assert result.exit_code == 13
    assert "The disk is full." in result.stderr


# --- offline ---


@pytest.fixture
def sample() -> Sample:
    """Two chunks, the second one short."""
    return make_chunks_sample(2, seed=5)


@pytest.fixture
def root(tmp_path: Path, sample: Sample) -> Path:
    """A store with one file of one model."""
    root = tmp_path / "offline"
    with_home = StoreHome(root).open()
    store, index = FileBlobStore(root), Index(root / "index.sqlite")
    partial = store.open_partial(sample.blob, sample.layout)
    table = ChunkTable(sample.blob, sample.layout, Standing.PROVEN)
    for chunk in sample.chunks():
        partial.put(chunk, PEER_ID)
        table.set(chunk.chunk_index, chunk.digest)
    stamp = store.publish(partial, sample.proof(), is_public=True)
    partial.close()
    index.blobs.put(BlobRow(sample.blob, stamp, table, True, True, 5.0))
    entry = FileEntry("weights.bin", len(sample.content), sample.blob, "ab" * 20)
    snapshot = Snapshot.of(SnapshotId(RepoId("hf", "models", "org/name"), COMMIT), [entry])
    index.catalogue.put_snapshot(snapshot, is_confirmed=True, about=None, wall_s=1.0)
    index.close()
    with_home.close()
    return root


def test_check_offline_needs_no_daemon(
    run: RunCommand, daemon: FakeDaemon, root: Path, sample: Sample
) -> None:
    """The store itself is looked at; the answer has the daemon's form."""
    result = run("check", "--offline", "--store", str(root), "--json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert (answer["state"], answer["damaged"]) == ("done", [])
    assert answer["bytes_done"] == len(sample.content)
    assert set(RUNNING) <= set(answer)
    assert daemon.requests == []


def test_check_offline_names_damage_and_sets_it_aside(
    run: RunCommand, root: Path, sample: Sample
) -> None:
    """Exit 11; the file is no blob any more, its good chunk is kept."""
    path = FileBlobStore(root).path_of(sample.blob)
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = run("check", "--offline", "--store", str(root))
    assert result.exit_code == 11
    assert f"org/name@{COMMIT}: weights.bin" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("quarantined  1       org/name")
    assert not path.exists()
    assert FileBlobStore(root).count_held_bytes(sample.blob) == sample.layout.length_of(0)
    # Until it is here again, also where nothing new is found.
    assert run("check", "--offline", "--store", str(root)).exit_code == 11


def test_check_offline_of_no_store_is_a_wrong_setting(run: RunCommand, tmp_path: Path) -> None:
    """Nothing is made of a folder that is none."""
    result = run("check", "--offline", "--store", str(tmp_path / "nowhere"))
    assert result.exit_code == 3
    assert not (tmp_path / "nowhere").exists()


def test_check_offline_of_a_store_in_use_says_to_leave_it_out(run: RunCommand, root: Path) -> None:
    """A daemon that runs is asked instead."""
    home = StoreHome(root).open()
    result = run("check", "--offline", "--store", str(root))
    home.close()
    assert result.exit_code == 13
    assert "leave out --offline" in result.stderr


def test_check_offline_interrupted_goes_on_later(
    run: RunCommand, root: Path, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is an exit code of its own, and no file is left open."""
    with monkeypatch.context() as patch:

        def interrupt(self: object, job: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("p2pcache.cli.progress.ProgressLines.show", interrupt)
        result = run("check", "--offline", "--store", str(root), "--rate", "32MiB/s")
    assert result.exit_code == 130
    result = run("check", "--offline", "--store", str(root), "--json")
    assert json.loads(result.stdout)["bytes_done"] == len(sample.content)
