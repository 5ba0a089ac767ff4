"""
Owns `/metrics`: counters and gauges in the Prometheus text format.

Knows nothing of what the numbers mean to anybody.
Invariants: label values come from fixed sets, never from a request; names are the contract's.
Source: Prometheus exposition format 0.0.4; docs/reference/metrics.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from aiohttp import web

from p2pcache.daemon.answers import Handler
from p2pcache.daemon.guard import DOWNLOAD_ALIAS, MANAGEMENT_PREFIX
from p2pcache.engine.cache import Cache
from p2pcache.engine.downloads import Downloads
from p2pcache.hubs.router import MODELSCOPE_PATHS

Labels = tuple[tuple[str, str], ...]


_RESIDENCY = MANAGEMENT_PREFIX + "v1/residency/"
_NOT_GATEWAY = (MANAGEMENT_PREFIX, DOWNLOAD_ALIAS, "/metrics", "/healthz", "/readyz")
# Seconds; the goal for a scheduler's question is 10 ms.
RESIDENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Histogram:
    """Counts of observations by upper bound, cumulative, as Prometheus wants them."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self.counts = [0] * (len(RESIDENCY_BUCKETS_S) + 1)

    def note(self, seconds: float) -> None:
        """Count one observation."""
        self.total_s += seconds
        for n, bound_s in enumerate((*RESIDENCY_BUCKETS_S, float("inf"))):
            self.counts[n] += seconds <= bound_s

    def show(self, name: str, kind: str, text: str) -> list[str]:
        """Return its lines."""
        bounds = [*(f"{bound_s:g}" for bound_s in RESIDENCY_BUCKETS_S), "+Inf"]
        return [
            f"# HELP {name} {text}",
            f"# TYPE {name} {kind}",
            *(
                f'{name}_bucket{{le="{bound}"}} {count}'
                for bound, count in zip(bounds, self.counts, strict=True)
            ),
            f"{name}_sum {self.total_s!r}",
            f"{name}_count {self.counts[-1]}",
        ]


class Metrics:
    """What an operator's monitoring reads."""

    def __init__(self, cache: Cache, downloads: Downloads) -> None:
        self._cache = cache
        self._downloads = downloads
        self._requests: Counter[tuple[str, int]] = Counter()
        self._residency = Histogram()

    @web.middleware
    async def count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count the gateway's answers by status."""
        response = await handler(request)
        if not request.path.startswith(_NOT_GATEWAY):
            dialect = "ms" if request.path.startswith(MODELSCOPE_PATHS) else "hf"
            self._requests[dialect, response.status] += 1
        return response

    @web.middleware
    async def time_residency(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Measure how long the answer to "is it here?" takes."""
        started_s = self._cache.context.clock.monotonic_s()
        response = await handler(request)
        # Who waits, or asks the hub or every peer, measures them and not this.
        is_plain = request.method == "GET" and not {"wait", "scope"} & request.query.keys()
        if is_plain and request.path.startswith(_RESIDENCY):
            self._residency.note(self._cache.context.clock.monotonic_s() - started_s)
        return response

    async def show(self, request: web.Request) -> web.Response:
        """Answer `/metrics`."""
        lines = [
            *self._show_transfer(),
            *await self._show_store(),
            *self._show_swarm(),
            *self._show_answers(),
        ]
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain")

    def _show_transfer(self) -> list[str]:
        context = self._cache.context
        states = Counter(job.state.value for job in self._downloads.list_all())
        return [
            *_family(
                "p2pcache_bytes_total",
                "counter",
                "Bytes moved, by where from or to.",
                {
                    (("source", source), ("direction", direction)): float(n)
                    for (source, direction), n in context.bytes_counted.items()
                },
            ),
            *_family(
                "p2pcache_chunks_rejected_total",
                "counter",
                "Chunks that were refused.",
                {
                    (("source", source), ("reason", reason)): float(n)
                    for (source, reason), n in context.chunks_rejected.items()
                },
            ),
            *_family(
                "p2pcache_downloads",
                "gauge",
                "Download jobs by state.",
                {(("state", state),): float(n) for state, n in states.items()},
            ),
        ]

    async def _show_store(self) -> list[str]:
        context = self._cache.context
        count, size_bytes = await context.index.call(lambda index: index.blobs.measure())
        adopted = await context.index.call(lambda index: index.inventory.measure_adopted())
        partial_bytes = await context.in_bulk(context.store.measure_partials)
        evictor = self._cache.space.evictor
        return [
            *_family(
                "p2pcache_store_bytes",
                "gauge",
                "Bytes in the store.",
                {
                    (("kind", "blobs"),): float(size_bytes),
                    (("kind", "partial"),): float(partial_bytes),
                    (("kind", "adopted"),): float(adopted),
                },
            ),
            *_family("p2pcache_store_blobs", "gauge", "Whole blobs.", {(): float(count)}),
            *_family(
                "p2pcache_checked_bytes_total",
                "counter",
                "Bytes that checks looked at.",
                {(): float(self._cache.checkup.checked_bytes_total)},
            ),
            *_family(
                "p2pcache_damaged_chunks_total",
                "counter",
                "Chunks found damaged on this disk.",
                {(): float(self._cache.checkup.healer.damaged_chunks_total)},
            ),
            *_family(
                "p2pcache_evictions_total",
                "counter",
                "What was taken out of the store.",
                {(("kind", kind.value),): float(n) for kind, n in evictor.evicted.items()},
            ),
            *_family(
                "p2pcache_evicted_bytes_total",
                "counter",
                "Bytes that this gave back.",
                {(): float(evictor.evicted_bytes)},
            ),
        ]

    def _show_swarm(self) -> list[str]:
        context = self._cache.context
        up = list(self._cache.swarm.iter_up())
        return [
            *_family(
                "p2pcache_peers",
                "gauge",
                "Peers by state.",
                {
                    (("state", "up"),): float(len(up)),
                    (("state", "banned"),): float(len(self._cache.swarm.peers) - len(up)),
                },
            ),
            *_family(
                "p2pcache_exchanges_total",
                "counter",
                "Exchanges with peers that we began.",
                {(): float(context.exchanges_begun)},
            ),
            *_family(
                "p2pcache_extra_bytes_total",
                "counter",
                "Bytes that came off the wire and were not needed.",
                {(): float(context.pace.extra.spent)},
            ),
            *_family(
                "p2pcache_upstream_pauses_total",
                "counter",
                "Times that the hub asked us to slow down.",
                {(): float(context.budget.pauses_total)},
            ),
        ]

    def _show_answers(self) -> list[str]:
        return [
            *_family(
                "p2pcache_gateway_requests_total",
                "counter",
                "Answers of the hub gateways.",
                {
                    (("dialect", dialect), ("code", str(code))): float(n)
                    for (dialect, code), n in self._requests.items()
                },
            ),
            *_family(
                "p2pcache_token_checks_total",
                "counter",
                "Questions to the hub whether a caller's token lets him in, by its answer.",
                {
                    (("answer", answer),): float(n)
                    for answer, n in self._cache.access.token_checks.items()
                },
            ),
            *_family(
                "p2pcache_grace_answers_total",
                "counter",
                "Restricted files given out while the hub did not answer.",
                {(): float(self._cache.access.grace_answers_total)},
            ),
            *self._residency.show(
                "p2pcache_residency_seconds",
                "histogram",
                "Time to answer how much of a model is here.",
            ),
        ]


def _family(name: str, kind: str, text: str, values: Mapping[Labels, float]) -> list[str]:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for labels, value in sorted(values.items()):
        shown = ",".join(f'{key}="{item}"' for key, item in labels)
        # Every digit: a counter that is rounded has a wrong rate.
        number = f"{value:.0f}" if value.is_integer() else repr(value)
        lines.append(f"{name}{{{shown}}} {number}" if shown else f"{name} {number}")
    return lines
