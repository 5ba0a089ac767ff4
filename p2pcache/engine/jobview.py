"""
Owns how a download job is shown: to programs of this machine, and to a daemon that ordered it.

Knows nothing of HTTP.
Invariants: field names are the contract's; a token is in no view; numbers add up.
Source: design.md §8 (downloads); docs/reference/http-api.md; docs/reference/peer-protocol.md.
"""

from __future__ import annotations

from p2pcache.core.jobs import JobState
from p2pcache.engine.jobs import Job, WorkerView

# What is shown of a rate below one byte a second: nothing moves.
_RATE_MIN_BPS = 1.0


def describe_job(job: Job, *, now_s: float) -> dict[str, object]:
    """Return a job, for programs of this machine."""
    order = job.order
    described = describe_progress(job, now_s=now_s)
    described |= {
        "revision": order.reference.revision,
        "priority": order.priority,
        "added_at": job.added_wall_s,
    }
    if job.ended_wall_s is not None:
        described["ended_at"] = job.ended_wall_s
    if order.include or order.exclude:
        described |= {"include": list(order.include), "exclude": list(order.exclude)}
    if job.left_out_files:
        described["left_out"] = {
            "files": job.left_out_files,
            "bytes": job.left_out_bytes,
            "example": job.left_out_example,
            "reason": "the same weights are in the safetensors",
            "get_with": "include: ['*']",
        }
    if order.path is not None:
        described["download_path"] = order.path
        if job.placed:
            described["placed"] = dict(job.placed)
    if job.origin:
        described["ordered_by"] = job.origin
    if job.parent:
        described["parent"] = job.parent
    if job.is_passed_on:
        described["workers"] = [describe_worker(view) for view in job.workers]
    return described


def describe_progress(job: Job, *, now_s: float) -> dict[str, object]:
    """Return how far a job is: what the daemon that ordered it is told as well."""
    counts = job.count_bytes()
    done = counts.total()
    rate_bps, likely_s, careful_s = estimate(job, now_s=now_s)
    described: dict[str, object] = {
        "id": job.id,
        "model": str(job.order.reference.repo),
        "commit": job.commit,
        "state": job.state.value,
        "bytes_total": job.bytes_total,
        "bytes_done": done,
        "bytes_from_peers": counts["peer"],
        "bytes_from_upstream": counts["upstream"],
        "bytes_from_disk": counts["disk"],
        "rate_bps": round(rate_bps),
        "eta_s": None if likely_s is None else round(likely_s, 1),
        "eta": None
        if likely_s is None or careful_s is None
        else {"p50": round(likely_s, 1), "p95": round(careful_s, 1)},
    }
    if job.path is not None:
        described["path"] = job.path
    if job.failure is not None:
        described["error"] = job.failure.to_json()
    return described


def estimate(job: Job, *, now_s: float) -> tuple[float, float | None, float | None]:
    """Return a job's rate, and in how many seconds it is probably, and almost surely, done."""
    counts = job.count_bytes()
    missing = max(0, job.bytes_total - counts.total())
    if job.is_over or job.state is JobState.PAUSED:
        return 0.0, None, None
    if job.is_passed_on:
        rate = sum(view.seen.get("rate_bps", 0) for view in job.workers)
        ends = [v.eta_s for v in job.workers if v.eta_s is not None]
        return float(rate), max(ends, default=None), max(ends, default=None)
    # Chunks on their way: without them a slow line would seem to stand still, then to leap.
    under_way = job.count_under_way()
    moved = counts["peer"] + counts["upstream"] + under_way
    missing = max(0, missing - under_way)
    job.throughput.note(moved, now_s=now_s)
    rate_bps = job.throughput.rate_bps()
    if job.state is not JobState.DOWNLOADING or rate_bps < _RATE_MIN_BPS:
        return rate_bps, None, None
    return rate_bps, job.throughput.eta_s(missing), job.throughput.careful_eta_s(missing)


def describe_worker(view: WorkerView) -> dict[str, object]:
    """Return how far one daemon is with an order."""
    described: dict[str, object] = {
        "name": view.name,
        "id": view.peer_id,
        "state": view.state.value,
        "reachable": view.is_reachable,
        "bytes_total": view.seen.get("bytes_total", 0),
        "bytes_done": view.seen.get("bytes_done", 0),
        "bytes_from_peers": view.seen.get("bytes_from_peers", 0),
        "bytes_from_upstream": view.seen.get("bytes_from_upstream", 0),
        "bytes_from_disk": view.seen.get("bytes_from_disk", 0),
        "rate_bps": view.seen.get("rate_bps", 0),
        "eta_s": view.eta_s,
    }
    if view.path is not None:
        described["path"] = view.path
    if view.failure is not None:
        described["error"] = view.failure.to_json()
    return described
