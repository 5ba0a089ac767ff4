"""
Owns that machines which start together fetch one upstream copy.

Knows nothing of the planner.
Invariants: counted at the hub, not at the daemons.
Source: design.md §6.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.daemons import DaemonProcess, wait_until
from tests.hostile import LyingPeer, sha256_blob
from tests.hub import HubProcess
from tests.integration.conftest import MODEL, MakeDaemon, assert_same_files

AMPLIFICATION_MAX = 1.10


def start_three(make_daemon: MakeDaemon, upstream: str, *, trust: bool) -> list[DaemonProcess]:
    """Start three daemons, each told of those before it; wait until all know all."""
    daemons: list[DaemonProcess] = []
    for name in ("a", "b", "c"):
        known = [daemon.peer for daemon in daemons]
        daemon = make_daemon(name, upstream=upstream, peers=known, trust_peers=trust)
        daemons.append(daemon.start())
    return daemons


@pytest.mark.parametrize("trust", [True, False], ids=["trusting", "untrusting"])
@pytest.mark.parametrize("rate_bytes_per_s", [None, 40_000_000], ids=["fast", "slow"])
def test_three_cold_peers_fetch_one_copy(
    models: Path,
    model_bytes: int,
    make_daemon: MakeDaemon,
    trust: bool,
    rate_bytes_per_s: int | None,
) -> None:
    """Three peers that pull at the same moment cost the hub at most 1.10 times the model."""
    with HubProcess(models, rate_bytes_per_s=rate_bytes_per_s) as hub:
        daemons = start_three(make_daemon, hub.url, trust=trust)
        results = [daemon.client.pull(MODEL) for daemon in daemons]
        jobs = [
            daemon.client.wait(str(result["id"]))
            for daemon, result in zip(daemons, results, strict=True)
        ]
        fetched = hub.stats()["body_bytes"]
    for job in jobs:
        assert job["state"] == "done", job
        assert_same_files(Path(str(job["path"])), models)
    print(f"upstream ÷ model = {fetched / model_bytes:.4f}")
    assert fetched <= AMPLIFICATION_MAX * model_bytes


def test_late_peer_takes_everything_from_the_others(
    models: Path, model_bytes: int, make_daemon: MakeDaemon
) -> None:
    """A peer that joins when another has the model costs the hub no body byte."""
    with HubProcess(models) as hub:
        first, second = start_three(make_daemon, hub.url, trust=False)[:2]
        assert first.pull(MODEL).returncode == 0
        before = hub.stats()["body_bytes"]
        job = second.client.wait(str(second.client.pull(MODEL)["id"]))
        assert job["bytes_from_peers"] == model_bytes
        assert hub.stats()["body_bytes"] == before


def test_peer_that_joins_midway_costs_little(
    models: Path, model_bytes: int, make_daemon: MakeDaemon
) -> None:
    """A peer that starts while another is half way shares the rest of the work."""
    with HubProcess(models, rate_bytes_per_s=40_000_000) as hub:
        first, second = start_three(make_daemon, hub.url, trust=False)[:2]
        job = first.client.pull(MODEL)
        wait_until(lambda: hub.stats()["body_bytes"] > model_bytes // 3, "a third of the model")
        other = second.client.pull(MODEL)
        done: list[dict[str, object]] = []
        waiting = threading.Thread(target=lambda: done.append(first.client.wait(str(job["id"]))))
        waiting.start()
        done.append(second.client.wait(str(other["id"])))
        waiting.join()
        fetched = hub.stats()["body_bytes"]
    assert {str(job["state"]) for job in done} == {"done"}
    assert fetched <= AMPLIFICATION_MAX * model_bytes


def test_many_small_files_cost_one_copy(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Two hundred small files, three cold peers at once: every file is fetched upstream once."""
    folder = tmp_path / "models" / "org" / "many"
    folder.mkdir(parents=True)
    for number in range(200):
        (folder / f"part-{number}.json").write_bytes(b"%d" % number * 500)
    total = sum(path.stat().st_size for path in folder.iterdir())
    with HubProcess(tmp_path / "models") as hub:
        daemons = start_three(make_daemon, hub.url, trust=False)
        jobs = [str(daemon.client.pull("org/many")["id"]) for daemon in daemons]
        for daemon, job in zip(daemons, jobs, strict=True):
            assert daemon.client.wait(job)["state"] == "done"
        fetched = hub.stats()["body_bytes"]
    assert fetched <= AMPLIFICATION_MAX * total


def test_peer_that_crawls_does_not_hold_a_pull(
    models: Path, hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """A peer that has everything and sends ten bytes a second is left; the hub gives the rest."""
    content = (models / MODEL / "model.safetensors").read_bytes()
    blobs = {sha256_blob(content): content}
    with LyingPeer(blobs, lambda index, chunk: chunk, dribbles=True) as crawler:
        daemon = make_daemon("a", upstream=hub.url, peers=[crawler.address]).start()
        result = daemon.pull(MODEL)
        assert result.returncode == 0, result.stderr
        assert crawler.sent_chunks > 0
    assert_same_files(Path(result.stdout.splitlines()[-1]), models)


@pytest.mark.parametrize(
    "moment",
    [{"refuse_status": 503}, {"refuse_status": 429, "retry_after_s": 1}],
    ids=["unavailable", "slow-down"],
)
def test_bad_moment_of_the_hub_is_sat_out(
    models: Path, hub: HubProcess, make_daemon: MakeDaemon, moment: dict[str, int]
) -> None:
    """Two refusals in a row cost some seconds, not the pull."""
    daemon = make_daemon("a", upstream=hub.url).start()
    hub.faults(refuse_times=2, **moment)
    result = daemon.pull(MODEL, "--include", "config.json")
    assert result.returncode == 0, result.stderr
