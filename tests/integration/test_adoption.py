"""
Owns adoption end to end: caches of the real client, real daemons, the hub gone.

Knows nothing of how files are placed.
Invariants: the real client (newest) makes the caches, in a process of its own.
Source: docs/how-to/adopt-a-cache.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from p2pcache.client import ImportClient
from tests.daemons import DaemonProcess, wait_until
from tests.hfcaches import measure_disk
from tests.hub import HubProcess
from tests.hub.client import RealClient
from tests.integration.conftest import MODEL, SMALL_FILES, MakeDaemon, assert_same_files


def run_client(endpoint: str, home: Path, script: str) -> Any:
    """Run a script with the real client; returns its result."""
    return asyncio.run(RealClient(endpoint, home).run(script))


def download(hub: HubProcess, home: Path, script: str = "") -> Path:
    """Download the model with the real client; returns the cache's folder."""
    run_client(hub.url, home, script or f"result = snapshot_download({MODEL!r})")
    return home / "hf" / "hub"


def read_offline(hub_path: Path, home: Path) -> dict[str, str]:
    """Open the model as an offline worker does; returns the sha256 of each file."""
    script = f"""
        path = snapshot_download({MODEL!r}, cache_dir={str(hub_path)!r}, local_files_only=True)
        result = digests(path)
    """
    found: dict[str, str] = run_client("http://127.0.0.1:9", home, script)
    return found


def truth_of(models: Path) -> dict[str, str]:
    """Return the sha256 of each file of the model."""
    root = models / MODEL
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def adopt(daemon: DaemonProcess, cache: Path, *options: str) -> dict[str, Any]:
    """Run `p2pcache import`; returns the import."""
    result = daemon.run("import", str(cache), "--json", *options)
    assert result.returncode == 0, result.stderr
    job: dict[str, Any] = json.loads(result.stdout)
    return job


def test_adopted_cache_adds_nothing_and_is_served_to_peers_without_the_hub(
    models: Path, model_bytes: int, hub: HubProcess, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """Under 1 % more on the disk; then the hub goes, and a peer gets all of it from here."""
    cache = download(hub, tmp_path / "client")
    before = measure_disk(cache)
    assert before > 64 << 20
    a = make_daemon("a", upstream=hub.url).start()
    empty = measure_disk(a.store)
    hub.reset()
    job = adopt(a, cache)
    assert job["linked"] == len(SMALL_FILES) + 1
    assert (job["skipped"], job["bytes_done"]) == ([], model_bytes)
    assert hub.stats()["body_bytes"] == 0
    added = measure_disk(cache, a.store) - before - empty
    print(f"{added:,} bytes more for {before:,}")
    assert added < before / 100, f"{added:,} bytes more for {before:,}"
    hub.stop()

    b = make_daemon("b", upstream=hub.url, peers=[a.peer], trust_peers=True).start()
    wait_until(lambda: b.client.peers()["peers"], "the peers meet")
    result = b.run("pull", MODEL, "--json")
    assert result.returncode == 0, result.stderr
    pulled = json.loads(result.stdout)
    assert (pulled["bytes_from_peers"], pulled["bytes_from_upstream"]) == (model_bytes, 0)
    assert_same_files(Path(pulled["path"]), models)
    assert read_offline(a.store / "hub", tmp_path / "worker") == truth_of(models)
    residency = a.client.residency(MODEL)
    assert (residency["state"], residency["bytes_missing"]) == ("resident", 0)


def test_adopted_cache_without_hub_and_list_works_offline_and_is_not_shared(
    models: Path, hub: HubProcess, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """File by file, as transformers downloads; the hub is gone; nobody said that it is public."""
    script = f"""
        for name in {[*SMALL_FILES, "model.safetensors"]!r}:
            result = hf_hub_download({MODEL!r}, name)
    """
    cache = download(hub, tmp_path / "client", script)
    hub.stop()
    a = make_daemon("a", upstream=hub.url).start()
    (report,) = adopt(a, cache.parent)["snapshots"]
    assert (report["confirmed"], report["public"]) == (False, False)
    assert "not confirmed" in report["notes"][0]
    assert read_offline(a.store / "hub", tmp_path / "worker") == truth_of(models)

    b = make_daemon("b", upstream=hub.url, peers=[a.peer], trust_peers=True).start()
    wait_until(lambda: b.client.peers()["peers"], "the peers meet")
    assert b.run("pull", MODEL).returncode != 0
    (report,) = adopt(a, cache.parent, "--public")["snapshots"]
    assert report["public"]
    result = b.run("pull", MODEL)
    assert result.returncode == 0, result.stderr
    assert_same_files(Path(result.stdout.splitlines()[-1]), models)


def test_watched_cache_is_adopted_after_a_restart(
    models: Path, hub: HubProcess, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """A daemon that was killed goes on watching; what the client downloads then is resident."""
    cache = tmp_path / "client" / "hf" / "hub"
    cache.mkdir(parents=True)
    a = make_daemon("a", upstream=hub.url).start()
    result = a.run("import", str(cache), "--watch")
    assert result.returncode == 0, result.stderr
    a.kill()
    a.start()
    download(hub, tmp_path / "client")
    wait_until(lambda: a.client.residency(MODEL)["state"] == "resident", "the download is adopted")
    blob = next(path for path in (cache / "models--org--minilm" / "blobs").iterdir())
    assert blob.stat().st_nlink == 3
    result = a.run("import", str(cache), "--no-watch")
    assert result.returncode == 0, result.stderr
    assert a.run("import", str(cache), "--no-watch").returncode == 10


def test_kill_in_the_middle_of_an_import_leaves_the_cache_and_goes_on(
    models: Path, model_bytes: int, hub: HubProcess, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """Whatever a kill leaves, the next import ends the work; no temporary name stays."""
    cache = download(hub, tmp_path / "client")
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    a = make_daemon("a", upstream=hub.url).start()
    for files_done in range(0, len(SMALL_FILES), 2):
        client = ImportClient(a.local, a.store)
        started = client.start(cache)
        wait_until(
            lambda: client.get(started["id"])["files_done"] >= files_done,  # noqa: B023
            "some files are adopted",
        )
        a.kill()
        a.start()
    job = adopt(a, cache)
    assert job["linked"] + job["present"] == len(SMALL_FILES) + 1
    assert a.client.residency(MODEL)["bytes_local"] == model_bytes
    assert os.listdir(a.store / "blobs" / ".adopting") == []
    assert {path: path.read_bytes() for path in before} == before
