"""
Owns the tests of daemon.metrics: the text that Prometheus reads.

Knows nothing of what the numbers mean to anybody.
Invariants: every line parses; label values come from fixed sets, whatever is asked for.
Source: daemon/metrics.py; Prometheus exposition format 0.0.4; design.md §8.
"""

from __future__ import annotations

import re

from tests.daemon.local import Served
from tests.engine.conftest import FILES, MODEL_BYTES, REPO, WEIGHTS, MakePeer
from tests.engine.fakepeer import FakePeer

SAMPLE = re.compile(r"([a-z][a-z0-9_]+)(?:\{([^}]*)\})? (-?[0-9.e+-]+|\+Inf|NaN)")
LABEL = re.compile(r'([a-z]+)="([^"\\\n]*)"')
ALLOWED = {
    "source": {"upstream", "peer", "disk"},
    "direction": {"in", "out"},
    "kind": {"blobs", "partial", "adopted", "snapshot", "blob", "file"},
    "dialect": {"hf"},
}
NAMES = {
    "p2pcache_bytes_total",
    "p2pcache_chunks_rejected_total",
    "p2pcache_downloads",
    "p2pcache_store_bytes",
    "p2pcache_evictions_total",
    "p2pcache_evicted_bytes_total",
    "p2pcache_peers",
    "p2pcache_upstream_pauses_total",
    "p2pcache_gateway_requests_total",
    "p2pcache_residency_seconds",
}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def read_metrics(served: Served) -> Samples:
    """Parse the metrics strictly: HELP and TYPE before the samples of a family, no sample twice."""
    reply = await served.ask("/metrics")
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("text/plain")
    text = reply.body.decode()
    assert text.endswith("\n")
    samples: Samples = {}
    typed: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            continue
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert kind in ("counter", "gauge", "histogram")
            assert name not in typed
            typed.add(name)
            continue
        match = SAMPLE.fullmatch(line)
        assert match is not None, line
        assert any(match[1] == n or match[1].startswith(f"{n}_") for n in typed), line
        labels = frozenset(LABEL.findall(match[2] or ""))
        for key, value in labels:
            assert value in ALLOWED.get(key, {value}), line
        assert (match[1], labels) not in samples, line
        samples[match[1], labels] = float(match[3])
    assert typed >= NAMES
    return samples


async def test_metrics_of_an_idle_daemon_parse(served: Served) -> None:
    """Every promised family is there from the start."""
    samples = await read_metrics(served)
    assert samples["p2pcache_peers", frozenset({("state", "up")})] == 0


async def test_bytes_are_counted_to_the_last_digit(served: Served, make_peer: MakePeer) -> None:
    """What came from where and what went out is exact, not rounded."""
    peer: FakePeer = await make_peer(WEIGHTS)
    await served.engine.meet(peer.address)
    for name, content in FILES.items():
        assert (await served.ask(f"/{REPO}/resolve/main/{name}")).body == content
    samples = await read_metrics(served)

    def total(source: str, direction: str) -> float:
        labels = frozenset({("source", source), ("direction", direction)})
        return samples.get(("p2pcache_bytes_total", labels), 0.0)

    assert total("peer", "in") == len(WEIGHTS)
    assert total("upstream", "in") == MODEL_BYTES - len(WEIGHTS)
    assert total("disk", "out") == MODEL_BYTES
    assert samples["p2pcache_store_bytes", frozenset({("kind", "blobs")})] == MODEL_BYTES


async def test_label_values_do_not_come_from_requests(served: Served) -> None:
    """Whatever clients and paths are called, no label is made from it."""
    before = {labels for _, labels in await read_metrics(served)}
    hostile = ['/org/a"b{}/resolve/main/x', "/%0A%22/x", "/api/models/" + "x" * 500, "/\\"]
    for path in hostile:
        await served.ask(path, headers={"User-Agent": 'x"} 1 foo 2'})
    new = {labels for _, labels in await read_metrics(served)} - before
    assert {key for labels in new for key, _ in labels} <= {"dialect", "code"}
    codes = {value for labels in new for key, value in labels if key == "code"}
    assert all(re.fullmatch(r"[1-5]\d\d", code) for code in codes)


async def test_residency_questions_are_timed(served: Served) -> None:
    """Each question is in the histogram once, and its buckets add up."""
    for _ in range(3):
        await served.ask(f"/_p2pcache/v1/residency/{REPO}")
    samples = await read_metrics(served)
    buckets = [value for (name, _), value in samples.items() if name.endswith("_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == samples["p2pcache_residency_seconds_count", frozenset()] == 3
