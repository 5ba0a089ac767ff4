"""
Owns the acceptance case of many workers: what a cold start of sixteen costs the hub.

Knows nothing of single answers.
Invariants: counts at the hub, no times.
Source: acceptance case 24 of the hub protocols.
"""

from __future__ import annotations

import contextlib
import json

import pytest

from tests.clients.client import CLIENT_TIMEOUT_S
from tests.clients.conftest import LONG, MakeClient, MakeDaemon, MakeSample
from tests.daemons import wait_until
from tests.hub import HubProcess
from tests.ports import pick_port

NODES = 4
WORKERS_PER_NODE = 4
FLOATS = 3_000_000
# Beside one body of each file: what nodes asked for before they had met each other's answers.
AMPLIFICATION_MAX = 1.05
# One question of each node for the branch, one for the list, one whether it may be read.
QUESTIONS_PER_NODE_MAX = 6


@LONG
@pytest.mark.timeout(300)
@pytest.mark.parametrize("trust", [True, False], ids=["trusting", "untrusting"])
def test_case_24_sixteen_workers_on_four_nodes_cost_one_copy(
    hub: HubProcess,
    make_daemon: MakeDaemon,
    make_sample: MakeSample,
    make_client: MakeClient,
    trust: bool,
) -> None:
    """All start at once and cold; the hub sends each file once, and is asked little."""
    sample = make_sample(floats=FLOATS)
    ports = [f"127.0.0.1:{pick_port()}" for _ in range(NODES)]
    nodes = [
        make_daemon(
            f"node-{i}", listen=port, peers=[p for p in ports if p != port], trust_peers=trust
        )
        for i, port in enumerate(ports)
    ]
    for node in nodes:
        wait_until(lambda n=node: len(n.client.peers()["peers"]) == NODES - 1, "all have met")  # type: ignore[misc]
    hub.reset()
    script = f"""
        from concurrent.futures import ThreadPoolExecutor
        def work(number):
            return digests(snapshot_download({sample.repo!r}, cache_dir=f"worker-{{number}}"))
        with ThreadPoolExecutor({WORKERS_PER_NODE}) as pool:
            result = list(pool.map(work, range({WORKERS_PER_NODE})))
    """
    with contextlib.ExitStack() as stack:
        clients = [make_client(node, timeout_s=2 * CLIENT_TIMEOUT_S) for node in nodes]
        running = [stack.enter_context(client.started(script)) for client in clients]
        outcomes = [one.finish() for one in running]
    for outcome in outcomes:
        assert outcome.exit_code == 0, outcome.stderr
        assert outcome.result == [sample.truth()] * WORKERS_PER_NODE
    stats = hub.stats()
    size_bytes = sum(len(content) for content in sample.files.values())
    print(json.dumps(stats["requests"]), stats["body_bytes"] / size_bytes)
    assert stats["body_bytes"] <= AMPLIFICATION_MAX * size_bytes
    assert stats["requests"].get("HEAD resolve", 0) <= len(sample.files) + 2 * NODES
    for kind in ("GET revision", "GET tree", "GET info"):
        assert stats["requests"].get(kind, 0) <= QUESTIONS_PER_NODE_MAX * NODES, kind
    assert not any(kind.endswith("xet-read-token") for kind in stats["requests"])
