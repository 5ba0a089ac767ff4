"""
Owns the form that a look has for programs: field names and units, the same from the daemon and
from a program beside it.

Knows nothing of peers, rates and quotas, which only a daemon knows.
Invariants: field names are the contract's; bytes are whole numbers; what is not known is null.
Source: docs/reference/http-api.md (residency); design.md §8.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pcache.core.refs import ModelReference
from p2pcache.core.residency import State
from p2pcache.core.weights import Weights, plan_memory
from p2pcache.store.lookup import Look

Json = dict[str, object]
UNKNOWN_ETA: Json = {"p50": None, "p95": None}


def describe_unknown(reference: ModelReference, disk_free: int) -> Json:
    """Return the answer for a model of which nothing is known, or nothing may be said."""
    return {
        "model": str(reference.repo),
        "commit": None,
        "state": State.ABSENT.value,
        "pinned": False,
        "bytes_total": None,
        "bytes_local": 0,
        "bytes_missing": None,
        "missing_from_peers": None,
        "missing_from_upstream": None,
        "eta_s": UNKNOWN_ETA,
        "disk_free": disk_free,
        "fits_disk": None,
        "weights": None,
        "memory_floor_bytes": None,
    }


def describe_look(
    reference: ModelReference, look: Look, disk_free: int, splits: Sequence[int] = ()
) -> Json:
    """
    Return what a look alone tells; where the rest comes from, and when, is null.

    Args:
        reference: What was asked about.
        look: What was found.
        disk_free: Bytes.
        splits: Numbers of ranks to tell bytes for.
    """
    residency = look.residency
    missing = residency.bytes_missing
    answer: Json = {
        "model": str(reference.repo),
        "commit": look.chosen.id.commit,
        "confirmed": look.facts.is_confirmed,
        "state": residency.state.value,
        "pinned": look.facts.is_pinned,
        "bytes_total": residency.bytes_total,
        "bytes_local": residency.bytes_local,
        "bytes_missing": missing,
        "missing_from_peers": None if missing else 0,
        "missing_from_upstream": None if missing else 0,
        "eta_s": UNKNOWN_ETA if missing else {"p50": 0.0, "p95": 0.0},
        "disk_free": disk_free,
        "fits_disk": look.need_bytes <= disk_free,
        **_describe_weights(look, splits),
    }
    if residency.verified_wall_s is not None:
        answer["verified_at"] = residency.verified_wall_s
    if residency.state is State.RESIDENT and look.path is not None:
        answer["path"] = look.path
    return answer


def _describe_weights(look: Look, splits: Sequence[int]) -> Json:
    """Return what the heads say; null until all of them were read, or where there are none."""
    weights = look.weights
    if weights is None:
        return {"weights": None, "memory_floor_bytes": None}
    described: Json = {
        "format": weights.format.value,
        "files": weights.files,
        "bytes": weights.tensor_bytes,
        "file_bytes": weights.file_bytes,
        "params": weights.params,
        "tensors": weights.tensors,
        "largest_tensor_bytes": weights.largest_tensor_bytes,
    }
    answer: Json = {"weights": described, "memory_floor_bytes": weights.memory_floor_bytes}
    if look.variants > 1:
        # Several models in one repository: nobody loads all of them.
        described["variants"] = look.variants
        answer["memory_floor_bytes"] = None
    elif splits:
        parts = _split(weights, splits)
        described["per_rank_bytes"] = parts
        floors = {name: plan_memory(count) for name, count in parts.items()}
        answer["memory_floor_per_rank_bytes"] = floors
    return answer


def _split(weights: Weights, splits: Sequence[int]) -> dict[str, int]:
    return {f"tp={ranks}": weights.rank_bytes(ranks) for ranks in splits}
