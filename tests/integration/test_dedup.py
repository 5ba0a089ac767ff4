"""
Owns that the second of two models that share tensors costs its new bytes alone.

Knows nothing of how twins are found.
Invariants: counted at the hub.
Source: docs/decisions/0010-deduplication.md.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.sample import MODEL, prepare_models
from tests.daemons import DaemonProcess
from tests.hub import HubProcess
from tests.integration.conftest import MakeDaemon
from tests.tensorfiles import Tensors, make_safetensors, read_safetensors

SHARE_MAX = 1.1
TENSOR_BYTES = 1 << 20
TENSORS = 30
CHANGED = range(12, 15)
EXTRA_BYTES = 700_004
# Of the real model: one of its six layers, as if that alone had been trained further.
TRAINED = "encoder.layer.3."
NAME = "model.safetensors"
EXTRA_NAME = "a.extra"


@dataclass(frozen=True)
class Pair:
    """Two models, `org/base` and `org/tuned`, and the bytes of tensors that only the second has."""

    root: Path
    new_bytes: int


def write_pair(root: Path, base: Tensors, changed: Collection[str], seed: int) -> Pair:
    """Write both: some tensors differ, one more in front shifts all the others."""
    chance = random.Random(seed)
    tuned = {EXTRA_NAME: ("F32", [EXTRA_BYTES // 4], chance.randbytes(EXTRA_BYTES)), **base}
    for name in changed:
        kind, shape, content = base[name]
        tuned[name] = (kind, shape, chance.randbytes(len(content)))
    for repo, tensors in (("base", base), ("tuned", tuned)):
        path = root / "org" / repo / NAME
        path.parent.mkdir(parents=True)
        path.write_bytes(make_safetensors(tensors))
        path.with_name("config.json").write_text(f'{{"name": "{repo}"}}')
    return Pair(root, sum(len(tuned[name][2]) for name in (EXTRA_NAME, *changed)))


def make_small_pair(root: Path) -> Pair:
    """Make a model of equal tensors, of which a tenth differs."""
    chance = random.Random(5)
    base = {
        f"layer.{n:02}.weight": ("F32", [TENSOR_BYTES // 4], chance.randbytes(TENSOR_BYTES))
        for n in range(TENSORS)
    }
    return write_pair(root, base, [f"layer.{n:02}.weight" for n in CHANGED], 6)


def make_real_pair(root: Path) -> Pair:
    """Make a published model into two; it is downloaded where it is not here yet."""
    base = read_safetensors((prepare_models() / MODEL / NAME).read_bytes())
    return write_pair(root, base, [name for name in base if name.startswith(TRAINED)], 6)


SLOW = pytest.mark.skipif(
    not os.environ.get("P2PCACHE_SLOW"), reason="only with P2PCACHE_SLOW=1: downloads 85 MB"
)


@pytest.fixture(
    scope="module",
    params=[make_small_pair, pytest.param(make_real_pair, marks=SLOW)],
    ids=["small", "real"],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two models that share most tensors, at other places."""
    make: Callable[[Path], Pair] = request.param
    return make(tmp_path_factory.mktemp("pair"))


def pull(daemon: DaemonProcess, pair: Pair, repo: str) -> None:
    """Pull a model; its weights are right."""
    job = daemon.client.wait(str(daemon.client.pull(f"org/{repo}")["id"]))
    assert job["state"] == "done", job
    content = (Path(str(job["path"])) / NAME).read_bytes()
    assert content == (pair.root / "org" / repo / NAME).read_bytes()


def test_second_model_costs_its_new_bytes_with_the_hub_alone(
    pair: Pair, make_daemon: MakeDaemon
) -> None:
    """Nobody says which parts are the same; names and a look at a few bytes do."""
    with HubProcess(pair.root) as hub:
        daemon = make_daemon("a", upstream=hub.url).start()
        pull(daemon, pair, "base")
        before = hub.stats()["body_bytes"]
        pull(daemon, pair, "tuned")
        fetched = hub.stats()["body_bytes"] - before
    print(f"{fetched:,} of {pair.new_bytes:,} new bytes: {fetched / pair.new_bytes:.4f}")
    assert fetched <= SHARE_MAX * pair.new_bytes


def test_second_model_costs_the_hub_nothing_and_a_peer_its_new_bytes(
    pair: Pair, make_daemon: MakeDaemon
) -> None:
    """A peer's chunk table says what is here already."""
    with HubProcess(pair.root) as hub:
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
    assert job["bytes_from_peers"] <= SHARE_MAX * pair.new_bytes
    assert fetched <= SHARE_MAX * pair.new_bytes // 100 + 20_000
