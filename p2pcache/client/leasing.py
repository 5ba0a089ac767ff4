"""
Owns holding on to a model while it is loaded: a lease that is renewed until it is ended.

Knows nothing of eviction, nor of who loads.
Invariants: a lease that the daemon forgot is taken again, for the same commit; one that cannot be
kept says so, and never stops the program that loads; nothing is renewed after the end.
Source: docs/reference/http-api.md (leases); Kubernetes' Lease objects, for renewing thrice in a
lease's time.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from types import TracebackType

from p2pcache.client.answers import Json
from p2pcache.client.space import SpaceClient
from p2pcache.client.wire import Wire
from p2pcache.errors import InputError, NotFoundError, P2PCacheError

# A program that died protects its model for a minute.
TTL_S_DEFAULT = 60.0
TTL_S_MIN = 3.0
# Two renewals may fail before a lease ends.
RENEWALS_PER_TTL = 3
# After a failed renewal: a daemon that comes back has leases again before it evicts anything.
RETRY_S = 1.0
# The daemon answers from memory; a program that ends must not hang on it.
ANSWER_TIMEOUT_S = 10.0


class Lease:
    """
    A claim on a snapshot: eviction leaves it alone while the lease is held.

        with client.lease("org/name@main") as lease:
            load(lease.path)

    Any thread may use it. Renewing is a thread of this process: a child made by os.fork() has the
    files as long as its parent holds the lease.

    Attributes:
        id: The daemon's name for it; another one after the daemon had forgotten it.
        model: `org/name`, with its hub if that is not Hugging Face.
        commit: What the reference meant when the lease began; later commits change nothing.
        path: The snapshot's folder.
        state: The residency when the lease began: `partial`, `verifying`, `resident` or `corrupt`.
        ttl_s: Seconds that it holds after each renewal.
        holder: Who needs it, for people who read the list.
    """

    def __init__(self, ways: Wire, answer: Json, ttl_s: float, holder: str) -> None:
        self._ways = ways
        self.holder = holder
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._changing = threading.Lock()
        self.error: P2PCacheError | None = None
        self.state = str(answer.get("state", ""))
        self.ttl_s = ttl_s
        self._take_over(answer)

    @property
    def is_held(self) -> bool:
        """Return whether it holds now, as far as this process can tell without asking."""
        return not self._end.is_set() and time.monotonic() < self._expires_s

    def keep(self) -> Lease:
        """Renew it in a thread from now on, until end(); also what `with` does."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._renew_on, name=f"lease-{self.id}", daemon=True
            )
            self._thread.start()
        return self

    def renew(self) -> float:
        """
        Renew it once; a daemon that forgot it is asked for a new one.

        Returns:
            Seconds until the next renewal is due. A failure is kept in `error`.
        """
        asked_s = time.monotonic()
        try:
            with self._changing:
                if not self._end.is_set():
                    self._take_over(self._ask(), asked_s)
        except P2PCacheError as error:
            self.error = error
            return min(RETRY_S, self.ttl_s / RENEWALS_PER_TTL)
        self.error = None
        return self.ttl_s / RENEWALS_PER_TTL

    def end(self) -> None:
        """End it; safe to call twice. A daemon that is gone lets it expire."""
        if self._end.is_set():
            return
        self._end.set()
        with self._changing, contextlib.suppress(P2PCacheError):
            self._client().end_lease(self.id)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(ANSWER_TIMEOUT_S)

    def __enter__(self) -> Lease:
        return self.keep()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def _take_over(self, answer: Json, asked_s: float | None = None) -> None:
        self.id = str(answer.get("id", ""))
        self.model = str(answer.get("model", ""))
        self.commit = str(answer.get("commit", ""))
        self.path = Path(str(answer.get("path", "")))
        # From before the question: the daemon counts from later.
        self._expires_s = (time.monotonic() if asked_s is None else asked_s) + self.ttl_s

    def _ask(self) -> Json:
        client = self._client()
        try:
            return client.renew_lease(self.id, self.ttl_s)
        except NotFoundError:
            return client.lease(f"{self.model}@{self.commit}", self.ttl_s, self.holder)

    def _client(self) -> SpaceClient:
        """Return a way to the daemon, wherever it is after a restart."""
        return self._ways._find_again(SpaceClient, timeout_s=ANSWER_TIMEOUT_S)

    def _renew_on(self) -> None:
        due_s = self.ttl_s / RENEWALS_PER_TTL
        while not self._end.wait(due_s):
            due_s = self.renew()


class LeaseClient(Wire):
    """Leases of one daemon. Every call opens its own connection and blocks."""

    def lease(self, ref: str, ttl_s: float = TTL_S_DEFAULT, holder: str = "") -> Lease:
        """
        Protect a snapshot from eviction; `with` renews the lease until its block ends.

        Without `with`, call keep() to have it renewed and end() when the files are read.

        Args:
            ref: A model reference; what it means now is held to.
            ttl_s: Seconds that the lease outlives this process by; from 3 to 86,400.
            holder: Who needs it, for people who read the list; the process if empty.

        Raises:
            InvalidNameError: No such reference can be.
            InputError: A time that no lease has.
            NotFoundError: Nothing of the snapshot is here.
            ForbiddenError: The daemon's admin token cannot be read.
            DaemonError: It holds as many leases as it can, or none answers.
        """
        if not ttl_s >= TTL_S_MIN:
            raise InputError(
                f"A lease of {ttl_s:g} s cannot be renewed in time; ask for at least "
                f"{TTL_S_MIN:g} s."
            )
        named = holder or f"process {os.getpid()}"
        answer = self._find_again(SpaceClient).lease(ref, ttl_s, named)
        return Lease(self, answer, ttl_s, named)
