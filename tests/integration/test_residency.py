"""
Owns the tests of residency with real daemons: what a scheduler is told, against what is true.

Knows nothing of how it is computed.
Invariants: the truth is read from the have-records and the files on disk, by other code than the
daemon's answer; every hub is slowed down or watched, never trusted to be idle.
Source: docs/reference/http-api.md (residency); the acceptance of the two-phase story.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from p2pcache.client import Client, read_index
from p2pcache.errors import InputError, NotFoundError
from tests.daemons import wait_until
from tests.discovery.link import find_obstacle, private_network
from tests.hub import HubProcess
from tests.integration.conftest import MODEL as MINILM
from tests.integration.conftest import MakeDaemon
from tests.tensorfiles import make_safetensors

IS_SLOW = os.environ.get("P2PCACHE_SLOW") == "1"
MODEL, PLAIN, STEPS = "org/decoder", "org/plain", "org/steps"
MIB = 1024 * 1024
# Moments in the middle of a download, seconds between two of them, and how many amounts of bytes
# were told at them: a model that comes in 600 small steps, on a line that makes it last.
MOMENTS, PAUSE_S_MAX, AMOUNTS_MIN = (1000, 0.04, 100) if IS_SLOW else (60, 0.1, 8)
STEPS_RATE_BPS = 2 * MIB if IS_SLOW else 16 * MIB
RATE_BPS = 8 * MIB
LINE_BPS = 3_000_000
RECORD_BYTES, FIXED_HEADER_BYTES = 64, 32


def make_shard(seed: int) -> bytes:
    """Return a shard of 9 MiB: two matrices, a norm, a scalar and an empty tensor."""
    chance = Random(seed)
    return make_safetensors(
        {
            f"{seed}.up": ("BF16", [1024, 3072], chance.randbytes(6 * MIB)),
            f"{seed}.down": ("F8_E4M3", [3072, 1024], chance.randbytes(3 * MIB)),
            f"{seed}.norm": ("F32", [1024], chance.randbytes(4096)),
            f"{seed}.scale": ("F32", [], chance.randbytes(4)),
            f"{seed}.none": ("I64", [0, 8], b""),
        }
    )


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model of two shards, once as safetensors and once as pickles too."""
    root = tmp_path_factory.mktemp("decoders")
    shards = {f"model-0000{n}-of-00002.safetensors": make_shard(n) for n in (1, 2)}
    index = json.dumps({"weight_map": {f"{n}.up": name for n, name in enumerate(shards, 1)}})
    files = {**shards, "model.safetensors.index.json": index.encode(), "config.json": b"{}"}
    for model in (MODEL, PLAIN):
        (root / model).mkdir(parents=True)
        for name, content in files.items():
            (root / model / name).write_bytes(content)
    (root / PLAIN / "pytorch_model.bin").write_bytes(Random(5).randbytes(18 * MIB))
    return root


def make_steps(folder: Path) -> None:
    """Write a model of 150 MiB that is cut into some 600 chunks, one for each of its tensors."""
    chance = Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(b"{}")
    for part in range(3):
        names = [f"{part}.{n:03}" for n in range(200)]
        tensors = {name: ("U8", [MIB // 4], chance.randbytes(MIB // 4)) for name in names}
        (folder / f"model-{part}.safetensors").write_bytes(make_safetensors(tensors))


@pytest.fixture
def slow_hub(decoders: Path) -> Iterator[HubProcess]:
    """Run a hub behind a line of 8 MiB/s."""
    with HubProcess(decoders, rate_bytes_per_s=RATE_BPS) as running:
        yield running


def count_truly_held(store: Path) -> int:
    """Sum up what have-records and whole files say, in a store that has one model alone."""
    held: dict[str, int] = {}
    # Files that are published between the two looks are in both, never in none.
    for path in (store / "partial").glob("*.have"):
        held[path.name.removesuffix(".have").partition("-")[2]] = count_in_record(path)
    for path in (store / "blobs").glob("*/*/*"):
        held[path.name] = path.stat().st_size
    return sum(held.values())


def count_in_record(path: Path) -> int:
    """Sum up the lengths of the chunks that a have-record speaks of."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return 0
    if len(raw) < FIXED_HEADER_BYTES:
        return 0
    start = FIXED_HEADER_BYTES
    if raw.startswith(b"P2PHAVE2"):
        (length,) = struct.unpack_from("<I", raw, start)
        start += 8 + length
    chunks: dict[int, int] = {}
    for offset in range(start, len(raw) - RECORD_BYTES + 1, RECORD_BYTES):
        kind, index, length = struct.unpack_from("<BxxxII", raw, offset)
        if kind == 1:
            chunks[index] = length
        elif kind == 4:
            chunks.pop(index, None)
    return sum(chunks.values())


def test_weights_are_exact_with_nothing_of_them_here(
    decoders: Path, slow_hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """The hub is asked once, for heads alone; afterwards nobody is asked for anything."""
    daemon = make_daemon("a", upstream=slow_hub.url).start()
    before = daemon.client.residency(MODEL)
    assert (before["commit"], before["state"], before["weights"]) == (None, "absent", None)
    learned = daemon.client.learn(MODEL)
    slow_hub.reset()
    found = daemon.client.residency(MODEL, tp=[4])
    assert not slow_hub.stats()["requests"]
    assert found["bytes_local"] == 0
    assert found["bytes_missing"] == found["bytes_total"] == found["missing_from_upstream"]
    weights = found["weights"]
    assert weights is not None
    assert weights["params"] == {"BF16": 6 * MIB, "F32": 2050, "F8_E4M3": 6 * MIB, "I64": 0}
    assert (weights["format"], weights["files"], weights["tensors"]) == ("safetensors", 2, 10)
    assert weights["bytes"] == 18 * MIB + 2 * 4100
    assert weights["largest_tensor_bytes"] == 6 * MIB
    assert weights["per_rank_bytes"] == {"tp=4": 18 * MIB // 4 + 2 * 4100}
    assert found["memory_floor_bytes"] == weights["bytes"] * 6 // 5 + 2 * 1024**3
    assert learned["weights"] is not None
    assert "per_rank_bytes" not in learned["weights"]
    shown = daemon.run("status", MODEL)
    assert "6,291,456 BF16" in shown.stdout, shown


@pytest.mark.timeout(240)
def test_bytes_missing_are_the_truth_at_any_moment_of_a_download(
    decoders: Path, make_daemon: MakeDaemon
) -> None:
    """What is told lies between what the records said before the question and after it."""
    make_steps(decoders / STEPS)
    chance, seen, moments, is_first_life = Random(6), set[int](), 0, True
    with contextlib.ExitStack() as cleanup:
        hub = cleanup.enter_context(HubProcess(decoders, rate_bytes_per_s=STEPS_RATE_BPS))
        daemon = make_daemon("a", upstream=hub.url).start()
        job = daemon.client.pull(STEPS)["id"]
        wait_until(lambda: daemon.client.residency(STEPS)["commit"], "the file list")
        view = cleanup.enter_context(read_index(daemon.store))
        while moments < MOMENTS:
            time.sleep(chance.uniform(0, PAUSE_S_MAX))
            before = count_truly_held(daemon.store)
            # Over HTTP, and in this process, from the files alone.
            is_beside = chance.random() < 0.5
            found = view.residency(STEPS) if is_beside else daemon.client.residency(STEPS)
            after = count_truly_held(daemon.store)
            assert found["bytes_total"] is not None
            assert before <= found["bytes_local"] <= after, (is_beside, moments)
            assert found["bytes_missing"] == found["bytes_total"] - found["bytes_local"]
            if found["state"] == "resident":
                break
            moments += 0 < found["bytes_local"] < found["bytes_total"]
            seen.add(found["bytes_local"])
            if IS_SLOW and moments == MOMENTS // 2 and is_first_life:
                # What was under way is lost, what the records speak of is not.
                is_first_life = False
                daemon.kill()
                daemon.start()
        print(f"{moments} moments in the middle, {len(seen)} amounts")
        # It may be over sooner than the moments, on a machine that is busy.
        assert moments >= (MOMENTS if IS_SLOW else 10)
        assert len(seen) >= AMOUNTS_MIN
        hub.faults()
        daemon.client.wait(job)
        for found in (daemon.client.residency(STEPS), view.residency(STEPS)):
            assert (found["state"], found["bytes_missing"]) == ("resident", 0)


def test_default_pull_is_resident_though_it_left_a_second_format_out(
    decoders: Path, make_daemon: MakeDaemon
) -> None:
    """What a pull brings by itself is what residency measures by itself; patterns say otherwise."""
    with HubProcess(decoders) as hub:
        daemon = make_daemon("a", upstream=hub.url).start()
        done = daemon.pull(PLAIN)
        assert done.returncode == 0, done.stderr
        found = daemon.client.residency(PLAIN)
        assert found["state"] == "resident"
        assert found["path"] == done.stdout.strip().splitlines()[-1]
        pickles = daemon.client.residency(PLAIN, include=["*.bin"])
        assert (pickles["state"], pickles["bytes_total"]) == ("absent", 18 * MIB)
        assert pickles["weights"] is None
        with pytest.raises(InputError, match=r"No file of org/plain matches"):
            daemon.client.residency(PLAIN, include=["*.nope"])
        shown = daemon.run("status", PLAIN, "--include", "*.nope")
        assert (shown.returncode, "matches these patterns" in shown.stderr) == (2, True)


def test_wait_answers_when_the_model_is_resident_and_when_the_time_is_over(
    slow_hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """A long poll ends soon after the last byte; without one it says what is there."""
    daemon = make_daemon("a", upstream=slow_hub.url).start()
    client = daemon.client
    assert client.residency(MODEL, wait_s=0.2)["state"] == "absent"
    job = client.pull(MODEL)["id"]
    found = client.residency(MODEL, wait_s=60)
    assert (found["state"], "path" in found) == ("resident", True)
    assert client.wait(job)["state"] == "done"
    with pytest.raises(InputError):
        client.residency(MODEL, wait_s=601)
    with pytest.raises(InputError):
        client.residency(MODEL, tp=[0])


def test_peers_count_before_anything_is_fetched_and_for_the_cluster(
    decoders: Path, make_daemon: MakeDaemon
) -> None:
    """A neighbour's copy is seen by digest; a peer that is gone is not counted on."""
    with HubProcess(decoders) as hub:
        first = make_daemon("first", upstream=hub.url).start()
        assert first.pull(MODEL).returncode == 0
        second = make_daemon("second", upstream=hub.url, peers=[first.peer]).start()
        client = second.client
        client.learn(MODEL)
        wait_until(lambda: client.peers()["peers"], "the neighbour")
        found = client.residency(MODEL)
        assert found["missing_from_peers"] == found["bytes_missing"] == found["bytes_total"]
        assert found["missing_from_upstream"] == 0
        assert "peers" not in found
        (peer,) = client.residency(MODEL, is_cluster=True)["peers"]
        assert (peer["name"], peer["bytes_local"]) == ("first", found["bytes_total"])
        assert peer["eta_s"] == {"p50": 0.0, "p95": 0.0}
        shown = second.run("status", MODEL, "--cluster")
        assert "first" in shown.stdout, shown
        first.kill()

        def is_alone() -> bool:
            return client.residency(MODEL)["missing_from_peers"] == 0

        wait_until(is_alone, "forgetting the neighbour")


def test_program_reads_the_index_beside_a_daemon_and_without_one(
    decoders: Path, make_daemon: MakeDaemon
) -> None:
    """The same answer in process, before and after the daemon's end; nothing is written."""
    with HubProcess(decoders) as hub:
        daemon = make_daemon("a", upstream=hub.url).start()
        with pytest.raises(NotFoundError):
            read_index(daemon.store.with_name("nowhere"))
        with read_index(daemon.store) as view:
            assert view.residency(MODEL)["commit"] is None
            assert daemon.pull(MODEL).returncode == 0
            told = daemon.client.residency(MODEL)
            beside = view.residency(MODEL)
            assert {**beside, "disk_free": 0} == {**told, "disk_free": 0}
            daemon.stop()
            names = list_names(daemon.store)
            assert {**view.residency(MODEL), "disk_free": 0} == {**told, "disk_free": 0}
            assert list_names(daemon.store) == names
            daemon.start()
            assert {**view.residency(MODEL), "disk_free": 0} == {**told, "disk_free": 0}


def list_names(root: Path) -> list[tuple[str, int, int]]:
    """List every name in a store with its size and time, but for SQLite's table of locks."""
    found = [(p, p.lstat()) for p in root.rglob("*") if not p.name.endswith("-shm")]
    return sorted((str(path), status.st_size, status.st_mtime_ns) for path, status in found)


@contextlib.contextmanager
def shaped_line() -> Iterator[None]:
    """Move this thread to a network whose every packet goes through a line of LINE_BPS."""
    obstacle = find_obstacle() or (None if shutil.which("tc") else "the command `tc` is missing")
    if obstacle:
        pytest.skip(obstacle)
    with private_network():
        rate = f"{LINE_BPS * 8}bit"
        shape = ["root", "tbf", "rate", rate, "burst", "128k", "latency", "50ms"]
        subprocess.run(["tc", "qdisc", "add", "dev", "lo", *shape], check=True)
        yield


@pytest.mark.skipif(not IS_SLOW, reason="only with P2PCACHE_SLOW=1")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("where", ["at the hub", "on the wire"])
def test_eta_after_ten_seconds_is_within_a_fifth(
    models: Path, make_daemon: MakeDaemon, where: str
) -> None:
    """On a line of 3 MB/s, what is said after ten seconds comes true: residency's and the job's."""
    with contextlib.ExitStack() as cleanup:
        if where == "on the wire":
            cleanup.enter_context(shaped_line())
        rate = LINE_BPS if where == "at the hub" else None
        hub = cleanup.enter_context(HubProcess(models, rate_bytes_per_s=rate))
        daemon = make_daemon("a", upstream=hub.url).start()
        client: Client = daemon.client
        job = client.pull(MINILM)["id"]
        time.sleep(10)
        asked_s = time.monotonic()
        eta, told = client.residency(MINILM)["eta_s"], client.download(job)["eta"]
        assert eta["p50"] is not None
        assert eta["p95"] is not None
        found = client.residency(MINILM, wait_s=90)
        assert found["state"] == "resident"
        took_s = time.monotonic() - asked_s
        print(f"said {eta['p50']:.1f} to {eta['p95']:.1f} s and {told}, took {took_s:.1f} s")
        assert 0.8 * took_s <= eta["p50"] <= 1.2 * took_s
        assert 0.8 * took_s <= told["p50"] <= 1.2 * took_s
        assert eta["p95"] >= eta["p50"]
        daemon.stop()
