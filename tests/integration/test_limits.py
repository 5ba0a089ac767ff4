"""
Owns that the rates that an operator sets are kept by real daemons.

Knows nothing of token buckets; exactness is tested there, against clocks of the tests.
Invariants: bounds are ratios to the time that the limit allows, wide enough for a busy machine.
Source: design.md §6.5; docs/how-to/limit-bandwidth.md.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.daemons import DaemonProcess
from tests.hub import HubProcess
from tests.integration.conftest import MakeDaemon

MODEL = "org/small"
MODEL_BYTES = 8 * 1024 * 1024
RATE_BPS = 4_000_000
# A quarter of a second's burst goes at once; a busy machine takes longer, not shorter.
RATIO_MIN, RATIO_MAX = 0.8, 5.0


@pytest.fixture(scope="module")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model of 8 MiB."""
    root = tmp_path_factory.mktemp("small")
    (root / MODEL).mkdir(parents=True)
    (root / MODEL / "model.bin").write_bytes(random.Random(8).randbytes(MODEL_BYTES))
    return root


def pull(daemon: DaemonProcess) -> float:
    """Bring the model to a daemon; return how long it took ÷ how long the limit says."""
    started_s = time.monotonic()
    job = daemon.client.wait(str(daemon.client.pull(MODEL)["id"]))
    assert job["state"] == "done", job
    ratio = (time.monotonic() - started_s) * RATE_BPS / MODEL_BYTES
    print(f"time ÷ limit = {ratio:.2f}")
    return ratio


@pytest.mark.parametrize("flag", ["--upstream-limit", "--download-limit"])
def test_pull_from_the_hub_keeps_the_limit(
    small_models: Path, make_daemon: MakeDaemon, flag: str
) -> None:
    """Not faster than was said, and not as slow as a daemon that stumbles over its own brake."""
    with HubProcess(small_models) as hub:
        daemon = make_daemon("a", upstream=hub.url, extra=[flag, str(RATE_BPS)]).start()
        assert RATIO_MIN <= pull(daemon) <= RATIO_MAX
        assert hub.stats()["body_bytes"] <= 1.1 * MODEL_BYTES


@pytest.mark.parametrize(
    ("seeder", "leecher"),
    [
        (["--upload-limit", str(RATE_BPS)], []),
        (["--peer-limit", str(RATE_BPS)], []),
        pytest.param([], ["--peer-limit", str(RATE_BPS)]),
        pytest.param([], ["--download-limit", str(RATE_BPS)]),
    ],
    ids=["upload", "peer-out", "peer-in", "download"],
)
def test_pull_from_a_peer_keeps_the_limit_of_either_side(
    small_models: Path, make_daemon: MakeDaemon, seeder: list[str], leecher: list[str]
) -> None:
    """Whoever set it; and a peer that is slow because of a limit is nobody's fault."""
    with HubProcess(small_models) as hub:
        first = make_daemon("a", upstream=hub.url, extra=seeder).start()
        assert pull(first) < RATIO_MAX
        before = hub.stats()["body_bytes"]
        options = {"peers": [first.peer], "trust_peers": True}
        second = make_daemon("b", upstream=hub.url, extra=leecher, **options).start()
        assert RATIO_MIN <= pull(second) <= RATIO_MAX
        assert hub.stats()["body_bytes"] <= before + 0.1 * MODEL_BYTES
        peers = second.client.peers()["peers"]
    assert isinstance(peers, list)
    assert [(p["name"], p["state"], p["faults"]) for p in peers] == [("a", "up", [])]
    assert peers[0]["received_bytes"] >= 0.9 * MODEL_BYTES
