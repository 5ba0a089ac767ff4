"""
Owns metadata: which commit a revision is, which files a commit has; from here, hub or peers.

Knows nothing of bytes.
Invariants: one answer for `main` for ref_ttl_s, so that HEAD, GET and listing agree; a commit's
listing never changes; what a peer says counts only where the operator trusts peers; a hub's no
is kept for seconds, and for the caller that got it alone.
Source: design.md §5 step ③ and §7.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from p2pcache.core.credentials import ANONYMOUS, Credentials
from p2pcache.core.promises import Promise
from p2pcache.core.refs import ModelReference, RepoId, SnapshotId, is_commit
from p2pcache.core.snapshot import Snapshot
from p2pcache.engine.access import Access
from p2pcache.engine.context import Context
from p2pcache.engine.hearsay import Heard, Hearsay
from p2pcache.engine.refusals import Refusals
from p2pcache.engine.single import SingleFlight
from p2pcache.engine.swarm import Swarm
from p2pcache.errors import (
    NotFoundError,
    RepositoryNotFoundError,
    SourceError,
    UpstreamAuthError,
    UpstreamProtocolError,
    UpstreamRateLimitedError,
    UpstreamUnreachableError,
)
from p2pcache.hubs.base import Resolution
from p2pcache.store.catalogue import RefRow, SnapshotRow

log = logging.getLogger(__name__)

# A list that the hub did not confirm is asked for again after this long, when somebody wants it.
CONFIRM_PAUSE_S = 60.0
# A list that the hub confirmed to a trusted peer is asked for once more after about this long, at
# a moment of our own: a thousand machines that heard of it together would else ask together.
HEARD_CONFIRM_S_MIN, HEARD_CONFIRM_S_MAX = 600.0, 3600.0
# What is cached is answered as stale when the hub takes longer than this; it may go on answering.
# Clients give a HEAD 10 s, and mean it. Shorter once it was silent: an outage is not one wait.
STALE_AFTER_S, STALE_AFTER_SILENCE_S = 2.0, 1.0
_UNAVAILABLE = (UpstreamUnreachableError, UpstreamRateLimitedError, UpstreamProtocolError)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A snapshot, the revision that was asked for, and whether the hub could not be asked."""

    row: SnapshotRow
    revision: str
    is_stale: bool

    @property
    def snapshot(self) -> Snapshot:
        """Return the file list."""
        return self.row.snapshot


class Librarian:
    """Answers questions about repositories. Event loop only."""

    def __init__(self, context: Context, swarm: Swarm, access: Access) -> None:
        self._context = context
        self._swarm = swarm
        self._access = access
        self._hearsay = Hearsay(context, swarm)
        self._flights = SingleFlight()
        self._refusals = Refusals(context.clock)
        # When each list that is not confirmed may be asked for again; as many as there are.
        self._confirm_at_s: dict[SnapshotId, float] = {}

    async def resolve(
        self,
        reference: ModelReference,
        credentials: Credentials,
        *,
        promise: Promise | None = None,
    ) -> Resolved:
        """
        Return the snapshot that a reference means now.

        The hub is asked at most once per ref_ttl_s; when it does not answer, what is cached
        stands, then what trusted peers say.

        Args:
            promise: What this caller was told a moment ago: stands, whatever has moved since.

        Raises:
            RepositoryNotFoundError, RevisionNotFoundError, UpstreamAuthError: The hub says no.
            UpstreamUnreachableError: The hub does not answer and nothing is cached.
        """
        revision = reference.revision
        if promise is None:
            commit, is_stale = await self._resolve_commit(reference, credentials)
        else:
            commit, is_stale = promise.commit, promise.is_stale
            known = await self._find_ref(reference)
            if known is None or known.commit != commit:
                revision = commit  # the name has moved on, and must not be moved back
        row = await self.get_snapshot(SnapshotId(reference.repo, commit), credentials)
        return Resolved(row, revision, is_stale)

    async def settle(self, repo: RepoId, credentials: Credentials) -> SnapshotRow | None:
        """Return what is known of a first branch, once nobody asks about it for this caller."""
        reference = ModelReference(repo)
        await self._flights.settle((reference, self._mark(credentials)))
        return await self.find_cached(reference)

    async def doubt(self, reference: ModelReference) -> None:
        """Ask anew what a branch is at the next question: what it was has no files any more."""
        known = None if is_commit(reference.revision) else await self._find_ref(reference)
        if known is not None:
            await self._put_ref(reference, known.commit, 0.0)

    async def list_pins(self, repo: RepoId) -> dict[str, str]:
        """Return the commits of branches and tags that are answered without asking the hub."""
        rows = await self._context.index.call(lambda index: index.catalogue.list_refs(repo))
        return {row.revision: row.commit for row in rows if self._is_fresh(row)}

    async def find_cached(self, reference: ModelReference) -> SnapshotRow | None:
        """Return what the index knows of a reference, asking nobody."""
        commit = reference.revision
        if not is_commit(commit):
            ref = await self._find_ref(reference)
            if ref is None:
                return None
            commit = ref.commit
        return await self._find_snapshot(SnapshotId(reference.repo, commit))

    async def get_snapshot(self, snapshot_id: SnapshotId, credentials: Credentials) -> SnapshotRow:
        """
        Return the files of a commit: cached, else from the hub, else from trusted peers.

        A cached list that is somebody's word is replaced by the hub's as soon as that answers: it
        may be short, and what is short looks whole.
        """
        cached = await self._find_snapshot(snapshot_id)
        if cached is not None:
            return cached if cached.is_confirmed else await self._confirm(cached, credentials)
        reference = ModelReference(snapshot_id.repo, snapshot_id.commit)
        await self._flights.run(
            (snapshot_id, self._mark(credentials)),
            lambda: self._refusals.ask(
                (reference, self._mark(credentials)),
                lambda: self._fetch_snapshot(snapshot_id, credentials),
            ),
        )
        row = await self._find_snapshot(snapshot_id)
        assert row is not None, "a fetched snapshot is in the index"
        return row

    async def tell_peer(self, reference: ModelReference, *, asks_hub: bool) -> Heard | None:
        """
        Return what a peer may hear of a reference; None when nothing of it is for sharing.

        Args:
            asks_hub: Ask the hub as for a caller of our own, but only if peers trust each other:
                anybody in reach could else have us ask what they like.

        Raises:
            NotFoundError: The hub says no.
        """
        if asks_hub and self._context.settings.trust_peers:
            try:
                resolved = await self.resolve(reference, ANONYMOUS)
                await self._access.is_public(resolved.snapshot)
            except (SourceError, UpstreamAuthError) as error:
                log.debug("a peer's question about %s was not asked: %s", reference, error)
        row = await self.find_cached(reference)
        if row is None or not await self._access.may_share(row.snapshot):
            return None
        if is_commit(reference.revision):
            return Heard(row.snapshot, 0.0 if row.is_confirmed else None)
        ref = await self._find_ref(reference)
        age_s = None if ref is None else self._context.clock.wall_s() - ref.wall_s
        return Heard(row.snapshot, age_s)

    async def list_branches(self, repo: RepoId) -> list[tuple[str, str]]:
        """Return (name, commit) of the branches and tags that were asked for before."""
        rows = await self._context.index.call(lambda index: index.catalogue.list_refs(repo))
        return [(row.revision, row.commit) for row in rows]

    async def list_public_branches(self, repo: RepoId) -> list[tuple[str, str]]:
        """Return those of list_branches() whose commit the hub gave to an anonymous caller."""
        public = []
        for name, commit in await self.list_branches(repo):
            row = await self._find_snapshot(SnapshotId(repo, commit))
            if row is not None and row.public_wall_s is not None:
                public.append((name, commit))
        return public

    async def close(self) -> None:
        """Stop asking."""
        await self._flights.close()

    # --- revisions ---

    async def _resolve_commit(
        self, reference: ModelReference, credentials: Credentials
    ) -> tuple[str, bool]:
        if is_commit(reference.revision):
            return reference.revision, False
        known = await self._find_ref(reference)
        if known is not None and self._is_fresh(known):
            return known.commit, False
        task = self._flights.start(
            (reference, self._mark(credentials)),
            lambda: self._refusals.ask(
                (reference, self._mark(credentials)),
                lambda: self._ask_for_commit(reference, credentials),
            ),
        )
        # Only now: a question that ended while we wait here would be asked once more.
        if known is not None:
            snapshot_id = SnapshotId(reference.repo, known.commit)
            if not await self._access.knows(snapshot_id, credentials):
                known = None  # for this caller it is as if it were not here
        try:
            if known is not None and not await self._is_prompt(task, reference.repo.hub):
                return known.commit, True
            return await asyncio.shield(task), False
        except _UNAVAILABLE as error:
            if known is not None:
                return known.commit, True
            heard = await self._hearsay.ask_all(reference)
            if heard is None:
                raise self._explain(error) from error
            await self._take_in(heard.snapshot)
            # Not confirmed by the hub: asked again as soon as it answers.
            await self._put_ref(reference, heard.snapshot.id.commit, 0.0)
            return heard.snapshot.id.commit, True

    async def _is_prompt(self, task: asyncio.Task[str], hub: str) -> bool:
        """Wait for an answer as long as a caller can who has something else to go by."""
        is_away = self._access.silences.was_silent(hub)
        wait_s = STALE_AFTER_SILENCE_S if is_away else STALE_AFTER_S
        done, _ = await asyncio.wait({task}, timeout=wait_s)
        return bool(done)

    async def _ask_for_commit(self, reference: ModelReference, credentials: Credentials) -> str:
        """Ask the peer whose turn it is, then the hub, what a revision is; list its files."""
        heard = await self._ask_owner(reference, credentials)
        if heard is not None and heard.age_s is not None:
            wall_s = self._context.clock.wall_s() - heard.age_s
            await self._put_ref(reference, heard.snapshot.id.commit, wall_s)
            return heard.snapshot.id.commit
        answer = await self._resolve_at_hub(reference, credentials)
        snapshot_id = SnapshotId(reference.repo, answer.commit)
        if await self._find_snapshot(snapshot_id) is None:
            await self._list_at_hub(snapshot_id, credentials, answer.about)
        await self._put_ref(reference, answer.commit, self._context.clock.wall_s())
        return answer.commit

    async def _resolve_at_hub(
        self, reference: ModelReference, credentials: Credentials
    ) -> Resolution:
        repo, revision = reference.repo, reference.revision
        try:
            with self._access.silences.asking(repo.hub):
                answer = await self._context.hub.resolve(repo, revision, credentials)
        except (RepositoryNotFoundError, UpstreamAuthError):
            await self._access.note_refused(repo, credentials)
            raise
        self._access.note_known(repo.hub, credentials)
        return answer

    async def _ask_owner(self, reference: ModelReference, credentials: Credentials) -> Heard | None:
        """Take over what the peer heard whose turn it is to ask; public repositories only."""
        if not credentials.is_anonymous:
            return None  # what a token may be for is nobody else's business
        heard = await self._hearsay.ask_owner(reference)
        ttl_s = self._context.settings.ref_ttl_s
        if heard is None or heard.age_s is None:
            return None
        if heard.age_s >= ttl_s and not is_commit(reference.revision):
            return None
        wait_s = self._context.random.uniform(HEARD_CONFIRM_S_MIN, HEARD_CONFIRM_S_MAX)
        confirm_at_s = self._context.clock.monotonic_s() + wait_s
        self._confirm_at_s[heard.snapshot.id] = confirm_at_s
        await self._take_in(heard.snapshot)
        return heard

    # --- file lists ---

    async def _confirm(self, cached: SnapshotRow, credentials: Credentials) -> SnapshotRow:
        """Return what the hub says of a cached list; the list as it is when it says nothing."""
        snapshot_id = cached.snapshot.id
        now_s = self._context.clock.monotonic_s()
        if now_s < self._confirm_at_s.get(snapshot_id, 0.0):
            return cached
        self._confirm_at_s[snapshot_id] = now_s + CONFIRM_PAUSE_S
        try:
            await self._flights.run(
                (snapshot_id, self._mark(credentials)),
                lambda: self._describe_and_list(snapshot_id, credentials),
            )
        except (SourceError, NotFoundError) as error:
            log.debug("the list of %s is not confirmed: %s", snapshot_id, error)
            return cached
        self._confirm_at_s.pop(snapshot_id, None)
        return await self._find_snapshot(snapshot_id) or cached

    async def _describe_and_list(self, snapshot_id: SnapshotId, credentials: Credentials) -> None:
        """Ask the hub for the description of a repository and the files of one commit."""
        reference = ModelReference(snapshot_id.repo, snapshot_id.commit)
        answer = await self._resolve_at_hub(reference, credentials)
        await self._list_at_hub(snapshot_id, credentials, answer.about)

    async def _fetch_snapshot(self, snapshot_id: SnapshotId, credentials: Credentials) -> None:
        reference = ModelReference(snapshot_id.repo, snapshot_id.commit)
        if await self._ask_owner(reference, credentials) is not None:
            return
        try:
            await self._describe_and_list(snapshot_id, credentials)
        except _UNAVAILABLE as error:
            heard = await self._hearsay.ask_all(reference)
            if heard is None:
                raise self._explain(error) from error
            await self._take_in(heard.snapshot)

    async def _list_at_hub(
        self, snapshot_id: SnapshotId, credentials: Credentials, about: dict[str, object] | None
    ) -> None:
        snapshot = await self._context.hub.list_files(snapshot_id, credentials)
        wall_s = self._context.clock.wall_s()
        await self._context.index.call(
            lambda index: index.catalogue.put_snapshot(
                snapshot, is_confirmed=True, about=about, wall_s=wall_s
            )
        )

    async def _take_in(self, snapshot: Snapshot) -> None:
        """Keep a list that a trusted peer gave. It shares what is public only."""
        wall_s = self._context.clock.wall_s()
        await self._context.index.call(
            lambda index: index.catalogue.put_snapshot(
                snapshot, is_confirmed=False, about=None, wall_s=wall_s
            )
        )
        await self._access.note_public(snapshot.id)

    # --- small parts ---

    async def _find_ref(self, reference: ModelReference) -> RefRow | None:
        return await self._context.index.call(
            lambda index: index.catalogue.find_ref(reference.repo, reference.revision)
        )

    async def _find_snapshot(self, snapshot_id: SnapshotId) -> SnapshotRow | None:
        return await self._context.index.call(
            lambda index: index.catalogue.find_snapshot(snapshot_id)
        )

    async def _put_ref(self, reference: ModelReference, commit: str, wall_s: float) -> None:
        row = RefRow(reference.repo, reference.revision, commit, wall_s)
        await self._context.index.call(lambda index: index.catalogue.put_ref(row))

    def _is_fresh(self, row: RefRow) -> bool:
        age_s = self._context.clock.wall_s() - row.wall_s
        return 0 <= age_s < self._context.settings.ref_ttl_s

    def _explain(self, error: SourceError) -> SourceError:
        if self._context.settings.trust_peers or not self._swarm.peers:
            return error
        return UpstreamUnreachableError(
            f"{error} Peers are up; start with --trust-peers to believe what they say of "
            "repositories while the hub is away."
        )

    @staticmethod
    def _mark(credentials: Credentials) -> int:
        return hash(credentials.secret_bytes())
