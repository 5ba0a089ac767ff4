"""
Owns the memory of which commit a client was told that a branch is, so that its GET gets the
file whose HEAD it saw.

Knows nothing of connections: a client is whatever key the caller has for it.
Invariants: a promise is kept for PROMISE_S and no longer; the memory is bounded.
Source: huggingface_hub#4815 (a GET after a move of the branch: other bytes under the old name).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from p2pcache.core.refs import ModelReference

# Between a client's HEAD and its GET lie a lock and a look at its own disk: a second, or several
# where it waits for another process that fetches the same file.
PROMISE_S = 30.0
# Files under way on one machine; the oldest goes.
PROMISES_MAX = 8192


@dataclass(frozen=True, slots=True)
class Promise:
    """What a client was told: the commit, and whether the hub could be asked."""

    commit: str
    is_stale: bool = False


@dataclass(slots=True)
class _Told:
    """What was said of one file at one branch: the last of it, and by whom it was heard."""

    promise: Promise
    until_s: float
    by_client: dict[Hashable, tuple[Promise, float]]


class Promises:
    """Commits that clients were told of. Not thread-safe."""

    # Clients that are remembered for one file; the rest goes by what was said last.
    CLIENTS_PER_FILE_MAX = 64

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[ModelReference, str], _Told] = OrderedDict()

    def note(
        self,
        client: Hashable,
        reference: ModelReference,
        path: str,
        promise: Promise,
        *,
        now_s: float,
    ) -> None:
        """Note that a client was told that a file is at this commit."""
        key, until_s = (reference, path), now_s + PROMISE_S
        told = self._told.pop(key, None) or _Told(promise, until_s, {})
        self._told[key] = told
        told.promise, told.until_s = promise, until_s
        told.by_client.pop(client, None)
        told.by_client[client] = (promise, until_s)
        if len(told.by_client) > self.CLIENTS_PER_FILE_MAX:
            del told.by_client[next(iter(told.by_client))]
        if len(self._told) > PROMISES_MAX:
            self._told.popitem(last=False)

    def find(
        self, client: Hashable, reference: ModelReference, path: str, *, now_s: float
    ) -> Promise | None:
        """
        Return what this client expects, None where nothing was said of late.

        One that asks on a connection of its own is taken for any of those who were told last.
        """
        told = self._told.get((reference, path))
        if told is None:
            return None
        promise, until_s = told.by_client.get(client, (told.promise, told.until_s))
        return promise if now_s < until_s else None
