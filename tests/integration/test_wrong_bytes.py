"""
Owns that a wrong byte never reaches a reader, wherever it comes from, and the source is named.

Knows nothing of how it is found out.
Invariants: the final files equal the truth; the fault shows in `status`.
Source: threats T1 and T30; design.md §6.6.
"""

from __future__ import annotations

import http.client
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import run_p2pcache, wait_until
from tests.hostile import FlippingWire, LyingPeer, sha256_blob
from tests.hub import HubProcess
from tests.integration.conftest import MODEL, MakeDaemon, assert_same_files


def find_weights(store: Path) -> Path:
    """Return the file of the largest blob of a store."""
    return max((p for p in (store / "blobs").glob("*/*/*")), key=lambda p: p.stat().st_size)


def flip_bit(path: Path, offset: int, *, keeps_time: bool) -> None:
    """Flip one bit of a published file, as a disk or a stray program would."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    path.chmod(0o444)
    if keeps_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def get_faults(daemon: Any) -> list[dict[str, Any]]:
    """Return what the daemon holds against its sources."""
    faults: list[dict[str, Any]] = daemon.client.status()["faults"]
    return faults


def test_bit_flipped_on_the_wire_is_refused_and_named(
    models: Path, hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """A relay that flips one bit costs a chunk, which the hub gives; the peer is named."""
    first = make_daemon("a", upstream=hub.url).start()
    assert first.pull(MODEL).returncode == 0
    with FlippingWire(first.peer) as wire:
        # Where the first cannot visit it: else they would meet past the wire.
        second = make_daemon(
            "b", upstream=hub.url, peers=[wire.address], listen="127.0.0.2:0"
        ).start()
        result = second.pull(MODEL)
        assert result.returncode == 0, result.stderr
        assert wire.flipped > 0
    assert_same_files(Path(result.stdout.splitlines()[-1]), models)
    fault = get_faults(second)[0]
    assert (fault["name"], fault["reason"]) == ("a", "wrong bytes")
    shown = run_p2pcache("status", *second.where)
    assert "wrong bytes" in shown.stdout


@pytest.mark.parametrize("keeps_time", [True, False], ids=["silent", "visible"])
def test_bit_flipped_on_a_peers_disk_is_refused_and_named(
    models: Path, hub: HubProcess, make_daemon: MakeDaemon, keeps_time: bool
) -> None:
    """Bit rot at a peer is found by whoever asks, healed from the hub, and the peer is named."""
    first = make_daemon("a", upstream=hub.url).start()
    assert first.pull(MODEL).returncode == 0
    flip_bit(find_weights(first.store), 50_000_000, keeps_time=keeps_time)
    second = make_daemon("b", upstream=hub.url, peers=[first.peer]).start()
    result = second.pull(MODEL)
    assert result.returncode == 0, result.stderr
    assert_same_files(Path(result.stdout.splitlines()[-1]), models)
    assert "a" in {fault["name"] for fault in get_faults(second)}


def test_file_changed_on_own_disk_is_healed_before_it_is_read(
    models: Path, hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """A published file that changed is hashed before the next reader; one chunk is refetched."""
    daemon = make_daemon("a", upstream=hub.url).start()
    assert daemon.pull(MODEL).returncode == 0
    before = hub.stats()["body_bytes"]
    flip_bit(find_weights(daemon.store), 50_000_000, keeps_time=False)
    linked = list((daemon.store / "hub").rglob("model.safetensors"))
    assert len(linked) == 1
    hub.set_listening(hub=False, cdn=False)
    assert daemon.pull(MODEL).returncode != 0
    assert not linked[0].exists(), "offline workers must not read a damaged file"
    hub.set_listening(hub=True, cdn=True)
    result = daemon.pull(MODEL)
    assert result.returncode == 0, result.stderr
    assert_same_files(Path(result.stdout.splitlines()[-1]), models)
    assert hub.stats()["body_bytes"] - before == 4 * 1024 * 1024


@pytest.mark.parametrize("trust", [True, False], ids=["trusting", "untrusting"])
def test_peer_that_lies_with_right_claims_is_found_out(
    models: Path, hub: HubProcess, make_daemon: MakeDaemon, trust: bool
) -> None:
    """A liar whose claims match its lies fails the proof of the whole, and is banned for it."""
    content = (models / MODEL / "model.safetensors").read_bytes()

    def tamper(index: int, chunk: bytes) -> bytes:
        return b"\xff" + chunk[1:] if index % 2 else chunk

    with LyingPeer({sha256_blob(content): content}, tamper) as liar:
        daemon = make_daemon("a", upstream=hub.url, peers=[liar.address], trust_peers=trust).start()
        result = daemon.pull(MODEL)
        assert result.returncode == 0, result.stderr
        assert liar.sent_chunks > 0
        peers = daemon.client.peers()["peers"]
    assert_same_files(Path(result.stdout.splitlines()[-1]), models)
    assert get_faults(daemon)[0]["name"] == "liar"
    assert [(peer["name"], peer["state"]) for peer in peers] == [("liar", "banned")]


def read_body(daemon: Any, path: str) -> bytes:
    """GET a file through the gateway; what came when the daemon broke it off is returned too."""
    connection = http.client.HTTPConnection(daemon.local.removeprefix("http://"), timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    except http.client.IncompleteRead as error:
        return error.partial
    finally:
        connection.close()


def test_trusted_liar_cannot_complete_a_wrong_file(
    models: Path, hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """A body that began with a trusted peer's lies is broken off; asked again, it is right."""
    content = (models / MODEL / "model.safetensors").read_bytes()

    def tamper(index: int, chunk: bytes) -> bytes:
        return b"\xff" + chunk[1:] if index == 3 else chunk

    with LyingPeer({sha256_blob(content): content}, tamper) as liar:
        daemon = make_daemon("a", upstream=hub.url, peers=[liar.address], trust_peers=True).start()
        bodies = [read_body(daemon, f"/{MODEL}/resolve/main/model.safetensors") for _ in range(2)]
        assert liar.sent_chunks > 3
    assert all(len(body) < len(content) or body == content for body in bodies)
    assert bodies[1] == content


def test_hub_that_sends_a_wrong_byte_is_not_believed(models: Path, make_daemon: MakeDaemon) -> None:
    """Wrong bytes from the hub itself are never published; the pull fails with exit code 11."""
    with HubProcess(models) as hub:
        hub.faults(flips={f"{MODEL}/model.safetensors": 1_000_000})
        daemon = make_daemon("a", upstream=hub.url).start()
        result = daemon.pull(MODEL)
        assert result.returncode == 11, result.stderr
        assert "Traceback" not in result.stderr
        hub.faults()
        result = daemon.pull(MODEL)
    assert result.returncode == 0, result.stderr
    assert_same_files(Path(result.stdout.splitlines()[-1]), models)


def test_partial_damaged_between_two_runs_is_found_before_a_reader_sees_it(
    models: Path, make_daemon: MakeDaemon
) -> None:
    """A chunk of a killed run that the disk changed is hashed again, and fetched again, first."""
    content = (models / MODEL / "model.safetensors").read_bytes()
    with HubProcess(models, rate_bytes_per_s=20_000_000) as hub:
        daemon = make_daemon("a", upstream=hub.url).start()
        daemon.client.pull(MODEL, include=["model.safetensors"])
        size = 4 * 1024 * 1024
        wait_until(
            lambda: hub.stats()["body_bytes"] > 65_000_000,
            "ten chunks, and a second for their record",
        )
        daemon.kill()
        partial = next(p for p in (daemon.store / "partial").iterdir() if not p.suffix)
        held = partial.read_bytes()
        index = next(i for i in range(8) if held[i * size :][:size] == content[i * size :][:size])
        with partial.open("r+b") as file:
            file.seek(index * size)
            file.write(bytes(size))
        daemon.start()
        assert read_body(daemon, f"/{MODEL}/resolve/main/model.safetensors") == content
    assert [fault["reason"] for fault in get_faults(daemon)] == ["damaged here"]


def test_body_that_was_refuted_cannot_be_resumed(models: Path, make_daemon: MakeDaemon) -> None:
    """After wrong bytes went out, the rest is refused: a client would join it to what it has."""
    path = f"/{MODEL}/resolve/main/model.safetensors"
    content = (models / MODEL / "model.safetensors").read_bytes()
    with HubProcess(models, rate_bytes_per_s=60_000_000) as hub:
        hub.faults(flips={f"{MODEL}/model.safetensors": 1_000_000})
        daemon = make_daemon("a", upstream=hub.url).start()
        assert len(read_body(daemon, path)) < len(content)
        hub.faults()
        connection = http.client.HTTPConnection(daemon.local.removeprefix("http://"), timeout=60)
        connection.request("GET", path, headers={"Range": "bytes=20971520-"})
        answer = connection.getresponse()
        assert answer.status == 503, answer.read()
        connection.close()
        daemon.stop()
        daemon.start()
        connection = http.client.HTTPConnection(daemon.local.removeprefix("http://"), timeout=60)
        connection.request("GET", path, headers={"Range": "bytes=20971520-"})
        assert connection.getresponse().status == 503
        connection.close()
        assert read_body(daemon, path) == content


def test_listing_with_another_size_than_the_proven_blob_is_refused(
    models: Path, hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """A file that a listing makes longer than it is fails with exit code 11, and harms nobody."""
    daemon = make_daemon("a", upstream=hub.url).start()
    assert daemon.pull(MODEL).returncode == 0
    commit = daemon.client.models()["models"][0]["commit"]
    daemon.stop()
    index = sqlite3.connect(daemon.store / "index.sqlite")
    with index:
        index.execute("UPDATE files SET size_bytes = size_bytes + 1 WHERE path = 'vocab.txt'")
    index.close()
    daemon.start()
    assert daemon.pull(f"{MODEL}@{commit}").returncode == 11
    assert read_body(daemon, f"/{MODEL}/resolve/main/config.json")
