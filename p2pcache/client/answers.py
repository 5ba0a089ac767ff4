"""
Owns the errors that the daemon answers with, as classes again.

Knows nothing of requests.
Invariants: an error is raised as the class that it was in the daemon, so that exit codes by cause
survive the hop.
Source: docs/reference/errors.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from p2pcache.errors import (
    DaemonError,
    ForbiddenError,
    InputError,
    InvalidRangeError,
    NotFoundError,
    P2PCacheError,
    SourceError,
    StoreError,
    UpstreamRateLimitedError,
    UpstreamUnreachableError,
)

Json = dict[str, Any]

# Fields that a class insists on and that bodies do not carry.
_FIELDS_BY_CODE: dict[str, dict[str, Any]] = {
    "ChunkMismatch": {"chunk_index": -1, "peer_id": ""},
    "BlobCorrupt": {"path": ""},
    "ChunkNotYet": {"retry_after_s": 0.0},
}
_CLASS_BY_STATUS: dict[int, type[P2PCacheError]] = {
    401: ForbiddenError,
    403: ForbiddenError,
    404: NotFoundError,
    416: InvalidRangeError,
    429: UpstreamRateLimitedError,
    502: SourceError,
    503: DaemonError,
    504: UpstreamUnreachableError,
    507: StoreError,
}


def error_of_answer(status: int, answer: Json) -> P2PCacheError:
    """
    Return the error that `{"error", "message"}` says, as the class that the daemon raised.

    Args:
        status: Of the answer; decides where a newer daemon names a class that is unknown here.
        answer: The decoded body.
    """
    code, message = str(answer.get("error", "")), str(answer.get("message", ""))
    message = message or f"The daemon answered {code or status} without a reason; see its log."
    known = {cls.__name__.removesuffix("Error"): cls for cls in _iter_classes(P2PCacheError)}
    fallback = InputError if 400 <= status < 500 else P2PCacheError
    cls = known.get(code, _CLASS_BY_STATUS.get(status, fallback))
    return cls(message, **_FIELDS_BY_CODE.get(code, {}))


def error_of_download(job: Json) -> P2PCacheError | None:
    """
    Return why a download ended without its snapshot, or will not go on by itself: one that is
    paused with an error waits for somebody. None while it may come.
    """
    shown = str(job.get("model") or job.get("id") or "it")
    if job.get("state") == "cancelled":
        return P2PCacheError(
            f"The download of {shown} was cancelled; what was fetched is kept: pull it again to "
            "go on."
        )
    error = job.get("error")
    if job.get("state") != "failed" and not (job.get("state") == "paused" and error):
        return None
    if not isinstance(error, dict):
        error = {"message": f"The download of {shown} failed ({error}); see the daemon's log."}
    return error_of_answer(500, error)


def _iter_classes(base: type[P2PCacheError]) -> Iterator[type[P2PCacheError]]:
    yield base
    for cls in base.__subclasses__():
        yield from _iter_classes(cls)
