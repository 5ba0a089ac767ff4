"""
Owns metadata: which commit a revision is, which files a commit has; from here, hub or peers.

Knows nothing of bytes.
Invariants: one answer for `main` for ref_ttl_s, so that HEAD, GET and listing agree; a commit's
listing never changes; what a peer says counts only where the operator trusts peers.
Source: design.md §5 step ③ and §7.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from urllib.parse import quote

from p2pcache.core.credentials import Credentials
from p2pcache.core.messages import snapshot_from_json
from p2pcache.core.refs import ModelReference, RepoId, SnapshotId, is_commit
from p2pcache.core.snapshot import Snapshot
from p2pcache.engine.access import Access
from p2pcache.engine.context import Context
from p2pcache.engine.single import SingleFlight
from p2pcache.engine.swarm import Swarm
from p2pcache.errors import (
    InputError,
    NotFoundError,
    SourceError,
    UpstreamProtocolError,
    UpstreamRateLimitedError,
    UpstreamUnreachableError,
)
from p2pcache.store.catalogue import RefRow, SnapshotRow
from p2pcache.store.index import Index

log = logging.getLogger(__name__)

# A hub that did not answer is not asked again for this long: a waiting client has only 10 s.
UNREACHABLE_PAUSE_S = 5.0
# A list that the hub did not confirm is asked for again after this long, when somebody wants it.
CONFIRM_PAUSE_S = 60.0
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
        self._flights = SingleFlight()
        self._silent_until_s = 0.0
        # When each list that is not confirmed may be asked for again; as many as there are.
        self._confirm_at_s: dict[SnapshotId, float] = {}

    async def resolve(self, reference: ModelReference, credentials: Credentials) -> Resolved:
        """
        Return the snapshot that a reference means now.

        The hub is asked at most once per ref_ttl_s; when it does not answer, what is cached
        stands, then what trusted peers say.

        Raises:
            RepositoryNotFoundError, RevisionNotFoundError, UpstreamAuthError: The hub says no.
            UpstreamUnreachableError: The hub does not answer and nothing is cached.
        """
        commit, is_stale = await self._resolve_commit(reference, credentials)
        row = await self.get_snapshot(SnapshotId(reference.repo, commit), credentials)
        return Resolved(row, reference.revision, is_stale)

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
        await self._flights.run(
            (snapshot_id, self._mark(credentials)),
            lambda: self._fetch_snapshot(snapshot_id, credentials),
        )
        row = await self._find_snapshot(snapshot_id)
        assert row is not None, "a fetched snapshot is in the index"
        return row

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
        wall_s = self._context.clock.wall_s()
        if known is not None and 0 <= wall_s - known.wall_s < self._context.settings.ref_ttl_s:
            return known.commit, False
        try:
            flight = (reference, self._mark(credentials))
            commit = await self._flights.run(
                flight, lambda: self._ask_hub_for_commit(reference, credentials)
            )
            return commit, False
        except _UNAVAILABLE as error:
            if known is not None:
                return known.commit, True
            said = await self._ask_peers_for_commit(reference)
            if said is None:
                raise self._explain(error) from error
            return said, True

    async def _ask_hub_for_commit(self, reference: ModelReference, credentials: Credentials) -> str:
        self._check_not_silent()
        try:
            answer = await self._context.hub.resolve(
                reference.repo, reference.revision, credentials
            )
        except UpstreamUnreachableError:
            self._note_silent()
            raise
        wall_s = self._context.clock.wall_s()
        ref = RefRow(reference.repo, reference.revision, answer.commit, wall_s)
        snapshot_id = SnapshotId(reference.repo, answer.commit)
        if await self._find_snapshot(snapshot_id) is None:
            await self._list_at_hub(snapshot_id, credentials, answer.about)
        await self._context.index.call(lambda index: index.catalogue.put_ref(ref))
        return answer.commit

    async def _ask_peers_for_commit(self, reference: ModelReference) -> str | None:
        snapshot = await self._ask_peers(reference.repo, reference.revision)
        if snapshot is None:
            return None
        # Not confirmed by the hub: asked again as soon as it answers.
        ref = RefRow(reference.repo, reference.revision, snapshot.id.commit, 0.0)
        await self._context.index.call(lambda index: index.catalogue.put_ref(ref))
        return snapshot.id.commit

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
        self._check_not_silent()
        try:
            answer = await self._context.hub.resolve(
                snapshot_id.repo, snapshot_id.commit, credentials
            )
        except UpstreamUnreachableError:
            self._note_silent()
            raise
        await self._list_at_hub(snapshot_id, credentials, answer.about)

    async def _fetch_snapshot(self, snapshot_id: SnapshotId, credentials: Credentials) -> None:
        try:
            await self._describe_and_list(snapshot_id, credentials)
        except _UNAVAILABLE as error:
            if await self._ask_peers(snapshot_id.repo, snapshot_id.commit) is None:
                raise self._explain(error) from error

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

    async def _ask_peers(self, repo: RepoId, revision: str) -> Snapshot | None:
        """Ask trusted peers, one after the other, for a file list."""
        if not self._context.settings.trust_peers:
            return None
        await self._swarm.begin_round()
        kind = "" if repo.kind == "models" else f"{repo.kind}/"
        path = (
            f"/v1/snapshots/{repo.hub}/{quote(kind + repo.name, safe='')}"
            f"/{quote(revision, safe='')}"
        )
        for peer in list(self._swarm.iter_up()):
            try:
                snapshot = snapshot_from_json(await self._swarm.link.get(peer.url, path))
                is_asked_for = snapshot.id.repo == repo and (
                    not is_commit(revision) or snapshot.id.commit == revision
                )
                if not is_asked_for:
                    raise InputError("It answered for another repository.")
            except (SourceError, InputError) as error:
                log.debug("peer %s has no list of %s@%s: %s", peer.name, repo, revision, error)
                continue
            wall_s = self._context.clock.wall_s()

            def put(index: Index, snapshot: Snapshot = snapshot, wall_s: float = wall_s) -> None:
                index.catalogue.put_snapshot(
                    snapshot, is_confirmed=False, about=None, wall_s=wall_s
                )

            await self._context.index.call(put)
            # A peer shares what is public only, and the operator trusts what it says.
            await self._access.note_public(snapshot.id)
            return snapshot
        return None

    # --- small parts ---

    async def _find_ref(self, reference: ModelReference) -> RefRow | None:
        return await self._context.index.call(
            lambda index: index.catalogue.find_ref(reference.repo, reference.revision)
        )

    async def _find_snapshot(self, snapshot_id: SnapshotId) -> SnapshotRow | None:
        return await self._context.index.call(
            lambda index: index.catalogue.find_snapshot(snapshot_id)
        )

    def _check_not_silent(self) -> None:
        if self._context.clock.monotonic_s() < self._silent_until_s:
            raise UpstreamUnreachableError(
                f"The hub {self._context.settings.hf_upstream} does not answer; "
                "check the network, or ask for what is cached."
            )

    def _note_silent(self) -> None:
        self._silent_until_s = self._context.clock.monotonic_s() + UNREACHABLE_PAUSE_S

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
