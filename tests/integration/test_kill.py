"""
Owns what SIGKILL during a pull must not cost.

Knows nothing of the store's inside.
Invariants: bytes fetched in all runs stay near the model's; the result is right; nothing is left.
Source: issue "hub → peer → peer → client", fault D1 of the fault matrix.
"""

from __future__ import annotations

import random
import time
from functools import partial
from pathlib import Path

import pytest

from tests.daemons import wait_until
from tests.hub import HubProcess
from tests.integration.conftest import MODEL, MakeDaemon, assert_same_files

KILLS = 10
RATE_BYTES_PER_S = 20_000_000
LOST_BYTES_MAX = 64 * 1024 * 1024


def has_sent_more(hub: HubProcess, before: int) -> bool:
    """Return whether the hub has sent body bytes since."""
    return int(hub.stats()["body_bytes"]) > before


@pytest.mark.timeout(180)  # eleven starts of a daemon: 20 s of a machine that does nothing else
def test_pull_killed_ten_times_continues(
    models: Path, model_bytes: int, make_daemon: MakeDaemon
) -> None:
    """Ten kills at random moments cost less than 64 MiB in all, and leave nothing behind."""
    chance = random.Random(10)
    with HubProcess(models, rate_bytes_per_s=RATE_BYTES_PER_S) as hub:
        daemon = make_daemon("a", upstream=hub.url)
        for _ in range(KILLS):
            daemon.start()
            before = int(hub.stats()["body_bytes"])
            daemon.client.pull(MODEL)
            wait_until(partial(has_sent_more, hub, before), "the first byte")
            time.sleep(chance.uniform(0.0, 0.4))
            daemon.kill()
        daemon.start()
        result = daemon.pull(MODEL)
        fetched = hub.stats()["body_bytes"]
    assert result.returncode == 0, result.stderr
    assert_same_files(Path(result.stdout.splitlines()[-1]), models)
    assert fetched <= model_bytes + LOST_BYTES_MAX, f"{fetched - model_bytes} bytes twice"
    print(f"fetched twice: {fetched - model_bytes} bytes over {KILLS} kills")
    assert list((daemon.store / "partial").iterdir()) == []
