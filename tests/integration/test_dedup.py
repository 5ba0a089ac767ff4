"""
Owns that the second of two models that share tensors costs its new bytes alone.

Knows nothing of how twins are found.
Invariants: counted at the hub.
Source: docs/decisions/0010-deduplication.md.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.daemons import DaemonProcess
from tests.hub import HubProcess
from tests.integration.conftest import MakeDaemon
from tests.tensorfiles import make_safetensors

SHARE_MAX = 1.1
TENSOR_BYTES = 1 << 20
TENSORS = 30
CHANGED = range(12, 15)
EXTRA_BYTES = 700_004
NEW_BYTES = len(CHANGED) * TENSOR_BYTES + EXTRA_BYTES
NAME = "model.safetensors"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models: a tenth of the tensors differ, one more in front shifts all the others."""
    root, chance = tmp_path_factory.mktemp("pair"), random.Random(5)
    base = {
        f"layer.{n:02}.weight": ("F32", [TENSOR_BYTES // 4], chance.randbytes(TENSOR_BYTES))
        for n in range(TENSORS)
    }
    tuned = {"a.extra": ("F32", [EXTRA_BYTES // 4], chance.randbytes(EXTRA_BYTES)), **base}
    for n in CHANGED:
        name = f"layer.{n:02}.weight"
        tuned[name] = ("F32", [TENSOR_BYTES // 4], chance.randbytes(TENSOR_BYTES))
    for repo, tensors in (("base", base), ("tuned", tuned)):
        path = root / "org" / repo / NAME
        path.parent.mkdir(parents=True)
        path.write_bytes(make_safetensors(tensors))
        path.with_name("config.json").write_text(f'{{"name": "{repo}"}}')
    return root


def pull(daemon: DaemonProcess, pair: Path, repo: str) -> None:
    """Pull a model; its weights are right."""
    job = daemon.client.wait(str(daemon.client.pull(f"org/{repo}")["id"]))
    assert job["state"] == "done", job
    content = (Path(str(job["path"])) / NAME).read_bytes()
    assert content == (pair / "org" / repo / NAME).read_bytes()


def test_second_model_costs_its_new_bytes_with_the_hub_alone(
    pair: Path, make_daemon: MakeDaemon
) -> None:
    """Nobody says which parts are the same; names and a look at a few bytes do."""
    with HubProcess(pair) as hub:
        daemon = make_daemon("a", upstream=hub.url).start()
        pull(daemon, pair, "base")
        before = hub.stats()["body_bytes"]
        pull(daemon, pair, "tuned")
        fetched = hub.stats()["body_bytes"] - before
    print(f"fetched ÷ new = {fetched / NEW_BYTES:.4f}")
    assert fetched <= SHARE_MAX * NEW_BYTES


def test_second_model_costs_the_hub_nothing_and_a_peer_its_new_bytes(
    pair: Path, make_daemon: MakeDaemon
) -> None:
    """A peer's chunk table says what is here already."""
    with HubProcess(pair) as hub:
        holder = make_daemon("holder", upstream=hub.url).start()
        for repo in ("base", "tuned"):
            pull(holder, pair, repo)
        daemon = make_daemon("a", upstream=hub.url).start()
        pull(daemon, pair, "base")
        daemon.stop()
        daemon = make_daemon("a", upstream=hub.url, peers=[holder.peer]).start()
        before = hub.stats()["body_bytes"]
        job = daemon.client.wait(str(daemon.client.pull("org/tuned")["id"]))
        fetched = hub.stats()["body_bytes"] - before
    assert job["state"] == "done", job
    assert job["bytes_from_peers"] <= SHARE_MAX * NEW_BYTES
    assert fetched <= SHARE_MAX * NEW_BYTES // 100 + 20_000
