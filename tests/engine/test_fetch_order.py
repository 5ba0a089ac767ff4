"""
Owns the check that a pull brings what a loader reads first before weights take the line.

Knows nothing of how the order is kept.
Invariants: what is compared is the order of requests at the hub, and shares of bytes.
Source: engine/jobrun.py; core/snapshot.py (rank_for_fetching).
"""

from __future__ import annotations

from random import Random

import pytest

from p2pcache.core.credentials import ANONYMOUS
from p2pcache.core.refs import ModelReference
from p2pcache.engine.downloads import FINAL_STATES, Job, JobOrder, JobState
from tests.engine.conftest import CHUNK_BYTES
from tests.engine.engine import Engine, eventually
from tests.hub import Hub, Repository
from tests.hub.stats import RecordedRequest

BIG = "org/big"
CHANCE = Random(8)
# More than are fetched at once; some of several chunks.
METADATA = {
    "config.json": b"{}",
    "tokenizer.json": CHANCE.randbytes(3 * CHUNK_BYTES),
    "model.safetensors.index.json": CHANCE.randbytes(CHUNK_BYTES + 1),
    **{f"prompts/{n:02}.txt": CHANCE.randbytes(1000 + n) for n in range(20)},
}
WEIGHTS = {
    f"model-0000{n}-of-00003.safetensors": CHANCE.randbytes(20 * CHUNK_BYTES + n) for n in (1, 2, 3)
}
RATE_BYTES_PER_S = 800_000


@pytest.fixture(autouse=True)
def big(hub: Hub) -> None:
    """Have a model with many small files and some large ones."""
    hub.add(Repository(BIG, {**WEIGHTS, **METADATA}))


def start(engine: Engine) -> Job:
    """Begin to pull it."""
    return engine.downloads.start(JobOrder(ModelReference.parse(BIG)), ANONYMOUS)


def list_keys(hub: Hub) -> list[str]:
    """Return the file of each request for bytes, in the order of the requests."""
    asked = [r.key for r in hub.stats.recorded if r.method == "GET" and r.key]
    return [key.removeprefix(f"{BIG}/") for key in asked]


async def test_pull_asks_for_all_metadata_before_the_first_weights(
    engine: Engine, hub: Hub
) -> None:
    """Every small file is asked for before the first header, and here long before the weights."""
    hub.set_faults(rate_bytes_per_s=RATE_BYTES_PER_S)
    job = start(engine)

    def has_metadata() -> bool:
        return set(METADATA) <= {r.key.removeprefix(f"{BIG}/") for r in find_finished(hub)}

    await eventually(has_metadata, "the end of the metadata")
    sent = sum(hub.stats.path_bytes[f"{BIG}/{name}"] for name in WEIGHTS)
    assert sent <= 0.4 * sum(map(len, WEIGHTS.values()))
    await eventually(lambda: job.state in FINAL_STATES, "the end", timeout_s=15.0)
    assert job.state is JobState.DONE
    keys = list_keys(hub)
    first_weights = min(keys.index(name) for name in WEIGHTS)
    assert set(METADATA) == set(keys[:first_weights])


def find_finished(hub: Hub) -> list[RecordedRequest]:
    """Return the requests for bytes that were answered to their end."""
    return [r for r in hub.stats.recorded if r.method == "GET" and r.key and r.is_finished]


async def test_metadata_that_does_not_come_keeps_no_weights_waiting(
    engine: Engine, hub: Hub
) -> None:
    """It was asked for; the line is not idle meanwhile."""
    hub.set_faults(hang_after_bytes=0, paths=f"{BIG}/config.json")
    job = start(engine)
    total = sum(map(len, WEIGHTS.values()))
    await eventually(
        lambda: sum(hub.stats.path_bytes[f"{BIG}/{name}"] for name in WEIGHTS) >= total,
        "all weights",
    )
    assert job.state not in FINAL_STATES
    hub.set_faults()
    await eventually(lambda: job.state in FINAL_STATES, "the end", timeout_s=15.0)
    assert job.state is JobState.DONE
