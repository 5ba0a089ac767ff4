"""
Owns asking the local daemon how much of a model is here, and having it look at the hub.

Knows nothing of how the daemon knows.
Invariants: answers are passed on unchanged; sizes are bytes, times are seconds.
Source: docs/reference/http-api.md (residency); design.md §8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict, cast
from urllib.parse import quote, urlencode

from p2pcache.client.answers import Json
from p2pcache.client.wire import Wire, add_choice
from p2pcache.core.refs import ModelReference

# Beyond the time that the daemon was asked to wait: its disk may be busy with the very download.
ANSWER_GRACE_S = 30.0
# A hub that has to be asked for many heads, one round trip each, eight at a time.
LEARN_TIMEOUT_S = 300.0


class EtaAnswer(TypedDict):
    """Seconds until all is here: probably, and if it goes slowly; None where nobody knows."""

    p50: float | None
    p95: float | None


class WeightsAnswer(TypedDict):
    """
    What the heads of the weight files say, exact before any of them is here.

    `bytes`: of the tensors, as a loader puts them into memory; `file_bytes`: of their files;
    `params`: elements by type; `per_rank_bytes`: by `tp=N`, where that was asked for; `variants`:
    how many models these are, where a repository holds several.
    """

    format: str
    files: int
    bytes: int
    file_bytes: int
    params: dict[str, int]
    tensors: int
    largest_tensor_bytes: int
    per_rank_bytes: NotRequired[dict[str, int]]
    variants: NotRequired[int]


class PeerAnswer(TypedDict):
    """What a peer has of the model, in bytes, and when it would have the rest."""

    name: str
    id: str
    bytes_local: int | None
    eta_s: EtaAnswer


class EvictionAnswer(TypedDict):
    """What a pull would take out of the store to make room, and the bytes that gives."""

    what: str
    name: str
    bytes: int


class ResidencyAnswer(TypedDict):
    """
    How much of a model is here. Sizes in bytes; times in seconds, `verified_at` since 1970.

    `commit` is None, and so are the sizes, for a model that nothing is known of; `weights` until
    the heads of its weight files were read, which a pull does first, and learn() alone.
    """

    model: str
    commit: str | None
    confirmed: NotRequired[bool]
    state: str
    pinned: bool
    bytes_total: int | None
    bytes_local: int
    bytes_missing: int | None
    missing_from_peers: int | None
    missing_from_upstream: int | None
    eta_s: EtaAnswer
    disk_free: int
    fits_disk: bool | None
    weights: WeightsAnswer | None
    memory_floor_bytes: int | None
    memory_floor_per_rank_bytes: NotRequired[dict[str, int]]
    would_evict: NotRequired[list[EvictionAnswer]]
    path: NotRequired[str]
    verified_at: NotRequired[float]
    peers: NotRequired[list[PeerAnswer]]


class ResidencyClient(Wire):
    """
    Residency, from one daemon. Every call opens its own connection and blocks; any number of
    threads may share a client.
    """

    def residency(
        self,
        ref: str,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        tp: Sequence[int] = (),
        is_cluster: bool = False,
        wait_s: float | None = None,
    ) -> ResidencyAnswer:
        """
        Return how much of a model is here. No hub is asked; milliseconds, unless it waits.

        Args:
            ref: A model reference.
            include: Globs of the files that count; () for those that a pull brings by itself.
            exclude: Globs of files that do not.
            tp: Numbers of ranks; `weights` then has the bytes of the fullest one.
            is_cluster: Ask every peer what it has, too.
            wait_s: Seconds to wait until it is resident, 600 at most; when they are over, the
                answer is what is here then.

        Raises:
            InvalidNameError: No such reference can be.
            InputError: No file matches, or a number is out of bounds.
            DaemonUnreachableError: No daemon answers.
        """
        query = [("include", p) for p in include] + [("exclude", p) for p in exclude]
        query += [("tp", str(ranks)) for ranks in tp]
        if is_cluster:
            query.append(("scope", "cluster"))
        timeout_s = None
        if wait_s is not None:
            query += [("wait", "resident"), ("timeout", f"{wait_s:g}")]
            timeout_s = wait_s + ANSWER_GRACE_S
        path = _path_of(ref) + (f"?{urlencode(query)}" if query else "")
        return cast("ResidencyAnswer", self._get(path, timeout_s=timeout_s))

    def learn(
        self,
        ref: str,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        token: str | None = None,
    ) -> ResidencyAnswer:
        """
        Have the daemon ask the hub what a model is, and return its residency.

        The commit, the file list and the heads of the weight files are fetched, some hundred
        kilobytes; nothing else is. Needs the admin token. Blocks for as long as the hub takes.

        Args:
            ref: A model reference.
            include: Globs of the weight files to read; () for those that a pull brings.
            exclude: Globs of those to leave.
            token: The caller's token for the hub. It goes into the body, never into a log.

        Raises:
            NotFoundError: The hub has no such model.
            SourceError: The hub refuses, or does not answer.
            DaemonUnreachableError: No daemon answers.
            ForbiddenError: The admin token cannot be read.
        """
        body: Json = {}
        add_choice(body, include, exclude, token)
        patient = self._find_again(ResidencyClient, timeout_s=LEARN_TIMEOUT_S)
        return cast("ResidencyAnswer", patient._change("POST", _path_of(ref), body))


def _path_of(ref: str) -> str:
    return f"/residency/{quote(str(ModelReference.parse(ref)), safe='')}"
