"""
Owns what a user sees when something cannot work: one sentence, the right code, nothing lost.

Knows nothing of how it is found out.
Invariants: exit codes by cause as in docs/reference/errors.md; never a traceback.
Source: house style (errors).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import DaemonProcess, run_p2pcache, wait_until
from tests.hub import HubProcess
from tests.integration.conftest import MODEL, MakeDaemon, assert_same_files, mount_small_disk
from tests.ports import pick_port


def assert_one_sentence(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Assert an exit code, one line that says why, and no traceback."""
    assert result.returncode == code, (result.returncode, result.stderr)
    assert "Traceback" not in result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, result.stderr
    for word in words:
        assert word in said[0], said[0]


@pytest.fixture
def daemon(hub: HubProcess, make_daemon: MakeDaemon) -> DaemonProcess:
    """Run a daemon."""
    return make_daemon("a", upstream=hub.url).start()


def test_unknown_repository_exits_10(daemon: DaemonProcess) -> None:
    """A repository that the hub does not know is not found, and the name is said."""
    assert_one_sentence(daemon.pull("org/none"), 10, "org/none")


def test_unknown_revision_exits_10(daemon: DaemonProcess) -> None:
    """A revision that the repository does not have is not found."""
    assert_one_sentence(daemon.pull(f"{MODEL}@none"), 10, "none")


@pytest.mark.parametrize("reference", ["", "a/b/c", "../x", "org/name@..", "ftp:org/name"])
def test_malformed_reference_exits_2(daemon: DaemonProcess, reference: str) -> None:
    """A reference that no hub could have is refused before anybody is asked."""
    assert_one_sentence(daemon.pull(reference), 2)


def test_pattern_without_a_match_exits_2(daemon: DaemonProcess) -> None:
    """A pattern that matches no file is an error, not an empty success."""
    assert_one_sentence(daemon.pull(MODEL, "--include", "*.none"), 2, "matches")


def test_unreachable_hub_with_nothing_cached_exits_12(make_daemon: MakeDaemon) -> None:
    """A hub that does not answer is said so; it is not a missing repository."""
    daemon = make_daemon("a", upstream=f"http://127.0.0.1:{pick_port()}").start()
    assert_one_sentence(daemon.pull(MODEL), 12, "does not answer")


def test_no_daemon_exits_14(tmp_path: Path) -> None:
    """Without a daemon the command says how to start one."""
    where = ["--local", f"127.0.0.1:{pick_port()}", "--store", str(tmp_path)]
    assert_one_sentence(run_p2pcache("pull", MODEL, *where), 14, "p2pcache up")


def test_port_in_use_exits_3(daemon: DaemonProcess, tmp_path: Path) -> None:
    """A taken port names the port and the flag that changes it."""
    local = daemon.local.removeprefix("http://")
    arguments = ["--store", str(tmp_path / "other"), "--local", local, "--discover", "none"]
    assert_one_sentence(run_p2pcache("up", *arguments), 3, local, "--local")


def test_second_daemon_on_one_store_exits_13(daemon: DaemonProcess) -> None:
    """A store has one daemon; the second says which folder it is about, and harms nothing."""
    arguments = ["--store", str(daemon.store), "--local", "127.0.0.1:0", "--listen", "127.0.0.1:0"]
    result = run_p2pcache("up", *arguments, "--discover", "none")
    assert_one_sentence(result, 13, str(daemon.store))
    assert daemon.client.status()["store"] == str(daemon.store)


def test_two_daemons_on_one_machine_live_side_by_side(
    hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """Two daemons with two stores and free ports know of each other, and end with 0."""
    first = make_daemon("a", upstream=hub.url).start()
    second = make_daemon("b", upstream=hub.url, peers=[first.peer]).start()
    wait_until(lambda: first.client.peers()["peers"], "the first knows the second")
    assert [peer["name"] for peer in second.client.peers()["peers"]] == ["a"]
    assert (second.stop(), first.stop()) == (0, 0)


def test_corrupt_index_is_rebuilt_and_nothing_is_fetched_again(
    hub: HubProcess, models: Path, daemon: DaemonProcess
) -> None:
    """An index of random bytes is set aside; the model is still here after the restart."""
    assert daemon.pull(MODEL).returncode == 0
    daemon.stop()
    (daemon.store / "index.sqlite").write_bytes(os.urandom(100_000))
    before = hub.stats()["body_bytes"]
    daemon.start()
    (listed,) = daemon.client.models()["models"]
    # Nobody says that it is right before it was hashed again.
    assert (listed["model"], listed["bytes_local"]) == (MODEL, listed["bytes_total"])
    assert listed["state"] in ("verifying", "resident")
    result = daemon.pull(MODEL)
    assert result.returncode == 0, result.stderr
    assert_same_files(Path(result.stdout.splitlines()[-1]), models)
    assert hub.stats()["body_bytes"] == before
    (listed,) = daemon.client.models()["models"]
    assert listed["state"] == "resident"
    assert list(daemon.store.glob("index.sqlite.corrupt-*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a real file system of 64 MiB."""
    with mount_small_disk(tmp_path / "disk", 64) as folder:
        yield folder


def test_model_larger_than_the_disk_is_refused_before_the_first_byte(
    hub: HubProcess, small_disk: Path, tmp_path: Path
) -> None:
    """A pull that cannot fit is refused with the numbers, exit code 13, and costs no byte."""
    daemon = DaemonProcess(small_disk / "store", upstream=hub.url)
    daemon.log_path = tmp_path / "log"
    with daemon:
        assert_one_sentence(daemon.pull(MODEL), 13, "more bytes, and", "--include")
        assert hub.stats()["body_bytes"] == 0
        small = daemon.pull(MODEL, "--include", "config.json")
        assert small.returncode in (0, 13), small.stderr


def test_disk_that_fills_up_midway_is_an_error_and_keeps_what_is_there(
    hub: HubProcess, models: Path, tmp_path: Path
) -> None:
    """A disk that somebody else fills is one sentence; after making room the pull continues."""
    with mount_small_disk(tmp_path / "disk", 300) as disk:
        daemon = DaemonProcess(disk / "store", upstream=hub.url)
        daemon.log_path = tmp_path / "log"
        with daemon:
            assert daemon.pull(MODEL, "--include", "*.json").returncode == 0
            filler = disk / "filler"
            filler.write_bytes(bytes(shutil.disk_usage(disk).free - 80 * 1024 * 1024))
            assert_one_sentence(daemon.pull(MODEL), 13)
            filler.unlink()
            result = daemon.pull(MODEL)
            assert result.returncode == 0, result.stderr
            assert_same_files(Path(result.stdout.splitlines()[-1]), models)


def test_interrupted_pull_keeps_what_was_fetched(
    models: Path, model_bytes: int, make_daemon: MakeDaemon
) -> None:
    """Ctrl-C ends the pull with 130, stops the download, and the next pull continues."""
    with HubProcess(models, rate_bytes_per_s=20_000_000) as hub:
        daemon = make_daemon("a", upstream=hub.url).start()
        child = subprocess.Popen(
            [sys.executable, "-m", "p2pcache", "pull", MODEL, *daemon.where],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: hub.stats()["body_bytes"] > 10_000_000, "ten megabytes")
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=20)
        assert child.returncode == 130, said
        assert "kept" in said
        jobs = json.loads(json.dumps(daemon.client.models()))["models"]
        assert jobs[0]["state"] == "partial"
        result = daemon.pull(MODEL)
        assert result.returncode == 0, result.stderr
        assert hub.stats()["body_bytes"] <= model_bytes + 8 * 1024 * 1024
    assert_same_files(Path(result.stdout.splitlines()[-1]), models)


def test_peer_that_vanishes_is_dropped_within_ten_seconds(
    hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """A killed peer is out of the table within 10 s, and back when it is back."""
    first = make_daemon("a", upstream=hub.url).start()
    second = make_daemon("b", upstream=hub.url, peers=[first.peer]).start()
    wait_until(lambda: second.client.peers()["peers"], "the peer is known")
    first.kill()
    wait_until(lambda: not second.client.peers()["peers"], "the peer is dropped")
    unreachable = second.client.peers()["unreachable"]
    assert [entry["address"] for entry in unreachable] == [first.peer]


def test_daemon_stops_promptly_while_the_hub_is_silent(
    hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """SIGTERM ends a daemon whose downloads wait for a hub that sends nothing, with 0."""
    hub.faults(hang_after_bytes=100_000)
    daemon = make_daemon("a", upstream=hub.url).start()
    daemon.client.pull(MODEL, include=["model.safetensors"])
    wait_until(lambda: hub.stats()["body_bytes"] >= 100_000, "the hub has begun to send")
    started_s = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - started_s < 8.0
