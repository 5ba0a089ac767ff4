"""
Owns what the hub gives to anybody: proofs of it, their age, and taking them back.

Knows nothing of callers' tokens.
Invariants: "public" comes from the hub's answer to an anonymous HEAD of a file, or the operator's
word; a hub that does not answer proves nothing and takes nothing back; a refusal takes back what
was shared of the repository, at once: bytes for peers, modes of files and of the hub tree.
Source: design.md §7; docs/decisions/0008-one-visibility-proof.md, 0019-how-old-a-yes-may-be.md.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, cast

from p2pcache.core.credentials import ANONYMOUS
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.engine.context import Context
from p2pcache.engine.single import SingleFlight
from p2pcache.errors import (
    EntryNotFoundError,
    IntegrityError,
    NotFoundError,
    P2PCacheError,
    RevisionNotFoundError,
    StoreError,
    UpstreamAuthError,
    UpstreamProtocolError,
    UpstreamRateLimitedError,
    UpstreamUnreachableError,
)
from p2pcache.transfer.upstream import UpstreamSource

log = logging.getLogger(__name__)

# What a hub says, or does not say, when it cannot be asked.
UNANSWERED = (UpstreamUnreachableError, UpstreamRateLimitedError, UpstreamProtocolError)
REFUSED = (UpstreamAuthError, NotFoundError)
# A hub that kept us waiting for nothing is asked for another proof no sooner than this; an older
# yes stands meanwhile.
SILENCE_S = 5.0
# How long a reader waits for a slow hub who has an older yes: his client gives up after 10 s.
PATIENCE_S = 2.0
# And for one that did not answer the last time.
SILENT_PATIENCE_S = 0.5
# While little of the hub's quota is left, an older yes stands unasked for as long.
SCARCE_TTL_S = 86_400.0
# How often we look for proofs that what is shared depends on and that have grown too old, and how
# many are renewed then: 1,200 snapshots an hour, a request each.
SWEEP_INTERVAL_S = 60.0
SWEEP_PROOFS_MAX = 20
# What a hub has to show of a file that is here for somebody else: at places that nobody can know
# beforehand, and few bytes, since the file is not fetched again. Whoever has half of it passes one
# time in sixteen; who has its digest, or its head, never.
PROBES, PROBE_BYTES = 4, 4096
# Snapshots whose last refusal is remembered, so that it need not be asked for at every request.
REFUSALS_MAX = 4096


@dataclass(frozen=True, slots=True)
class Proof:
    """What the hub said when somebody without a token asked; `error` is what he was told."""

    is_public: bool
    error: P2PCacheError | None = None


class Visibility:
    """What is public. Event loop only."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # Told of every snapshot that the hub refuses to an anonymous caller.
        self.on_revoked: list[Callable[[Snapshot], None]] = []
        # When the hub last left a question for a proof unanswered.
        self.unanswered_s = float("-inf")
        self._is_silent = False
        self._proofs = SingleFlight()
        self._refused_at_s: OrderedDict[SnapshotId, float] = OrderedDict()
        self._repo_refused_at_s: OrderedDict[RepoId, float] = OrderedDict()
        self._sweep: asyncio.Task[None] | None = None

    # --- asking ---

    async def find_age_s(self, snapshot_id: SnapshotId) -> float | None:
        """Return how old the proof of a snapshot is, None without one."""
        wall_s = await self._context.index.call(
            lambda index: index.catalogue.find_public_wall_s(snapshot_id)
        )
        return None if wall_s is None else self._context.clock.wall_s() - wall_s

    def is_fresh(self, age_s: float | None) -> bool:
        """Return whether a proof of that age stands without asking the hub."""
        if age_s is None or age_s < 0:
            return False
        is_scarce = is_paused(self._context) or is_scarce_now(self._context)
        return age_s < (SCARCE_TTL_S if is_scarce else self._context.settings.public_ttl_s)

    def was_refused_lately(self, snapshot_id: SnapshotId) -> bool:
        """Return whether the hub refused an anonymous caller within the life of a yes."""
        at_s = self._refused_at_s.get(snapshot_id)
        now_s = self._context.clock.monotonic_s()
        return at_s is not None and now_s - at_s < self._context.settings.grant_ttl_s

    def find_limit_s(self, repo: RepoId) -> float:
        """
        Return the moment (monotonic) before which nothing counts that the hub said of a repository
        to anybody: as old as a proof may be, and never from before its last refusal.
        """
        refused_s = self._repo_refused_at_s.get(repo, float("-inf"))
        if is_paused(self._context) or is_scarce_now(self._context):
            return refused_s
        now_s = self._context.clock.monotonic_s()
        return max(refused_s, now_s - self._context.settings.public_ttl_s)

    async def is_public(self, snapshot: Snapshot) -> bool:
        """
        Return whether the hub gives this snapshot's files to anybody.

        When the hub does not answer, an older yes stands; without one the answer is no.
        """
        age_s = await self.find_age_s(snapshot.id)
        if self.is_fresh(age_s):
            return True
        silent_s = self._context.clock.monotonic_s() - self.unanswered_s
        if age_s is not None and self._is_silent and silent_s < SILENCE_S:
            return True
        question = self.start_proof(snapshot)
        if age_s is not None:
            patience_s = SILENT_PATIENCE_S if self._is_silent else PATIENCE_S
            done, _ = await asyncio.wait({question}, timeout=patience_s)
            if not done:  # the question goes on, behind the reader's back
                self._note_silence(after_s=patience_s)
                return True
        return cast("Proof", await asyncio.shield(question)).is_public

    async def prove(self, snapshot: Snapshot) -> Proof:
        """Ask the hub now, with whoever else asks about this snapshot."""
        return await self._proofs.run(snapshot.id, lambda: self._prove(snapshot))

    def start_proof(self, snapshot: Snapshot) -> asyncio.Task[Any]:
        """Ask the hub without waiting for its answer."""
        return self._proofs.start(snapshot.id, lambda: self._prove(snapshot))

    async def prove_file(self, snapshot: Snapshot, entry: FileEntry, fd: int) -> None:
        """
        Insist that the hub gives these very bytes to anybody: a list alone proves nothing of a
        blob that is here for somebody else's sake, and whoever made it may have the digest only.

        Args:
            snapshot: The list.
            entry: What it says of the file.
            fd: The file that is here, open.

        Raises:
            UpstreamAuthError, NotFoundError: It does not give the file.
            IntegrityError: It gives other bytes under this digest.
            SourceError: It cannot be asked.
        """
        context = self._context
        await context.hub.check_access(snapshot.id, entry.path, ANONYMOUS)
        location = context.hub.locate(snapshot.id, entry, ANONYMOUS)
        source = UpstreamSource(
            location, context.upstream_pool, on_answer=context.budget.note_bulk_answer
        )
        for start, length in choose_probes(entry.size_bytes, context.random):
            read = partial(source.read_range, start, length, entry.size_bytes, may_skip=True)
            theirs = await context.on_wire(read, is_upstream=True)
            if theirs != await context.in_bulk(os.pread, fd, length, start):
                raise IntegrityError(
                    f"What the hub gives as {location.what} is not what its list says; tell the "
                    "owner of the repository."
                )

    async def _prove(self, snapshot: Snapshot) -> Proof:
        started_s = asyncio.get_running_loop().time()
        try:
            await ask_largest(self._context, snapshot)
        except UNANSWERED as error:
            self._note_silence(after_s=asyncio.get_running_loop().time() - started_s)
            return Proof(await self.find_age_s(snapshot.id) is not None, error)
        except REFUSED as error:
            self._is_silent = False
            await self._take_back(snapshot, error)
            return Proof(is_public=False, error=error)
        self._is_silent = False
        self._refused_at_s.pop(snapshot.id, None)
        await self.note_public(snapshot.id)
        return Proof(is_public=True)

    def _note_silence(self, *, after_s: float) -> None:
        """Leave a hub alone that kept us waiting for nothing; one that is off says so at once."""
        self.unanswered_s = self._context.clock.monotonic_s()
        self._is_silent = self._is_silent or after_s >= SILENT_PATIENCE_S

    # --- what was heard ---

    async def note_public(self, snapshot_id: SnapshotId) -> None:
        """Record that the hub gave a file to an anonymous caller just now."""
        wall_s = self._context.clock.wall_s()
        await self._context.index.call(
            lambda index: index.catalogue.set_public(snapshot_id, wall_s)
        )

    def note_refused(self, repo: RepoId, *, is_to_all: bool = False) -> None:
        """
        Take a refusal that somebody heard as a reason to ask again what is public of it.

        Args:
            repo: Which.
            is_to_all: Whether he showed no token, so that it holds for everybody.
        """
        if is_to_all:
            self._note_repo_refusal(repo)
        self._proofs.start(repo, lambda: self._renew_repo(repo))

    async def _renew_repo(self, repo: RepoId) -> None:
        for snapshot in await self._list_public(repo):
            if not (await self.prove(snapshot)).is_public:
                return  # the rest went with it

    async def _take_back(self, snapshot: Snapshot, error: P2PCacheError) -> None:
        """Revoke one snapshot; all of its repository unless only this commit is gone."""
        self._note_refusal(snapshot.id)
        self._note_repo_refusal(snapshot.id.repo)
        others: list[Snapshot] = []
        if not isinstance(error, RevisionNotFoundError | EntryNotFoundError):
            others = await self._list_public(snapshot.id.repo)
        for each in [snapshot, *(other for other in others if other.id != snapshot.id)]:
            await self.revoke(each.id)
            for tell in self.on_revoked:
                tell(each)

    def _note_refusal(self, snapshot_id: SnapshotId) -> None:
        self._refused_at_s.pop(snapshot_id, None)
        self._refused_at_s[snapshot_id] = self._context.clock.monotonic_s()
        while len(self._refused_at_s) > REFUSALS_MAX:
            self._refused_at_s.popitem(last=False)

    def _note_repo_refusal(self, repo: RepoId) -> None:
        self._repo_refused_at_s.pop(repo, None)
        self._repo_refused_at_s[repo] = self._context.clock.monotonic_s()
        while len(self._repo_refused_at_s) > REFUSALS_MAX:
            self._repo_refused_at_s.popitem(last=False)

    async def _list_public(self, repo: RepoId) -> list[Snapshot]:
        return await self._context.index.call(lambda index: index.catalogue.list_public(repo))

    async def revoke(self, snapshot_id: SnapshotId) -> None:
        """
        Record that the hub refused an anonymous caller; stop sharing what is public nowhere else.
        """
        hidden = await self._context.index.call(
            lambda index: index.catalogue.revoke_public(snapshot_id)
        )
        for blob in hidden:
            await self._context.in_bulk(self._context.store.set_restricted, blob)
        if not await self._list_public(snapshot_id.repo):
            await self._context.in_bulk(self._context.tree.hide_repo, snapshot_id.repo)

    # --- what is shared without a question ---

    def open(self) -> None:
        """Begin to renew the proofs that peers' answers and the hub tree depend on."""
        self._sweep = asyncio.create_task(self._sweep_regularly())

    async def sweep(self) -> int:
        """Renew the oldest proofs that what is shared depends on; returns how many were too old."""
        context = self._context
        older_than_s = context.clock.wall_s() - context.settings.shared_ttl_s
        due = await context.index.call(
            lambda index: index.catalogue.list_shared(older_than_s, SWEEP_PROOFS_MAX)
        )
        for snapshot in due:
            if is_paused(context) or is_scarce_now(context):
                break
            if isinstance((await self.prove(snapshot)).error, UNANSWERED):
                break
        return len(due)

    async def _sweep_regularly(self) -> None:
        while True:
            # Daemons that were started together do not ask together.
            await asyncio.sleep(SWEEP_INTERVAL_S * self._context.random.uniform(0.5, 1.5))
            try:
                await self.sweep()
            except StoreError as error:
                log.warning("what is public could not be looked through: %s", error)

    async def close(self) -> None:
        """Stop asking."""
        if self._sweep is not None:
            self._sweep.cancel()
            await asyncio.gather(self._sweep, return_exceptions=True)
        await self._proofs.close()


def choose_probes(size_bytes: int, random: Random) -> list[tuple[int, int]]:
    """Return (start, length) of the bytes by which a file is recognised that is not fetched."""
    if size_bytes <= PROBES * PROBE_BYTES:
        return [(0, size_bytes)] if size_bytes else []
    starts = [random.randrange(size_bytes - PROBE_BYTES + 1) for _ in range(PROBES)]
    return [(start, PROBE_BYTES) for start in starts]


def is_paused(context: Context) -> bool:
    """Return whether the hub asked us to ask nothing."""
    return context.clock.monotonic_s() < context.budget.paused_until_s


def is_scarce_now(context: Context) -> bool:
    """Return whether so little of the hub's quota is left that what is asked has to be spread."""
    return not is_paused(context) and not context.budget.may_ask(context.clock.monotonic_s())


async def ask_largest(context: Context, snapshot: Snapshot) -> None:
    """
    Ask the hub, as anybody, for the file that it would withhold first: the largest.

    Raises:
        UpstreamAuthError, NotFoundError: It refuses.
        SourceError: It cannot be asked.
    """
    if not snapshot.files:
        # No file to ask for: whoever may see the repository may see that it is empty.
        await context.hub.resolve(snapshot.id.repo, snapshot.id.commit, ANONYMOUS)
        return
    await context.hub.check_access(snapshot.id, choose_file(snapshot, None).path, ANONYMOUS)


def choose_file(snapshot: Snapshot, path: str | None) -> FileEntry:
    """Return the file to ask about: the one that is wanted, else the largest."""
    largest = max(snapshot.files, key=lambda entry: entry.size_bytes)
    return next((entry for entry in snapshot.files if entry.path == path), largest)
