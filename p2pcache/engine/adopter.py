"""
Owns the story of adopting one cache: read it, learn its file lists, hash and place its files, and
make its snapshots ours.

Knows nothing of jobs and of who asked; read Adopter.run() from top to bottom.
Invariants: a list that the hub did not confirm is recorded as such; only files whose content has
their name are linked; nothing of the cache is changed.
Source: design.md §4; docs/decisions/0011-adoption.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import ExitStack

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import is_commit
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.engine.adoptionfiles import AdoptionFiles, AdoptionWork
from p2pcache.engine.adoptionjob import AdoptionJob, AdoptionMemory, AdoptionState, SnapshotReport
from p2pcache.engine.adoptionlists import AdoptionLists
from p2pcache.engine.adoptionplan import Origin, SnapshotPlan, gather_units
from p2pcache.engine.cache import Cache
from p2pcache.engine.single import see_through
from p2pcache.errors import InputError
from p2pcache.store.catalogue import RefRow
from p2pcache.store.hfcache import FileIdentity, FoundCache, FoundRef, read_cache
from p2pcache.store.index import Index


class Adopter:
    """Adopts caches, several at once if need be. Event loop only."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._context = cache.context
        self._lists = AdoptionLists(cache)
        self._files = AdoptionFiles(cache)
        # A blob has no snapshot before that is recorded: until then it is ours to keep.
        self._works: list[AdoptionWork] = []
        cache.space.holds.busy_checks.append(self._is_needed)

    def _is_needed(self, blob: BlobDigest) -> bool:
        return any(blob in work.here for work in self._works)

    async def run(self, job: AdoptionJob, memory: AdoptionMemory) -> None:
        """
        Look at a cache once and adopt what is new in it.

        Raises:
            InputError: The folder cannot be read.
            StoreError: Our disk failed or is full; what was adopted before stays.
        """
        store_path = self._context.settings.store
        found = await self._context.in_bulk(read_cache, job.order.path, store_path)
        now_s = self._context.clock.monotonic_s()
        fresh = [s for s in found.snapshots if memory.is_new(found, s, now_s=now_s)]
        with ExitStack() as stack:
            for snapshot in fresh:
                stack.enter_context(self._cache.space.holds.holding(snapshot.id))
            await self._cache.space.settle()
            plans = await self._lists.learn_all(job, memory, found, fresh)
            work = AdoptionWork(job, memory, found, gather_units(plans))
            self._works.append(work)
            stack.callback(self._works.remove, work)
            await self._adopt_all(work, plans)
        job.folder_skipped = {**found.skipped, **_list_orphans(job, found)}

    async def _adopt_all(self, work: AdoptionWork, plans: list[SnapshotPlan]) -> None:
        if work.units:
            work.job.state = AdoptionState.HASHING
        try:
            async with asyncio.TaskGroup() as group:
                for plan in plans:
                    self._expect(work, plan)
                for plan in plans:
                    group.create_task(self._adopt_snapshot(work, group, plan, plans))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    def _expect(self, work: AdoptionWork, plan: SnapshotPlan) -> None:
        """Count the files that are to be looked at: the first choice for each content."""
        firsts = [files[0] for files in plan.candidates.values() if files]
        for file in (*firsts, *plan.nameless.values()):
            work.expect(file.identity)

    async def _adopt_snapshot(
        self,
        work: AdoptionWork,
        group: asyncio.TaskGroup,
        plan: SnapshotPlan,
        plans: Iterable[SnapshotPlan],
    ) -> None:
        """Adopt the files of one commit, then make the commit ours; also what was done by then."""
        try:
            for files in plan.candidates.values():
                if files:
                    self._start(work, group, files[0].identity)
            for file in plan.nameless.values():
                self._start(work, group, file.identity)
            for digest, files in plan.candidates.items():
                for file in files:
                    if digest not in work.here:
                        await asyncio.wait({self._start(work, group, file.identity)})
            for file in plan.nameless.values():
                await asyncio.wait({self._start(work, group, file.identity)})
        finally:
            repo = plan.found.id.repo
            is_repo_public = all(p.is_public for p in plans if p.found.id.repo == repo)
            await see_through(self._record(work, plan, is_repo_public=is_repo_public))

    def _start(
        self, work: AdoptionWork, group: asyncio.TaskGroup, identity: FileIdentity
    ) -> asyncio.Task[None]:
        """Begin to adopt a file, or return the task that does."""
        if identity not in work.tasks:
            work.expect(identity)
            work.tasks[identity] = group.create_task(self._files.adopt(work, work.units[identity]))
        return work.tasks[identity]

    async def _record(
        self, work: AdoptionWork, plan: SnapshotPlan, *, is_repo_public: bool
    ) -> None:
        """Make what is here of a commit a snapshot of ours, and say what came of it."""
        for path, file in plan.nameless.items():
            names = work.memory.named.get(file.identity, frozenset())
            chosen = [n for n in sorted(names) if n.algorithm == plan.choose_algorithm(path)]
            if chosen:
                plan.name(path, chosen[0])
        entries = list(plan.entries.values())
        here = await self._list_here(entries)
        snapshot_id = plan.found.id
        refs = [
            ref
            for ref in work.found.refs.get(snapshot_id.repo, [])
            if ref.commit == snapshot_id.commit and not is_commit(ref.revision)
        ]
        notes = _make_notes(plan)
        if here:
            try:
                snapshot = Snapshot.of(snapshot_id, entries)
            except InputError as error:
                notes.append(str(error))
            else:
                await self._publish(plan, snapshot, here, refs, is_repo_public=is_repo_public)
        skipped = plan.skipped | work.list_skipped(plan)
        work.job.snapshots[snapshot_id] = SnapshotReport(
            snapshot_id,
            tuple(ref.revision for ref in refs),
            len(entries),
            len(here),
            plan.origin is Origin.HUB,
            plan.is_public,
            tuple(notes),
            skipped,
            frozenset(plan.candidates),
        )
        if not work.is_unfinished(plan):
            is_settled = plan.origin is Origin.HUB and plan.is_public
            work.memory.note_seen(work.found, plan.found, is_settled=is_settled)

    async def _list_here(self, entries: list[FileEntry]) -> list[FileEntry]:
        def list_proven(index: Index) -> list[FileEntry]:
            rows = [(entry, index.blobs.find(entry.digest)) for entry in entries]
            return [entry for entry, row in rows if row is not None and row.is_proven]

        proven = await self._context.index.call(list_proven)
        return [entry for entry in proven if self._context.store.path_of(entry.digest).exists()]

    async def _publish(
        self,
        plan: SnapshotPlan,
        snapshot: Snapshot,
        here: list[FileEntry],
        refs: list[FoundRef],
        *,
        is_repo_public: bool,
    ) -> None:
        """Record the list if the folder made it; then refs, links, and that it was used."""
        if plan.origin is Origin.FOLDER:
            await self._lists.put_list(snapshot)
            if plan.is_public:
                await self._lists.claim_public(snapshot)
        current = [ref for ref in refs if await self._put_ref(snapshot, ref)]
        tree, store = self._context.tree, self._context.store

        def publish() -> None:
            tree.open_repo(snapshot.id.repo, is_public=is_repo_public)
            if plan.origin is not Origin.FOLDER:
                # A list that may be short would tell clients that the rest does not exist.
                tree.publish_tree(snapshot, here)
            for entry in here:
                tree.publish_file(snapshot.id, entry, store.path_of(entry.digest))
            for ref in current:
                tree.publish_ref(snapshot.id.repo, ref.revision, ref.commit)

        await self._context.in_bulk(publish)
        self._cache.space.note_used(snapshot.id)

    async def _put_ref(self, snapshot: Snapshot, ref: FoundRef) -> bool:
        """Record where a branch points, unless something newer is known; return if it does."""
        repo = snapshot.id.repo

        def put(index: Index) -> bool:
            known = index.catalogue.find_ref(repo, ref.revision)
            if known is not None and known.commit == ref.commit:
                return True
            if known is not None and known.wall_s >= ref.wall_s:
                return False
            # Not confirmed by the hub: asked as soon as it answers.
            index.catalogue.put_ref(RefRow(repo, ref.revision, ref.commit, 0.0))
            return True

        return await self._context.index.call(put)


def _make_notes(plan: SnapshotPlan) -> list[str]:
    notes = []
    if plan.origin is not Origin.HUB:
        whose = "the client's own" if plan.origin is Origin.NOTED else "made from the folder"
        notes.append(f"file list not confirmed by the hub: it is {whose}")
    if plan.nameless:
        notes.append(
            f"{len(plan.nameless)} files have no digest in the cache and were named by the rules "
            "of git-lfs; pull the model when the hub answers to be sure"
        )
    return notes


def _list_orphans(job: AdoptionJob, found: FoundCache) -> dict[str, str]:
    wanted = {digest for report in job.snapshots.values() for digest in report.wanted}
    return {
        file.shown: "no snapshot of the cache needs it"
        for digest, files in found.blobs.items()
        if digest not in wanted
        for file in files
    }
